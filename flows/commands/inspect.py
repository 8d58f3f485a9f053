"""`pressoir inspect`: what a model is, and what Pressoir can do with it, before any work."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from pressoir.flows.commands.terminal import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pressoir.models.parts import Stack
    from pressoir.pipeline.inspection import Inspection, PartSize, StackSize

_IN_LAYERS = ("attention", "feed_forward", "norms")
_RUNTIMES = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime"}
_PARTS = {
    "word_embeddings": "word embeddings",
    "position_embeddings": "position embeddings",
    "attention": "attention",
    "feed_forward": "feed-forward",
    "norms": "norms",
    "head": "head",
    "other": "other",
}
_WIDEST_LIST = 8  # labels, or sizes by layer, that a line names


@click.command("inspect")
@click.argument("model", metavar="FOLDER|ID")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON; sizes are in bytes.")
def inspect(model: str, as_json: bool) -> None:
    """Print what a model is: architecture, stages that take it, parameters, memory.

    FOLDER|ID is a model folder (safetensors, also packed or int8; ONNX; sharded), a registry id or a hub id.
    Configuration and headers are read, weights are not loaded, and nothing is run.

    \b
      pressoir inspect out/demo/model
      pressoir inspect all-minilm-l6-v2 --json
    """
    from pressoir.pipeline.inspection import inspect_model

    found = inspect_model(model)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    _print_facts(found)
    _print_stages(found)
    _print_parts(found)


def _print_facts(found: Inspection) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    limit = f", at most {found.max_tokens} tokens" if found.max_tokens is not None else ""
    runtime = _RUNTIMES[found.runtime]
    rows = {
        "model": found.reference,
        "type": f"{found.model_type or 'unknown'} ({found.architecture or 'no architecture named'})",
        "task": ", ".join(found.tasks) or "none known",
        "supported": f"no: {found.unsupported}" if found.unsupported else f"yes, run by {runtime}",
        "weights": found.quantization or "floating point",
        **{_title("layers", stack.stack): _stack(stack) for stack in found.stacks},
        "width": _count(found.width),
        "vocabulary": _count(found.vocabulary),
        "positions": _count(found.positions),
        "input": "pairs of texts" if found.pairs else "",
        "labels": _listed(found.labels, f"{len(found.labels)}: ") if found.labels else "",
        "tokenizer": f"{found.tokenizer or 'none'}{limit}",
        "on disk": ", ".join(f"{kind} {_mb(size)}" for kind, size in found.files.items()),
    }
    if found.memory is not None:
        memory = found.memory
        rows["peak memory"] = (
            f"about {_mb(memory.load)} to load, {_mb(memory.run)} to run {memory.sample} "
            "(process and libraries included)"
        )
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(value))
    console.print(table, highlight=False)


def _print_stages(found: Inspection) -> None:
    """The stages that take the model in a line, then each reason with the stages that have it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("stages", ", ".join(stage.stage for stage in found.stages if stage.possible) or "none")
    reasons = dict[str, list[str]]()
    for stage in found.stages:
        if stage.reason is not None:
            reasons.setdefault(stage.reason, []).append(stage.stage)
    for reason, stages in reasons.items():
        what = "the model is not supported, see above" if reason == found.unsupported else reason
        table.add_row("", escape(f"not {', '.join(stages)}: {what}"))
    console.print()
    console.print(table, highlight=False)


def _print_parts(found: Inspection) -> None:
    """A row for each part, those of a stack's layers below their sum."""
    table = Table("part", box=None, pad_edge=False)
    for name in ("parameters", "share", "bits/weight", "MB"):
        table.add_column(name, justify="right")
    for stack, parts in groupby(found.parts, key=lambda part: part.part in _IN_LAYERS and part.stack):
        group = list(parts)
        if stack is not False:
            table.add_row(*_row(_title("layers", stack), group, found.parameters))
        for part in group:
            title = _PARTS[part.part]
            table.add_row(*_row(title if stack is False else f"  {title}", [part], found.parameters))
    table.add_row(*_row("all", found.parts, found.parameters))
    console.print()
    console.print(table, highlight=False)


def _row(title: str, parts: Sequence[PartSize], total: int) -> tuple[str, ...]:
    parameters, stored = (sum(getattr(part, field) for part in parts) for field in ("parameters", "bytes"))
    if not parameters:  # a tied head that is stored again
        return title, "0", "", "", f"{stored / 1e6:.2f}"
    share, bits = f"{parameters / total:.1%}", f"{8 * stored / parameters:.2f}"
    return title, f"{parameters:,}", share, bits, f"{stored / 1e6:.2f}"


def _title(name: str, stack: Stack) -> str:
    return f"{stack} {name}".lstrip()


def _stack(stack: StackSize) -> str:
    groups = f" ({stack.key_value_heads} of keys and values)" if stack.key_value_heads else ""
    heads, width = _sizes(stack.heads), _sizes(stack.feed_forward)
    return f"{stack.layers}, heads {heads}{groups}, feed-forward width {width}"


def _sizes(sizes: int | tuple[int, ...]) -> str:
    """One size, or one a layer."""
    return str(sizes) if isinstance(sizes, int) else _listed(tuple(map(str, sizes)), "by layer ")


def _listed(names: tuple[str, ...], title: str) -> str:
    more = f", … {len(names) - _WIDEST_LIST} more" if len(names) > _WIDEST_LIST else ""
    return title + ", ".join(names[:_WIDEST_LIST]) + more


def _count(number: int | None) -> str:
    return f"{number:,}" if number else ""


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 10**5 else f"{size / 1e3:.1f} kB"
