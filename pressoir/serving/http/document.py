"""The OpenAPI document of a server: FastAPI's, made true for this server.

FastAPI knows the endpoints, their fields and what they answer. Added here is what all of them have in common:
the errors that the gate and the handlers answer with, their headers, who needs which key. A client
that may use the tiers also sees their names and what they allow; others see the same document without these.

Sources. https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import compile_path

from pressoir.data.texts import PAIR
from pressoir.extensions.task import task
from pressoir.serving.examples import example_requests
from pressoir.serving.http.answers import Done, Piece
from pressoir.serving.http.backend import Backend
from pressoir.serving.http.gate import OPEN
from pressoir.serving.http.openai.answers import ChatChunk, CompletionChunk
from pressoir.serving.http.openai.transcripts import DeltaEvent, DoneEvent
from pressoir.serving.http.refusals import ERRORS, ErrorAnswer, TextErrorAnswer
from pressoir.serving.http.request_model import LIMIT, TIERS, VERSIONS
from pressoir.serving.keys import Keys
from pressoir.serving.pool.sharing import Tier
from pressoir.serving.settings import MOST_TOKENS

Schema = dict[str, Any]

_MODELS: tuple[type[BaseModel], ...] = (
    *(ErrorAnswer, TextErrorAnswer),
    *(Piece, Done, CompletionChunk, ChatChunk, DeltaEvent, DoneEvent),
)
"""Models of errors and events, which FastAPI does not see."""
_REPLACED = ("HTTPValidationError", "ValidationError")
"""FastAPI's shape of an error, which this server does not have."""
_ALWAYS = (400, 403, 408, 413, 429, 431, 500, 503)
"""Errors of any request: of its connection, its size, its address, or a server that is busy or ends."""
_WITH_BODY = (415, 422)
_SCHEMA = "#/components/schemas/{model}"
_ERRORS: dict[str, type[BaseModel]] = {"Error": ErrorAnswer, "Text": TextErrorAnswer}
"""Shapes of errors: of all, and of KServe v2."""
_USER, _ADMIN = "user", "admin"
_SCHEMES = {
    _USER: {
        "type": "http",
        "scheme": "bearer",
        "description": "A key for requests; an administrator's key is good for them as well.",
    },
    _ADMIN: {
        "type": "http",
        "scheme": "bearer",
        "description": "A key for what changes the server or shows its configuration.",
    },
}
_ID = {
    "X-Request-ID": {
        "description": "That of the request, if it has one, which is also in the server's log.",
        "required": True,
        "schema": {"type": "string"},
    }
}
_RETRY = {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 0}}
_HEADERS: Mapping[int, Schema] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}},
    415: {"Accept": {"description": "What is accepted.", "required": True, "schema": {"type": "string"}}},
    429: {"Retry-After": {**_RETRY, "required": True}},
    503: {"Retry-After": _RETRY},
}
_LANGUAGES = ("source_language", "target_language")
_KEYWORDS = {"max_batch": "maxItems", "max_text_characters": "maxLength"}
"""The keyword of a limit in JSON Schema, where it is not `maximum`."""


class Document:
    """The document of an app and its service."""

    def __init__(self, app: FastAPI, backend: Backend, keys: Keys) -> None:
        self._app, self._backend, self._keys = app, backend, keys
        self._filled: tuple[list[tuple[Tier, bool]], Schema] | None = None

    def content(self, role: str | None) -> Schema:
        """The document for who has a role: with the tiers for those who may use them."""
        if self._keys.users and role is None:
            return self._without_tiers
        tiers = list(self._backend.service.models.tiers.values())
        state = [(tier, bool(self._backend.model_info(tier))) for tier in tiers]
        if self._filled is None or self._filled[0] != state:
            self._filled = state, self._with(tiers)
        return self._filled[1]

    def methods(self, path: str) -> str:
        """The methods of an address, as the header `Allow` has them; empty where the document lacks it."""
        return next((methods for address, methods in self._methods if address.match(path)), "")

    @cached_property
    def _marked(self) -> Schema:
        return _complete(self._app.openapi(), self._keys)

    @cached_property
    def _without_tiers(self) -> Schema:
        return self._with(())

    def _with(self, tiers: Sequence[Tier]) -> Schema:
        infos = {tier.name: self._backend.model_info(tier) for tier in tiers}
        examples = {tier.name: _example(tier, infos[tier.name]) for tier in tiers}
        pairs = {name: info.get("pairs") for name, info in infos.items()}
        return _fill(self._marked, tiers, examples, pairs, self._backend.limits.max_text_characters)

    @cached_property
    def _methods(self) -> list[tuple[re.Pattern[str], str]]:
        return [
            (compile_path(path)[0], ", ".join(sorted(method.upper() for method in item)))
            for path, item in self._marked["paths"].items()
        ]


