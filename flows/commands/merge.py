"""`pressoir merge`: several fine-tunes of one model become one."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from rich.markdown import Markdown
from rich.markup import escape

from pressoir.config import plain, validate
from pressoir.data.texts import PAIR
from pressoir.errors import DataError, SourceError
from pressoir.extensions.task import task
from pressoir.flows.commands.standalone import stage_output
from pressoir.flows.commands.terminal import console, progress
from pressoir.recipe.sections import DataConfig, MergeConfig, TextConfig

METHODS = ("linear", "slerp", "ties", "dare_ties", "dare", "dare_linear", "passthrough")
_NUMBER = re.compile(r"-\.?\d")


class ManyValues(click.Command):
    """A command whose repeatable options take several values after one flag, too: `--models A B C`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write the flag before each of its values, which is what click understands."""
        many = {
            name
            for param in self.params
            if isinstance(param, click.Option) and param.multiple
            for name in param.opts
        }
        return super().parse_args(ctx, list(_one_value_a_flag(args, many)))


def _one_value_a_flag(args: Iterable[str], many: set[str]) -> Iterator[str]:
    flag, has_value = None, False
    for arg in args:
        if arg.startswith("-") and not _NUMBER.match(arg):
            name, equals, _ = arg.partition("=")
            flag, has_value = name if name in many else None, bool(equals)
        elif flag is not None:
            if has_value:
                yield flag
            has_value = True
        yield arg


@click.command(cls=ManyValues)
@click.option("--models", multiple=True, required=True, metavar="MODEL MODEL …", help="Models to merge.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="slerp",
    show_default=True,
    help="Merge method; dare is an alias of dare_ties.",
)
@click.option(
    "--ratios", type=float, multiple=True, metavar="R R …", help="Weight per model; slerp: t = second / sum."
)
@click.option(
    "--base", metavar="MODEL", help="Model they were fine-tuned from (ties, dare) [default: the first]."
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Output folder; an existing merge is replaced.",
)
@click.option("--seed", default=42, show_default=True, help="Random seed of dare.")
@click.option(
    "--evaluate",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    metavar="FILE …",
    help="Text files to measure perplexity on, or, for classifiers, a table with text and label "
    "[default: the embedded reviews].",
)
@click.option(
    "--t",
    type=float,
    multiple=True,
    metavar="T …",
    help="slerp: interpolation parameter, instead of --ratios; several values are interpolated over layers.",
)
@click.option(
    "--density",
    type=float,
    multiple=True,
    metavar="D …",
    help="ties, dare: fraction of changes to keep; several values are interpolated over layers.",
)
@click.option(
    "--slices",
    multiple=True,
    metavar="M:A-B …",
    help="Build the result from layers A to B-1 of model M (both from 0).",
)
@click.option(
    "--tokenizer-source", metavar="union|base|M", help="Tokenizer of the result if vocabularies differ."
)
@click.option(
    "--allow-crimes",
    is_flag=True,
    help="Merge even if models differ; incompatible tensors are taken from the base.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE …",
    help="Set any field of the recipe section `merge`, such as normalize=false.",
)
def merge(
    models: tuple[str, ...],
    method: str,
    ratios: tuple[float, ...],
    base: str | None,
    output: Path,
    seed: int,
    evaluate: tuple[Path, ...],
    overrides: tuple[str, ...],
    **extras: Any,
) -> None:
    """Merge fine-tuned models of one architecture without training.

    A model is a folder, a catalogue id or a hub id. Architectures, shapes, vocabularies, memory and disk
    space are checked before merging, and all problems are reported at once. Afterwards the parents and the
    result are evaluated on the same data (merge_report.md in --output).

    \b
      pressoir merge --models A B --ratios 0.5 0.5 --method slerp --output out/merged
      pressoir merge --models A B --base BASE --method ties --density 0.5 --output out/merged
    """
    from pressoir.merging.preflight import preflight
    from pressoir.stages import merge as stage

    raw: dict[str, Any] = {"models": list(models), "method": "dare_ties" if method == "dare" else method}
    raw |= {"base": base, "ratios": list(ratios) or None, **_fields(extras)}
    config = validate(MergeConfig, plain(raw, overrides, "pressoir merge"), "pressoir merge")
    inputs, problems = _locate(config.models, config.base)
    preflight(config, inputs, output, problems)
    with (
        progress() as reporter,
        stage_output(output, stage.CONFIG, reporter, seed=seed) as context,
        tempfile.TemporaryDirectory() as folder,
    ):
        if evaluate:
            inputs["data"] = _data(evaluate, inputs["parent_0"], Path(folder))
        stage.run(inputs, config, context)
    console.print(Markdown((output / "merge_report.md").read_text(encoding="utf-8")))
    console.print(escape(f"merged: {output}"), soft_wrap=True)


def _fields(extras: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the configuration, from the options of the same name."""
    fields: dict[str, Any] = {"allow_crimes": extras["allow_crimes"]}
    for name in ("t", "density"):
        if values := extras[name]:
            fields[name] = values[0] if len(values) == 1 else list(values)
    if extras["slices"]:
        fields["slices"] = [_slice(text) for text in extras["slices"]]
    if (source := extras["tokenizer_source"]) is not None:
        fields["tokenizer_source"] = int(source) if source.isdigit() else source
    return fields


