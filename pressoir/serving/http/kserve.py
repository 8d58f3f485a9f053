"""KServe v2, also named the Open Inference Protocol: tensors in, tensors out, as JSON. Tiers are its models.

====================  ==============================  ================================================
task                  input                           output
====================  ==============================  ================================================
text-classification   `text` BYTES (n,); of a model   `probabilities` FP32 (n, labels), `label` BYTES
                      of pairs `text_pair` as well    (n,), `truncated` BOOL (n,); parameters of the
                                                      metadata: the labels. Multi-label: `given` BOOL (n,
                                                      labels) instead of `label`; regression: `score` FP32
                                                      (n,) instead of both
token-classification  `text` BYTES (n,)               `entities` BYTES (n,) and `tags` BYTES (n,): JSON of
                                                      the spans, and of the tags of the words
feature-extraction    `text` BYTES (n,)               `embedding` FP32 (n, dimensions), `truncated` BOOL
                                                      (n,)
translation           `text` BYTES (n,)               `text` BYTES (n,), `truncated` BOOL (n,)
causal-lm             `text` BYTES (1,)               `text` BYTES (1,): the continuation
speech recognition    `audio` FP32 (1, samples)       `text` BYTES (1,)
====================  ==============================  ================================================

Tensors may be JSON or binary (`pressoir.serving.http.kserve_body`); shared memory is not supported. Errors
are `{"error": "…"}`, as the protocol has them, with `type` and `request_id` beside it.

What a tier's settings let a request choose (`max_length`, `num_beams`, languages, …) is a parameter of the
request. For audio `sampling_rate` is one as well; it must be that of the model.

Sources. https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md)
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from math import prod
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import Response

from pressoir import __version__
from pressoir.data.texts import PAIR, given_words
from pressoir.extensions.task import TRUNCATED, Task, task
from pressoir.extensions.task import Tensor as OutputTensor
from pressoir.formats.problems import MULTI_LABEL, PROBLEMS, REGRESSION, SINGLE_LABEL
from pressoir.inference.text_classification import decided
from pressoir.serving.http.backend import Backend
from pressoir.serving.http.body_route import BodyRoute
from pressoir.serving.http.kserve_answers import (
    IndexEntry,
    InferenceAnswer,
    Loaded,
    ModelMetadata,
    ModelReady,
    ServerMetadata,
    Unloaded,
)
from pressoir.serving.http.kserve_body import BINARY_ANSWER, BINARY_REQUEST, BinaryRoute, answer, read_binary
from pressoir.serving.http.refusals import HttpError, JsonAnswer, may_answer
from pressoir.serving.http.request_model import (
    WHOLE,
    Count,
    Many,
    Refused,
    RequestModel,
    StrictRequestModel,
    TierPath,
    VersionPath,
)
from pressoir.serving.http.status import ADMIN, add_health, admin_only, carried_through, check_ready
from pressoir.serving.pool.sharing import Tier

_PARAMETERS = {
    **dict.fromkeys(("source_language", "target_language", "language"), "string"),
    **dict.fromkeys(
        ("max_length", "max_new_tokens", "num_beams", "sampling_rate", "top_k", "seed"), "integer"
    ),
    **dict.fromkeys(("temperature", "top_p"), "number"),
}
"""What each parameter is in JSON; which of them a task takes, its declaration says."""
_EXTENSIONS = ["model_repository", "binary_tensor_data"]
_TENSORS = 16  # of a request at most: no task has as many, and each takes time to check
_TYPES: dict[str, tuple[type, ...]] = {"integer": (int,), "number": (int, float), "string": (str,)}


_OF_PROBLEM: dict[str, tuple[OutputTensor, ...]] = {
    MULTI_LABEL.name: (
        OutputTensor("probabilities", "FP32", ("rows", "labels")),
        OutputTensor("given", "BOOL", ("rows", "labels")),
        TRUNCATED,
    ),
    REGRESSION.name: (OutputTensor("score", "FP32", ("rows",)), TRUNCATED),
}
"""Outputs of classifiers that do not decide one label per text."""


Size = Annotated[int, Field(ge=0), WHOLE]


_SHARED: Refused = dict.fromkeys(
    ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"), ()
)


_ELEMENTS = ["string", "number", "array"]


class TensorParameters(StrictRequestModel):
    """Parameters of an input tensor."""

    refused: ClassVar[Refused] = _SHARED
    binary_data_size: Size | None = None
    """Bytes of its data behind the JSON."""
    content_type: Literal["str", "np"] | None = None
    """As MLServer's clients send it: texts or numbers, which the datatype says as well."""


