"""What the endpoints of KServe v2 answer, for the OpenAPI document.

Sources. https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md)
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pressoir.serving.http.answers import Answer, Number

Shape = list[Annotated[int, Field(ge=-1)]]


class ServerMetadata(Answer):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class IndexEntry(Answer):
    """A tier in the index."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class TensorMetadata(Answer):
    """An input or an output; sizes that vary are −1."""

    name: str
    datatype: str
    shape: Shape


class ModelMetadata(Answer):
    """A tier."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, str]
    """Its task, the names of the parameters that it takes, and its labels."""


class ModelReady(Answer):
    """Whether a tier is ready."""

    name: str
    ready: Literal[True]


class OutputSize(Answer):
    """Parameters of an output whose data stand behind the JSON."""

    binary_data_size: Number
    """Bytes."""


class OutputTensor(Answer):
    """An output; its data are here or behind the JSON."""

    name: str
    datatype: str
    shape: list[Number]
    data: list[str | float | bool] | None = None
    parameters: OutputSize | None = None


class InferenceAnswer(Answer):
    """The outputs of a tier."""

    model_name: str
    model_version: str
    id: str | None = None
    """That of the request."""
    outputs: list[OutputTensor]


class Loaded(Answer):
    """A tier whose model is loaded."""

    name: str
    loaded: Literal[True]


class Unloaded(Answer):
    """A tier whose model is not loaded."""

    name: str
    loaded: Literal[False]
    was_loaded: bool
