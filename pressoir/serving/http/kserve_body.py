"""Bodies of KServe v2 that are JSON with binary tensors behind it: the protocol's binary data extension.

The header `Inference-Header-Content-Length` says how long the JSON is. A tensor whose `parameters` have a
`binary_data_size` has its data behind it, in the order of the tensors: numbers little-endian, texts each
after its length (4 bytes).

Sources. https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
from fastapi import HTTPException, Request
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope

from pressoir.serving.http.body_route import BYTES, JSON, BodyRequest, BodyRoute, check_media_type
from pressoir.serving.http.refusals import HttpError, JsonAnswer, as_json

HEADER = "Inference-Header-Content-Length"
_LENGTH = {
    "description": "Bytes of the JSON, before the data of the tensors.",
    "schema": {"type": "integer", "minimum": 0},
}
_APART = {"schema": {"type": "string", "format": "binary"}}
BINARY_REQUEST = {
    "parameters": [{"name": HEADER, "in": "header", "required": False, **_LENGTH}],
    "requestBody": {"content": {BYTES: _APART}},
}
"""What the document says of a request beside its JSON."""
BINARY_ANSWER = {"content": {BYTES: _APART}, "headers": {HEADER: _LENGTH}}
"""What the document says of an answer beside its JSON."""
_NUMBERS = {"BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}


class BinaryRequest(BodyRequest):
    """A request whose JSON is as long as `HEADER` says; the rest is `state.binary`.

    It is JSON with or without a content type: Triton's client sends none.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        super().__init__({**scope, "headers": [*headers, (b"content-type", b"application/json")]}, receive)

    async def body(self) -> bytes:
        """The JSON part."""
        if not hasattr(self, "_json_part"):
            whole = await super().body()
            said = Headers(scope=self.scope).get(HEADER.lower())
            if said is not None and not (said.isdecimal() and int(said) <= len(whole)):
                raise HTTPException(422, f"{HEADER} is not a length within the body")
            size = len(whole) if said is None else int(said)
            self._json_part, self.state.binary = whole[:size], whole[size:]
        return self._json_part


class BinaryRoute(BodyRoute):
    """A route that is given a `BinaryRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            check_media_type(request.headers.get("content-type", ""), (JSON, BYTES, ""))
            return await handle(BinaryRequest(request.scope, request.receive))

        return handler


def read_binary(content: bytes, sizes: Sequence[int], datatypes: Sequence[str]) -> list[list[Any]]:
    """The elements of the tensors behind the JSON.

    Raises:
        HttpError: sizes do not fit the content, or a tensor its datatype.
    """
    if sum(sizes) != len(content):
        raise _wrong(f"the tensors' binary_data_size add up to {sum(sizes)} bytes, but {len(content)} follow")
    tensors, start = [], 0
    for size, datatype in zip(sizes, datatypes, strict=True):
        chunk, start = content[start : start + size], start + size
        try:
            tensors.append(_texts(chunk) if datatype == "BYTES" else _numbers(chunk, datatype))
        except ValueError as error:
            raise _wrong(f"binary data is not of the datatype {datatype}: {error}") from error
    return tensors


def answer(content: dict[str, Any], binary: Sequence[bool]) -> Response:
    """An answer whose `outputs` are JSON or, where `binary` says so, behind it."""
    parts, outputs = [], []
    for output, apart in zip(content["outputs"], binary, strict=True):
        if apart:
            data = output.pop("data")
            parts.append(_packed(data, output["datatype"]))
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        outputs.append(output)
    if not parts:
        return JsonAnswer({**content, "outputs": outputs})
    head = as_json({**content, "outputs": outputs})
    return Response(
        b"".join([head, *parts]), media_type="application/octet-stream", headers={HEADER: str(len(head))}
    )


def _numbers(data: bytes, datatype: str) -> list[Any]:
    values: list[Any] = np.frombuffer(data, dtype=_NUMBERS[datatype]).tolist()
    return values


def _texts(data: bytes) -> list[Any]:
    texts, offset = [], 0
    while offset < len(data):
        end = offset + 4 + int.from_bytes(data[offset : offset + 4], "little")
        if end > len(data):
            raise ValueError("a text is longer than what follows")
        texts.append(data[offset + 4 : end].decode("utf-8"))
        offset = end
    return texts


def _packed(data: Sequence[Any], datatype: str) -> bytes:
    if datatype != "BYTES":
        return np.asarray(data, dtype=_NUMBERS[datatype]).tobytes()
    texts = [text.encode("utf-8", "surrogatepass") for text in data]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def _wrong(message: str) -> HttpError:
    return HttpError(422, "invalid_request", message)