class Tensor(RequestModel):
    """An input tensor; its data may be flat or nested according to its shape, or stand behind the JSON."""

    name: Annotated[str, Field(max_length=100, json_schema_extra={"enum": ["text", PAIR, "audio"]})]
    shape: Annotated[Many[Count], Field(min_length=1, max_length=4)]
    datatype: Literal["BYTES", "FP16", "FP32", "FP64"]
    parameters: TensorParameters = TensorParameters()
    data: Annotated[list[Any], Field(json_schema_extra={"items": {"type": _ELEMENTS}})] | None = None


class OutputParameters(StrictRequestModel):
    """Parameters of a requested output."""

    refused: ClassVar[Refused] = {**_SHARED, "classification": (0,)}
    binary_data: bool | None = None
    """Whether its data stand behind the JSON; by default as `binary_data_output` of the request says."""


class Output(RequestModel):
    """A requested output."""

    name: Annotated[str, Field(max_length=100)]
    parameters: OutputParameters = OutputParameters()


_KNOWN: dict[str, Any] = {
    "properties": {
        **{name: {"type": kind} for name, kind in _PARAMETERS.items()},
        "binary_data_output": {"type": "boolean"},
    },
    "additionalProperties": False,
}
"""The schema of a request's parameters: those of all tasks."""


class Listing(StrictRequestModel):
    """What the index is to list."""

    ready: bool = False
    """Only the tiers that are ready."""


class Inference(RequestModel):
    """An inference request."""

    id: Annotated[str, Field(max_length=100)] | None = None
    parameters: Annotated[dict[str, Any], Field(json_schema_extra=_KNOWN)] = Field(default_factory=dict)
    inputs: Annotated[
        Many[Tensor], Field(min_length=1, max_length=_TENSORS, json_schema_extra={"maxItems": 2})
    ]
    outputs: Annotated[Many[Output], Field(max_length=_TENSORS)] | None = None


def routes(backend: Backend) -> APIRouter:
    """The endpoints."""
    router = APIRouter(prefix="/v2", tags=["KServe v2"], route_class=BodyRoute)

    @router.get("", response_model=ServerMetadata)
    async def server() -> Response:
        """Server metadata."""
        return JsonAnswer({"name": "pressoir", "version": __version__, "extensions": _EXTENSIONS})

    add_health(router, backend)

    async def named(request: Request, tier: TierPath) -> Tier:
        return backend.tier(request, tier)

    async def versioned(request: Request, tier: TierPath, version: VersionPath) -> Tier:
        """A tier; its only version is the beginning of its model's digest."""
        found = backend.tier(request, tier)
        if version != _version(found):
            message = f"tier {tier!r} has the version {_version(found)!r} only, not {version[:100]!r}"
            raise HttpError(404, "unknown_version", message)
        return found

    _add_model(router, backend, "/models/{tier}/versions/{version}", versioned)
    _add_model(router, backend, "/models/{tier}", named)
    _add_repository(router, backend)
    return router


