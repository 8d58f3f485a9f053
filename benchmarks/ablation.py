"""What each option of a recipe costs and gains: added to it alone, and all together.

A recipe is pressed without any of the options (`base`), then once with each, then with all. Rows share every
stage that they agree on, found in the store. The final models are then measured side by side by the benchmark
stage: accuracy on the whole test split, times of all in turn in one process, the fine-tuned teacher in
PyTorch first. Accuracy on the validation split is the final graph's too.

    python benchmarks/ablation.py                                    # the demo
    python benchmarks/ablation.py --only vocabulary augmentation     # base and these
    python benchmarks/ablation.py --recipe configs/sst2-minilm.yaml \\
        --set data.train=train.tsv --set data.test=dev.tsv
    python benchmarks/ablation.py --options mine.yaml    # {options: {NAME: {alone: {distill.epochs: 12}}}}

As long as about a dozen runs of the recipe. Started again, after a kill too, it goes on where it was. An
option that the recipe cannot take keeps a row, which says why. Other work on the machine spoils the times:
`--again` repeats the measurement alone. Prints Markdown; writes `ablation.md`, `ablation.json` and
`ablation.png` into the output folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from ablation_rows import ALL, BASE, TEACHER, Option, Options, Row, Seconds, build, plain, together

from pressoir.benchmark import classifier_report
from pressoir.benchmark.classifier_report import Benchmark, points
from pressoir.data import sentences
from pressoir.errors import PressoirError
from pressoir.flows.commands.terminal import progress, quiet_libraries
from pressoir.inference.text_classification import TextClassifier
from pressoir.metrics import accuracy
from pressoir.pipeline.build import build_stage
from pressoir.pipeline.checks import check_inputs
from pressoir.pipeline.sources import Sources
from pressoir.plots.style import BESIDE_STYLE, COLOURS, INK, STYLE, name_rows, new_figure, set_title
from pressoir.recipe.recipe import Recipe
from pressoir.reporting import Reporter
from pressoir.store.artifact import Artifact
from pressoir.store.store import Store
from pressoir.system.files import write_text_atomic
from pressoir.system.runtime import available_cpus, thread_environment, use_threads

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OPTIONS = {
    "vocabulary": Option(alone={"vocabulary": {}}),
    "4-bit word pieces": Option(alone={"quantize.embeddings": "q4"}),
    "pruning in rounds": Option(alone={"prune.rounds": 2}),
    "altered copies": Option(alone={"augment": {"copies": 2}}, together={}),
    "spans": Option(alone={"augment": {"copies": 0, "spans": 2}}),
    "relation loss": Option(alone={"distill.relation_weight": 1.0}),
    "several seeds": Option(alone={"distill.seeds": 3}, together={}),
    "quantisation-aware recovery": Option(
        alone={"prune.quantization_aware": "int8"}, together={"prune.quantization_aware": "int8_q4"}
    ),
    "no fusion": Option(alone={"export.fuse": False}, together={}),
}
"""The options, and what each sets. What they set is at its default in `base`."""


@dataclass(frozen=True)
class Measured:
    """The figures of a model."""

    row: Row | None
    """None: the teacher's."""
    validation_accuracy: float
    test: classifier_report.BenchmarkRow
    extra_s: float | None
    """Seconds that its stages took to build, less the base's; None where they were built by somebody else."""


