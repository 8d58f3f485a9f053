"""What a benchmark found: the typed content of `benchmark.json`, and the text a person reads.

`to_markdown` writes the table with the notes that the figures themselves call for: a stage that did not pay
off, a difference that chance may explain, a speed that is only simulated.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, ValidationError

from pressoir.config import Config, Fraction, NotNegative, Positive
from pressoir.errors import PressoirError
from pressoir.formats.folder import Runtime, read_json
from pressoir.formats.problems import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TOKENS, Problem

PositiveFloat = Annotated[float, Field(gt=0)]
Correlation = Annotated[float, Field(ge=-1, le=1)]
BUSY_CPUS, BUSY_DRIFT = 0.2, 0.25
"""CPUs that other programs take from a benchmark's threads, and drift of its medians, above which its times
are not reliable."""


class ClassifierRow(Config, allow_inf_nan=False):
    """Results of one model in one runtime, but for those of its kind of problem."""

    problem: ClassVar[Problem]

    stage: str
    """Stage that produced the model; `teacher` also for the teacher exported to ONNX."""
    runtime: Runtime
    """Runtime that executes the model."""
    agreement: Fraction
    """Fraction of test sentences with the same predicted label, or set of labels, as in the first row; of
    scores R² against those of the first row."""
    size_mb: PositiveFloat
    """Size on disk of weights, graph, configuration and tokenizer, MB = 10^6 bytes."""
    parameters: Annotated[int, Field(gt=0)]
    """Number of parameters, whatever their precision."""
    latency_ms_p50: PositiveFloat
    """Median latency of one sentence (batch size 1), without tokenisation."""
    latency_ms_p95: PositiveFloat
    """95th percentile of that latency."""
    tokenization_ms_p50: PositiveFloat | None = None
    """Median time to tokenise one sentence with the tokenizer of the model; None in files of older
    versions."""
    throughput_per_s: PositiveFloat
    """Sentences per second in batches of `throughput_batch_size`."""
    baseline_rss_mb: PositiveFloat
    """Resident memory of a fresh process after its imports, before loading the model."""
    peak_rss_mb: PositiveFloat
    """Peak resident memory of that process up to the end of the first sentence."""
    load_s: PositiveFloat
    """Time to load model and tokenizer in that process, without imports."""
    speedup: PositiveFloat
    """Median latency of the first row divided by that of this row; higher is better."""
    compression: PositiveFloat
    """Size of the first row divided by that of this row; higher is better."""

    @property
    def score(self) -> float:
        """The main metric of the problem."""
        return float(getattr(self, self.problem.metric))

    @property
    def score_interval(self) -> tuple[float, float]:
        """Its 95 % confidence interval."""
        metric = self.problem.metric
        return getattr(self, f"{metric}_ci_low"), getattr(self, f"{metric}_ci_high")

    @property
    def score_delta(self) -> float:
        """Its difference from the first row's."""
        return float(getattr(self, f"{self.problem.metric}_delta"))

    @property
    def simulated(self) -> bool:
        """Whether the runtime only computes what an int8 one would, in float32: its speed says nothing."""
        return self.stage == "quantize" and self.runtime == "pytorch"


class BenchmarkRow(ClassifierRow, allow_inf_nan=False):
    """Results of a classifier with one label per text."""

    problem: ClassVar[Problem] = SINGLE_LABEL

    accuracy: Fraction
    """Fraction of test sentences with the correct label."""
    accuracy_ci_low: Fraction
    """Lower bound of the 95 % Wilson confidence interval of `accuracy`."""
    accuracy_ci_high: Fraction
    """Upper bound of that interval."""
    f1: Fraction
    """F1 score of the class `f1_label` for two classes, macro average for more."""
    macro_f1: Fraction | None = None
    """Mean of the F1 scores of all classes; None in files of older versions."""
    accuracy_delta: Annotated[float, Field(ge=-1, le=1)]
    """Accuracy minus that of the first row (a fraction)."""


class MultiLabelRow(ClassifierRow, allow_inf_nan=False):
    """Results of a multi-label classifier, which decides by its own thresholds."""

    problem: ClassVar[Problem] = MULTI_LABEL

    micro_f1: Fraction
    """Micro-averaged F1 score: of all pairs of a test sentence and a label."""
    micro_f1_ci_low: Fraction
    """Lower bound of the 95 % bootstrap confidence interval of `micro_f1`."""
    micro_f1_ci_high: Fraction
    """Upper bound of that interval."""
    macro_f1: Fraction
    """Mean of the F1 scores of all labels."""
    micro_f1_delta: Annotated[float, Field(ge=-1, le=1)]
    """`micro_f1` minus that of the first row (a fraction)."""


