"""The paths of OpenAI's API that many servers have, and the prompts that make tasks of them.

https://github.com/openai/openai-openapi. Log-probabilities of a prompt, whose first is null, are what clients
expect of `echo` with `logprobs`: https://github.com/ggml-org/llama.cpp/issues/27174.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from pressoir.data.texts import Text
from pressoir.errors import PressoirError, RecipeError
from pressoir.evaluation.child.remote.model import RemoteModel
from pressoir.extensions.task import task
from pressoir.inference.audio import Waveform

CLASSIFY = "Classify the user's text. Answer with exactly one of these labels, and nothing else: {labels}"
"""System message of a classification; the user message is the text."""
TRANSLATE = "Translate the user's text{source} to {target}. Answer with the translation, and nothing else."
"""System message of a translation, the languages as the data name them (`source` is ` from …`, or empty); the
user message is the text."""
_LABEL_TOKENS = 32


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class _Message(BaseModel):
    content: str | None = None


class _ChatChoice(BaseModel):
    message: _Message


class _Chat(BaseModel):
    choices: Annotated[list[_ChatChoice], Field(min_length=1)]


class _Transcription(BaseModel):
    text: str


class _Embedding(BaseModel):
    index: int
    embedding: list[float]


class _Embeddings(BaseModel):
    data: list[_Embedding]


class _Logprobs(BaseModel):
    token_logprobs: list[float | None]


class _Choice(BaseModel):
    text: str
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: int


class _Completion(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage | None = None


class OpenAI(RemoteModel):
    """Over the paths of OpenAI's API, which many servers have."""

    def check(self) -> None:
        """See `RemoteModel.check`."""
        declared = task(self.job.task)
        if "target_language" in declared.languages and self.job.data.target_language is None:
            raise RecipeError(
                f"{self.job.model}: the prompt needs the target language; set target_language of the data set"
            )
        if "num_beams" in declared.generation and self.job.generation.num_beams > 1:
            raise RecipeError(
                f"{self.job.model}: generation.num_beams is {self.job.generation.num_beams}, but beam "
                "search is not supported by the OpenAI protocol; set it to 1"
            )
        if self.job.data.classification.text_pair_column is not None:
            raise RecipeError(
                f"{self.job.model}: pairs of texts (text_pair_column) are not supported by the OpenAI "
                "protocol; set protocol: kserve-v2"
            )
        path = "/v1/models"
        answer = self.server.get(path)
        if answer.status == 404:
            raise PressoirError(
                f"{self.server.refused(path, answer)}; {self.job.task} uses the OpenAI protocol here; "
                "check url and protocol"
            )
        listed = self.server.parsed(path, answer, _Models).data
        if self.name not in (model.id for model in listed):
            known = self.server.shown(", ".join(model.id for model in listed)) or "none"
            raise PressoirError(
                f"{self.server.url} has no model {self.name!r}; available: {known}; set remote_model to "
                "one of them"
            )

    def classify(self, text: Text) -> dict[str, Any]:
        """See `RemoteModel.classify`, and the module on answers that are no label."""
        answer = self._chat(CLASSIFY.format(labels=", ".join(self.labels)), str(text), _LABEL_TOKENS)
        return {"label": self.label(answer), "logits": [], "answer": answer}

    def translate(self, text: str) -> str:
        """See `RemoteModel.translate`."""
        source = f" from {self.job.data.source_language}" if self.job.data.source_language else ""
        prompt = TRANSLATE.format(source=source, target=self.job.data.target_language)
        return self._chat(prompt, text, self.job.generation.max_new_tokens)

    def transcribe(self, path: Path, sound: Waveform) -> str:
        """See `RemoteModel.transcribe`."""
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        form = {"model": self.name, "response_format": "json", "temperature": "0"}
        if self.job.data.source_language:
            form["language"] = self.job.data.source_language
        file = {"file": (path.name, path.read_bytes(), kind)}
        return self.server.post("/v1/audio/transcriptions", _Transcription, data=form, files=file).text

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """See `RemoteModel.embed`."""
        path, asked = "/v1/embeddings", {"model": self.name, "input": list(texts)}
        rows = sorted(self.server.post(path, _Embeddings, json=asked).data, key=lambda row: row.index)
        sizes = {len(row.embedding) for row in rows}
        if [row.index for row in rows] != list(range(len(texts))) or len(sizes) != 1 or 0 in sizes:
            raise self.server.malformed(
                path, f"for {len(texts)} texts, the same number of vectors of equal length is expected"
            )
        return np.array([row.embedding for row in rows], dtype=np.float64)

    def score(self, text: str) -> list[float]:
        """See `RemoteModel.score`."""
        path = "/v1/completions"
        asked = {"model": self.name, "prompt": text, "max_tokens": 0, "echo": True, "logprobs": 1}
        found = self.server.post(path, _Completion, json={**asked, "temperature": 0})
        choice = found.choices[0]
        given = choice.logprobs.token_logprobs if choice.logprobs is not None else []
        # Some servers generate a token all the same, and some give that one's log-probability alone.
        count = found.usage.prompt_tokens if found.usage is not None else len(given)
        whole = choice.text.strip() == text.strip() or found.usage is not None
        echoed = choice.text.strip().startswith(text.strip())
        scores = given[1:count] if given and given[0] is None else given[:count]
        if not (echoed and whole and len(given) >= count) or None in scores or not scores:
            raise PressoirError(
                f"{self.server.url}{path} does not return log-probabilities of prompt tokens (echo, "
                "logprobs, max_tokens 0), which are needed for perplexity; use a server that supports them"
            )
        return [score for score in scores if score is not None]

    def _chat(self, system: str, user: str, max_tokens: int) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        asked = {"model": self.name, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        return self.server.post("/v1/chat/completions", _Chat, json=asked).choices[0].message.content or ""
