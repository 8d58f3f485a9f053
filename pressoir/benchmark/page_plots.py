"""The plots of a benchmark's page, which name every figure of a model when it is pointed at."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pressoir.benchmark import classifier_plots, language_model_plots
from pressoir.benchmark.classifier_report import (
    TITLES,
    Benchmark,
    ClassifierRow,
    accuracy_text,
    delta_text,
)
from pressoir.benchmark.language_model_report import GenerationBenchmark, GenerationRow, figure, percent
from pressoir.benchmark.reports import AnyBenchmark, AnyRow
from pressoir.formats.problems import REGRESSION
from pressoir.plots.interactive import Bar, Chart, Point, bars, scatter
from pressoir.plots.style import NAMES, row_names, staircase

_RADIUS = 7.0
_INTERVAL = ("range", "95 % confidence interval")
_FRONT = ("front", "Pareto front")


def charts(benchmark: AnyBenchmark) -> list[Chart]:
    """The plots of a benchmark of either kind."""
    if isinstance(benchmark, GenerationBenchmark):
        return _of_language_models(benchmark.rows)
    return _of_classifiers(benchmark)


def _of_classifiers(benchmark: Benchmark) -> list[Chart]:
    rows, baseline = benchmark.rows, benchmark.linear_baseline
    names, facts = _names(rows), [_classifier_facts(row) for row in rows]
    largest = max(row.size_mb for row in rows)
    problem = rows[0].problem
    whole, unit = (1, "") if problem is REGRESSION else (100, ", %")
    title = TITLES[problem.metric]
    marks = [
        Point(
            row.latency_ms_p50,
            whole * row.score,
            whole * row.score_interval[0],
            whole * row.score_interval[1],
            radius=math.sqrt(380 * row.size_mb / largest + 16),
            group=row.runtime,
            hollow=row.simulated,
            name=name,
            facts=told,
        )
        for row, name, told in zip(rows, names, facts, strict=True)
    ]
    real = [row for row in rows if not row.simulated] or list(rows)
    corners = staircase(
        [(row.latency_ms_p50, whole * row.score) for row in classifier_plots.pareto_front(real)]
    )
    simulated = "int8, simulated"
    keys = [*_keys(rows, simulated), ("area", "area: size on disk"), _INTERVAL]
    keys += [_FRONT] if len(corners) > 1 else []
    keys += [("level", f"linear baseline, {100 * baseline.score:.1f} %")] if baseline else []
    return [
        scatter(
            f"{title[0].upper()}{title[1:]} against latency",
            marks,
            ("median latency of one sentence, ms (log scale, left is faster)", f"test {title}{unit}"),
            keys,
            front=corners,
            level=100 * baseline.score if baseline else None,
            most_y=whole,
        ),
        _sizes(rows, facts, simulated),
        bars(
            "Latency",
            [
                Bar(
                    name,
                    row.latency_ms_p50,
                    max(row.latency_ms_p95, row.latency_ms_p50),
                    f"{row.latency_ms_p50:.2f} ms" + ("" if row.simulated else f" · {row.speedup:.1f}×"),
                    row.runtime,
                    row.simulated,
                    told,
                )
                for row, name, told in zip(rows, names, facts, strict=True)
            ],
            "ms for one sentence, without tokenizer; ×: faster than the first",
            [*_keys(rows, simulated), ("range", "median (bar) to 95th percentile (line)")],
        ),
    ]


def _of_language_models(rows: Sequence[GenerationRow]) -> list[Chart]:
    names, facts = _names(rows), [_language_model_facts(row) for row in rows]
    marks = [
        Point(
            row.size_mb,
            row.perplexity,
            row.perplexity,
            row.perplexity,
            radius=_RADIUS,
            group=row.runtime,
            hollow=row.simulated,
            name=name,
            facts=told,
        )
        for row, name, told in zip(rows, names, facts, strict=True)
    ]
    corners = staircase([(row.size_mb, row.perplexity) for row in language_model_plots.pareto_front(rows)])
    simulated = "packed, run in float32"
    return [
        scatter(
            "Perplexity against size",
            marks,
            ("size on disk, MB (log scale, left is smaller)", "perplexity (log scale, lower is better)"),
            [*_keys(rows, simulated), *([_FRONT] if len(corners) > 1 else [])],
            front=corners,
            log_y=True,
        ),
        _sizes(rows, facts, simulated),
        bars(
            "Decoding speed",
            [
                Bar(
                    name,
                    row.decode_tokens_per_s,
                    row.decode_tokens_per_s,
                    figure(row.decode_tokens_per_s)
                    + (" · simulated" if row.simulated else f" · {row.speedup:.1f}×"),
                    row.runtime,
                    row.simulated,
                    told,
                )
                for row, name, told in zip(rows, names, facts, strict=True)
            ],
            "tokens per second after the first; ×: faster than the first row",
            _keys(rows, simulated),
        ),
    ]


def _sizes(rows: Sequence[AnyRow], facts: Sequence[tuple[str, ...]], simulated: str) -> Chart:
    return bars(
        "Size on disk",
        [
            Bar(
                name,
                row.size_mb,
                row.size_mb,
                f"{row.size_mb:.1f} MB · {row.compression:.1f}×",
                row.runtime,
                row.simulated,
                told,
            )
            for row, name, told in zip(rows, _names(rows), facts, strict=True)
        ],
        "MB of weights, graph, configuration and tokenizer; ×: smaller than the first",
        _keys(rows, simulated),
    )


def _names(rows: Sequence[AnyRow]) -> list[str]:
    return row_names([(row.stage, row.runtime) for row in rows])


def _keys(rows: Sequence[AnyRow], simulated: str) -> list[tuple[str, str]]:
    keys = [(runtime, name) for runtime, name in NAMES.items() if any(row.runtime == runtime for row in rows)]
    hollow = [("pytorch hollow", simulated)] if any(row.simulated for row in rows) else []
    return [*keys, *hollow]


def _classifier_facts(row: ClassifierRow) -> tuple[str, ...]:
    faster = "simulated" if row.simulated else f"{row.speedup:.1f}× faster"
    title, unit = TITLES[row.problem.metric], "" if row.problem is REGRESSION else " points"
    return (
        f"{title} {accuracy_text(row)}, {delta_text(row)}{unit}",
        f"{row.size_mb:.1f} MB, {row.compression:.1f}× smaller",
        f"median {row.latency_ms_p50:.2f} ms, p95 {row.latency_ms_p95:.2f} ms, {faster}",
        f"{row.throughput_per_s:.0f} sentences/s, {row.peak_rss_mb:.0f} MB of memory",
    )


def _language_model_facts(row: GenerationRow) -> tuple[str, ...]:
    faster = "simulated" if row.simulated else f"{row.speedup:.1f}× faster"
    return (
        f"perplexity {figure(row.perplexity)}, {percent(row.perplexity_increase)}",
        f"{row.size_mb:.1f} MB, {row.compression:.1f}× smaller, {row.bits_per_weight:.2f} bits per weight",
        f"{figure(row.decode_tokens_per_s)} tokens/s, {faster}",
        f"first token after {row.ttft_ms_p50:.1f} ms, {row.peak_rss_mb:.0f} MB of memory",
    )