def _add_model(
    router: APIRouter, backend: Backend, path: str, lookup: Callable[..., Awaitable[Tier]]
) -> None:
    """What a tier is, whether it is ready, and inference on it."""
    known: Any = Depends(lookup)
    unknown = may_answer(404)

    @router.head(path, responses=unknown)
    @router.get(path, response_model=ModelMetadata, responses=unknown)
    async def metadata(found: Tier = known) -> Response:
        """Inputs and outputs of a tier. Until its model was loaded once, the number of labels is −1, and the
        second input of a model of pairs is not listed, and the outputs of a classifier are those for one
        label per text."""
        return JsonAnswer(_metadata(found, backend.model_info(found)))

    @router.head(f"{path}/ready", responses=unknown)
    @router.get(f"{path}/ready", response_model=ModelReady, responses=unknown)
    async def model_ready(found: Tier = known) -> Response:
        """Whether a tier is ready; if its model was evicted, the next request loads it again."""
        if not await backend.is_ready(found):
            await check_ready(backend)
        return JsonAnswer({"name": found.name, "ready": True})

    async def infer(body: Inference, request: Request, found: Tier = known) -> Response:
        """Run inference on a tier; tensors are JSON, or binary behind it."""
        declared = task(found.spec.task)
        parameters = dict(body.parameters)
        binary = parameters.pop("binary_data_output", False)
        if not isinstance(binary, bool):
            raise _wrong("parameters.binary_data_output: expected true or false")
        options = _options(declared, parameters)
        wanted = {output.name: output.parameters.binary_data for output in body.outputs or ()}
        run = declared.part("kserve")
        tensor, second = _inputs(body.inputs, declared, request.state.binary)
        options = options if second is None else {**options, PAIR: second}
        _check_outputs(_outputs(declared, await backend.info(found) if wanted else {}), wanted)
        outputs: list[dict[str, Any]] = await run(backend, found, tensor, options)
        chosen = [output for output in outputs if not wanted or output["name"] in wanted]
        content: dict[str, Any] = {"model_name": found.name, "model_version": _version(found)}
        if body.id is not None:
            content["id"] = body.id
        apart = [binary if (own := wanted.get(output["name"])) is None else own for output in chosen]
        return answer({**content, "outputs": chosen}, apart)

    router.add_api_route(
        f"{path}/infer",
        infer,
        methods=["POST"],
        route_class_override=BinaryRoute,
        response_model=InferenceAnswer,
        responses={200: BINARY_ANSWER, **may_answer(404, 504)},
        openapi_extra=BINARY_REQUEST,
    )


def _add_repository(router: APIRouter, backend: Backend) -> None:
    """Lists, loads and unloads models."""
    models = backend.service.models
    admin: dict[str, Any] = {
        "dependencies": [Depends(admin_only)],
        "responses": may_answer(404, 504),
        "openapi_extra": ADMIN,
    }

    async def index(body: Listing | None = None) -> Response:
        """List the tiers, and whether each is ready; with `ready` only those that are."""
        found = [
            {
                "name": tier.name,
                "version": _version(tier),
                "state": "READY" if await backend.is_ready(tier) else "UNAVAILABLE",
                "reason": "",
            }
            for tier in models.tiers.values()
        ]
        only_ready = body is not None and body.ready
        return JsonAnswer([entry for entry in found if entry["state"] == "READY" or not only_ready])

    router.add_api_route(
        "/repository/index",
        index,
        methods=["POST"],
        route_class_override=BinaryRoute,
        response_model=list[IndexEntry],
    )

    @router.post("/repository/models/{tier}/load", response_model=Loaded, **admin)
    async def load(tier: TierPath, request: Request) -> Response:
        """Load the model of a tier."""
        await models.load(backend.tier(request, tier))
        return JsonAnswer({"name": tier, "loaded": True})

    @router.post("/repository/models/{tier}/unload", response_model=Unloaded, **admin)
    async def unload(tier: TierPath, request: Request) -> Response:
        """Unload the model of a tier and all tiers that share it; the next request loads it again."""
        was_loaded = await carried_through(models.unload(backend.tier(request, tier)))
        return JsonAnswer({"name": tier, "loaded": False, "was_loaded": was_loaded})

    @router.post("/repository/models/{tier}/reload", response_model=Loaded, **admin)
    async def reload(tier: TierPath, request: Request) -> Response:
        """Reload the model of a tier; if this fails, the old one stays in use."""
        await carried_through(models.replace(backend.tier(request, tier)))
        return JsonAnswer({"name": tier, "loaded": True})


def _version(tier: Tier) -> str:
    return tier.spec.digest[:12]


def _metadata(tier: Tier, info: dict[str, Any]) -> dict[str, Any]:
    declared, labels = task(tier.spec.task), info.get("labels")
    sizes = {"rows": -1 if "max_batch" in declared.tier_settings else 1, "labels": len(labels or ()) or -1}
    text = {"name": "text", "datatype": "BYTES", "shape": [sizes["rows"]]}
    sound = {"name": "audio", "datatype": "FP32", "shape": [1, -1]}
    second = [{**text, "name": PAIR}] if info.get("pairs") else []
    parameters = {"task": declared.name, "options": ", ".join(declared.parameters)}
    if labels:
        parameters["labels"] = ", ".join(labels)
    return {
        "name": tier.name,
        "versions": [_version(tier)],
        "platform": tier.spec.runtime,
        "inputs": [sound if declared.sound else text, *second],
        "outputs": [
            {
                "name": output.name,
                "datatype": output.datatype,
                "shape": [sizes[size] if isinstance(size, str) else size for size in output.shape],
            }
            for output in _outputs(declared, info)
        ],
        "parameters": parameters,
    }


