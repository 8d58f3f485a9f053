"""Side by side with what people use today: one teacher, made small and fast by each tool, in one run.

All begin with the same fine-tuned checkpoint, the teacher of a recipe that was run:

- the teacher itself in float32, in PyTorch and, fused, in ONNX Runtime: what the others are measured against;
- optimum-cli: `export onnx`, then `onnxruntime quantize` for this CPU's instruction set;
- Olive, in an environment of its own: conversion, transformer optimizer, dynamic int8;
- ONNX Runtime's own tools: transformer optimizer, pre-processing, `quantize_dynamic`;
- PyTorch's dynamic int8, traced;
- what the recipe made of it.

Each tool's settings are those that its documentation gives for a transformer on a CPU; the table says them. A
tool that cannot be installed, or fails, stays in the table with the reason.

Everything is measured as the benchmark stage measures it: accuracy on the recipe's whole test split (dynamic
int8 at batch 1, since its scale depends on the batch), times of all contenders in turn in one process,
memory and load time in a fresh process.

    pressoir compress configs/demo.yaml
    python benchmarks/peers.py --recipe configs/demo.yaml
    python benchmarks/peers.py --recipe configs/sst2-minilm.yaml \\
        --set data.train=train.tsv --set data.test=dev.tsv

A few minutes, and two more the first time, when Olive is installed; other work on the machine spoils the
figures. Prints Markdown.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import peers_onnx
import peers_torch
from peers_contenders import OURS, ROWS, Contender, Run, contenders, find

from pressoir.benchmark.classifier_report import points
from pressoir.benchmark.probe import Probe
from pressoir.benchmark.reports import versions
from pressoir.benchmark.size import size_mb
from pressoir.benchmark.timing import sentences_to_time, time_classifiers
from pressoir.data import sentences as data
from pressoir.errors import PressoirError
from pressoir.flows.commands.terminal import progress
from pressoir.metrics import wilson_interval
from pressoir.recipe.recipe import Recipe
from pressoir.reporting import Reporter
from pressoir.store.store import Store
from pressoir.system.runtime import available_cpus, describe_machine, thread_environment, use_threads

FASTER, SMALLER = 2.5, 3.5
"""The goal: how many times, against the fastest and the smallest of the peers."""


@dataclass(frozen=True)
class Measured:
    """The figures of a contender."""

    contender: Contender
    correct: int
    sentences: int
    size_mb: float
    """Graph or weights, configuration and tokenizer; MB = 10^6 bytes."""
    p50_ms: float
    p95_ms: float
    per_s: float
    """Sentences a second, in batches."""
    cost: Probe

    @property
    def accuracy(self) -> float:
        """Part of the test split that gets the right label."""
        return self.correct / self.sentences

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %."""
        return wilson_interval(self.correct, self.sentences)


