"""A benchmark's report of whichever kind: read it, name its rows, and show it in few columns."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import pressoir
from pressoir.benchmark import classifier_report, language_model_report
from pressoir.benchmark.classifier_report import (
    Benchmark,
    BenchmarkRow,
    ClassifierRow,
    MultiLabelRow,
    RegressionRow,
    TokenRow,
    delta_text,
    score_figure,
)
from pressoir.benchmark.language_model_report import GenerationBenchmark, GenerationRow, figure, percent
from pressoir.formats.folder import read_json
from pressoir.formats.problems import REGRESSION

RESULT, TABLE, LATENCIES = "benchmark.json", "comparison.md", "latencies.json"

AnyBenchmark = Benchmark | GenerationBenchmark
AnyRow = BenchmarkRow | MultiLabelRow | RegressionRow | TokenRow | GenerationRow


def read(path: Path) -> AnyBenchmark:
    """Read a `benchmark.json`, of classifiers or of language models.

    Raises:
        PressoirError: it is missing or not such a file.
    """
    # A classifier's has no task in it.
    return GenerationBenchmark.read(path) if "task" in read_json(path) else Benchmark.read(path)


def headline(benchmark: AnyBenchmark) -> str:
    """The last row against the first, in one line."""
    if isinstance(benchmark, GenerationBenchmark):
        return language_model_report.headline(benchmark)
    return classifier_report.headline(benchmark)


def full_table(benchmark: AnyBenchmark) -> tuple[list[str], list[list[str]]]:
    """Names of all columns, of which the first two are text, and the cells of each row."""
    if isinstance(benchmark, GenerationBenchmark):
        return language_model_report.table(benchmark)
    return classifier_report.table(benchmark)


def method(benchmark: AnyBenchmark) -> list[str]:
    """How the figures of the full table were measured, in paragraphs."""
    if isinstance(benchmark, GenerationBenchmark):
        return language_model_report.method(benchmark)
    return classifier_report.method(benchmark)


def notes(benchmark: AnyBenchmark) -> list[str]:
    """What the figures do not say by themselves, or say against a stage."""
    if isinstance(benchmark, GenerationBenchmark):
        return language_model_report.notes(benchmark)
    return classifier_report.notes(benchmark)


def short_table(benchmark: AnyBenchmark) -> tuple[list[str], list[list[str]]]:
    """Names and cells of the columns that fit 80 characters; the first two are text."""
    if isinstance(benchmark, GenerationBenchmark):
        columns = ["stage", "runtime", "perplexity", "Δ", "bits", "MB", "smaller", "tok/s", "faster"]
        return columns, [_generation_cells(row) for row in benchmark.rows]
    first = benchmark.rows[0]
    metric = _SHORT.get(first.problem.metric, first.problem.metric)
    change = "points" if first.problem is not REGRESSION else "Δ"
    columns = ["stage", "runtime", metric, change, "MB", "smaller", "p50 ms", "faster", "RSS MB"]
    return columns, [_classifier_cells(row) for row in benchmark.rows]


_SHORT = {"micro_f1": "micro F1"}


def _classifier_cells(row: ClassifierRow) -> list[str]:
    return [
        row.stage,
        row.runtime,
        f"{row.score:.1%}" if row.problem is not REGRESSION else score_figure(row, row.score),
        delta_text(row),
        f"{row.size_mb:.1f}",
        f"{row.compression:.1f}×",
        f"{row.latency_ms_p50:.2f}",
        "–" if row.simulated else f"{row.speedup:.1f}×",
        f"{row.peak_rss_mb:.0f}",
    ]


def _generation_cells(row: GenerationRow) -> list[str]:
    return [
        row.stage,
        row.runtime,
        figure(row.perplexity),
        percent(row.perplexity_increase),
        f"{row.bits_per_weight:.2f}",
        f"{row.size_mb:.1f}",
        f"{row.compression:.1f}×",
        figure(row.decode_tokens_per_s),
        "–" if row.simulated else f"{row.speedup:.1f}×",
    ]


def versions() -> dict[str, str]:
    """Of Pressoir, Python and what runs the models."""
    packages = {name: metadata.version(name) for name in ("torch", "transformers", "onnxruntime")}
    return {"pressoir": pressoir.__version__, "python": platform.python_version(), **packages}
