"""What a benchmark of language models found: the typed content of its `benchmark.json`, and the text of it.

As `pressoir.benchmark.classifier_report` does for classifiers, `to_markdown` writes the table with the notes
that the figures themselves call for.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field

from pressoir.benchmark.classifier_report import Conditions, PositiveFloat, busy_lines, times
from pressoir.config import Config, NotNegative
from pressoir.formats.folder import Runtime

Count = Annotated[int, Field(gt=0)]
LOSS = 0.05  # rise of perplexity from which a row is named


class GenerationRow(Config, allow_inf_nan=False):
    """Results of one language model in one runtime."""

    stage: str
    """Stage that produced the model, or a name such as `q4-gptq`; `source` also for its exported graph."""
    runtime: Runtime
    """Runtime that executes the model."""
    perplexity: PositiveFloat
    """Perplexity; the geometric mean if there are several texts. Lower is better."""
    perplexities: dict[str, PositiveFloat]
    """Perplexity on each text."""
    perplexity_increase: Annotated[float, Field(gt=-1)]
    """Relative increase of perplexity over the first row; negative if it is lower."""
    bits_per_weight: PositiveFloat
    """Average bits per weight of the layers' matrices, including scales and zero points."""
    parameters: Count
    """Number of parameters, whatever their precision."""
    size_mb: PositiveFloat
    """Size on disk of weights, graph, configuration and tokenizer, MB = 10^6 bytes."""
    expanded_mb: NotNegative = 0.0
    """Size in memory of the 3-bit weights, which are expanded to 4 bits; 0 if there are none."""
    compression: PositiveFloat
    """Size of the first row divided by that of this row; higher is better."""
    ttft_ms_p50: PositiveFloat
    """Median time to first token: processing the prompt and choosing one token (batch size 1)."""
    ttft_ms_p95: PositiveFloat
    """95th percentile of that latency."""
    prefill_tokens_per_s: PositiveFloat
    """Number of prompt tokens divided by the median time to first token."""
    decode_tokens_per_s: PositiveFloat
    """Tokens per second after the first, generated one by one with the cache; median over the prompts."""
    speedup: PositiveFloat
    """Decode tokens per second divided by those of the first row; higher is better."""
    baseline_rss_mb: PositiveFloat
    """Resident memory of a fresh process after its imports, before loading the model."""
    peak_rss_mb: PositiveFloat
    """Peak resident memory of that process up to the end of a first short generation."""
    load_s: PositiveFloat
    """Time to load model and tokenizer in that process, without imports."""

    @property
    def simulated(self) -> bool:
        """Whether packed weights are expanded to float32 to run: its speed and memory say nothing of them."""
        return self.runtime == "pytorch" and self.bits_per_weight < 16


class GenerationBenchmark(Conditions, allow_inf_nan=False):
    """Benchmark of language models: rows in the order given, the first is the reference."""

    task: Literal["causal-lm"] = "causal-lm"
    """Distinguishes this file from the benchmark of a classifier."""
    window: Count
    """Tokens per window when measuring perplexity."""
    scored_tokens: dict[str, Count]
    """Number of scored tokens of each text."""
    prompts: Count
    """Number of prompts timed per model."""
    prompt_tokens: Count
    """Tokens per prompt."""
    new_tokens: Count
    """Tokens generated greedily after each prompt; the first counts towards the time to first token."""
    warmup: int
    """Number of warm-up calls of each model."""
    rows: Annotated[tuple[GenerationRow, ...], Field(min_length=1)]
    """One row per model and runtime."""


