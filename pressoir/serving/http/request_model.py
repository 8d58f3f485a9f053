"""The base of request bodies: values have JSON's own types, and the first fault ends the check.

A number is a number, not a text that reads like one, and finite, as JSON has no others. pydantic would
describe each of a million wrong elements, which takes minutes and gigabytes.

What depends on a server's tiers (which there are, how much each allows) is only marked here; the OpenAPI
document of a server (`pressoir.serving.http.document`) has the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Annotated, Any, ClassVar, TypeVar

from fastapi import Path
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue

from pressoir.serving.generation import TokenId

Item = TypeVar("Item")
Many = Annotated[list[Item], Field(fail_fast=True)]
"""A list that reports only its first wrong element."""

_NAMED = 10

TIERS, LIMIT, VERSIONS = "x-tiers", "x-limit", "x-versions"
"""Marks in schemas: names of the tiers with an operation (any, if empty), a limit, versions of the tiers."""


def tier_with(operation: str) -> Any:
    """Annotation of a text that names a tier with `operation`."""
    return Field(json_schema_extra={TIERS: operation})


def limited(name: str) -> Any:
    """Annotation of what a limit is set for: a setting of the tiers, or `max_text_characters`."""
    return Field(json_schema_extra={LIMIT: name})


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list) and {float, list} & {*map(type, value)}:
        return [_whole(item) for item in value]
    return value


WHOLE = BeforeValidator(_whole)
"""Annotation, after its limits, of integers, which JSON may write as 4.0."""
Count = Annotated[int, Field(gt=0), WHOLE]
Length = Annotated[Count, limited("max_length")]
NewTokens = Annotated[Count, limited("max_new_tokens")]
Beams = Annotated[Count, limited("num_beams")]
Seconds = Annotated[float, Field(gt=0), limited("timeout_s")]
Temperature = Annotated[float, Field(ge=0)]
TopK = Annotated[int, Field(ge=0), WHOLE]
TopP = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32), WHOLE]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Stop = Annotated[Many[StopText], Field(max_length=4)]
Text = Annotated[
    str,
    Field(json_schema_extra={LIMIT: "max_text_characters", "minLength": 1, "pattern": r"[^\s\x1c-\x1f\x85]"}),
]
"""A text that is not blank."""
Batch = Annotated[Many[Item], Field(json_schema_extra={LIMIT: "max_batch", "minItems": 1})]
Ids = Annotated[Many[TokenId], Field(json_schema_extra={"minItems": 1})]
"""Token ids of a text; that there are some is checked where it is known which text they are of."""
Texts = Annotated[Text | Batch[Text], Field(description="One text or several texts.")]
Model = Annotated[str, Field(max_length=100, description="A tier.")]
"""What OpenAI-style requests name the model in."""
TierPath = Annotated[str, Path(description="A tier.", json_schema_extra={TIERS: ""})]
VersionPath = Annotated[
    str,
    Path(
        description="The version of its model: the beginning of the digest.",
        json_schema_extra={VERSIONS: True},
    ),
]


Refused = Mapping[str, tuple[Any, ...]]
"""Fields that would change the answer and are not supported, with the values beside null that would not."""


def _same(value: Any, other: Any) -> bool:
    """Whether they are the same JSON: to Python, 0 is False as well."""
    return bool(value == other) and isinstance(value, bool) is isinstance(other, bool)


def refusal_of(fields: Iterable[tuple[str, Any]], refused: Refused) -> str | None:
    """What to say of the first field that would change the answer; None where there is none."""
    for name, value in fields:
        harmless = refused.get(name, (value,))
        if value is not None and not any(_same(value, allowed) for allowed in harmless):
            return f"{name} is not supported; omit it"
    return None


class RequestModel(BaseModel):
    """A request body, or a part of one; unknown fields are ignored, but for the `refused` ones."""

    model_config = ConfigDict(allow_inf_nan=False, strict=True)
    refused: ClassVar[Refused] = {}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema, with the refused fields: of the values that change nothing, only those."""
        schema = handler(core_schema)
        fields = handler.resolve_ref_schema(schema).setdefault("properties", {})
        for name, values in cls.refused.items():
            fields[name] = {"enum": [None, *values], "description": "Not supported."}
        return schema

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        if isinstance(data, dict) and (reason := refusal_of(data.items(), cls.refused)) is not None:
            raise ValueError(reason)
        if isinstance(data, dict) and not cls.refused.keys().isdisjoint(data):
            return {name: value for name, value in data.items() if name not in cls.refused}
        return data


class StrictRequestModel(RequestModel):
    """A request body; unknown fields are errors, and null means that the field is omitted."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = {*cls.model_fields, *cls.refused}
            unknown = list(islice((str(name) for name in data if name not in known), _NAMED))
            if unknown:
                shown = ", ".join(name[:100] for name in unknown)
                raise ValueError(f"unknown fields: {shown}; known: {', '.join(cls.model_fields)}")
        return data