def main() -> int:
    """Parse the command line, let every tool do its work, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, required=True, help="of a classifier, that was run")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="as it was run with",
    )
    parser.add_argument("--home", type=Path, help="Pressoir's (default: $PRESSOIR_HOME, else .pressoir)")
    parser.add_argument(
        "--work", type=Path, default=Path("out/peers"), help="for what the tools write (default out/peers)"
    )
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}"
    )
    options = parser.parse_args()
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        recipe = Recipe.from_yaml(options.recipe, options.overrides)
        threads = recipe.threads or available_cpus()
        os.environ.update(thread_environment(threads))  # the same for all, and for this process
        run = find(recipe, Store(options.home), options.recipe)
        with progress() as reporter:
            known = contenders(run, work)
            measured, missing = measure(run, [known[row] for row in options.rows], reporter)
    except PressoirError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_results(run, measured, missing, work)
    return 0


def measure(
    run: Run, wanted: Sequence[Contender], reporter: Reporter
) -> tuple[list[Measured], dict[str, str]]:
    """Build and measure `wanted`; return the figures, and why there are none of the others, by name.

    Raises:
        PressoirError: there are none at all, or one of ours cannot be loaded.
    """
    config, test = run.recipe.benchmark, data.load_split(run.data, "test")
    texts = list(test["text"])
    folders: dict[Contender, Path] = {}
    costs: dict[Contender, Probe] = {}
    missing: dict[str, str] = {}
    for done, contender in enumerate(wanted, start=1):
        try:
            folder = contender.build()
            costs[contender] = contender.probe(folder, texts[0])
            folders[contender] = folder
        except Exception as error:  # every tool has its own
            if not contender.peer:
                raise
            missing[contender.name] = (str(error).strip() or type(error).__name__).splitlines()[-1]
            reporter.message(f"{contender.name}: {missing[contender.name]}")
        reporter.progress(done, len(wanted), "built and loaded")
    if not folders:
        raise PressoirError("; ".join(f"{name}: {why}" for name, why in missing.items()))

    use_threads(run.threads)
    classifiers, correct = [], []
    for done, (contender, folder) in enumerate(folders.items(), start=1):
        classifier = contender.open(folder)
        expected = np.asarray(data.load_split(run.data, "test", classifier.labels)["label"])
        correct.append(int((classifier.logits(texts).argmax(axis=1) == expected).sum()))
        classifiers.append(classifier)
        reporter.progress(done, len(folders), "accuracy")
    sample = sentences_to_time(texts, config.latency_samples, run.recipe.seed)
    latency_ms, per_s = time_classifiers(classifiers, sample, texts, config, reporter)
    p50, p95 = np.percentile(latency_ms, [50, 95], axis=1)
    rows = []
    for i, (contender, folder) in enumerate(folders.items()):
        traced = folder / peers_torch.MODEL
        mb = size_mb(folder) + (traced.stat().st_size / 1e6 if traced.exists() else 0.0)
        figures = (float(p50[i]), float(p95[i]), float(per_s[i]))
        rows.append(Measured(contender, correct[i], len(texts), mb, *figures, costs[contender]))
    return rows, missing


def print_results(run: Run, measured: Sequence[Measured], missing: dict[str, str], work: Path) -> None:
    """The table, what it was measured on, and whether the goal is met."""
    config = run.recipe.benchmark
    size = config.throughput_batch_size
    columns = (
        "accuracy (95 % interval)",
        "size MB",
        "p50 ms",
        "p95 ms",
        f"sentences/s at {size}",
        "RSS MB",
        "load s",
    )
    print(f"| | {' | '.join(columns)} | settings |\n|---|{'---:|' * len(columns)}---|")
    for row in measured:
        low, high = row.interval
        cells = (
            f"{100 * row.accuracy:.1f} % ({100 * low:.1f}–{100 * high:.1f})",
            *(f"{row.size_mb:.1f}", f"{row.p50_ms:.2f}", f"{row.p95_ms:.2f}", f"{row.per_s:.0f}"),
            *(f"{row.cost.peak_rss_mb:.0f}", f"{row.cost.load_s:.2f}", row.contender.settings),
        )
        print(f"| {row.contender.name} | {' | '.join(cells)} |")
    for name, why in missing.items():
        print(f"| {name} | not measured{' |' * len(columns)} {why} |")
    machine = describe_machine(run.threads)
    used = {**versions(), "optimum-onnx": peers_onnx.version_of("optimum-onnx")}
    if (work / "olive" / "installed").exists():
        used["olive-ai"] = peers_onnx.olive_version(work)
    baselines = ", ".join(f"{row.contender.name} {row.cost.baseline_rss_mb:.0f}" for row in measured)
    print(
        f"\n{run.recipe.name}, {datetime.now(UTC):%Y-%m-%d}; "
        + "; ".join(f"{name}: {value}" for name, value in {**machine, **used}.items())
        + f".\n\np50 and p95 are of the model alone, one sentence at a time, over {config.latency_samples} "
        f"sentences, all contenders in turn in one process; sentences/s over {config.throughput_batches} "
        f"batches. Accuracy is on {measured[0].sentences} test sentences. RSS is the peak of a fresh process "
        f"up to its first sentence; of it the imported libraries take, in MB: {baselines}. "
        "MB = 10⁶ bytes.\n"
    )
    print_goal(measured, missing)


def print_goal(measured: Sequence[Measured], missing: dict[str, str]) -> None:
    """Pressoir against the best of the peers, in each figure."""
    peers = [row for row in measured if row.contender.peer]
    ours = next((row for row in measured if row.contender.name == OURS), None)
    if ours is None or not peers:
        print("The goal is not looked at: that takes the row of Pressoir and one of a peer.")
        return
    behind = []
    for row in peers:
        if ours.accuracy < row.interval[0]:
            behind.append(row)
        print(
            f"- against {row.contender.name}: {points(ours.accuracy - row.accuracy)} points of accuracy, "
            f"{row.p50_ms / ours.p50_ms:.2f}× faster at batch 1, {ours.per_s / row.per_s:.2f}× in batches, "
            f"{row.size_mb / ours.size_mb:.2f}× smaller, "
            f"{row.cost.peak_rss_mb / ours.cost.peak_rss_mb:.2f}× less memory"
        )
    fastest, smallest = min(peers, key=lambda row: row.p50_ms), min(peers, key=lambda row: row.size_mb)
    faster, smaller = fastest.p50_ms / ours.p50_ms, smallest.size_mb / ours.size_mb
    checks = {
        "accuracy equal or better, within the interval of every peer (not below its lower end)": (
            not behind,
            "below that of " + ", ".join(row.contender.name for row in behind) if behind else "of all",
        ),
        f"≥ {FASTER}× faster than the fastest peer": (
            faster >= FASTER,
            f"{faster:.2f}×, {ours.p50_ms:.2f} against {fastest.p50_ms:.2f} ms of {fastest.contender.name}",
        ),
        f"≥ {SMALLER}× smaller than the smallest peer": (
            smaller >= SMALLER,
            f"{smaller:.2f}×, {ours.size_mb:.2f} against {smallest.size_mb:.2f} MB of "
            f"{smallest.contender.name}",
        ),
    }
    for what, (met, figures) in checks.items():
        print(f"- {what}: {'yes' if met else '**no**'} ({figures})")
    named = f", of those that were measured (not {', '.join(missing)})" if missing else ""
    print(f"- Goal: {'yes' if all(met for met, _ in checks.values()) else '**no**'}{named}")


if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(main())
