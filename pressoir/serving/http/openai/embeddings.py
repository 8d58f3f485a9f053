"""Embeddings: of length 1, as clients of this API expect; over KServe v2 they are as the model gives them.

Sources. https://github.com/openai/openai-openapi
"""

from __future__ import annotations

import base64
from typing import Annotated, Literal, cast

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from starlette.responses import Response

from pressoir.serving.errors import RequestError
from pressoir.serving.http.backend import Backend
from pressoir.serving.http.openai.answers import EmbeddingList
from pressoir.serving.http.refusals import JsonAnswer, may_answer
from pressoir.serving.http.request_model import (
    WHOLE,
    Count,
    Ids,
    Many,
    Model,
    RequestModel,
    Text,
    tier_with,
)
from pressoir.serving.service import MOST_EMBEDDED

_MANY = Field(json_schema_extra={"minItems": 1, "maxItems": MOST_EMBEDDED})


class Embeddings(RequestModel):
    """Texts to embed, 2,048 at most."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": ["The film was good.", "A book."]},
                {"input": "The film was good.", "encoding_format": "base64"},
            ]
        }
    )

    model: Annotated[Model, tier_with("embed")]
    input: Annotated[
        Text | Annotated[Many[Text], _MANY] | Ids | Annotated[Many[Ids], _MANY],
        Field(
            description="A text, several, or their token ids as the model's tokenizer makes them, special "
            "ones included."
        ),
        WHOLE,
    ]
    encoding_format: Literal["float", "base64"] = "float"

    dimensions: Annotated[
        Count | None,
        Field(
            description="Length of the vectors: the beginning of an embedding is kept, and normalised "
            "again. Models that were trained for that length (Matryoshka) lose little by it."
        ),
    ] = None


def add_routes(router: APIRouter, backend: Backend) -> None:
    """Add the endpoint to `router`."""
    service = backend.service

    @router.post("/embeddings", response_model=EmbeddingList, responses=may_answer(404, 504))
    async def embeddings(body: Embeddings, request: Request) -> Response:
        """A normalised embedding of each text."""
        tier = backend.tier(request, body.model, "embed")
        texts = _inputs(body.input)
        backend.check_lengths(texts)
        found = await service.embed_many(texts, tier=tier, most=MOST_EMBEDDED)
        vectors = found.vectors
        if body.dimensions is not None:
            if body.dimensions > vectors.shape[1]:
                raise RequestError(
                    f"dimensions is {body.dimensions}, but the embeddings of {tier.name} have "
                    f"{vectors.shape[1]}"
                )
            vectors = vectors[:, : body.dimensions]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": _encoded(vector, body.encoding_format),
                **({"truncated": True} if cut else {}),
            }
            for index, (vector, cut) in enumerate(zip(vectors, found.truncated, strict=True))
        ]
        usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
        return JsonAnswer({"object": "list", "model": tier.name, "data": data, "usage": usage})


def _inputs(given: str | list[str] | list[int] | list[list[int]]) -> list[str] | list[list[int]]:
    """Several inputs, where one was given as it is."""
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return cast(list[list[int]], [given])
    return cast(list[str] | list[list[int]], given)


def _encoded(vector: NDArray[np.float32], form: str) -> str | list[float]:
    if form == "float":
        numbers: list[float] = vector.tolist()
        return numbers
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
