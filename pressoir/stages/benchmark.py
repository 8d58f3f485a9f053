"""Measure every artifact of a run side by side: accuracy, speed, size, memory, load time.

Timings of two programs run one after the other differ by whatever else the machine did meanwhile. So all
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

Costs about one and a half times the sum of all timed calls, plus a few seconds a model to start its process.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pressoir.benchmark.classifier_report import Benchmark, headline
from pressoir.benchmark.classifiers import contenders, rows_of, write
from pressoir.benchmark.reports import versions
from pressoir.benchmark.timing import TOKENIZED, in_turn, sentences_to_time, time_classifiers, tokenization_ms
from pressoir.errors import PressoirError
from pressoir.formats.folder import task_of
from pressoir.recipe.sections import BenchmarkConfig
from pressoir.stage import StageContext
from pressoir.system.runtime import describe_machine, use_threads

if TYPE_CHECKING:
    pass

NAME = "benchmark"
VERSION = 3
KIND = "report"


def run(inputs: Mapping[str, Path], config: BenchmarkConfig, context: StageContext) -> dict[str, float]:
    """Compare the model folders of `inputs` (in order) on the test split of `inputs["data"]`.

    A folder's name is its stage (`teacher_onnx` is the teacher, exported); its runtime follows from what it
    holds. Writes `benchmark.json`, `comparison.md`, `latencies.json` and three pictures; returns the final
    row's figures.

    Language models are compared by `pressoir.benchmark.language_models`: the first model decides.

    Raises:
        PressoirError: no model is given, one fails to load in a fresh process, gives logits that are not
            finite, or has other labels than the data.
    """
    folders = {name: folder for name, folder in inputs.items() if name != "data"}
    if not folders:
        raise PressoirError(
            "the benchmark was given no model; the first is what the others are compared with"
        )
    if task_of(next(iter(folders.values()))) == "causal-lm":
        from pressoir.benchmark.language_models import run as compare_language_models

        return compare_language_models(inputs, config, context)
    from pressoir.data.sentences import info, load_split

    test = load_split(inputs["data"], "test")
    texts, expected = list(test["text"]), np.asarray(test["label"])
    use_threads(context.threads)

    contenders = contenders(folders, texts, info(inputs["data"])["labels"], context)
    classifiers = [contender.classifier for contender in contenders]
    sample = sentences_to_time(texts, config.latency_samples, context.seed)
    latency_ms, throughput_per_s = time_classifiers(classifiers, sample, texts, config, context.reporter)
    tokenizing_ms: NDArray[np.float64] = np.median(
        in_turn(
            len(classifiers),
            min(len(sample), TOKENIZED),
            lambda model, item: tokenization_ms(classifiers[model], sample, item),
            lambda done, total: context.reporter.progress(done, total, "tokenizers"),
        ),
        axis=1,
    )  # (models,)

    benchmark = Benchmark(
        recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(context.threads),
        versions=versions(),
        threads=context.threads,
        seed=context.seed,
        test_sentences=len(texts),
        warmup=config.warmup,
        latency_samples=config.latency_samples,
        throughput_batch_size=config.throughput_batch_size,
        throughput_batches=config.throughput_batches,
        tokenization_ms_p50=float(tokenizing_ms[0]),
        rows=rows_of(contenders, expected, latency_ms, tokenizing_ms, throughput_per_s),
    )
    write(benchmark, latency_ms, context.out_dir)
    context.reporter.message(headline(benchmark))
    first, last = benchmark.rows[0], benchmark.rows[-1]
    figures = last.model_dump(exclude={"stage", "runtime"})
    return {
        **{name: float(value) for name, value in figures.items()},
        "reference_accuracy": first.accuracy,
        "reference_latency_ms_p50": first.latency_ms_p50,
        "reference_size_mb": first.size_mb,
    }