class RegressionRow(ClassifierRow, allow_inf_nan=False):
    """Results of a regression model."""

    problem: ClassVar[Problem] = REGRESSION

    pearson: Correlation
    """Pearson correlation of predicted and expected scores."""
    pearson_ci_low: Correlation
    """Lower bound of the 95 % bootstrap confidence interval of `pearson`."""
    pearson_ci_high: Correlation
    """Upper bound of that interval."""
    spearman: Correlation
    """Spearman rank correlation."""
    mae: NotNegative
    """Mean absolute error, in the unit of the scores."""
    pearson_delta: Annotated[float, Field(ge=-2, le=2)]
    """`pearson` minus that of the first row."""


class TokenRow(ClassifierRow, allow_inf_nan=False):
    """Results of a token classifier. `agreement` is over the words that this model or that of the first row
    takes into a span."""

    problem: ClassVar[Problem] = TOKENS

    span_f1: Fraction
    """F1 score of the spans that the tags mark, as seqeval has it: a span is right if its words and its type
    are."""
    span_f1_ci_low: Fraction
    """Lower bound of the 95 % bootstrap confidence interval of `span_f1`, over the sentences."""
    span_f1_ci_high: Fraction
    """Upper bound of that interval."""
    span_precision: Fraction
    """Fraction of the spans it marks that are right."""
    span_recall: Fraction
    """Fraction of the expected spans that it marks."""
    macro_f1: Fraction
    """Mean of the F1 scores of all types of spans."""
    tag_accuracy: Fraction
    """Fraction of the words with the right tag; most words are outside of spans."""
    span_f1_delta: Annotated[float, Field(ge=-1, le=1)]
    """`span_f1` minus that of the first row (a fraction)."""


ROWS: dict[str, type[ClassifierRow]] = {
    row.problem.name: row for row in (BenchmarkRow, MultiLabelRow, RegressionRow, TokenRow)
}
TITLES = {
    "accuracy": "accuracy",
    "micro_f1": "micro-averaged F1",
    "pearson": "Pearson correlation",
    "span_f1": "F1 of the spans",
}
"""Main metrics as a person writes them."""


class Conditions(Config, allow_inf_nan=False):
    """Measurement conditions, at the head of every `benchmark.json`."""

    format_version: int = 1
    """Version of the file format; incremented by incompatible changes."""
    recorded_at: str
    """UTC time of the measurement, ISO 8601."""
    machine: dict[str, str]
    """CPU model, vector instructions, number of CPUs, threads, operating system."""
    versions: dict[str, str]
    """Versions of Python and of the packages that ran the models."""
    threads: int
    """Number of CPU threads, the same for every row."""
    seed: int
    """Random seed, which for example selects the timed sentences."""
    free_cpus: NotNegative | None = None
    """Mean number of the machine's CPUs that other programs left free while the models were timed; None in
    files of older versions."""
    drift: NotNegative | None = None
    """How much the medians of successive fifths of a model's timings differ, as a fraction of its median; the
    largest of all models. None in files of older versions."""

    def busy(self) -> str | None:
        """Why the times are not to be relied on, where the machine had other work or they drifted."""
        reasons = []
        if self.free_cpus is not None and self.free_cpus < self.threads - BUSY_CPUS:
            reasons.append(f"other programs left {self.free_cpus:.1f} CPUs to {self.threads} threads")
        if self.drift is not None and self.drift > BUSY_DRIFT:
            reasons.append(
                f"a model's median time varied by {100 * self.drift:.0f} % between fifths of its timings"
            )
        if not reasons:
            return None
        return (
            f"The machine was busy: {' and '.join(reasons)}. Times and speed-ups are not reliable; measure "
            "again on a quiet machine."
        )

    def write(self, path: Path) -> None:
        """Write as JSON, in full precision."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a `benchmark.json`.

        Raises:
            PressoirError: it is missing or not such a file.
        """
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            raise PressoirError(f"{path} is not a readable benchmark: {error}") from error

    def describe(self) -> str:
        """Machine and versions, in one sentence."""
        machine = self.machine
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"Measured on {machine.get('cpu', 'an unknown CPU')} "
            f"(features: {machine.get('cpu_features', 'unknown')}), "
            f"{self.threads} threads on {machine.get('cpus', '?')} CPUs, "
            f"{machine.get('system', 'unknown system')}; {versions}."
        )


