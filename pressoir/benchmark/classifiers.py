"""Classifiers side by side: accuracy, latency, throughput, size and memory of each, in one run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pressoir.benchmark import linear_baseline
from pressoir.benchmark.classifier_details import DETAILS, ClassifierDetails, details
from pressoir.benchmark.classifier_report import Benchmark, BenchmarkRow, headline, to_markdown
from pressoir.benchmark.probe import Probe, probe
from pressoir.benchmark.reports import LATENCIES, RESULT, TABLE, versions
from pressoir.benchmark.size import count_weights, size_mb
from pressoir.benchmark.timing import (
    TOKENIZED,
    drift,
    in_turn,
    sentences_to_time,
    time_classifiers,
    tokenization_ms,
)
from pressoir.data import sentences
from pressoir.data.texts import Text, as_read, texts_of
from pressoir.errors import DataError, PressoirError
from pressoir.formats.folder import runtime_of
from pressoir.inference.text_classification import TextClassifier, softmax
from pressoir.inference.tokenizers.tokenizers import truncation
from pressoir.metrics import accuracy, f1, macro_f1, wilson_interval
from pressoir.recipe.sections import BenchmarkConfig
from pressoir.stage import StageContext
from pressoir.system.load import FreeCpus
from pressoir.system.runtime import describe_machine, use_threads


@dataclass(frozen=True)
class _Contender:
    stage: str
    folder: Path
    cost: Probe
    classifier: TextClassifier
    logits: NDArray[np.float32]
    """(sentences, labels) of the test sentences, by the labels' places in the data."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Label of each test sentence, by its place in the data's labels."""
        labels: NDArray[np.int64] = self.logits.argmax(axis=1)
        return labels


def compare(
    folders: Mapping[str, Path], data: Path, config: BenchmarkConfig, context: StageContext
) -> dict[str, float]:
    """Compare classifiers on the test split of the folder `data`; the first is the reference.

    Raises:
        PressoirError: a model fails to load in a fresh process, gives logits that are not finite, or has
            other labels than the data.
    """
    test = sentences.load_split(data, "test")
    texts, expected = texts_of(test), np.asarray(test["label"])
    labels = sentences.info(data)["labels"]
    use_threads(context.threads)

    contenders = _contenders(folders, texts, data, context)
    classifiers = [contender.classifier for contender in contenders]
    sample = sentences_to_time(texts, config.latency_samples, context.seed)
    free = FreeCpus()
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

    free_cpus = free.mean()
    baseline = linear_baseline.measure(data, test, sample, context.seed)
    cut = truncation(classifiers[0].tokenizer, texts)
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
        texts_truncated=cut.cut,
        tokens_truncated=cut.lost,
        free_cpus=free_cpus,
        drift=drift(latency_ms),
        f1_label=labels[1] if len(labels) == 2 else None,
        linear_baseline=baseline,
        rows=_rows(contenders, expected, len(labels), latency_ms, tokenizing_ms, throughput_per_s),
    )
    first, last = (softmax(contenders[place].logits) for place in (0, -1))
    _write(
        benchmark, details([*map(as_read, texts)], expected, labels, first, last), latency_ms, context.out_dir
    )
    context.reporter.message(headline(benchmark))
    if (busy := benchmark.busy()) is not None:
        context.reporter.message(f"WARNING: {busy}")
    reference, final = benchmark.rows[0], benchmark.rows[-1]
    metrics = final.model_dump(exclude={"stage", "runtime"})
    return {
        **{name: float(value) for name, value in metrics.items()},
        **({} if baseline is None else {"linear_baseline_accuracy": baseline.accuracy}),
        "reference_accuracy": reference.accuracy,
        "reference_latency_ms_p50": reference.latency_ms_p50,
        "reference_size_mb": reference.size_mb,
    }


def _contenders(
    folders: Mapping[str, Path], texts: Sequence[Text], data: Path, context: StageContext
) -> list[_Contender]:
    """Measure what opening each folder costs, then open them all here and let them classify `texts`."""
    costs = []
    for done, folder in enumerate(folders.values(), start=1):  # first, while this process is still small
        runtime = runtime_of(folder)
        costs.append(probe(folder, runtime, context.threads, texts[0]))
        context.reporter.progress(done, len(folders), "load time and memory")

    contenders = []
    for done, ((name, folder), cost) in enumerate(zip(folders.items(), costs, strict=True), start=1):
        classifier = TextClassifier.open(folder, context.threads)
        try:
            indices = sentences.label_places(data, classifier.labels)
        except DataError as error:
            raise DataError(f"{name} ({folder}): {error}") from error
        logits = classifier.logits(texts)[:, indices]  # (sentences, labels of the data)
        if not np.isfinite(logits).all():
            raise PressoirError(
                f"{name} ({folder}) produces logits that are not finite; its weights are corrupt"
            )
        stage = name.removesuffix("_onnx")
        contenders.append(_Contender(stage, folder, cost, classifier, logits))
        context.reporter.progress(done, len(folders), "accuracy")
    return contenders


def _rows(
    contenders: Sequence[_Contender],
    expected: NDArray[np.int64],
    classes: int,
    latency_ms: NDArray[np.float64],
    tokenizing_ms: NDArray[np.float64],
    throughput_per_s: NDArray[np.float64],
) -> tuple[BenchmarkRow, ...]:
    """One row a contender; `latency_ms` is (models, samples), the others (models,)."""
    p50, p95 = np.percentile(latency_ms, [50, 95], axis=1)
    sizes = [size_mb(contender.folder) for contender in contenders]
    scores = [accuracy(contender.predicted, expected) for contender in contenders]
    rows = []
    for i, contender in enumerate(contenders):
        low, high = wilson_interval(int((contender.predicted == expected).sum()), len(expected))
        rows.append(
            BenchmarkRow(
                stage=contender.stage,
                runtime=contender.classifier.engine.runtime,
                accuracy=scores[i],
                accuracy_ci_low=low,
                accuracy_ci_high=high,
                f1=f1(contender.predicted, expected, classes),
                macro_f1=macro_f1(contender.predicted, expected),
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


def _write(
    benchmark: Benchmark, found: ClassifierDetails, latency_ms: NDArray[np.float64], folder: Path
) -> None:
    from pressoir.benchmark import classifier_plots

    samples = [
        {"stage": row.stage, "runtime": row.runtime, "latency_ms": sorted(times.tolist())}
        for row, times in zip(benchmark.rows, latency_ms, strict=True)
    ]
    benchmark.write(folder / RESULT)
    found.write(folder / DETAILS)
    (folder / TABLE).write_text(to_markdown(benchmark), encoding="utf-8")
    (folder / LATENCIES).write_text(json.dumps(samples) + "\n", encoding="utf-8")
    baseline = benchmark.linear_baseline
    classifier_plots.accuracy_latency(
        benchmark.rows, folder / "accuracy_latency.png", None if baseline is None else baseline.accuracy
    )
    classifier_plots.sizes(benchmark.rows, folder / "sizes.png")
    classifier_plots.latency_distribution(samples, folder / "latency_distribution.png")
