"""Classifiers side by side: accuracy, latency, throughput, size and memory of each, in one run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pressoir.benchmark.classifier_report import Benchmark, Row, to_markdown
from pressoir.benchmark.probe import Probe, probe
from pressoir.benchmark.reports import LATENCIES, RESULT, TABLE
from pressoir.benchmark.size import count_weights, size_mb
from pressoir.errors import PressoirError
from pressoir.formats.folder import GRAPH, Runtime
from pressoir.metrics import accuracy, f1, wilson_interval
from pressoir.stage import StageContext

if TYPE_CHECKING:
    from pressoir.inference.text_classification import TextClassifier


@dataclass(frozen=True)
class _Contender:
    stage: str
    folder: Path
    cost: Probe
    classifier: TextClassifier
    predicted: NDArray[np.int64]
    """Class of each test sentence."""


def contenders(
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


def rows_of(
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


def write(benchmark: Benchmark, latency_ms: NDArray[np.float64], folder: Path) -> None:
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