class LinearBaseline(Config, allow_inf_nan=False):
    """Results of the linear classifier on the test split."""

    ngrams: str
    """What its n-grams are of: `words` or `characters`; of pairs with the features it has besides."""
    training_sentences: Positive
    """Number of sentences it was trained on."""
    train_s: PositiveFloat
    """Time to train it, with the choice of n-grams."""
    accuracy: Fraction
    """Fraction of test sentences with the correct label."""
    accuracy_ci_low: Fraction
    """Lower bound of the 95 % Wilson confidence interval of `accuracy`."""
    accuracy_ci_high: Fraction
    """Upper bound of that interval."""
    macro_f1: Fraction
    """Mean of the F1 scores of all classes."""
    parameters: Positive
    """Number of its weights."""
    size_mb: PositiveFloat
    """Size of its weights and its n-grams, MB = 10^6 bytes."""
    latency_ms_p50: PositiveFloat
    """Median time from one sentence to its probabilities."""
    latency_ms_p95: PositiveFloat
    """95th percentile of that time."""
    throughput_per_s: PositiveFloat
    """Sentences per second, all test sentences at once."""

    @property
    def score(self) -> float:
        """The metric that models are compared by."""
        return self.accuracy

    @property
    def score_interval(self) -> tuple[float, float]:
        """Its 95 % confidence interval."""
        return self.accuracy_ci_low, self.accuracy_ci_high

    @property
    def features(self) -> str:
        """What it is trained on."""
        return f"TF-IDF of {self.ngrams}"


class WordBaseline(Config, allow_inf_nan=False):
    """Results of the linear classifier of words on the test split."""

    training_sentences: Positive
    """Number of sentences it was trained on."""
    train_s: PositiveFloat
    """Time to train it."""
    span_f1: Fraction
    """F1 score of the spans that its tags mark."""
    span_f1_ci_low: Fraction
    """Lower bound of the 95 % bootstrap confidence interval of `span_f1`."""
    span_f1_ci_high: Fraction
    """Upper bound of that interval."""
    tag_accuracy: Fraction
    """Fraction of the words with the right tag."""
    parameters: Positive
    """Number of its weights."""
    size_mb: PositiveFloat
    """Size of its weights and the names of its features, MB = 10^6 bytes."""
    latency_ms_p50: PositiveFloat
    """Median time from the words of a sentence to their tags."""
    latency_ms_p95: PositiveFloat
    """95th percentile of that time."""
    throughput_per_s: PositiveFloat
    """Sentences per second, all test sentences at once."""

    @property
    def score(self) -> float:
        """The metric that models are compared by."""
        return self.span_f1

    @property
    def score_interval(self) -> tuple[float, float]:
        """Its 95 % confidence interval."""
        return self.span_f1_ci_low, self.span_f1_ci_high

    @property
    def features(self) -> str:
        """What it is trained on."""
        return "words, their first and last letters and shapes, with those of their neighbours"


class Benchmark(Conditions, allow_inf_nan=False):
    """Benchmark of classifiers: rows in pipeline order, the first is the reference."""

    test_sentences: int
    """Number of test sentences on which accuracy is measured."""
    warmup: int
    """Number of warm-up calls of each model."""
    latency_samples: int
    """Number of sentences timed per model at batch size 1."""
    throughput_batch_size: int
    """Batch size of the throughput measurement."""
    throughput_batches: int
    """Number of batches timed per model."""
    tokenization_ms_p50: PositiveFloat
    """Median time to tokenise one sentence with the tokenizer of the first row."""
    f1_label: str | None = None
    """Label whose F1 score `f1` is; None if it is the macro average, and in files of older versions."""
    texts_truncated: Annotated[int, Field(ge=0)] | None = None
    """Test sentences longer than the first model's limit of tokens; None in files of older versions."""
    tokens_truncated: Annotated[int, Field(ge=0)] | None = None
    """Tokens beyond that limit."""
    linear_baseline: LinearBaseline | WordBaseline | None = None
    """A linear classifier trained on the same data; None in files of older versions, where the training split
    has one label only, and of multi-label data and scores."""
    rows: Annotated[tuple[BenchmarkRow | MultiLabelRow | RegressionRow | TokenRow, ...], Field(min_length=1)]
    """One row per model and runtime; the last is the final model."""


