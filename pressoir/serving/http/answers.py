"""What the server's own endpoints answer, for the OpenAPI document; handlers send ready JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pressoir.serving.config import TierSettings

Probability = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Number = Annotated[int, Field(ge=0)]


class Answer(BaseModel):
    """JSON that the server sends, or a part of it; nothing else is in it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Classification(Answer):
    """What a classifier says of a text."""

    label: str
    """The most probable one."""
    confidence: Probability
    """Its probability."""
    probabilities: dict[str, Probability]
    """Of each label."""
    truncated: bool
    """Whether the text is longer than what was read of it."""


class LabelSet(Answer):
    """What a multi-label classifier says of a text."""

    labels: list[str]
    """Those whose probability is at least their threshold, in the model's order; there may be none."""
    probabilities: dict[str, Probability]
    """Of each label, by itself."""
    truncated: bool
    """Whether the text is longer than what was read of it."""


class Score(Answer):
    """What a regression model says of a text."""

    score: float
    truncated: bool
    """Whether the text is longer than what was read of it."""


class Classified(Answer):
    """The labels of texts, or their scores: as the model of the tier decides."""

    tier: str
    results: list[Classification] | list[LabelSet] | list[Score]
    """One for each text, in the order of the texts."""


class SpanOfWords(Answer):
    """Words that belong together, such as a name."""

    type: str
    start: Number
    """Its first word, from 0."""
    end: Number
    """The word after its last."""
    text: str
    """Its words, with spaces."""
    score: Probability
    """Mean probability of the tags of its words."""


class TaggedSentence(Answer):
    """What a token classifier says of a sentence."""

    words: list[str]
    tags: list[str]
    """One for each word."""
    entities: list[SpanOfWords]
    """The spans that the tags mark, in their order."""


class TaggedSentences(Answer):
    """The tags of words."""

    tier: str
    results: list[TaggedSentence]
    """One for each sentence, in their order."""


class Translated(Answer):
    """Translations."""

    tier: str
    translations: list[str]
    """One for each text, in the order of the texts."""
    truncated: list[bool]
    """Of each text, whether it is longer than what was read of it."""


class Piece(Answer):
    """A part of a text, as it is generated."""

    piece: str


class Done(Answer):
    """The end of a generated text."""

    done: Literal[True]
    tokens: Number
    """Generated ones."""
    seconds: NotNegative


class TierDescription(Answer):
    """A tier."""

    tier: str
    task: str
    model: str
    """As the configuration names it."""
    digest: str
    """SHA-256 of the model's files."""
    runtime: str
    size_mb: NotNegative
    """Size of the model's files, MB = 10^6 bytes."""
    labels: list[str] | None
    """Those of a classifier, once its model was loaded."""
    pairs: bool | None
    """Whether a classifier was trained on pairs of texts, once its model was loaded."""
    problem: str | None
    """`multi-label` or `regression` of such a classifier, once its model was loaded; null of others."""
    settings: TierSettings


class Tiers(Answer):
    """The tiers."""

    tiers: list[TierDescription]
    default_pair: Annotated[list[str], Field(min_length=2, max_length=2)] | None
    """The first two tiers of one task whose models differ."""


class TimedClassification(Classification):
    """What a tier says of a text, and how long it took."""

    tier: str
    latency_ms: NotNegative


class ComparedText(Answer):
    """What the tiers say of one text."""

    text_index: Number
    answers: list[TimedClassification]
    """In the order in which the request names the tiers."""
    agree: bool


class ComparisonStatistics(Answer):
    """Comparison of some tiers over all texts since the server started."""

    requests: Number
    agreement: Probability | None
    """Fraction of the texts on which all tiers agree."""
    agreement_interval: Annotated[list[Probability], Field(min_length=2, max_length=2)] | None
    """Its Wilson 95 % interval."""
    latency_p50_ms: dict[str, NotNegative | None]
    """Median latency of each tier."""
    size_mb: dict[str, NotNegative]
    speedup: NotNegative | None
    """Median latency of the first tier divided by that of the second."""


class Compared(Answer):
    """Tiers side by side."""

    results: list[ComparedText]
    order: list[str]
    """The order in which the tiers had their turn."""
    statistics: ComparisonStatistics


class Live(Answer):
    """The server is alive."""

    live: Literal[True]


class Ready(Answer):
    """Every tier would answer."""

    ready: Literal[True]


class SharedModel(Answer):
    """A model, and who uses it."""

    users: list[str]
    """Tiers."""
    loaded_at: str | None
    """UTC; null where it is not loaded."""
    digest: str
    pss_mb: NotNegative
    """Memory that it takes; 0 where it is not loaded."""
    leases: Number
    """Requests that use it now."""


class Statistics(Answer):
    """Sharing statistics."""

    shared_models_count: Number
    """Models that more than one tier uses."""
    total_model_types: Number
    """Tiers."""
    unique_models_loaded: Number
    """Models in memory now."""
    models_saved: Number
    """How many models less are loaded than if each tier had its own."""
    estimated_memory_saved_mb: NotNegative
    """By the sizes of the files, MB = 10^6 bytes."""
    measured_memory_saved_mb: NotNegative
    """Of the models in memory now, by the memory that each takes."""
    shared_models_info: dict[str, SharedModel]
    """By model."""


class Reloaded(Answer):
    """The server has switched."""

    reloaded: Literal[True]
    tiers: list[str]


def event_of(*contents: type[BaseModel], name: str | None = None) -> dict[str, Any]:
    """The schema of an event (with a `name`) whose data are JSON of one of `contents`."""
    models: list[Any] = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in contents]
    content = models[0] if len(models) == 1 else {"anyOf": models}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    named: dict[str, Any] = {} if name is None else {"event": {"const": name}}
    return {"type": "object", "properties": {"data": data, **named}, "required": ["data", *named]}


def stream_of(*events: dict[str, Any]) -> dict[str, Any]:
    """The media type of a stream of events; in OpenAPI 3.1 its schema is that of one event."""
    return {"text/event-stream": {"schema": {"anyOf": list(events)}}}
