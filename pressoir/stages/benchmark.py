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
(`pressoir.inference.probe`).

Costs about one and a half times the sum of all timed calls, plus a few seconds a model to start its process.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

import pressoir
from pressoir.comparison import Benchmark, Row, headline, to_markdown
from pressoir.errors import PressoirError
from pressoir.formats.folder import GRAPH, Runtime, task_of
from pressoir.inference.engines.classifier import Engine
from pressoir.inference.probe import Probe, probe
from pressoir.metrics import accuracy, f1, wilson_interval
from pressoir.recipe.sections import BenchmarkConfig
from pressoir.reporting import Reporter
from pressoir.stage import StageContext
from pressoir.system.runtime import describe_machine, use_threads

if TYPE_CHECKING:
    from pressoir.inference.text_classification import TextClassifier

NAME = "benchmark"
VERSION = 3
KIND = "report"

RESULT, TABLE, LATENCIES = "benchmark.json", "comparison.md", "latencies.json"
# What a folder needs to be opened: weights, graph, configuration, tokenizer. Reports do not count as size.
_MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "*.onnx", "*.onnx_data", "*.onnx.data"),
    *("config.json", "generation_config.json", "quantization.json", "shard_manifest.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "*.model"),
)
# Initializers that belong to a quantised tensor without being weights.
_NOT_WEIGHTS = ("_scale", "_scales", "_zero_point", "_zero_points", "_zp", ".scale", ".zero_point")

TURN = 10
"""Sentences timed in one turn of a model; half as many before them are not timed."""
BATCHES_A_TURN = 2
TOKENIZED = 300
"""Sentences over which a tokenizer's median is taken, at most."""

Inputs = Mapping[str, NDArray[np.int64]]
Figure = TypeVar("Figure")


@dataclass(frozen=True)
class _Contender:
    stage: str
    folder: Path
    cost: Probe
    classifier: TextClassifier
    predicted: NDArray[np.int64]
    """Class of each test sentence."""