def busy_lines(conditions: Conditions) -> list[str]:
    """What a report says under its headline of a machine that was busy."""
    reason = conditions.busy()
    return [] if reason is None else [f"**{reason}**", ""]


def headline(benchmark: Benchmark) -> str:
    """The final row against the first, in one line: `10.4× faster, 5.6× smaller, −0.9 points of accuracy`."""
    first, last = benchmark.rows[0], benchmark.rows[-1]
    metric, change = TITLES[last.problem.metric], delta_text(last)
    if last.problem is not REGRESSION:
        change += " points"
    if len(benchmark.rows) == 1:
        return (
            f"{_name(first)}: {metric} {score_figure(first, first.score)}, {first.latency_ms_p50:.2f} ms per "
            "sentence"
        )
    return (
        f"{_name(last)} against {_name(first)}: {times(last.speedup, 'faster', 'slower')}, "
        f"{times(last.compression, 'smaller', 'larger')}, {change} of {metric}"
    )


def to_markdown(benchmark: Benchmark) -> str:
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


def table(benchmark: Benchmark) -> tuple[list[str], list[list[str]]]:
    """Names of all columns, of which the first two are text, and the cells of each row."""
    columns = [
        *(
            "stage",
            "runtime",
            f"{TITLES[benchmark.rows[0].problem.metric]} (95 % interval)",
            "Δ points" if benchmark.rows[0].problem is not REGRESSION else "Δ",
            "size MB",
            "smaller",
            "p50 ms",
            "p95 ms",
        ),
        *("tokenizer ms", "faster", "sentences/s", "RSS MB", "load s"),
    ]
    first = benchmark.rows[0]
    return columns, [*(_cells(row, first) for row in benchmark.rows), *_baseline_cells(benchmark)]


def method(benchmark: Benchmark) -> list[str]:
    """How the figures of the table were measured, in paragraphs."""
    return [
        f"p50 and p95 are latencies of the model alone at batch size 1, over {benchmark.latency_samples} "
        "sentences, with the models taking turns in one process; they and the ratios do not include the "
        "tokenizer, whose median time is listed separately. Sentences/s is measured in batches of "
        f"{benchmark.throughput_batch_size}, without tokenizer. {measured_on(benchmark)} MB = 10⁶ bytes."
    ]


def measured_on(benchmark: Benchmark) -> str:
    """On how many sentences the main metric was measured, and what interval it has."""
    metric = benchmark.rows[0].problem.metric
    title = TITLES[metric][0].upper() + TITLES[metric][1:]
    interval = "Wilson" if metric == "accuracy" else "bootstrap"
    return (
        f"{title} is measured on {benchmark.test_sentences} test sentences, with its 95 % {interval} "
        "confidence interval."
    )


def _cells(row: ClassifierRow, first: ClassifierRow) -> list[str]:
    return [
        row.stage,
        row.runtime,
        accuracy_text(row),
        "reference" if row is first else delta_text(row),
        f"{row.size_mb:.1f}",
        f"{row.compression:.1f}×",
        f"{row.latency_ms_p50:.2f}",
        f"{row.latency_ms_p95:.2f}",
        "–" if row.tokenization_ms_p50 is None else f"{row.tokenization_ms_p50:.3f}",
        "simulated" if row.simulated else f"{row.speedup:.1f}×",
        f"{row.throughput_per_s:.0f}",
        f"{row.peak_rss_mb:.0f}",
        f"{row.load_s:.2f}",
    ]


def _baseline_cells(benchmark: Benchmark) -> list[list[str]]:
    """The row of the linear classifier, if there is one; its time is that of text to label."""
    base, first = benchmark.linear_baseline, benchmark.rows[0]
    if base is None:
        return []
    cells = [
        "linear baseline",
        "scikit-learn",
        accuracy_text(base),
        points(base.score - first.score),
        f"{base.size_mb:.1f}",
        f"{first.size_mb / base.size_mb:.1f}×",
        f"{base.latency_ms_p50:.2f}",
        f"{base.latency_ms_p95:.2f}",
        "included",
        f"{first.latency_ms_p50 / base.latency_ms_p50:.1f}×",
        f"{base.throughput_per_s:.0f}",
        *("–", "–"),
    ]
    return [cells]


