"""Classifiers side by side: accuracy, latency, throughput, size and memory of each, in one run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressoir.benchmark import linear_baseline, word_baseline
from pressoir.benchmark.classifier_details import DETAILS, ClassifierDetails, details
from pressoir.benchmark.classifier_report import ROWS, Benchmark, headline, to_markdown
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
from pressoir.errors import DataError, PressoirError, SourceError
from pressoir.extensions.task import task
from pressoir.formats.folder import read_json, runtime_of, task_of
from pressoir.formats.labels import check_problem
from pressoir.formats.problems import SINGLE_LABEL, TOKENS, Problem
from pressoir.inference.text_classification import TextClassifier, softmax
from pressoir.inference.tokenizers.tokenizers import truncation
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
    predicted: NDArray[Any]
    """What it decides of each test sentence (`Problem.decide`), by the places of the data's labels."""


_BASELINES = {SINGLE_LABEL.name: linear_baseline.measure, TOKENS.name: word_baseline.measure}
"""Linear classifiers of the same data, by the kind of problem that there is one for."""


def compare(
    folders: Mapping[str, Path], data: Path, config: BenchmarkConfig, context: StageContext
) -> dict[str, float]:
    """Compare classifiers on the test split of the folder `data`; the first is the reference.

    Raises:
        PressoirError: a model fails to load in a fresh process, gives logits that are not finite, or has
            other labels than the data.
    """
    test, problem = sentences.load_split(data, "test"), sentences.problem_of(data)
    labels = sentences.info(data)["labels"]
    texts, expected = texts_of(test), problem.targets(test["label"][:], len(labels))
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
    single = problem is SINGLE_LABEL
    measure = _BASELINES.get(problem.name)
    baseline = measure and measure(data, test, sample, context.seed)
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
        f1_label=labels[1] if single and len(labels) == 2 else None,
        linear_baseline=baseline,
        rows=_rows(contenders, problem, expected, len(labels), latency_ms, tokenizing_ms, throughput_per_s),
    )
    found = None
    if single:
        likely = (softmax(contenders[place].logits) for place in (0, -1))
        found = details([*map(as_read, texts)], expected, labels, *likely)
    _write(benchmark, found, latency_ms, context.out_dir)
    context.reporter.message(headline(benchmark))
    if (busy := benchmark.busy()) is not None:
        context.reporter.message(f"WARNING: {busy}")
    first, final = benchmark.rows[0], benchmark.rows[-1]
    metrics = final.model_dump(exclude={"stage", "runtime"})
    return {
        **{name: float(value) for name, value in metrics.items()},
        **({} if baseline is None else {f"linear_baseline_{problem.metric}": baseline.score}),
        f"reference_{problem.metric}": first.score,
        "reference_latency_ms_p50": first.latency_ms_p50,
        "reference_size_mb": first.size_mb,
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

    contenders, problem = [], sentences.problem_of(data)
    for done, ((name, folder), cost) in enumerate(zip(folders.items(), costs, strict=True), start=1):
        try:
            check_problem(read_json(folder / "config.json"), "the model", problem)
            classifier = task(task_of(folder)).part("adapter").open(folder, context.threads)
            indices = sentences.label_places(data, classifier.labels)
        except (DataError, SourceError) as error:
            raise DataError(f"{name} ({folder}): {error}") from error
        logits = classifier.logits(texts)[..., indices]  # (sentences, labels of the data)
        if not np.isfinite(logits).all():
            raise PressoirError(
                f"{name} ({folder}) produces logits that are not finite; its weights are corrupt"
            )
        stage = name.removesuffix("_onnx")
        limits = classifier.thresholds and [classifier.thresholds[index] for index in indices]
        predicted = problem.decide(logits, limits)
        contenders.append(_Contender(stage, folder, cost, classifier, logits, predicted))
        context.reporter.progress(done, len(folders), "accuracy")
    return contenders


def _rows(
    contenders: Sequence[_Contender],
    problem: Problem,
    expected: NDArray[Any],
    classes: int,
    latency_ms: NDArray[np.float64],
    tokenizing_ms: NDArray[np.float64],
    throughput_per_s: NDArray[np.float64],
) -> tuple[Any, ...]:
    """One row a contender; `latency_ms` is (models, samples), the others (models,)."""
    p50, p95 = np.percentile(latency_ms, [50, 95], axis=1)
    sizes = [size_mb(contender.folder) for contender in contenders]
    scores = [problem.score(contender.predicted, expected, classes) for contender in contenders]
    main = problem.metric
    rows = []
    for i, contender in enumerate(contenders):
        low, high = problem.interval(contender.predicted, expected)
        rows.append(
            ROWS[problem.name](
                stage=contender.stage,
                runtime=contender.classifier.engine.runtime,
                **scores[i],
                **{f"{main}_ci_low": low, f"{main}_ci_high": high},
                agreement=problem.agreement(contender.predicted, contenders[0].predicted),
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
                **{f"{main}_delta": scores[i][main] - scores[0][main]},
            )
        )
    return tuple(rows)


def _write(
    benchmark: Benchmark, found: ClassifierDetails | None, latency_ms: NDArray[np.float64], folder: Path
) -> None:
    from pressoir.benchmark import classifier_plots

    samples = [
        {"stage": row.stage, "runtime": row.runtime, "latency_ms": sorted(times.tolist())}
        for row, times in zip(benchmark.rows, latency_ms, strict=True)
    ]
    benchmark.write(folder / RESULT)
    if found is not None:
        found.write(folder / DETAILS)
    (folder / TABLE).write_text(to_markdown(benchmark), encoding="utf-8")
    (folder / LATENCIES).write_text(json.dumps(samples) + "\n", encoding="utf-8")
    baseline = benchmark.linear_baseline
    classifier_plots.accuracy_latency(
        benchmark.rows, folder / "accuracy_latency.png", None if baseline is None else baseline.score
    )
    classifier_plots.sizes(benchmark.rows, folder / "sizes.png")
    classifier_plots.latency_distribution(samples, folder / "latency_distribution.png")
