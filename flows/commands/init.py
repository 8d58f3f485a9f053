"""`pressoir init`: what a user's data files hold, and a first recipe for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from pressoir.data import columns, first_recipe, layout
from pressoir.data.inspection import Inspection, SplitFacts, inspect, splits_of
from pressoir.errors import RecipeError, StoreError
from pressoir.flows.commands.terminal import console
from pressoir.formats.problems import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from pressoir.recipe.recipe import Recipe
from pressoir.system.files import disk_errors, write_text_atomic
from pressoir.system.reader import exists, named, shown

_LISTED = 12
"""Labels, and kinds of malformed rows, that are printed."""


def table_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how files of labelled texts are read, where that is not found by itself."""
    for option in (
        click.option("--encoding", help="Encoding of the files, such as cp1251, if it is not recognised."),
        click.option(
            "--label-column", metavar="COLUMN", help="Column of the label: a name, or an index from 0."
        ),
        click.option(
            "--text-pair-column",
            metavar="COLUMN",
            help="Column of a second text: a name, or an index from 0.",
        ),
        click.option(
            "--text-column", metavar="COLUMN", help="Column of the text: a name, or an index from 0."
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default="recipe.yaml",
    show_default=True,
    help="Recipe to write.",
)
@click.option("--force", is_flag=True, help="Replace the recipe if it exists.")
@click.option("--name", help="Name of the recipe [default: that of the file, or of its folder].")
@click.option(
    "--model",
    default=Recipe.model_fields["model"].default,
    show_default=True,
    help="Base model: folder, catalogue id or hub id.",
)
@table_options
def init(
    data: tuple[str, ...],
    output: Path,
    force: bool,
    name: str | None,
    model: str,
    text_column: str | None,
    text_pair_column: str | None,
    label_column: str | None,
    encoding: str | None,
) -> None:
    """Inspect DATA, files of labelled texts, and write a first recipe for `pressoir compress`.

    DATA is one file (TSV, CSV, JSONL or Parquet), or one for each split, recognised by its name (train; dev,
    valid or validation; test) or named as in train=a.csv test=b.csv. Splits without a file are held out from
    the training file.

    \b
      pressoir init reviews.csv
      pressoir init train.tsv dev.tsv test.tsv --output reviews.yaml
      pressoir compress recipe.yaml --dry-run
    """
    if exists(output) and not (force and output.is_file()):
        raise RecipeError(f"{named(output)} exists; specify another --output, or --force to replace a recipe")
    files, inspection = examine(data, text_column, label_column, encoding, text_pair_column)
    text = first_recipe.recipe_text(inspection, name or first_recipe.name_for(files), model, output)
    sizes = first_recipe.check(text, output)
    print_findings(inspection, sizes)
    try:
        with disk_errors(output):
            write_text_atomic(output, text)
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"{named(output)} cannot be written: {reason}; specify another --output") from error
    console.print(escape(f"recipe     {output}"), soft_wrap=True)
    console.print(escape(f"next       pressoir compress {output} --dry-run"), soft_wrap=True)


def examine(
    data: Sequence[str],
    text_column: str | None,
    label_column: str | None,
    encoding: str | None,
    text_pair_column: str | None,
) -> tuple[dict[str, Path], Inspection]:
    """Inspect files of labelled texts, and print what they hold; return the file of each split, too.

    Raises:
        DataError: a file cannot be read, or is not a table of texts with one label each.
    """
    files = splits_of(data)
    found = layout.find(files["train"], encoding)
    _print_layout(found, files)
    choice = columns.choose(found.columns, found.rows, text_column, label_column, text_pair_column)
    _print_choice(found, choice)
    inspection = inspect(files, found, choice, encoding)
    _print_splits(inspection)
    return files, inspection


_PROBLEMS = {
    MULTI_LABEL.name: "a text has any number of labels",
    REGRESSION.name: "a text has a score, as its numbers are not whole",
}


def _say(topic: str, text: str) -> None:
    console.print(f"[bold]{topic:<10}[/] {escape(text)}", soft_wrap=True)