def _operations(document: Schema) -> Iterator[tuple[str, str, Schema]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def _complete(made: Schema, keys: Keys) -> Schema:
    """FastAPI's document with errors, headers and keys."""
    document = copy.deepcopy(made)
    components = document["components"]
    _, more = models_json_schema([(model, "serialization") for model in _MODELS], ref_template=_SCHEMA)
    known = {name: schema for name, schema in components["schemas"].items() if name not in _REPLACED}
    components["schemas"] = dict(sorted((known | more["$defs"]).items()))
    components["responses"] = {
        name + str(status): _error(status, model) for name, model in _ERRORS.items() for status in ERRORS
    }
    used = set[str]()
    for path, method, operation in _operations(document):
        _add_key(operation, path, keys)
        used |= {name for key in operation.get("security", ()) for name in key}
        _add_errors(operation, path, keys)
        for response in operation["responses"].values():
            if "$ref" not in response:
                response["headers"] = {**_ID, **response.get("headers", {})}
                if method == "head":
                    response.pop("content", None)
    if used:
        components["securitySchemes"] = {name: scheme for name, scheme in _SCHEMES.items() if name in used}
    return document


def _add_key(operation: Schema, path: str, keys: Keys) -> None:
    """Which key an operation needs; an administrator's operation is marked by its route."""
    if "security" in operation:
        if not keys.admins:
            del operation["security"]  # nobody has one, and the operation is refused to everybody
    elif keys.users and not OPEN.fullmatch(path):
        operation["security"] = [{_USER: []}, *([{_ADMIN: []}] if keys.admins else ())]


def _add_errors(operation: Schema, path: str, keys: Keys) -> None:
    """The errors that an operation has beside those of its route."""
    found = operation["responses"]
    if "$ref" in str(found.get("422")):  # FastAPI's, which has another shape
        del found["422"]
    errors = {*_ALWAYS, *(int(status) for status in found if int(status) >= 400)}
    errors |= {*(_WITH_BODY if "requestBody" in operation else ())}
    errors |= {401} if keys.users and not OPEN.fullmatch(path) else set()
    name = "Text" if path.startswith("/v2") else "Error"
    for status in sorted(errors):
        found[str(status)] = {"$ref": f"#/components/responses/{name}{status}"}
    operation["responses"] = dict(sorted(found.items()))


def _error(status: int, model: type[BaseModel]) -> Schema:
    content = {"application/json": {"schema": {"$ref": _SCHEMA.format(model=model.__name__)}}}
    return {"description": ERRORS[status], "headers": _ID | _HEADERS.get(status, {}), "content": content}


def _fill(
    document: Schema,
    tiers: Sequence[Tier],
    examples: Mapping[str, Schema],
    pairs: Mapping[str, bool | None],
    most_characters: int,
) -> Schema:
    """The document with names, versions and limits of the tiers in the places that are marked for them."""
    filled = copy.deepcopy(document)
    for schema in filled["components"]["schemas"].values():
        operations = [mark[TIERS] for mark in _marks(schema, TIERS)]
        fitting = _with_operation(tiers, operations[0]) if operations else []
        _add_examples(schema, [tier.name for tier in fitting], examples)
        _settle_pairs(schema, {pairs[tier.name] for tier in fitting})
        if len(fitting) > 1:
            _require_tier(schema)
        for mark in _marks(schema, LIMIT):
            limit = mark.pop(LIMIT)
            if limit == "max_text_characters":
                mark["maxLength"] = most_characters
            elif fitting:
                mark[_KEYWORDS.get(limit, "maximum")] = max(_allowed(tier, limit) for tier in fitting)
    least = {id(mark["items"]): mark.get("minItems", 1) for mark in _marks(filled, "uniqueItems")}
    for mark in _marks(filled, TIERS):
        names = [tier.name for tier in _with_operation(tiers, mark.pop(TIERS))]
        if len(names) >= least.get(id(mark), 1):  # with fewer, no request can be right
            mark["enum"] = names
    for mark in _marks(filled, VERSIONS):
        del mark[VERSIONS]
        versions = list(dict.fromkeys(tier.spec.digest[:12] for tier in tiers))
        mark |= {"enum": versions} if versions else {}
    if tiers:
        _add_inferences(filled, tiers, examples)
    return filled


def _marks(schema: Any, name: str) -> list[Schema]:
    """The parts of a schema that have a mark."""
    if isinstance(schema, list):
        return [mark for item in schema for mark in _marks(item, name)]
    if not isinstance(schema, dict):
        return []
    below = [mark for value in schema.values() for mark in _marks(value, name)]
    return [schema, *below] if name in schema else below


def _with_operation(tiers: Sequence[Tier], operation: str) -> list[Tier]:
    return [tier for tier in tiers if not operation or operation in task(tier.spec.task).operations]


def _allowed(tier: Tier, limit: str) -> float:
    value: float | None = getattr(tier.config.settings, limit)
    return MOST_TOKENS if value is None else value


def _settle_pairs(schema: Schema, kinds: set[bool | None]) -> None:
    """Where all tiers are alike, the second text of a pair is needed, or there must be none."""
    fields = schema.get("properties", {})
    for field in {PAIR, f"{PAIR}s"} & set(fields):
        if kinds == {False}:
            fields[field] = {"type": "null", "description": "No tier takes pairs of texts."}
        elif kinds == {True}:
            options = [option for option in fields[field]["anyOf"] if option.get("type") != "null"]
            fields[field] = {**fields[field], "anyOf": options}
            fields[field].pop("default", None)
            schema["required"] = [*schema.get("required", ()), field]


def _require_tier(schema: Schema) -> None:
    """Of several tiers a request names one, which it may leave out where there is no choice."""
    for field, described in schema["properties"].items():
        options = described.get("anyOf", ())
        if any(TIERS in option for option in options):
            described["anyOf"] = [option for option in options if TIERS in option]
            schema["required"] = [*schema.get("required", ()), field]


def _example(tier: Tier, info: Mapping[str, Any]) -> Schema:
    """A small inference on a tier, with languages where its model has several; of a pair where it takes
    pairs."""
    requests = example_requests(tier.config, sound_s=0.01)
    return requests[-1] if info.get("languages") or info.get("pairs") else requests[0]


def _add_examples(schema: Schema, names: Sequence[str], inferences: Mapping[str, Schema]) -> None:
    """Complete the examples of a request with the first tiers that can answer it."""
    examples = schema.pop("examples", [])
    for field, described in schema.get("properties", {}).items():
        if not _marks(described, TIERS):
            continue
        several = described.get("type") == "array"
        given: Any = list(names[: 2 if several else 1])
        if len(given) < (2 if several else 1):
            return
        own = inferences[given[0]].get("parameters", {})
        languages = {name: own[name] for name in _LANGUAGES if name in own}
        second = _second_text(schema["properties"], inferences[given[0]])
        examples = [
            {**second, **example, field: given if several else given[0], **languages} for example in examples
        ]
    if examples:
        schema["examples"] = examples


def _second_text(fields: Schema, inference: Schema) -> Schema:
    """The field of a request that has the second text of a pair, where the inference is of one."""
    found = [tensor["data"] for tensor in inference["inputs"] if tensor["name"] == PAIR]
    several = {f"{PAIR}s": found[0], PAIR: found[0][0]} if found else {}
    return {name: value for name, value in several.items() if name in fields}


def _add_inferences(document: Schema, tiers: Sequence[Tier], examples: Mapping[str, Schema]) -> None:
    """An example of inference on each tier: the tensors depend on its task."""
    for path, _, operation in _operations(document):
        if not path.endswith("/infer"):
            continue
        bodies = {name: {"value": body} for name, body in examples.items()}
        operation["requestBody"]["content"]["application/json"]["examples"] = bodies
        for parameter in operation["parameters"]:
            if parameter["name"] == "tier":
                parameter["examples"] = {tier.name: {"value": tier.name} for tier in tiers}
            if parameter["name"] == "version":
                parameter["examples"] = {tier.name: {"value": tier.spec.digest[:12]} for tier in tiers}