def baseline_note(benchmark: Benchmark) -> str | None:
    """Whether the data needs a Transformer at all; None where no linear classifier was trained."""
    base, last = benchmark.linear_baseline, benchmark.rows[-1]
    if base is None:
        return None
    gain, (low, high) = last.score - base.score, base.score_interval
    trained = f"{base.features} and logistic regression, trained on {base.training_sentences} sentences"
    note = f"A linear classifier ({trained} in {base.train_s:.1f} s) reaches {_percent(base.score)}"
    if low <= last.score <= high:
        band = f"{100 * low:.1f}–{_percent(high)}"
        return (
            f"{note}: the {_percent(last.score)} of {_name(last)} are within its confidence interval "
            f"({band}), so this test split does not show that the data needs a Transformer."
        )
    if gain < 0:
        return (
            f"{note}: {points(-gain)} points more than {_name(last)}. This data does not need a Transformer."
        )
    return f"{note}: {_name(last)} gains {points(gain)} points on it, more than chance explains."


def truncation_note(benchmark: Benchmark) -> str | None:
    """How many test sentences are cut; None where none is, or none were counted."""
    if not benchmark.texts_truncated:
        return None
    return (
        f"{benchmark.texts_truncated} of {benchmark.test_sentences} test sentences are longer than the "
        f"models take and were truncated, which loses {benchmark.tokens_truncated} tokens."
    )


def notes(benchmark: Benchmark) -> list[str]:
    """What the figures do not say by themselves, or say against a stage."""
    rows = benchmark.rows
    first, last = rows[0], rows[-1]
    found = _accuracy_notes(first, last, benchmark.test_sentences) if len(rows) > 1 else []
    if (baseline := baseline_note(benchmark)) is not None:
        found.append(baseline)
    exported = next(
        (row for row in rows[1:-1] if row.stage == first.stage and row.runtime != first.runtime), None
    )
    if exported is not None and last.runtime == exported.runtime:
        found.append(
            f"The runtime alone makes {first.stage} {times(exported.speedup, 'faster', 'slower')}; "
            f"{_name(last)} is {times(last.speedup / exported.speedup, 'faster', 'slower')} than that."
        )
    parent = first
    for row in rows[1:]:
        if row.simulated:
            found.append(
                f"{_name(row)} simulates int8 in float32 to measure accuracy; only the exported graph is "
                "optimised for speed."
            )
            continue
        found += _payoff(row, parent)
        if row is not exported:
            parent = row
    shares = {row.runtime: f"{row.baseline_rss_mb:.0f} MB in {row.runtime}" for row in rows}
    found.append(
        "RSS is measured in a fresh process and includes the imported libraries: "
        f"{', '.join(shares.values())}."
    )
    found += _other_scores(benchmark)
    if first.problem in (MULTI_LABEL, REGRESSION):
        found.append("The linear baseline is left out: it is for one label per text.")
    if (truncation := truncation_note(benchmark)) is not None:
        found.append(truncation)
    if benchmark.latency_samples > benchmark.test_sentences:
        found.append(
            "The test split has fewer sentences than were to be timed, so some were timed more than once."
        )
    return found


def _other_scores(benchmark: Benchmark) -> list[str]:
    """A note of the metrics besides the main one, of the first row and the last."""
    rows = list(dict.fromkeys((benchmark.rows[0], benchmark.rows[-1])))

    def listed(title: str, figure: Callable[[Any], str]) -> str:
        return f"{title}: " + ", ".join(f"{_name(row)} {figure(row)}" for row in rows)

    first = rows[0]
    if isinstance(first, RegressionRow):
        spearman = listed("Spearman correlation", lambda row: _correlation(row.spearman))
        return [f"{spearman}. {listed('Mean absolute error', lambda row: f'{row.mae:.3g}')}."]
    if isinstance(first, BenchmarkRow) and first.macro_f1 is None:
        return []
    if isinstance(first, TokenRow):
        parts = listed(
            "Precision and recall of the spans",
            lambda row: f"{_percent(row.span_precision)} and {_percent(row.span_recall)}",
        )
        types = listed("F1 averaged over their types", lambda row: _percent(row.macro_f1))
        words = listed("words with the right tag", lambda row: _percent(row.tag_accuracy))
        return [f"{parts}. {types}; {words}."]
    note = listed("Macro-averaged F1", lambda row: _percent(row.macro_f1 or 0))
    if benchmark.f1_label is not None:
        note += f"; {listed(f'F1 of the label {benchmark.f1_label!r}', lambda row: _percent(row.f1))}"
    return [note + "."]