def _print_layout(found: layout.Layout, files: Mapping[str, Path]) -> None:
    for split, path in files.items():
        _say(split, named(path))
    parts = [found.path.suffix[1:].upper()]
    if found.encoding is not None:
        parts.append(found.encoding.upper() if found.encoding.startswith("utf") else found.encoding)
    if found.encoding_guess is not None:
        parts[-1] += f" (a guess, as it is not UTF-8: check that {shown(found.encoding_guess)} reads right)"
    if found.delimiter is not None:
        name = layout.DELIMITERS[found.delimiter]
        parts.append(f"columns separated by a {name}")
        parts.append("fields quoted as in CSV" if found.quoting == "csv" else "quotes are part of the text")
    _say("format", "; ".join(parts))
    if found.header_reason is not None:
        _say("header", f"{'yes' if found.header else 'no'}: {found.header_reason}")


def _print_choice(found: layout.Layout, choice: columns.Choice) -> None:
    _say("text", f"column {shown(choice.text)} ({choice.text_reason})")
    _say("label", f"column {shown(choice.label)} ({choice.label_reason})")
    if choice.problem != SINGLE_LABEL.name:
        _say("problem", f"{choice.problem}: {_PROBLEMS[choice.problem]}")
    if choice.text_pair is not None:
        _say("text pair", f"column {shown(choice.text_pair)} ({choice.text_pair_reason})")
    read = (choice.text, choice.text_pair, choice.label)
    others = [shown(key) for key in found.columns if key not in read]
    if others:
        _say("not read", ", ".join(others))


def _print_splits(found: Inspection) -> None:
    for split, reason in found.left_out.items():
        _say(split, f"left out: the file {reason}")
    table = Table("split", box=None, pad_edge=False)
    words = ("median\nwords", "p95\nwords", "longest\nwords")
    for column in ("rows", *words, "copies", "conflicts", "malformed"):
        table.add_column(column, justify="right")
    for split, facts in found.splits.items():
        lengths = (facts.lengths.median, facts.lengths.p95, facts.lengths.longest)
        counts = (facts.rows, *lengths, facts.repeated, facts.conflicting, facts.malformed)
        table.add_row(split, *(f"{count:,}" for count in counts))
    console.print()
    console.print(table)
    console.print()
    if found.choice.problem == REGRESSION.name:
        for split, facts in found.splits.items():
            if facts.scores is not None:
                _say("scores", f"{split}: from {facts.scores[0]:g} to {facts.scores[1]:g}")
    else:
        console.print(_labels(found.splits))
    console.print()


def _labels(splits: Mapping[str, SplitFacts]) -> Table:
    table = Table("label", box=None, pad_edge=False)
    for split in splits:
        table.add_column(split, justify="right")
    names = list(dict.fromkeys(label for facts in splits.values() for label in facts.labels))
    for label in names[:_LISTED]:
        counts = [(facts.labels.get(label, 0), facts.rows) for facts in splits.values()]
        table.add_row(escape(shown(label)), *(f"{count:,} ({count / rows:.1%})" for count, rows in counts))
    if len(names) > _LISTED:
        table.add_row(f"and {len(names) - _LISTED} more")
    return table


def print_findings(found: Inspection, sizes: Mapping[str, int]) -> None:
    """What follows from the data, and the rows of each split."""
    train = found.splits["train"]
    for split, facts in found.splits.items():
        for problem, lines in list(facts.problems.items())[:_LISTED]:
            listed = ", ".join(map(str, lines[:5])) + ", …" * (len(lines) > 5)
            _say("malformed", f"{split}: {problem}, left out: {len(lines):,} (line {listed})")
        if facts.repeated:
            _say("copies", f"{split}: rows that repeat a text with the same label: {facts.repeated:,}")
        if facts.conflicting:
            _say(
                "conflicts",
                f"{split}: texts with more than one label, to be corrected: {facts.conflicting:,}",
            )
    for (first, second), count in found.overlaps.items():
        _say("copies", f"texts of {first} that are also in {second}, dropped from {first}: {count:,}")
    if found.imbalance > first_recipe.UNBALANCED:
        most = max(train.labels.values()) / train.rows
        text = f"always the most frequent label is right in {most:.1%}; the best epoch is chosen by macro F1"
        weighted = found.imbalance > first_recipe.VERY_UNBALANCED
        _say("balance", text + ", and rarer labels weigh more (class_weights: balanced)" * weighted)
    _say(
        "max_tokens",
        f"{found.max_tokens} (95% of the training texts have at most about {found.tokens_p95:,} tokens)",
    )
    held_out = {split: " (held out of train)" * (split not in found.splits) for split in sizes}
    _say("splits", ", ".join(f"{split} {rows:,} rows{held_out[split]}" for split, rows in sizes.items()))