def _slice(text: str) -> dict[str, Any]:
    """`0:2-6,1:2-6` is layers 2 to 5 of two models, merged; a passthrough names one model."""
    sources = []
    for piece in text.split(","):
        match = re.fullmatch(r"(\d+):(\d+)-(\d+)", piece)
        if match is None:
            raise click.BadParameter(
                f"{text!r}: expected model:first-end, such as 0:0-4", param_hint="--slices"
            )
        model, first, end = map(int, match.groups())
        sources.append({"model": model, "layer_range": [first, end]})
    return {"sources": sources}


def _locate(models: Iterable[str], base: str | None) -> tuple[dict[str, Path], list[str]]:
    """The folders of the models that are found, and what is wrong with the others."""
    from pressoir.sources import resolve

    references = {f"parent_{i}": reference for i, reference in enumerate(models)}
    if base is not None:
        references["base"] = base
    found, problems = {}, []
    for name, reference in references.items():
        try:
            found[name] = resolve.resolve(reference).folder
        except SourceError as error:
            problems.append(str(error))
    return found, problems


def _data(files: tuple[Path, ...], model: Path, folder: Path) -> Path:
    """A folder of evaluation data, in the form that measures what `model` is for.

    Raises:
        DataError: a file is not text, or not a table of text and label.
    """
    from pressoir.data import classes, running_text, sentences, tables
    from pressoir.formats.folder import task_of

    if task(task_of(model)).kind != "classifier":
        names: dict[str, Path] = {}
        for file in files:
            stem = re.sub(r"[^a-z0-9_-]", "-", file.stem.lower()).strip("-_")[:28] or "text"
            name = stem if stem not in names else f"{stem}-{len(names)}"
            names[name] = file
        running_text.save(TextConfig(evaluation=names), folder)
        return folder
    if len(files) > 1:
        raise DataError(f"--evaluate: {len(files)} files given, but a classifier is evaluated on one table")
    rows = tables.read_rows(files[0], _columns(files[0]))
    labels = classes.in_order(label for _, label in rows)
    pairs = {} if isinstance(rows[0][0], str) else {PAIR: True}
    (folder / sentences.INFO).write_text(json.dumps({"labels": labels, **pairs}), encoding="utf-8")
    lines = (json.dumps({**sentences.columns_of(text), "label": labels.index(label)}) for text, label in rows)
    (folder / "validation.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _columns(table: Path) -> DataConfig:
    """Where a table's text and labels are: in columns of these names, else in the first two; the second text
    of pairs is in `text_pair`, which only a table with these names has."""
    if table.suffix in (".tsv", ".csv"):
        with table.open(encoding="utf-8-sig", errors="replace") as file:
            first = file.readline().strip()
        names = set(re.split(r"[\t,]", first))
        if not {"text", "label"} <= names:
            return DataConfig(header=False, text_column=0, label_column=1)
        if PAIR in names:
            return DataConfig().model_copy(update={"text_pair_column": PAIR})
    return DataConfig()