def _accuracy_notes(first: ClassifierRow, last: ClassifierRow, sentences: int) -> list[str]:
    notes, (low, high) = list[str](), first.score_interval
    band = f"{score_figure(first, low, unit=False)}–{score_figure(first, high)}"
    if last.score != first.score:
        unit = "" if first.problem is REGRESSION else " points"
        difference = f"The difference of {delta_text(last)}{unit} is"
        if low <= last.score <= high:
            notes.append(
                f"{difference} within the confidence interval of the reference ({band}): {sentences} test "
                "sentences are too few to distinguish it from chance."
            )
        else:
            notes.append(
                f"{difference} outside the confidence interval of the reference ({band}): it is unlikely "
                "to be chance."
            )
    return [*notes, _AGREEMENT[first.problem.name](_name(last), _percent(last.agreement), _name(first))]


_AGREEMENT: dict[str, Callable[[str, str, str], str]] = {
    SINGLE_LABEL.name: lambda model, share, reference: (
        f"{model} predicts the same label for {share} of the sentences as {reference}."
    ),
    MULTI_LABEL.name: lambda model, share, reference: (
        f"{model} predicts exactly the same labels for {share} of the sentences as {reference}."
    ),
    TOKENS.name: lambda model, share, reference: (
        f"{model} gives {share} of the words that either takes into a span the same tag as {reference}."
    ),
    REGRESSION.name: lambda model, share, reference: (
        f"{model} reproduces {share} of the variance of the scores of {reference} (R²)."
    ),
}


def _payoff(row: ClassifierRow, parent: ClassifierRow) -> list[str]:
    """A note where a stage that is to make the model faster did not, or one that is not to slow it did; and
    what `vocabulary` gives, which is not speed."""
    against = f"({row.latency_ms_p50:.2f} against {parent.latency_ms_p50:.2f} ms)"
    if row.stage == "vocabulary":
        fewer = f"{_percent(1 - row.parameters / parent.parameters)} fewer weights than {_name(parent)}"
        note = f"{_name(row)} has {fewer}; a smaller vocabulary does not make the model faster {against}"
        if row.latency_ms_p50 > 1.1 * parent.latency_ms_p50:
            note += ", and removed words are split into more tokens"
        return [note + "."]
    if row.latency_ms_p50 > 1.1 * parent.latency_ms_p50:
        return [f"{_name(row)} did not pay off: it is slower than {_name(parent)} {against}."]
    if row.stage == "shard" or row.latency_ms_p50 < 0.95 * parent.latency_ms_p50:
        return []
    note = f"{_name(row)} is no faster than {_name(parent)} {against}"
    if row.stage == "prune" and row.parameters == parent.parameters:
        note += ": individual weights set to zero are still stored and multiplied"
    return [note + "."]


def _name(row: ClassifierRow) -> str:
    return f"{row.stage} ({row.runtime})"


def accuracy_text(row: ClassifierRow | LinearBaseline | WordBaseline) -> str:
    """The main metric with its confidence interval."""
    if isinstance(row, LinearBaseline | WordBaseline):
        low_end, high_end = row.score_interval
        return f"{_percent(row.score)} ({100 * low_end:.1f}–{100 * high_end:.1f})"
    low, high = (score_figure(row, end, unit=False) for end in row.score_interval)
    return f"{score_figure(row, row.score)} ({low}–{high})"


def score_figure(row: ClassifierRow, value: float, unit: bool = True) -> str:
    """A value of the main metric: in percent, or a correlation with three decimals."""
    if row.problem is REGRESSION:
        return _correlation(value)
    return _percent(value) if unit else f"{100 * value:.1f}"


def delta_text(row: ClassifierRow) -> str:
    """How the main metric differs from the first row's: in points, or of a correlation as it is."""
    if row.problem is REGRESSION:
        text = f"{row.score_delta:+.3f}"
        return "±0.000" if text in ("+0.000", "-0.000") else text.replace("-", "−")
    return points(row.score_delta)


def _correlation(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def points(delta: float) -> str:
    """A difference of fractions in points, with a typeset sign."""
    text = f"{100 * delta:+.1f}"
    return "±0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def times(ratio: float, more: str, less: str) -> str:
    """A ratio as `3.0× more`, or its inverse as `2.0× less`."""
    return f"{ratio:.1f}× {more}" if ratio >= 1 else f"{1 / ratio:.1f}× {less}"
