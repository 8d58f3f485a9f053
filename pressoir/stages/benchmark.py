"""Measure every artifact of a run side by side: accuracy, speed, size, memory, load time.

Timings of two programs run one after the other also differ by what else the machine did. So all
models are loaded into ONE process and timed in turn, ten sentences at a time: a disturbance hits all of them
alike. The order of the turns follows a Williams square (E. J. Williams 1949, Aust. J. Sci. Res. A 2:149), in
which every model comes right after every other equally often. A turn begins with five untimed sentences: what
is timed is a model in steady use, not the recovery of the CPU's caches from its neighbour, nor a core shared
with the neighbour's threads, which spin for some milliseconds after a call. Quoted are medians and p95.
Tokenisation is done beforehand; each model's own tokenizer is timed by itself, the tokenizers in turn, for a
smaller vocabulary may cut words into more pieces.

The PyTorch rows run as a good engineer would run them: scaled-dot-product attention, `inference_mode`,
dynamic padding, the same number of threads. Memory and load time come from a fresh process a model
(`pressoir.benchmark.probe`).

A linear classifier, trained on the same data in seconds, has a row of its own
(`pressoir.benchmark.linear_baseline`).

Costs about one and a half times the sum of all timed calls, plus a few seconds a model to start its process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pressoir.errors import PressoirError
from pressoir.extensions.task import task
from pressoir.formats.folder import task_of
from pressoir.recipe.sections import BenchmarkConfig
from pressoir.stage import Stage, StageContext


def run(inputs: Mapping[str, Path], config: BenchmarkConfig, context: StageContext) -> dict[str, float]:
    """Compare the model folders of `inputs` (in order) on the test split of `inputs["data"]`.

    A folder's name is its stage (`teacher_onnx` is the teacher, exported); its runtime follows from what it
    holds, and the task of the first model decides what is measured. Writes `benchmark.json`,
    `comparison.md`, `latencies.json` and pictures, of classifiers also `details.json` (classes, and sentences
    on which the first and the last model differ); returns the final row's metrics.

    Raises:
        PressoirError: no model is given, one fails to load in a fresh process, gives logits that are not
            finite, or has other labels than the data.
    """
    folders = {name: folder for name, folder in inputs.items() if name != "data"}
    if not folders:
        raise PressoirError("the benchmark needs at least one model, the reference")
    compare = task(task_of(next(iter(folders.values())))).part("compare")
    metrics: dict[str, float] = compare(folders, inputs["data"], config, context)
    return metrics


STAGE = Stage(
    name="benchmark",
    version=6,
    kind="report",
    config=BenchmarkConfig,
    run=run,
    measures=lambda config: True,
    memory=lambda _, size: 6 * size.weight_bytes,
)
