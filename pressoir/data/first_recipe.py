"""The recipe that a user begins with: settings that follow from the data, each with the reason beside it.

Fields that keep their default are left out, but for those that a user is likely to change.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pressoir.data import sentences
from pressoir.data.inspection import Inspection, named_splits
from pressoir.data.layout import DELIMITERS
from pressoir.errors import DataError, RecipeError
from pressoir.formats.problems import MULTI_LABEL, REGRESSION
from pressoir.recipe.recipe import Recipe
from pressoir.system import reader
from pressoir.system.reader import shown

UNBALANCED = 2.0
"""`best_metric: auto` means macro F1 where the most frequent label has more than so many times as many rows
as the rarest."""
VERY_UNBALANCED = 5.0
_WIDTH = 110
_HERE = Path("recipe.yaml")
_FEW_ROWS = 5000
_NAME = re.compile(r"[^a-z0-9._-]+")


def name_for(files: dict[str, Path]) -> str:
    """A recipe's name for the data: that of the one file; of several, or of `train.tsv`, the folder's."""
    train = files["train"]
    own = "" if len(files) > 1 or named_splits(train) else train.stem
    words = (own, train.absolute().parent.name, "classifier")
    names = (_NAME.sub("-", word.lower()).strip("._-")[:63] for word in words)
    return next(name for name in names if name)


def recipe_text(found: Inspection, name: str, model: str, output: Path) -> str:
    """The YAML of a recipe that will be written to `output`."""
    lost = "0.03 of its correlation" if found.choice.problem == REGRESSION.name else "3 points"
    files = ", ".join(shown(facts.path.name)[1:-1] for facts in found.splits.values())
    lines = [
        f"# For {files}, by `pressoir init`. `pressoir reference` explains every field.",
        *_line("name", name, "of the run, the MLflow experiment and the registry id"),
        *_line(
            "model", model, "base model: a folder, a catalogue id, hub:org/name@revision or package:module"
        ),
        "data:",
        *_data(found, output),
        *_training(found),
        "prune:",
        *_line(
            "head_sparsity", 0.25, "fraction of the attention heads to remove; less keeps more accuracy", 1
        ),
        *_line("ffn_sparsity", 0.5, "fraction of the feed-forward neurons to remove", 1),
        "quantize:",
        *_line("max_accuracy_drop", 0.01, "layers that int8 would cost more (validation) stay in float32", 1),
        "registry:",
        "  criterion:",
        *_line("min_accuracy_delta", -0.03, f"a model that loses more than {lost} is not promoted", 2),
    ]
    return "\n".join(lines) + "\n"


def first_recipe(
    files: dict[str, Path], found: Inspection, model: str, overrides: Sequence[str]
) -> tuple[str, Recipe, dict[str, int]]:
    """A recipe as it would be written to the current folder, and with overrides; and the rows of each split.

    Raises:
        RecipeError: the model or an override is not valid. DataError: the data cannot be split.
    """
    text = recipe_text(found, name_for(files), model, _HERE)
    sizes = check(text, _HERE)
    raw = reader.parse_yaml(text, "the recipe", RecipeError)
    return text, Recipe.from_dict(raw, overrides, source="the recipe"), sizes


def check(text: str, output: Path) -> dict[str, int]:
    """Read a recipe as `pressoir compress` will, with its data; return the rows of each split.

    Raises:
        RecipeError: a name or the model is not valid. DataError: the data cannot be split.
    """
    raw = reader.parse_yaml(text, str(output), RecipeError)
    recipe = Recipe.from_dict(raw, source="the recipe", folder=output.parent)
    try:
        corpus = sentences.load(recipe.data, recipe.seed)
    except DataError as error:
        if "cannot be held out" not in str(error):
            raise
        raise DataError(
            f"{error}; add rows of the rarest labels, or give a file for each split (train=FILE, "
            "validation=FILE, test=FILE)"
        ) from error
    return {split: len(rows) for split, rows in corpus.splits.items()}


def _data(found: Inspection, output: Path) -> list[str]:
    """The section `data`."""
    settings, layout = found.settings, found.layout
    train, validation = found.splits["train"], found.splits.get("validation")
    lengths = train.lengths
    guess = f"; a guess: it reads {shown(layout.encoding_guess)}" if layout.encoding_guess else ""
    bad = sum(facts.malformed for facts in found.splits.values())
    sampled = (
        f"of the {validation.rows:,} rows of the validation file; more take longer" if validation else ""
    )
    fraction = settings.get("test_fraction", 0.0)
    reasons = {
        "test_fraction": f"no test file: {fraction:.0%} of the training file, drawn by the seed, become the "
        "test split, which only the benchmark reads",
        "validation_samples": sampled
        or "no validation file: so many rows of the training file, on which epochs and layers are chosen",
        "encoding": f"of all text files{guess}",
        "delimiter": f"{DELIMITERS.get(layout.delimiter or '', 'character')} between the columns",
        "quoting": "quotes around a field are not part of it"
        if layout.quoting == "csv"
        else "quotes are part of the text",
        "header": "columns are counted from 0"
        + (f": {layout.header_reason}" if layout.header_reason else ""),
        "on_bad_row": f"rows that cannot be used: {bad:,}; `error` stops at them and lists them",
        "text_column": found.choice.text_reason,
        "text_pair_column": f"the second text of each row, {found.choice.text_pair_reason}",
        "label_column": found.choice.label_reason,
        "problem": _PROBLEMS.get(found.choice.problem, ""),
        "label_separator": "between the labels of a text",
        "max_tokens": f"longer texts are cut: 95% have at most {lengths.p95:,} words, about "
        f"{found.tokens_p95:,} tokens",
    }
    lines = _line("source", "files", "TSV, CSV, JSONL or Parquet", 1)
    for split, facts in found.splits.items():
        lines += _line(split, _path(facts.path, output), f"{facts.rows:,} rows{_PURPOSE[split]}", 1)
    settings = {"text_column": found.choice.text, "label_column": found.choice.label, **settings}
    for field in reasons:
        if field in settings:
            lines += _line(field, settings[field], reasons[field], 1)
    return lines


_PROBLEMS = {
    MULTI_LABEL.name: "a text has any number of labels; thresholds are chosen on validation",
    REGRESSION.name: "a text has a score",
}
_PURPOSE = {
    "train": "",
    "validation": "; epochs and layers are chosen on it",
    "test": "; only for the benchmark",
}


def _training(found: Inspection) -> list[str]:
    """The sections `teacher` and `distill`."""
    train = found.splits["train"]
    few = train.rows < _FEW_ROWS
    epochs = 8 if few else 3
    why = (
        f"{train.rows:,} rows are few: they are read more often" if few else "passes over the training split"
    )
    lines = ["teacher:", *_line("epochs", epochs, why, 1)]
    if found.imbalance > UNBALANCED:
        most, least = (shown(pick(train.labels, key=train.labels.__getitem__)) for pick in (max, min))
        times = f"{most} has {found.imbalance:.3g} times as many rows as {least}"
        lines += _line("best_metric", "macro_f1", f"{times}: accuracy would hardly notice the rarer label", 1)
        if found.imbalance > VERY_UNBALANCED:
            why = "the rarer labels weigh more in the loss; null finds fewer of them, with fewer false alarms"
            lines += _line("class_weights", "balanced", why, 1)
    lines.append("distill:")
    lines += _line("epochs", 6, "more passes bring the student closer to the teacher", 1)
    lines += _line(
        "student", {"layers": None}, "null keeps every second layer of the teacher; 3 would keep three", 1
    )
    return lines


def _path(path: Path, output: Path) -> str:
    """A path as it is found from the current folder, or, where the recipe is elsewhere, from the recipe's."""
    folder = output.parent.resolve()
    if path.is_absolute() or folder == Path.cwd():
        return str(path)
    return os.path.relpath(path.parent.resolve() / path.name, folder)


def _line(key: str, value: Any, comment: str, level: int = 0) -> list[str]:
    """A setting with its comment, which stands above it where the line would be too long."""
    indent = "  " * level
    setting = f"{indent}{key}: {_scalar(value)}"
    comment = comment.replace("\n", " ")
    if len(f"{setting} # {comment}") <= _WIDTH:
        return [f"{setting} # {comment}"]
    above = textwrap.wrap(
        comment, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_on_hyphens=False
    )
    return [*above, setting]


def _scalar(value: Any) -> str:
    """A value on one line of YAML."""
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    text = yaml.safe_dump(
        value, default_style=style, default_flow_style=True, allow_unicode=True, width=float("inf")
    )
    return text.removesuffix("...\n").strip()