def run(inputs: Mapping[str, Path], config: BenchmarkConfig, context: StageContext) -> dict[str, float]:
    """Compare the model folders of `inputs` (in order) on the test split of `inputs["data"]`.

    A folder's name is its stage (`teacher_onnx` is the teacher, exported); its runtime follows from what it
    holds. Writes `benchmark.json`, `comparison.md`, `latencies.json` and three pictures; returns the final
    row's figures.

    Language models are compared by `pressoir.generation_benchmark`: the first model decides.

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
        from pressoir.generation_benchmark import run as compare_language_models

        return compare_language_models(inputs, config, context)
    from pressoir.data.sentences import info, load_split

    test = load_split(inputs["data"], "test")
    texts, expected = list(test["text"]), np.asarray(test["label"])
    use_threads(context.threads)

    contenders = _contenders(folders, texts, info(inputs["data"])["labels"], context)
    classifiers = [contender.classifier for contender in contenders]
    sample = sentences_to_time(texts, config.latency_samples, context.seed)
    latency_ms, throughput_per_s = time_classifiers(classifiers, sample, texts, config, context.reporter)
    tokenizing_ms: NDArray[np.float64] = np.median(
        in_turn(
            len(classifiers),
            min(len(sample), TOKENIZED),
            lambda model, item: _tokenization_ms(classifiers[model], sample, item),
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
        rows=_rows(contenders, expected, latency_ms, tokenizing_ms, throughput_per_s),
    )
    _write(benchmark, latency_ms, context.out_dir)
    context.reporter.message(headline(benchmark))
    first, last = benchmark.rows[0], benchmark.rows[-1]
    figures = last.model_dump(exclude={"stage", "runtime"})
    return {
        **{name: float(value) for name, value in figures.items()},
        "reference_accuracy": first.accuracy,
        "reference_latency_ms_p50": first.latency_ms_p50,
        "reference_size_mb": first.size_mb,
    }


def _contenders(
    folders: Mapping[str, Path], texts: Sequence[str], labels: Sequence[str], context: StageContext
) -> list[_Contender]:
    """Measure what opening each folder costs, then open them all here and let them classify `texts`."""
    costs = []
    for done, folder in enumerate(folders.values(), start=1):  # first, while this process is still small
        runtime: Runtime = "onnxruntime" if (folder / GRAPH).exists() else "pytorch"
        costs.append(probe(folder, runtime, context.threads, texts[0]))
        context.reporter.progress(done, len(folders), "load time and memory")

    from pressoir.inference.text_classification import TextClassifier

    contenders = []
    for done, ((name, folder), cost) in enumerate(zip(folders.items(), costs, strict=True), start=1):
        classifier = TextClassifier.open(folder, context.threads)
        reordered = set(classifier.labels) == set(labels) and classifier.labels != list(labels)
        if len(classifier.labels) != len(labels) or reordered:
            raise PressoirError(
                f"{name} ({folder}) has the labels {classifier.labels}, but the data has {list(labels)}, in "
                "this order; name them so in data.labels"
            )
        logits = classifier.logits(texts)
        if not np.isfinite(logits).all():
            raise PressoirError(f"{name} ({folder}) gives logits that are not finite; its weights are broken")
        stage = name.removesuffix("_onnx")
        contenders.append(_Contender(stage, folder, cost, classifier, logits.argmax(axis=1)))
        context.reporter.progress(done, len(folders), "accuracy")
    return contenders


def _rows(
    contenders: Sequence[_Contender],
    expected: NDArray[np.int64],
    latency_ms: NDArray[np.float64],
    tokenizing_ms: NDArray[np.float64],
    throughput_per_s: NDArray[np.float64],
) -> tuple[Row, ...]:
    """One row a contender; `latency_ms` is (models, samples), the others (models,)."""
    p50, p95 = np.percentile(latency_ms, [50, 95], axis=1)
    sizes = [size_mb(contender.folder) for contender in contenders]
    scores = [accuracy(contender.predicted, expected) for contender in contenders]
    rows = []
    for i, contender in enumerate(contenders):
        low, high = wilson_interval(int((contender.predicted == expected).sum()), len(expected))
        rows.append(
            Row(
                stage=contender.stage,
                runtime=contender.classifier.engine.runtime,
                accuracy=scores[i],
                accuracy_ci_low=low,
                accuracy_ci_high=high,
                f1=f1(contender.predicted, expected),
                agreement=accuracy(contender.predicted, contenders[0].predicted),
                size_mb=sizes[i],
                parameters=count_weights(contender.folder),
                latency_ms_p50=float(p50[i]),
                latency_ms_p95=float(p95[i]),
                tokenization_ms_p50=float(tokenizing_ms[i]),
                throughput_per_s=float(throughput_per_s[i]),
                baseline_rss_mb=contender.cost.baseline_rss_mb,
                peak_rss_mb=contender.cost.peak_rss_mb,
                load_s=contender.cost.load_s,
                speedup=float(p50[0] / p50[i]),
                compression=sizes[0] / sizes[i],
                accuracy_delta=scores[i] - scores[0],
            )
        )
    return tuple(rows)


def _write(benchmark: Benchmark, latency_ms: NDArray[np.float64], folder: Path) -> None:
    from pressoir.benchmark import classifier_plots

    samples = [
        {"stage": row.stage, "runtime": row.runtime, "latency_ms": sorted(times.tolist())}
        for row, times in zip(benchmark.rows, latency_ms, strict=True)
    ]
    benchmark.write(folder / RESULT)
    (folder / TABLE).write_text(to_markdown(benchmark), encoding="utf-8")
    (folder / LATENCIES).write_text(json.dumps(samples) + "\n", encoding="utf-8")
    classifier_plots.accuracy_latency(benchmark.rows, folder / "accuracy_latency.png")
    classifier_plots.sizes(benchmark.rows, folder / "sizes.png")
    classifier_plots.latency_distribution(samples, folder / "latency_distribution.png")


def time_classifiers(
    classifiers: Sequence[TextClassifier],
    sample: Sequence[str],
    texts: Sequence[str],
    config: BenchmarkConfig,
    reporter: Reporter,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Time all models, in turn, on each sentence of `sample`, and on batches of `texts` in their own order.

    Returns milliseconds a sentence, (models, sentences), and sentences a second in batches, (models,).
    """
    engines = [classifier.engine for classifier in classifiers]
    latency_ms = time_in_turn(
        engines,
        [[classifier.encode([text]) for text in sample] for classifier in classifiers],
        config.warmup,
        lambda done, total: reporter.progress(done, total, "latency"),
    )
    size, cycle = config.throughput_batch_size, itertools.cycle(texts)
    batches = [list(itertools.islice(cycle, size)) for _ in range(config.throughput_batches)]
    batch_ms = time_in_turn(
        engines,
        [[classifier.encode(batch) for batch in batches] for classifier in classifiers],
        min(config.warmup, 1),
        lambda done, total: reporter.progress(done, total, "throughput"),
        turn=BATCHES_A_TURN,
    )  # (models, batches)
    return latency_ms, size * len(batches) / (batch_ms.sum(axis=1) / 1e3)