def _options(declared: Task, given: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a request, which the protocol types loosely; raises HttpError."""
    known = declared.parameters
    for name, value in given.items():
        if name not in known:
            raise _wrong(
                f"parameters: supported for {declared.name} are {', '.join(known)}, not {name[:100]!r}"
            )
        kind = _PARAMETERS.get(name)
        if kind is not None and (isinstance(value, bool) or not isinstance(value, _TYPES[kind])):
            raise _wrong(f"parameters.{name}: expected a JSON {kind}")
    return given


def _inputs(inputs: list[Tensor], declared: Task, binary: bytes) -> tuple[Tensor, Tensor | None]:
    """The input, and the second text of a pair, whose data may be binary; raises HttpError."""
    if len(inputs) > 1 + declared.pairs:
        several = f" or two ('text', {PAIR!r})" if declared.pairs else ""
        raise _wrong(
            f"inputs: expected one input{several} (which may have several rows), but got {len(inputs)}"
        )
    known = ("audio" if declared.sound else "text", PAIR)
    in_order = sorted(inputs, key=_is_second)
    for index, (tensor, name) in enumerate(zip(in_order, known, strict=False)):
        if tensor.name != name:
            raise _wrong(f"inputs.{index}.name: {tensor.name!r} does not exist; the input is {name!r}")
        if (tensor.parameters.binary_data_size is None) == (tensor.data is None):
            raise _wrong(f"inputs.{index}: expected either data or parameters.binary_data_size")
    behind = [tensor for tensor in inputs if tensor.parameters.binary_data_size is not None]
    if binary and not behind:
        raise _wrong(f"{len(binary)} bytes follow the JSON, but no input has a binary_data_size")
    sizes = [tensor.parameters.binary_data_size or 0 for tensor in behind]
    read = iter(read_binary(binary, sizes, [tensor.datatype for tensor in behind]))
    filled = [
        tensor.model_copy(update={"data": tensor.data if tensor.data is not None else next(read)})
        for tensor in inputs
    ]
    found, *second = sorted(filled, key=_is_second)
    return found, second[0] if second else None


def _is_second(tensor: Tensor) -> bool:
    return tensor.name == PAIR


def _texts(backend: Backend, tensor: Tensor) -> list[str]:
    place = f"inputs.{int(_is_second(tensor))}"
    if tensor.datatype != "BYTES":
        raise _wrong(f"{place}: expected BYTES (JSON strings), but the datatype is {tensor.datatype}")
    texts = _flat(tensor)
    if not all(isinstance(text, str) for text in texts):
        raise _wrong(f"{place}.data: an element is not a JSON string")
    backend.check_lengths(texts)
    return texts


def _flat(tensor: Tensor) -> list[Any]:
    """The elements, in row-major order; raises HttpError where they do not fill the shape."""
    elements = tensor.data or []
    for _ in tensor.shape[1:]:
        if not any(isinstance(element, list) for element in elements[:1]):
            break
        elements = [element for row in elements for element in (row if isinstance(row, list) else [row])]
    if len(elements) != prod(tensor.shape):
        place = f"inputs.{int(_is_second(tensor))}"
        raise _wrong(f"{place}: {len(elements)} elements do not match the shape {tensor.shape}")
    return elements


async def classify(
    backend: Backend, tier: Tier, tensor: Tensor, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Probabilities and the best label, or which labels are given, of each text or pair; or its score."""
    texts, second = _texts(backend, tensor), options.get(PAIR)
    options = {**options, PAIR: None if second is None else _texts(backend, second)}
    rows = await backend.service.classify(texts, tier=tier, **options)
    info, labels = await backend.info(tier), list(rows[0])
    problem = PROBLEMS[info.get("problem", SINGLE_LABEL.name)]
    found = [decided(problem, row, labels, info.get("thresholds")) for row in rows]
    if problem is REGRESSION:
        return [_tensor("score", "FP32", [len(rows)], found), _truncated(rows.truncated)]
    values = [row[label] for row in rows for label in labels]
    if problem is MULTI_LABEL:
        given = [label in own for own in found for label in labels]
        answered = _tensor("given", "BOOL", [len(rows), len(labels)], given)
    else:
        answered = _tensor("label", "BYTES", [len(rows)], found)
    return [
        _tensor("probabilities", "FP32", [len(rows), len(labels)], values),
        answered,
        _truncated(rows.truncated),
    ]


async def tag(backend: Backend, tier: Tier, tensor: Tensor, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The spans of each text and the tags of its words, as JSON; a text that is a JSON list of strings is
    these words."""
    texts = _texts(backend, tensor)
    found = await backend.service.tag([given_words(text) for text in texts], tier=tier, **options)
    spans = [json.dumps([e._asdict() for e in each.entities], ensure_ascii=False) for each in found]
    tags = [json.dumps(each.tags, ensure_ascii=False) for each in found]
    return [_tensor("entities", "BYTES", [len(found)], spans), _tensor("tags", "BYTES", [len(found)], tags)]


async def embed(
    backend: Backend, tier: Tier, tensor: Tensor, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """A vector of each text."""
    texts = _texts(backend, tensor)
    found = await backend.service.embed_many(texts, tier=tier, **options)
    values = found.vectors.reshape(-1).tolist()
    return [_tensor("embedding", "FP32", list(found.vectors.shape), values), _truncated(found.truncated)]


async def translate(
    backend: Backend, tier: Tier, tensor: Tensor, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """A translation of each text."""
    texts = _texts(backend, tensor)
    found = await backend.service.translate(texts, tier=tier, **options)
    return [_tensor("text", "BYTES", [len(found)], found), _truncated(found.truncated)]


async def generate(
    backend: Backend, tier: Tier, tensor: Tensor, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """The continuation of one text."""
    texts = _texts(backend, tensor)
    if len(texts) != 1:
        raise _wrong(f"inputs.0: expected one prompt per request, but got {len(texts)}")
    async with backend.service.generate(texts[0], tier=tier, **options) as generation:
        pieces = [piece async for piece in generation]
    return [_tensor("text", "BYTES", [1], ["".join(pieces)])]


async def transcribe(
    backend: Backend, tier: Tier, tensor: Tensor, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """What is said in one sound."""
    if tensor.datatype == "BYTES":
        raise _wrong("inputs.0: expected audio as FP32 in −1…1, but the datatype is BYTES")
    samples = _flat(tensor)
    if not {*map(type, samples)} <= {int, float}:  # numpy would read texts and true as numbers
        raise _wrong("inputs.0.data: an element is not a number")
    if any(size != 1 for size in tensor.shape[:-1]):
        raise _wrong(f"inputs.0.shape: expected (1, samples), but got {tensor.shape}")
    try:
        with np.errstate(over="ignore"):  # what is no longer finite is refused as that
            waveform = np.array(samples, dtype=np.float32)
    except (ValueError, TypeError, OverflowError):
        raise _wrong("inputs.0.data: an element is not a number") from None
    given = {name: value for name, value in options.items() if name != "sampling_rate"}
    rate = (await backend.info(tier))["sampling_rate"]
    if options.get("sampling_rate", rate) != rate:
        raise _wrong(
            f"parameters.sampling_rate: the model expects {rate} Hz; resample the audio, or send a file to "
            "/v1"
        )
    text = await backend.service.transcribe(waveform, tier=tier, **given)
    return [_tensor("text", "BYTES", [1], [text])]


def _outputs(declared: Task, info: dict[str, Any]) -> tuple[OutputTensor, ...]:
    """Those of a task; of a classifier as its model decides, where that is known."""
    return _OF_PROBLEM.get(info.get("problem", ""), declared.outputs)


def _check_outputs(outputs: Iterable[OutputTensor], wanted: Iterable[str]) -> None:
    known = [output.name for output in outputs]
    if unknown := [name for name in wanted if name not in known]:
        raise _wrong(f"outputs: {unknown[0]!r} does not exist; available: {', '.join(known)}")


def _truncated(rows: list[bool]) -> dict[str, Any]:
    return _tensor("truncated", "BOOL", [len(rows)], rows)


def _tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def _wrong(message: str) -> HttpError:
    return HttpError(422, "invalid_request", message)
