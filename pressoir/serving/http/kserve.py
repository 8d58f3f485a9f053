"""KServe v2, also named the Open Inference Protocol: tensors in, tensors out, as JSON. Tiers are its models.

====================  ==============================  ================================================
task                  input                           output
====================  ==============================  ================================================
text-classification   `text` BYTES (n,)               `probabilities` FP32 (n, labels), `label` BYTES
                                                      (n,); parameters of the metadata: the labels
feature-extraction    `text` BYTES (n,)               `embedding` FP32 (n, dimensions)
translation           `text` BYTES (n,)               `text` BYTES (n,)
causal-lm             `text` BYTES (1,)               `text` BYTES (1,): the continuation
speech recognition    `audio` FP32 (1, samples)       `text` BYTES (1,)
====================  ==============================  ================================================

What a tier's settings let a request choose (`max_length`, `num_beams`, languages, …) is a parameter of the
request. For audio `sampling_rate` is one as well; it must be that of the model.

Sources. https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md)
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import Response

from pressoir import __version__
from pressoir.extensions.task import Task, task
from pressoir.serving.http.backend import Backend
from pressoir.serving.http.refusals import HttpError, JsonAnswer
from pressoir.serving.http.request_model import RequestModel
from pressoir.serving.http.status import carried_through, check_ready, health, key_needed
from pressoir.serving.pool.sharing import Tier

_PARAMETERS = {
    **dict.fromkeys(("source_language", "target_language", "language"), "string"),
    **dict.fromkeys(
        ("max_length", "max_new_tokens", "num_beams", "sampling_rate", "top_k", "seed"), "integer"
    ),
    **dict.fromkeys(("temperature", "top_p"), "number"),
}
"""What each parameter is in JSON; which of them a task takes, its declaration says."""
_TYPES: dict[str, tuple[type, ...]] = {"integer": (int,), "number": (int, float), "string": (str,)}


class Tensor(RequestModel):
    """An input tensor; its data may be flat or nested according to its shape."""

    name: Annotated[str, Field(max_length=100)]
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=4)]
    datatype: Literal["BYTES", "FP16", "FP32", "FP64"]
    data: list[Any]


class Output(RequestModel):
    """A requested output."""

    name: Annotated[str, Field(max_length=100)]


class Inference(RequestModel):
    """An inference request."""

    id: Annotated[str, Field(max_length=100)] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: Annotated[list[Tensor], Field(min_length=1)]
    outputs: list[Output] | None = None


def routes(backend: Backend) -> APIRouter:
    """The endpoints."""
    router, models = APIRouter(prefix="/v2", tags=["KServe v2"]), backend.service.models
    guarded = [Depends(key_needed)]

    @router.get("")
    async def server() -> Response:
        """Server metadata."""
        return JsonAnswer({"name": "pressoir", "version": __version__, "extensions": ["model_repository"]})

    router.include_router(health(backend))

    @router.get("/models/{tier}")
    async def metadata(tier: str, request: Request) -> Response:
        """Inputs and outputs of a tier. The number of labels is −1 until its model was loaded once."""
        found = backend.tier(request, tier)
        return JsonAnswer(_metadata(found, backend.model_info(found)))

    @router.get("/models/{tier}/ready")
    async def model_ready(tier: str, request: Request) -> Response:
        """Whether a tier is ready; if its model was evicted, the next request loads it again."""
        if not backend.is_ready(backend.tier(request, tier)):
            check_ready(backend)
        return JsonAnswer({"name": tier, "ready": True})

    @router.post("/models/{tier}/infer")
    async def infer(tier: str, body: Inference, request: Request) -> Response:
        """Run inference on a tier."""
        found = backend.tier(request, tier)
        declared = task(found.spec.task)
        options = _options(declared, body.parameters)
        run = declared.part("kserve")
        outputs: list[dict[str, Any]] = await run(backend, found, _only(body.inputs), options)
        answer: dict[str, Any] = {"model_name": tier, "model_version": found.spec.digest[:12]}
        if body.id is not None:
            answer["id"] = body.id
        return JsonAnswer({**answer, "outputs": _wanted(outputs, body.outputs)})

    @router.post("/repository/models/{tier}/load", dependencies=guarded)
    async def load(tier: str, request: Request) -> Response:
        """Load the model of a tier."""
        await models.load(backend.tier(request, tier))
        return JsonAnswer({"name": tier, "loaded": True})

    @router.post("/repository/models/{tier}/unload", dependencies=guarded)
    async def unload(tier: str, request: Request) -> Response:
        """Unload the model of a tier and all tiers that share it; the next request loads it again."""
        was_loaded = await carried_through(models.unload(backend.tier(request, tier)))
        return JsonAnswer({"name": tier, "loaded": False, "was_loaded": was_loaded})

    @router.post("/repository/models/{tier}/reload", dependencies=guarded)
    async def reload(tier: str, request: Request) -> Response:
        """Reload the model of a tier; if this fails, the old one stays in use."""
        await carried_through(models.replace(backend.tier(request, tier)))
        return JsonAnswer({"name": tier, "loaded": True})

    return router


def _metadata(tier: Tier, info: dict[str, Any]) -> dict[str, Any]:
    declared, labels = task(tier.spec.task), info.get("labels")
    sizes = {"rows": -1 if "max_batch" in declared.tier_settings else 1, "labels": len(labels or ()) or -1}
    text = {"name": "text", "datatype": "BYTES", "shape": [sizes["rows"]]}
    sound = {"name": "audio", "datatype": "FP32", "shape": [1, -1]}
    parameters = {"task": declared.name, "options": ", ".join(declared.parameters)}
    if labels:
        parameters["labels"] = ", ".join(labels)
    return {
        "name": tier.name,
        "versions": [tier.spec.digest[:12]],
        "platform": tier.spec.runtime,
        "inputs": [sound if declared.sound else text],
        "outputs": [
            {
                "name": output.name,
                "datatype": output.datatype,
                "shape": [sizes[size] if isinstance(size, str) else size for size in output.shape],
            }
            for output in declared.outputs
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


def _only(inputs: list[Tensor]) -> Tensor:
    if len(inputs) != 1:
        raise _wrong(f"inputs: expected one input (which may have several rows), but got {len(inputs)}")
    return inputs[0]


def _texts(backend: Backend, tensor: Tensor) -> list[str]:
    if tensor.datatype != "BYTES":
        raise _wrong(f"inputs.0: expected BYTES (JSON strings), but the datatype is {tensor.datatype}")
    texts = _flat(tensor)
    if not all(isinstance(text, str) for text in texts):
        raise _wrong("inputs.0.data: an element is not a JSON string")
    backend.check_lengths(texts)
    return texts


def _flat(tensor: Tensor) -> list[Any]:
    """The elements, in row-major order; raises HttpError where they do not fill the shape."""
    elements = tensor.data
    for _ in tensor.shape[1:]:
        if not any(isinstance(one, list) for one in elements[:1]):
            break
        elements = [one for row in elements for one in (row if isinstance(row, list) else [row])]
    if len(elements) != prod(tensor.shape):
        raise _wrong(f"inputs.0: {len(elements)} elements do not match the shape {tensor.shape}")
    return elements


async def classify(
    backend: Backend, tier: Tier, tensor: Tensor, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Probabilities and the best label, of each text."""
    texts = _texts(backend, tensor)
    rows = await backend.service.classify(texts, tier=tier, **options)
    labels = list(rows[0])
    values = [row[label] for row in rows for label in labels]
    return [
        _tensor("probabilities", "FP32", [len(rows), len(labels)], values),
        _tensor("label", "BYTES", [len(rows)], [max(row, key=lambda name: row[name]) for row in rows]),
    ]


async def embed(
    backend: Backend, tier: Tier, tensor: Tensor, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """A vector of each text."""
    texts = _texts(backend, tensor)
    vectors = await backend.service.embed(texts, tier=tier, **options)
    return [_tensor("embedding", "FP32", list(vectors.shape), vectors.reshape(-1).tolist())]


async def translate(
    backend: Backend, tier: Tier, tensor: Tensor, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """A translation of each text."""
    texts = _texts(backend, tensor)
    found = await backend.service.translate(texts, tier=tier, **options)
    return [_tensor("text", "BYTES", [len(found)], found)]


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


def _wanted(outputs: list[dict[str, Any]], requested: list[Output] | None) -> list[dict[str, Any]]:
    if not requested:
        return outputs
    found = {one["name"]: one for one in outputs}
    if unknown := [one.name for one in requested if one.name not in found]:
        raise _wrong(f"outputs: {unknown[0]!r} does not exist; available: {', '.join(found)}")
    return [found[name] for name in dict.fromkeys(one.name for one in requested)]


def _tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def _wrong(message: str) -> HttpError:
    return HttpError(422, "invalid_request", message)