def time_in_turn(
    engines: Sequence[Engine],
    batches: Sequence[Sequence[Inputs]],
    warmup: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    clock: Callable[[], int] = time.perf_counter_ns,
    turn: int = TURN,
) -> NDArray[np.float64]:
    """Time every engine on every one of its `batches[engine]`, in turn; return milliseconds (engines,
    batches).

    Each engine is first called `warmup` times. Then, at each of its turns, it runs half as many batches as a
    turn has, those before, untimed, and the next `turn` ones timed. `progress` counts turns.
    """
    for engine, own in zip(engines, batches, strict=True):
        for call in range(warmup):
            engine.run(own[call % len(own)])
    count = len(batches[0])

    def timed(engine: int, number: int) -> list[float]:
        run, own, first = engines[engine].run, batches[engine], number * turn
        for batch in range(first - max(1, turn // 2), first):
            run(own[batch % count])
        times = []
        for inputs in own[first : first + turn]:
            start = clock()
            run(inputs)
            times.append((clock() - start) / 1e6)
        return times

    taken = in_turn(len(engines), math.ceil(count / turn), timed, progress)
    return np.asarray([list(itertools.chain.from_iterable(own)) for own in taken], dtype=np.float64)


def in_turn(
    models: int, items: int, call: Callable[[int, int], Figure], progress: Callable[[int, int], None]
) -> list[list[Figure]]:
    """`call(model, item)` for every item on every model, in turn; return what it gave (models, items).

    For each item the models come in the next order of `turns`. `progress` is told the items done, and their
    number.
    """
    results: list[dict[int, Figure]] = [{} for _ in range(models)]
    orders = turns(models)
    collecting = gc.isenabled()
    gc.disable()  # a collection would be charged to whichever model it falls upon
    try:
        for item in range(items):
            for model in orders[item % len(orders)]:
                results[model][item] = call(model, item)
            progress(item + 1, items)
    finally:
        if collecting:
            gc.enable()
    return [[own[item] for item in range(items)] for own in results]


def turns(count: int) -> list[list[int]]:
    """Orders of `count` models in which each comes right after every other equally often (a Williams
    square)."""
    zigzag = [(k + 1) // 2 if k % 2 else -(k // 2) for k in range(count)]  # 0, 1, -1, 2, -2, …
    rows = [[(k + shift) % count for k in zigzag] for shift in range(count)]
    return rows if count % 2 == 0 else rows + [row[::-1] for row in rows]


def size_mb(folder: Path) -> float:
    """Size of what `folder` needs to be opened: weights, graph, configuration, tokenizer; MB = 10^6 bytes."""
    files = {path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()}
    return sum(path.stat().st_size for path in files) / 1e6


def count_weights(folder: Path) -> int:
    """Number of weights of a network: the same for a checkpoint, its quantised form and its ONNX graph.

    Of a graph, the elements of its float and 8-bit initializers are counted, without scales and zero points
    (which hold no weights), and without single numbers (which are constants of the arithmetic).
    """
    if not (folder / GRAPH).exists():
        from pressoir.models.layouts import count_parameters
        from pressoir.models.loading import load_classifier

        return count_parameters(load_classifier(folder))
    import onnx

    graph = onnx.load(folder / GRAPH, load_external_data=False).graph
    kinds = {getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "BFLOAT16", "INT8", "UINT8")}
    total = 0
    for tensor in graph.initializer:
        elements = int(np.prod(tensor.dims))
        if tensor.data_type in kinds and elements > 1 and not tensor.name.endswith(_NOT_WEIGHTS):
            total += elements
    return total


def sentences_to_time(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` sentences in random order, each once before any twice."""
    rng, chosen = np.random.default_rng(seed), list[int]()
    while len(chosen) < count:
        chosen += rng.permutation(len(texts)).tolist()
    return [texts[index] for index in chosen[:count]]


def _tokenization_ms(classifier: TextClassifier, sample: Sequence[str], item: int) -> float:
    """Time to encode one sentence, after another that is not timed."""
    classifier.encode([sample[item - 1]])
    start = time.perf_counter_ns()
    classifier.encode([sample[item]])
    return (time.perf_counter_ns() - start) / 1e6


def versions() -> dict[str, str]:
    """Of Pressoir, Python and what runs the models."""
    packages = {name: metadata.version(name) for name in ("torch", "transformers", "onnxruntime")}
    return {"pressoir": pressoir.__version__, "python": platform.python_version(), **packages}
