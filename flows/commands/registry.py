"""`pressoir registry …`: models known by name. The commands only print; `pressoir.registry` does the work."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pressoir.errors import SourceError
from pressoir.extensions.loader import names
from pressoir.flows.commands.terminal import console
from pressoir.registry.catalogue import Entry, read, shipped_file
from pressoir.registry.registry import Registry
from pressoir.store.store import Store
from pressoir.system.reader import is_folder

_STYLES = {"ok": "green", "damaged": "red", "unreachable": "yellow"}
# Below this width the table shows what tells models apart, and leaves the rest to `show`.
_WIDE = 100
TASK = click.Choice(names("pressoir.tasks"))


@click.group()
def registry() -> None:
    """Manage registered models: those shipped with Pressoir and your own in $PRESSOIR_HOME."""


def _metrics(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
    metrics = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            metrics[name] = float(number)
        except ValueError:
            metrics[name] = math.nan
        if not name or not math.isfinite(metrics[name]):
            raise click.BadParameter(f"{text!r}: expected name=number, such as perplexity=21.4")
    return metrics


@registry.command("add")
@click.argument("id")
@click.option("--path", type=click.Path(file_okay=False, path_type=Path), help="Folder of the model.")
@click.option("--from", "reference", help="Other reference: hub:org/name, https://…, store:…, an id.")
@click.option("--name", help="Human-readable name [default: the id].")
@click.option(
    "--type",
    "task",
    type=click.Choice(names("pressoir.tasks")),
    help="Task [default: read from config.json].",
)
@click.option("--license", help="SPDX identifier [default: read from README.md].")
@click.option("--licence", "former_license", hidden=True)  # its name in version 0.1.0
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME=NUMBER",
    callback=_metrics,
    help="Metric to record; may be repeated.",
)
@click.option("--quantization", help="Quantisation scheme [default: read from quantization.json].")
@click.option("--mirror", "mirrors", multiple=True, help="Alternative location; may be repeated.")
@click.option("--force", is_flag=True, help="Replace an entry with the same id but different files.")
def add(
    id: str,
    path: Path | None,
    reference: str | None,
    force: bool,
    task: Any,
    former_license: str | None,
    **said: Any,
) -> None:
    """Register a model, or update its entry."""
    from pressoir.sources.describe import NO_LICENSE, Details, register

    if (path is None) == (reference is None):
        raise click.UsageError("specify the location of the model: --path FOLDER or --from REFERENCE")
    if path is not None and not is_folder(path):
        raise SourceError(f"--path {path}: no such folder")
    said["license"] = said["license"] or former_license
    location = str(path.resolve()) if path is not None else str(reference)
    with console.status("reading and hashing the model files"):
        entry, replaced = register(Registry(), id, location, Details(type=task, **said), force=force)
    verb = "registered" if replaced is None else "updated" if replaced.digest == entry.digest else "replaced"
    what = [entry.type, f"{entry.size_mb:.1f} MB", entry.quantization, entry.license]
    if entry.urls.shards:
        what.insert(2, f"{len(entry.urls.shards)} shard{'s' if len(entry.urls.shards) > 1 else ''}")
    _say(f"{verb} {id}: {', '.join(word for word in what if word)}")
    _say(f"  at      {entry.urls.base}")
    _say(f"  digest  {entry.digest}")
    if entry.license == NO_LICENSE:
        _say("  no license found; specify it with --license")
    if replaced is None and id in read(shipped_file()).models:
        _say(f"  it overrides the shipped model with this id; to undo: pressoir registry remove {id}")


@registry.command("list")
@click.option("--type", "task", type=click.Choice(names("pressoir.tasks")), help="Only models of this type.")
@click.option("--json", "as_json", is_flag=True, help="Print complete entries as JSON.")
def list_models(task: str | None, as_json: bool) -> None:
    """List all registered models."""
    the_registry = Registry()
    entries = [entry for entry in the_registry.models().values() if task in (None, entry.type)]
    if as_json:
        click.echo(json.dumps([entry.model_dump(mode="json") for entry in entries], indent=2))
        return
    own, wide = the_registry.own(), not console.is_terminal or console.width >= _WIDE
    table = Table(box=None, pad_edge=False)
    for title in ("id", "type", "MB", "weights", "from", *(("license", "registered") if wide else ())):
        table.add_column(
            title, justify="right" if title == "MB" else "left", overflow="fold", no_wrap=title != "id"
        )
    for entry in sorted(entries, key=lambda entry: entry.id):
        cells = [entry.id, entry.type, f"{entry.size_mb:.1f}", entry.quantization or "float"]
        cells += ["own" if entry.id in own else "shipped"]
        cells += [entry.license, (entry.created_at or "")[:10]] if wide else []
        table.add_row(*map(escape, cells))
    (console if console.is_terminal else Console(width=1000)).print(table)  # a pipe gets one line a model


@registry.command("show")
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="Print the registry entry as JSON.")
def show(id: str, as_json: bool) -> None:
    """Show all details of the model ID."""
    entry = Registry().get(id)
    if as_json:
        click.echo(entry.model_dump_json(indent=2))
        return
    for field, value in entry.model_dump(mode="json").items():
        if field == "urls":
            _field("base", value["base"])
            _field("mirrors", value["mirrors"])
            _field("shards", value["shards"])
        elif isinstance(value, dict):
            _field(field, [f"{name}  {_number(item)}" for name, item in value.items()])
        else:
            _field(field, value)


@registry.command("verify")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--fetch", is_flag=True, help="First download models that are not on this machine.")
def verify(ids: tuple[str, ...], fetch: bool) -> None:
    """Verify the hashes of models (all by default).

    Exit code 1 if a model differs from the registered one. Without --fetch, a model that is not on this
    machine is not an error.
    """
    from pressoir.sources.verify import verify as verify_models

    counts = dict.fromkeys(_STYLES, 0)
    with console.status("hashing"):
        for finding in verify_models(Registry(), ids, fetch=fetch):
            counts[finding.state] += 1
            console.print(
                f"[{_STYLES[finding.state]}]{finding.state:<11}[/]  {escape(finding.id)}", soft_wrap=True
            )
            for line in finding.what.splitlines():
                _say(f"             {line}")
    states = ", ".join(f"{number} {state}" for state, number in counts.items())
    total = sum(counts.values())
    _say(f"{total} model{'' if total == 1 else 's'}: {states}")
    sys.exit(1 if counts["damaged"] or (fetch and counts["unreachable"]) else 0)


@registry.command("remove")
@click.argument("id")
def remove(id: str) -> None:
    """Remove your entry ID; the model files are kept."""
    entry = Registry().remove(id)
    _say(f"removed {id}; the model files remain at {entry.urls.base}")
    if entry.urls.base.startswith("store:"):
        _say("  `pressoir store gc` deletes them once nothing needs them")
    if id in read(shipped_file()).models:
        _say("  the shipped model with this id is visible again")


@registry.command("gc")
@click.option(
    "--store", "and_store", is_flag=True, help="Also remove artifacts that no entry was built from."
)
@click.option(
    "--older-than-days",
    default=30.0,
    show_default=True,
    help="With --store: keep artifacts used within this many days.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed without removing it.")
def gc(and_store: bool, older_than_days: float, dry_run: bool) -> None:
    """Remove your entries whose files no longer exist.

    Entries that also name a location on another machine, the hub or a package are kept.
    """
    from pressoir.sources.verify import is_gone

    the_registry, store = Registry(), Store()
    forgotten: list[Entry] = the_registry.forget(lambda entry: is_gone(entry, store), dry_run=dry_run)
    for entry in forgotten:
        _say(f"{entry.id}: {entry.urls.base} does not exist")
    _say(f"{'would remove' if dry_run else 'removed'} {len(forgotten)} of your entries")
    if and_store:
        kept = the_registry.references(without={entry.id for entry in forgotten})
        removed = store.collect(kept, older_than_days, dry_run)
        for name, size in removed:
            _say(f"{name}: {size / 1e6:.1f} MB")
        verb = "would remove" if dry_run else "removed"
        _say(f"{verb} {len(removed)} from the store, {sum(size for _, size in removed) / 1e6:.1f} MB")


def _field(name: str, value: Any) -> None:
    """One line a value, so that a long digest can be copied whole."""
    values = value if isinstance(value, list) else [value]
    for line, item in enumerate(values or [None]):
        _say(f"{'' if line else name:<15} {'–' if item is None else _number(item)}")


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _say(text: str) -> None:
    console.print(escape(text), soft_wrap=True, highlight=False)