def headline(benchmark: GenerationBenchmark) -> str:
    """The last row against the first, in one line: `3.1× faster, 6.4× smaller, perplexity 96.0 → 97.1`."""
    first, last = benchmark.rows[0], benchmark.rows[-1]
    if len(benchmark.rows) == 1:
        return (
            f"{_name(first)}: perplexity {figure(first.perplexity)}, "
            f"{figure(first.decode_tokens_per_s)} tokens per second"
        )
    return (
        f"{_name(last)} against {_name(first)}: {times(last.speedup, 'faster', 'slower')}, "
        f"{times(last.compression, 'smaller', 'larger')}, perplexity {figure(first.perplexity)} → "
        f"{figure(last.perplexity)} ({percent(last.perplexity_increase)})"
    )


def to_markdown(benchmark: GenerationBenchmark) -> str:
    """The comparison as a person reads it: headline, table, machine, and notes that the figures call for."""
    columns, rows = table(benchmark)
    lines = [
        f"**{headline(benchmark)}**",
        "",
        *busy_lines(benchmark),
        f"| {' | '.join(columns)} |",
        f"|---|---|{'---:|' * (len(columns) - 2)}",
        *(f"| {' | '.join(cells)} |" for cells in rows),
        "",
        benchmark.describe(),
        "",
        *(line for paragraph in method(benchmark) for line in (paragraph, "")),
        *(f"- {note}" for note in notes(benchmark)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def table(benchmark: GenerationBenchmark) -> tuple[list[str], list[list[str]]]:
    """Names of all columns, of which the first two are text, and the cells of each row."""
    texts = list(benchmark.scored_tokens)
    columns = [
        *("stage", "runtime", "perplexity", "Δ"),
        *(texts if len(texts) > 1 else ()),
        *("bits", "size MB", "smaller", "TTFT ms", "p95", "prefill tok/s", "decode tok/s", "faster"),
        *("RSS MB", "load s"),
    ]
    return columns, [_cells(row, benchmark) for row in benchmark.rows]


def method(benchmark: GenerationBenchmark) -> list[str]:
    """How the figures of the table were measured, in paragraphs."""
    scored = ", ".join(f"{name} ({tokens:,} tokens)" for name, tokens in benchmark.scored_tokens.items())
    mean = "; the mean over texts is geometric" if len(benchmark.scored_tokens) > 1 else ""
    return [
        f"Perplexity is measured over non-overlapping windows of {benchmark.window} tokens, each scored "
        f"from its second token on: {scored}{mean}. Bits are the average per matrix weight, including "
        "scales and zero points.",
        f"Times are those of the model alone, without tokenisation: {benchmark.prompts} prompts of "
        f"{benchmark.prompt_tokens} tokens, one at a time, with the models taking turns in one process. "
        "TTFT is the time to first token; its median gives prefill tokens/s. The other "
        f"{benchmark.new_tokens - 1} tokens, generated greedily one by one with the cache, give decode "
        "tokens/s. MB = 10⁶ bytes.",
    ]


def _cells(row: GenerationRow, benchmark: GenerationBenchmark) -> list[str]:
    texts = list(benchmark.scored_tokens)
    return [
        row.stage,
        row.runtime,
        figure(row.perplexity),
        "reference" if row is benchmark.rows[0] else percent(row.perplexity_increase),
        *(figure(row.perplexities[text]) for text in (texts if len(texts) > 1 else ())),
        f"{row.bits_per_weight:.2f}",
        f"{row.size_mb:.1f}",
        f"{row.compression:.1f}×",
        f"{row.ttft_ms_p50:.1f}",
        f"{row.ttft_ms_p95:.1f}",
        f"{row.prefill_tokens_per_s:.0f}",
        f"{row.decode_tokens_per_s:.1f}",
        "simulated" if row.simulated else f"{row.speedup:.1f}×",
        f"{row.peak_rss_mb:.0f}",
        f"{row.load_s:.2f}",
    ]


def notes(benchmark: GenerationBenchmark) -> list[str]:
    """What the figures do not say by themselves, or say against a row."""
    rows = benchmark.rows
    first, last = rows[0], rows[-1]
    found = _perplexity_notes(rows)
    exported = next(
        (row for row in rows[1:] if row.stage == first.stage and row.runtime != first.runtime), None
    )
    if exported is not None and last is not exported and last.runtime == exported.runtime:
        found.append(
            f"The runtime alone makes {first.stage} {times(exported.speedup, 'faster', 'slower')}; "
            f"{_name(last)} is {times(last.speedup / exported.speedup, 'faster', 'slower')} than that."
        )
    found += _speed_notes(rows, exported)
    if simulated := [_name(row) for row in rows if row.simulated]:
        found.append(
            f"{', '.join(simulated)}: packed weights are expanded to float32 to measure perplexity; only "
            "the exported graph is optimised for speed and memory."
        )
    if streams := [row for row in rows if row.expanded_mb]:
        sizes = (
            f"{_name(row)} {0.75 * row.expanded_mb:.1f} MB on disk, {row.expanded_mb:.1f} MB in memory"
            for row in streams
        )
        found.append("3-bit weights are expanded to 4-bit codes when loaded: " + "; ".join(sizes) + ".")
    if first.bits_per_weight < 32 and not first.simulated:
        found.append(
            f"{_name(first)} is stored in {first.bits_per_weight:.0f} bits per weight and computes in "
            "float32; `smaller` is relative to its stored size."
        )
    shares = {row.runtime: f"{row.baseline_rss_mb:.0f} MB in {row.runtime}" for row in rows}
    found.append(
        "RSS is measured in a fresh process and includes the imported libraries: "
        f"{', '.join(shares.values())}."
    )
    return found


def _perplexity_notes(rows: tuple[GenerationRow, ...]) -> list[str]:
    notes = []
    worse = [row for row in rows[1:] if row.perplexity_increase > LOSS]
    better = [row for row in rows[1:] if percent(row.perplexity_increase).startswith("−")]
    if worse:
        named = [f"{_name(row)} {percent(row.perplexity_increase)}" for row in worse]
        notes.append(f"Perplexity rises by more than {100 * LOSS:.0f} %: {', '.join(named)}.")
    if better:
        named = [f"{_name(row)} {percent(row.perplexity_increase)}" for row in better]
        notes.append(
            f"Perplexity is lower than that of the reference: {', '.join(named)}. Quantisation does not "
            "improve a model: read this as no loss, not as a gain."
        )
    return notes


def _speed_notes(rows: tuple[GenerationRow, ...], exported: GenerationRow | None) -> list[str]:
    """Rows that are to be faster than what they were made from, or as fast, and are not."""
    groups: dict[tuple[str, str], list[str]] = {}
    for before, row in itertools.pairwise(rows):
        if row.simulated:
            continue
        parent = rows[0]
        if row.stage == "shard":  # which only moves bytes: no slower will do
            parent = before
        elif exported is not None and row is not exported and row.runtime == exported.runtime:
            parent = exported
        ratio = parent.decode_tokens_per_s / row.decode_tokens_per_s
        if ratio > 1.1 or (ratio > 0.95 and row.stage != "shard"):
            verdict = "Did not pay off in speed, slower than" if ratio > 1.1 else "No faster than"
            of_parent = f"{_name(parent)} with {figure(parent.decode_tokens_per_s)} tokens per second"
            groups.setdefault((verdict, of_parent), []).append(
                f"{_name(row)} {figure(row.decode_tokens_per_s)}"
            )
    return [f"{verdict} {parent}: {', '.join(names)}." for (verdict, parent), names in groups.items()]


def _name(row: GenerationRow) -> str:
    return f"{row.stage} ({row.runtime})"


def figure(value: float) -> str:
    """A number with four digits where it is small, whole where it is large."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def percent(part: float) -> str:
    """A relative change in percent, with a typeset sign."""
    text = f"{100 * part:+,.0f}" if abs(part) >= 10 else f"{100 * part:+.1f}"
    return "±0.0 %" if text in ("+0.0", "-0.0") else text.replace("-", "−") + " %"