def main() -> int:
    """Parse the command line, build every row, measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, default=Path("configs/demo.yaml"), help="of a classifier")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="for all rows",
    )
    parser.add_argument("--options", type=Path, metavar="FILE", help="YAML, instead of the built-in options")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"these rows (base always): {rows_of(OPTIONS)}"
    )
    parser.add_argument("--again", action="store_true", help="measure again what the store has figures of")
    parser.add_argument("--home", type=Path, help="Pressoir's (default: $PRESSOIR_HOME, else .pressoir)")
    parser.add_argument("--output", type=Path, default=Path("out/ablation"), help="default: out/ablation")
    given = parser.parse_args()
    quiet_libraries(verbose=False)
    try:
        recipe = Recipe.from_yaml(given.recipe, given.overrides)
        if recipe.task != "text-classification":
            raise PressoirError(
                f"{given.recipe}: the options are a classifier's, but task is {recipe.task!r}"
            )
        os.environ.update(thread_environment(recipe.threads or available_cpus()))
        options = Options.from_yaml(given.options).options if given.options else OPTIONS
        if unknown := set(given.only or ()) - {*options, ALL}:
            raise PressoirError(f"--only {', '.join(sorted(unknown))}: there are {rows_of(options)}")
        with progress() as reporter:
            ablate(recipe, options, set(given.only or {*options, ALL}), given, reporter)
    except PressoirError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print((given.output / "ablation.md").read_text(encoding="utf-8"))
    return 0


def rows_of(options: Mapping[str, Option]) -> str:
    """What `--only` takes."""
    return ", ".join(repr(name) for name in (*options, ALL))


def ablate(
    recipe: Recipe,
    options: Mapping[str, Option],
    wanted: set[str],
    given: argparse.Namespace,
    reporter: Reporter,
) -> None:
    """Build the rows that are wanted, measure them, write what was found.

    Raises:
        PressoirError: the base cannot be built, or a model cannot be measured.
    """
    from pressoir.flows.compress import pipeline

    store, base = Store(given.home), plain(recipe, options)
    check_inputs(base, Sources(store))
    rows = [Row(BASE, {}), *(Row(name, one.alone) for name, one in options.items() if name in wanted)]
    for number, row in enumerate(rows, start=1):
        reporter.message(f"row {number} of {len(rows) + (ALL in wanted)}: {row.name}")
        build(row, base, pipeline, store, reporter)
        if rows[0].problem:
            raise PressoirError(rows[0].problem)
    if ALL in wanted:
        failed = {row.name for row in rows if row.problem}
        rows.append(together(base, {name: one for name, one in options.items() if name not in failed}))
        reporter.message(f"row {len(rows)} of {len(rows)}: {ALL}")
        build(rows[-1], base, pipeline, store, reporter)
    for row in rows[1:]:
        if row.made and rows[0].made and row.made.data.digest != rows[0].made.data.digest:
            row.made, row.problem = None, "it changes the data, on which all are compared"
    threads = base.threads or available_cpus()
    report, measured = measure(rows, base, store, threads, given.again, reporter)
    folder: Path = given.output
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "benchmarks/ablation.py", *sys.argv[1:]])
    write_text_atomic(folder / "ablation.md", to_markdown(command, rows, measured, report))
    write_text_atomic(folder / "ablation.json", to_json(command, base, rows, measured, report))
    draw(measured, folder / "ablation.png")


def measure(
    rows: Sequence[Row], base: Recipe, store: Store, threads: int, again: bool, reporter: Reporter
) -> tuple[Benchmark, list[Measured]]:
    """Measure the teacher, then every row that has a model, side by side."""
    assert rows[0].made is not None  # without a base there is nothing to compare
    teacher, split = rows[0].made.artifacts[TEACHER], rows[0].made.data
    assert isinstance(teacher, Artifact)
    models = {TEACHER: teacher} | {row.name: row.model for row in rows if row.model is not None}
    inputs = {"data": split, **models}
    found, _ = build_stage(
        "benchmark", base.benchmark, inputs, store, reporter, seed=base.seed, threads=threads, refresh=again
    )
    report = Benchmark.read(store.path(found) / "benchmark.json")
    use_threads(threads)
    by_name, seconds = {row.name: row for row in rows}, Seconds(store)
    measured = []
    for done, (test, model) in enumerate(zip(report.rows, models.values(), strict=True), start=1):
        classifier = TextClassifier.open(store.path(model), threads)
        validation = sentences.load_split(store.path(split), "validation", classifier.labels)
        logits, expected = classifier.logits(list(validation["text"])), np.asarray(validation["label"])
        row, extra = by_name.get(test.stage), None
        if row is not None:
            more, less = seconds.of(row.steps - rows[0].steps), seconds.of(rows[0].steps - row.steps)
            extra = None if more is None or less is None else more - less
        measured.append(Measured(row, accuracy(logits.argmax(axis=1), expected), test, extra))
        reporter.progress(done, len(models), "validation accuracy")
    return report, measured


def to_markdown(command: str, rows: Sequence[Row], measured: Sequence[Measured], report: Benchmark) -> str:
    """The table, what the rows set, and what the figures do not say by themselves."""
    columns = (
        *("validation", "test (95 % interval)", "Δ points", "size MB", "smaller", "p50 ms", "faster"),
        "extra s",
    )
    found = {one.test.stage: one for one in measured}
    base = found[BASE].test
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name in (TEACHER, *(row.name for row in rows)):
        label = "teacher, PyTorch" if name == TEACHER else name if name in (BASE, ALL) else f"+ {name}"
        if name in found:
            lines.append(f"| {label} | {' | '.join(_cells(found[name], base))} |")
        else:
            why = next(row.problem for row in rows if row.name == name).replace("|", "\\|")
            lines.append(f"| {label} | not possible: {why} |{' |' * (len(columns) - 1)}")
    lines += ["", f"`{command}`", ""]
    for row in rows[1:]:
        settings = " ".join(f"--set {shlex.quote(f'{k}={json.dumps(v)}')}" for k, v in row.overrides.items())
        lines.append(f"- {row.name}: `{settings or 'nothing'}`")
    lines += ["", *(f"- {note}" for note in notes(rows, measured, report)), "", report.describe(), ""]
    lines.append(
        f"Δ is of test accuracy, to base. Test accuracy is on {report.test_sentences} sentences, with its "
        "Wilson interval. Smaller and faster are against the teacher. p50 is of the model alone, a sentence "
        f"at a time, over {report.latency_samples} sentences, all models in turn in one process, recorded at "
        f"{report.recorded_at}. Extra s is the wall time in which the row's stages were built, less that of "
        "base's. MB = 10⁶ bytes."
    )
    return "\n".join(lines) + "\n"


def _cells(one: Measured, base: classifier_report.BenchmarkRow) -> list[str]:
    test = one.test
    extra = "" if one.row is None else "not known" if one.extra_s is None else f"{one.extra_s:+.0f}"
    return [
        f"{100 * one.validation_accuracy:.1f} %",
        f"{100 * test.accuracy:.1f} % ({100 * test.accuracy_ci_low:.1f}–{100 * test.accuracy_ci_high:.1f})",
        "reference" if test.stage == BASE else points(test.accuracy - base.accuracy),
        f"{test.size_mb:.2f}",
        f"{test.compression:.1f}×",
        f"{test.latency_ms_p50:.2f}",
        f"{test.speedup:.1f}×",
        "reference" if test.stage == BASE else extra.replace("-", "−"),
    ]


def notes(rows: Sequence[Row], measured: Sequence[Measured], report: Benchmark) -> list[str]:
    """Which differences chance may explain, and what stands behind figures that surprise."""
    found = {one.test.stage: one.test for one in measured if one.row is not None}
    base = found.pop(BASE)
    band = f"{100 * base.accuracy_ci_low:.1f}–{100 * base.accuracy_ci_high:.1f} %"
    inside, outside = list[str](), list[str]()
    for name, test in found.items():
        if test.accuracy != base.accuracy:
            chance = base.accuracy_ci_low <= test.accuracy <= base.accuracy_ci_high
            (inside if chance else outside).append(f"{name} ({points(test.accuracy - base.accuracy)})")
    told = []
    if inside:
        told.append(
            f"Inside base's interval ({band}): {', '.join(inside)}: {report.test_sentences} test sentences "
            "are too few to tell these differences from chance."
        )
    if outside:
        told.append(f"Outside base's interval ({band}), so unlikely to be chance: {', '.join(outside)}.")
    if same := [name for name, test in found.items() if test.accuracy == base.accuracy]:
        told.append(f"No difference in test accuracy: {', '.join(same)}.")
    for row in rows[1:]:
        if row.model is not None and row.model.digest == getattr(rows[0].model, "digest", None):
            told.append(f"{row.name} gives base's very model.")
    for row in rows:
        if row.widened:
            told.append(
                f"{row.name}: for accuracy's sake quantize gave more bits to {', '.join(row.widened)}."
            )
    left = [row.name for row in rows[1:-1] if row.problem]
    if left and rows[-1].name == ALL:
        told.append(f"{ALL} is without {', '.join(left)}.")
    return told


def to_json(
    command: str, base: Recipe, rows: Sequence[Row], measured: Sequence[Measured], report: Benchmark
) -> str:
    """Everything that was found, in full precision; fractions 0–1."""
    found = {one.test.stage: one for one in measured}

    def figures(name: str) -> dict[str, Any]:
        one = found[name]
        return {
            "validation_accuracy": one.validation_accuracy,
            "test_accuracy_delta_to_base": one.test.accuracy - found[BASE].test.accuracy,
            "extra_s": one.extra_s,
            "test": one.test.model_dump(mode="json", exclude={"stage"}),
        }

    return json.dumps(
        {
            "command": command,
            "conditions": report.model_dump(mode="json", exclude={"rows"}),
            "base": base.model_dump(mode="json"),
            "teacher": figures(TEACHER),
            "rows": [
                {
                    "name": row.name,
                    "overrides": row.overrides,
                    "problem": row.problem or None,
                    "digest": row.model and row.model.digest,
                    "widened": row.widened,
                    "figures": figures(row.name) if row.name in found else None,
                }
                for row in rows
            ],
        },
        indent=2,
        ensure_ascii=False,
    )


def draw(measured: Sequence[Measured], path: Path) -> None:
    """Accuracy with its interval, size and latency of every row, beside each other."""
    rows = [one.test for one in measured if one.row is not None]
    teacher, base = measured[0].test, rows[0]
    with mpl.rc_context(STYLE):
        figure = new_figure(12.5, 2.2 + 0.42 * len(rows))
        left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(1.3, 1, 1))
        left.axvspan(
            100 * base.accuracy_ci_low, 100 * base.accuracy_ci_high, color=COLOURS["pytorch"], alpha=0.1
        )
        left.axvline(100 * base.accuracy, color=COLOURS["pytorch"], linewidth=1, linestyle="--")
        for place, row in enumerate(rows):
            mean = 100 * row.accuracy
            spread = [[mean - 100 * row.accuracy_ci_low], [100 * row.accuracy_ci_high - mean]]
            left.errorbar(
                mean, place, xerr=spread, fmt="o", color=INK, capsize=3, markersize=6, linewidth=1.3
            )
        left.set_xlabel("test accuracy, %, 95 % interval (band: base's)")
        _bars(middle, [row.size_mb for row in rows], "{:.1f} MB")
        middle.set_xlabel("size on disk, MB")
        _bars(right, [row.latency_ms_p50 for row in rows], "{:.2f} ms")
        right.set_xlabel("median latency, ms")
        name_rows(left, [row.stage for row in rows])
        figures = f"{100 * teacher.accuracy:.1f} %, {teacher.size_mb:.1f} MB, {teacher.latency_ms_p50:.1f} ms"
        set_title(left, "Each option alone, and all together", f"teacher in PyTorch: {figures}")
        figure.savefig(path)


def _bars(axes: Axes, values: Sequence[float], form: str) -> None:
    for place, value in enumerate(values):
        axes.barh(place, value, height=0.66, color=COLOURS["onnxruntime"])
        axes.annotate(form.format(value), (value, place), (6, 0), textcoords="offset points", **BESIDE_STYLE)
    axes.grid(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.35 * max(values))


if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(main())
