"""What makes a training step fast on this machine: precision, threads, grouping, optimizer, memory, compiler.

A fresh process for each row trains the same MiniLM on the same sentences of the demo for one epoch, by the
product's own loop. The first row is what a recipe gets by default; each of the others changes one thing. Rows
take turns (A B C, B C A, …), and a figure is the median over the rounds, with the smallest and the largest.

    python benchmarks/training.py
    python benchmarks/training.py --rounds 1 --only threads

About ten minutes on two cores; nothing else should run meanwhile. Compiling needs a C++ compiler; its row
includes the time to compile, as a recipe would. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from transformers.training_args import OptimizerNames

from pressoir.data import sentences
from pressoir.recipe.recipe import Recipe
from pressoir.recipe.sections import DataConfig, TeacherConfig
from pressoir.reporting import LogReporter
from pressoir.sources.resolve import locate
from pressoir.stage import StageContext
from pressoir.store.store import Store
from pressoir.system import runtime
from pressoir.system.runtime import available_cpus, describe_machine, thread_environment

MODEL = "all-minilm-l6-v2"
WARMUP = 5
"""Steps that are not counted, but where compiling is."""


@dataclass(frozen=True)
class Row:
    """One way to train."""

    name: str
    recipe: dict[str, Any] = field(default_factory=dict)
    """Fields of the section `teacher`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of transformers' `Trainer`, over those of the product."""
    threads: int | None = None
    """All available CPUs if None."""
    keeps_blocks: bool = True
    compiles: bool = False


def rows(cpus: int) -> list[Row]:
    """The default, and what differs from it in one thing."""
    other = "float32" if runtime.has_bfloat16() else "bfloat16"
    return [
        Row("default (precision auto)"),
        Row(f"precision {other}", recipe={"precision": other}),
        *(Row(f"threads {count}", threads=count) for count in (1, 2 * cpus)),
        Row("batches not grouped by length", arguments={"group_by_length": False}),
        Row("AdamW, not fused", arguments={"optim": OptimizerNames.ADAMW_TORCH}),
        Row("freed memory not kept", keeps_blocks=False),
        Row("torch.compile", compiles=True),
    ]


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=TeacherConfig().batch_size)
    parser.add_argument("--sentences", type=int, default=960)
    parser.add_argument("--only", default="", metavar="WORD", help="the default, and rows that contain it")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    every = rows(available_cpus())
    if options.child is not None:
        print(json.dumps(train(every[options.child], options)))
        return
    chosen = [index for index, row in enumerate(every) if index == 0 or options.only in row.name]
    found: dict[int, list[dict[str, float]]] = {index: [] for index in chosen}
    failed: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        options.work = Path(folder)
        config = DataConfig(train_samples=options.sentences)
        (options.work / "data").mkdir()
        sentences.save(sentences.load(config, Recipe().seed), options.work / "data", config.max_tokens)
        for turn in range(options.rounds):
            first = turn % len(chosen)
            for index in chosen[first:] + chosen[:first]:
                if index not in failed:
                    measure(every[index], index, options, found, failed)
    report(every, found, failed, options)


def measure(
    row: Row,
    index: int,
    options: argparse.Namespace,
    found: dict[int, list[dict[str, float]]],
    failed: dict[int, str],
) -> None:
    """One round of one row, in a process of its own."""
    print(row.name, file=sys.stderr, flush=True)
    passed = (f"--{name.replace('_', '-')}={getattr(options, name)}" for name in ("batch_size", "work"))
    environment = {**os.environ, **thread_environment(row.threads or available_cpus())}
    child = subprocess.run(
        [sys.executable, __file__, f"--child={index}", *passed],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        failed[index] = child.stderr.strip().splitlines()[-1][:120]
    else:
        found[index].append(json.loads(child.stdout.splitlines()[-1]))


def train(row: Row, options: argparse.Namespace) -> dict[str, float]:
    """One epoch; milliseconds a step, CPU seconds, and peak memory."""
    import torch

    from pressoir.models import loading
    from pressoir.training import heads, loop

    logging.disable(logging.WARNING)
    runtime.use_threads(row.threads or available_cpus())
    torch.manual_seed(0)
    folder = options.work / "data"
    base = locate(MODEL, Store(options.work / "home"))
    tokenizer = loading.load_tokenizer(base)
    tokenizer.model_max_length = sentences.info(folder)["max_tokens"]
    model = heads.to_train(base, folder, lambda message: None)
    if row.compiles:
        model.compile(dynamic=True)
    plain = loop._arguments
    loop._arguments = lambda *given: _changed(plain(*given), row.arguments)
    if not row.keeps_blocks:
        runtime.freed_blocks_kept = nullcontext  # type: ignore[assignment]
    config = TeacherConfig(epochs=1, batch_size=options.batch_size, **row.recipe)
    with tempfile.TemporaryDirectory() as work:
        steps = _Steps(counts_all=row.compiles)
        context = StageContext(out_dir=Path(work), work_dir=Path(work), seed=0, threads=1, reporter=steps)
        loop.fit(model, tokenizer, folder, config, context, what="steps")
    return {
        "ms a step": steps.milliseconds,
        "CPU s": steps.cpu_seconds,
        "peak RSS MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


def _changed(arguments: Any, changes: dict[str, Any]) -> Any:
    for name, value in changes.items():
        setattr(arguments, name, value)
    return arguments


class _Steps(LogReporter):
    """Takes the time of the steps."""

    def __init__(self, counts_all: bool) -> None:
        super().__init__()
        self.after = 0 if counts_all else WARMUP
        self.begun = self.ended = (time.perf_counter(), time.process_time())
        self.count = 0

    def progress(self, done: int, total: int, what: str) -> None:
        """See `Reporter`."""
        now = time.perf_counter(), time.process_time()
        if done <= self.after:
            self.begun = now
        else:
            self.ended, self.count = now, done - self.after

    def message(self, text: str) -> None:
        """See `Reporter`."""

    @property
    def milliseconds(self) -> float:
        """Of a step."""
        return 1000 * (self.ended[0] - self.begun[0]) / self.count

    @property
    def cpu_seconds(self) -> float:
        """Of all processors."""
        return self.ended[1] - self.begun[1]


def report(
    every: list[Row],
    found: dict[int, list[dict[str, float]]],
    failed: dict[int, str],
    options: argparse.Namespace,
) -> None:
    """The table."""
    print("; ".join(f"{name}: {value}" for name, value in describe_machine(available_cpus()).items()))
    print(
        f"\n{MODEL}, batches of {options.batch_size}, {options.sentences} sentences, {options.rounds} rounds"
    )
    print("\n| | ms a step | against the default | CPU s | peak RSS MB |")
    print("|---|---:|---:|---:|---:|")
    default = median(one["ms a step"] for one in found[0])
    for index, rounds in found.items():
        if index in failed:
            print(f"| {every[index].name} | failed: {failed[index]} | | | |")
            continue
        steps = [one["ms a step"] for one in rounds]
        others = " | ".join(f"{median(one[name] for one in rounds):.1f}" for name in ("CPU s", "peak RSS MB"))
        print(
            f"| {every[index].name} | {median(steps):.0f} ({min(steps):.0f}–{max(steps):.0f}) | "
            f"{median(steps) / default:.2f}× | {others} |"
        )


if __name__ == "__main__":
    main()
