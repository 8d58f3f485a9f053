"""The demo with several seeds, on sentences that its report does not show apart.

For each seed the recipe is carried out up to the benchmark, and its figures printed: accuracy of the teacher
in PyTorch, of the final model, and of the linear baseline on the same data; size, speed, and the seconds in
which the stages were built. Accuracy is of the test split, of the first 264 of its sentences, and of 50 such
as "The plot is not bad at all." (`pressoir/data/demo/negations.tsv`), which no other file contains.

    python benchmarks/demo.py                                   # seeds 42, 43 and 44
    python benchmarks/demo.py --seeds 42 --set distill.epochs=3

About as long as `make demo` for each seed. Started again, it goes on where it was. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from ablation_rows import TEACHER, Row, Seconds, build

from pressoir.benchmark import linear_baseline
from pressoir.benchmark.classifier_report import Benchmark
from pressoir.data import sentences
from pressoir.errors import PressoirError
from pressoir.flows.commands.terminal import progress, quiet_libraries
from pressoir.flows.compress import pipeline
from pressoir.inference.text_classification import TextClassifier
from pressoir.metrics import accuracy
from pressoir.pipeline.build import build_stage
from pressoir.recipe.recipe import Recipe
from pressoir.reporting import Reporter
from pressoir.store.artifact import Artifact
from pressoir.store.store import Store
from pressoir.system.runtime import available_cpus, describe_machine, thread_environment, use_threads

FIRST = 264
"""Sentences of the test split that were written before the others, and are harder."""
GROUPS = ("test", f"test, first {FIRST}", "negations")


@dataclass(frozen=True)
class Run:
    """What became of one seed; accuracies by group."""

    seed: int
    teacher: dict[str, float]
    final: dict[str, float]
    linear: dict[str, float]
    smaller: float
    faster: float
    size_mb: float
    latency_ms: float
    seconds: float | None


def main() -> int:
    """Parse the command line, run every seed, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44], help="default: 42 43 44")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--home", type=Path, help="Pressoir's (default: $PRESSOIR_HOME, else .pressoir)")
    options = parser.parse_args()
    quiet_libraries(verbose=False)
    try:
        recipe = Recipe.from_yaml(options.recipe, options.overrides)
        threads = recipe.threads or available_cpus()
        os.environ.update(thread_environment(threads))
        store = Store(options.home)
        with progress() as reporter:
            runs = [measure(recipe, seed, threads, store, reporter) for seed in options.seeds]
    except PressoirError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_results(runs)
    print("; ".join(f"{name}: {value}" for name, value in describe_machine(threads).items()))
    return 0


def groups() -> dict[str, list[tuple[str, str]]]:
    """Sentences and their labels."""
    test, negations = (_rows(sentences.DEMO / f"{name}.tsv") for name in ("test", "negations"))
    return dict(zip(GROUPS, (test, test[:FIRST], negations), strict=True))


def _rows(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").split("\n")[1:-1]
    return [(text, label) for text, label, _ in (line.split("\t") for line in lines)]


def measure(recipe: Recipe, seed: int, threads: int, store: Store, reporter: Reporter) -> Run:
    """Build and benchmark the models of one seed, and score them on every group.

    Raises:
        PressoirError: a stage fails.
    """
    reporter.message(f"seed {seed}")
    row = Row(f"seed {seed}", {"seed": seed})
    build(row, recipe, pipeline, store, reporter)
    if row.made is None or row.model is None:
        raise PressoirError(row.problem)
    teacher = row.made.artifacts[TEACHER]
    assert isinstance(teacher, Artifact)
    inputs = {"data": row.made.data, TEACHER: teacher, "shard": row.model}
    found, _ = build_stage("benchmark", recipe.benchmark, inputs, store, reporter, seed=seed, threads=threads)
    last = Benchmark.read(store.path(found) / "benchmark.json").rows[-1]
    use_threads(threads)
    data = store.path(row.made.data)
    return Run(
        seed=seed,
        teacher=_accuracies(TextClassifier.open(store.path(teacher), threads)),
        final=_accuracies(TextClassifier.open(store.path(row.model), threads)),
        linear=_linear(data, seed),
        smaller=last.compression,
        faster=last.speedup,
        size_mb=last.size_mb,
        latency_ms=last.latency_ms_p50,
        seconds=Seconds(store).of(row.steps),
    )


def _accuracies(classifier: TextClassifier) -> dict[str, float]:
    found = {}
    for name, rows in groups().items():
        expected = np.asarray([classifier.labels.index(label) for _, label in rows])
        found[name] = accuracy(classifier.logits([text for text, _ in rows]).argmax(axis=1), expected)
    return found


def _linear(data: Path, seed: int) -> dict[str, float]:
    from datasets import Dataset

    labels, found = sentences.info(data)["labels"], {}
    for name, rows in groups().items():
        texts = [text for text, _ in rows]
        part = Dataset.from_dict({"text": texts, "label": [labels.index(label) for _, label in rows]})
        baseline = linear_baseline.measure(data, part, texts[:20], seed)
        assert baseline is not None
        found[name] = baseline.accuracy
    return found


def print_results(runs: list[Run]) -> None:
    """Accuracies in per cent, and what was gained."""
    print("| seed | sentences | teacher, PyTorch | final model | Δ points | linear baseline | above it |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for name in GROUPS:
        for run in runs:
            print(f"| {run.seed} | {name} | {_cells(run.teacher[name], run.final[name], run.linear[name])}")
        means = [mean(getattr(run, side)[name] for run in runs) for side in ("teacher", "final", "linear")]
        print(f"| mean | {name} | {_cells(*means)}")
    print("\n| seed | size MB | smaller | p50 ms | faster | stages built in, s |")
    print("|---:|---:|---:|---:|---:|---:|")
    for run in runs:
        seconds = "not known" if run.seconds is None else f"{run.seconds:.0f}"
        print(
            f"| {run.seed} | {run.size_mb:.2f} | {run.smaller:.1f}× | {run.latency_ms:.2f} | "
            f"{run.faster:.1f}× | {seconds} |"
        )
    print()


def _cells(teacher: float, final: float, linear: float) -> str:
    delta, above = 100 * (final - teacher), 100 * (final - linear)
    return (
        f"{100 * teacher:.1f} | {100 * final:.1f} | {delta:+.1f} | {100 * linear:.1f} | {above:+.1f} |"
    ).replace("-", "−")


if __name__ == "__main__":
    sys.exit(main())
