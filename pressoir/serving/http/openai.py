"""The paths of OpenAI's API that many clients speak. Tiers are its models.

What is not named in a request is the tier's to say: sampling is greedy unless the tier or the request has a
temperature. Fields that OpenAI has and that would change the answer are refused, others are ignored.
Log-probabilities are given of a prompt (`echo`, `logprobs`, `max_tokens` 0): perplexity is made of them.
Embeddings have length 1 here, as clients of this API expect; over KServe v2 they are as the model gives them.

Sources. https://github.com/openai/openai-openapi
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, File, Form, Request, UploadFile
from numpy.typing import NDArray
from pydantic import Field
from starlette.responses import PlainTextResponse, Response

from pressoir.errors import DataError
from pressoir.serving.checks import as_list
from pressoir.serving.errors import RequestError
from pressoir.serving.generation import Generation, Usage
from pressoir.serving.http.backend import Backend
from pressoir.serving.http.chat import ChatTemplate
from pressoir.serving.http.refusals import HttpError, JsonAnswer
from pressoir.serving.http.request_model import RequestModel
from pressoir.serving.http.streams import Events, EventStream, event
from pressoir.serving.pool.sharing import Tier
from pressoir.serving.service import Service
from pressoir.sources import resolve

_SUFFIX = re.compile(r"\.[a-z0-9]{1,5}", re.ASCII)
_MOST_SAMPLES_A_SECOND = 384_000  # two channels at 192 kHz

Model = Annotated[str, Field(max_length=100, description="A tier.")]
One = Annotated[int, Field(ge=1, le=1)] | None


class StreamOptions(RequestModel):
    """Options of a stream."""

    include_usage: bool = False


class _Continue(RequestModel):
    """Fields shared by both completion requests."""

    model: Model
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: One = None

    def options(self) -> dict[str, Any]:
        """For the service."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return {"temperature": self.temperature, "top_p": self.top_p, "stop": stop, "seed": self.seed}


class Completion(_Continue):
    """A text completion request."""

    prompt: str | list[str]
    max_tokens: int | None = None
    echo: bool = False
    logprobs: int | None = None
    best_of: One = None
    suffix: None = None


class Part(RequestModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(RequestModel):
    """A message of a conversation."""

    role: Annotated[str, Field(max_length=50)]
    content: str | list[Part]


class Chat(_Continue):
    """A chat completion request."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: Literal[False] | None = None
    tools: None = None


class Embeddings(RequestModel):
    """Texts to embed."""

    model: Model
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None


class _Form:
    """How one of the two completions looks: its id, its object, and the shape of a choice."""

    def __init__(self, model: str, chat: bool) -> None:
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{os.urandom(12).hex()}"
        self._model, self._chat, self._created = model, chat, int(time.time())

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The answer in one."""
        return {**self._head(""), "choices": choices, "usage": usage}

    def part(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """An event of a stream."""
        return event({**self._head(".chunk"), "choices": choices, **more})

    def choice(self, text: str, reason: str | None, *, index: int = 0, part: bool = False) -> dict[str, Any]:
        """A choice, or a part of one; the last part has a reason."""
        common = {"index": index, "logprobs": None, "finish_reason": reason}
        if not self._chat:
            return {**common, "text": text}
        if not part:
            return {**common, "message": {"role": "assistant", "content": text}}
        return {**common, "delta": {"content": text} if reason is None else {}}

    def opening(self) -> bytes | None:
        """The first event of a conversation's stream says who speaks."""
        if not self._chat:
            return None
        choice = {**self.choice("", None, part=True), "delta": {"role": "assistant", "content": ""}}
        return self.part([choice])

    def _head(self, kind: str) -> dict[str, Any]:
        name = f"chat.completion{kind}" if self._chat else "text_completion"
        return {"id": self.id, "object": name, "created": self._created, "model": self._model}


def routes(backend: Backend) -> APIRouter:
    """The endpoints."""
    router, service = APIRouter(prefix="/v1", tags=["OpenAI"]), backend.service
    started = int(time.time())

    def described(tier: str) -> dict[str, Any]:
        return {"id": tier, "object": "model", "created": started, "owned_by": "pressoir"}

    @router.get("/models")
    async def models() -> Response:
        """List the tiers."""
        return JsonAnswer({"object": "list", "data": [described(tier) for tier in backend.config.tiers]})

    @router.get("/models/{tier}")
    async def model(tier: str, request: Request) -> Response:
        """Describe a tier."""
        backend.tier(request, tier)
        return JsonAnswer(described(tier))

    @router.post("/completions")
    async def completions(body: Completion, request: Request) -> Response:
        """Complete each prompt; with `stream`, a single prompt as server-sent events."""
        tier = backend.tier(request, body.model, "generate")
        prompts = as_list(body.prompt)
        _check_prompts(backend, tier, prompts, body.stream)
        if body.max_tokens == 0 and body.echo and not body.stream:
            return await _scored(
                _Form(tier.name, chat=False), prompts, service, tier, body.logprobs is not None
            )
        if body.logprobs is not None:
            message = "logprobs are supported for prompts only: set echo and max_tokens 0, without stream"
            raise HttpError(422, "not_supported", message)
        options = {**body.options(), "max_new_tokens": body.max_tokens}
        generations = [service.generate(prompt, tier=tier, **options) for prompt in prompts]
        form, before = _Form(tier.name, chat=False), prompts if body.echo else [""] * len(prompts)
        if body.stream:
            return await _streamed(form, generations[0], before[0], body.stream_options)
        return await _whole(form, generations, before)

    @router.post("/chat/completions")
    async def chat(body: Chat, request: Request) -> Response:
        """Complete a chat with the model's chat template; with `stream`, as server-sent events."""
        tier = backend.tier(request, body.model, "generate")
        messages = [{"role": one.role, "content": _joined(one.content)} for one in body.messages]
        backend.check_lengths(one["content"] for one in messages)
        prompt = (await asyncio.to_thread(template, tier)).render(messages)
        _check_prompts(backend, tier, [prompt], body.stream)
        limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        generation = service.generate(prompt, tier=tier, **body.options(), max_new_tokens=limit)
        form = _Form(tier.name, chat=True)
        if body.stream:
            return await _streamed(form, generation, "", body.stream_options)
        return await _whole(form, [generation], [""])

    templates: dict[str, ChatTemplate] = {}

    def template(tier: Tier) -> ChatTemplate:
        key = tier.spec.key
        if key not in templates:
            templates[key] = ChatTemplate(resolve.locate(tier.spec.source, backend.store, fetch=False))
        return templates[key]

    @router.post("/embeddings")
    async def embeddings(body: Embeddings, request: Request) -> Response:
        """A normalised embedding of each text."""
        tier = backend.tier(request, body.model, "embed")
        texts = as_list(body.input)
        backend.check_lengths(texts)
        vectors = await service.embed(texts, tier=tier)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        return JsonAnswer({"object": "list", "model": tier.name, "data": data})

    @router.post("/audio/transcriptions")
    async def transcriptions(
        request: Request,
        file: Annotated[UploadFile, File(description="WAV, FLAC, OGG, MP3, AIFF, …")],
        model: Annotated[str, Form(max_length=100)],
        language: Annotated[str | None, Form(max_length=50)] = None,
        response_format: Annotated[Literal["json", "text"], Form()] = "json",
        temperature: Annotated[float, Form(ge=0, le=0, description="Only 0 is supported: no sampling.")] = 0,
    ) -> Response:
        """Transcribe an audio file."""
        tier = backend.tier(request, model, "transcribe")
        rate = (await backend.info(tier))["sampling_rate"]
        longest = tier.config.settings.max_audio_s
        suffix = Path(file.filename or "").suffix.lower()
        content = await file.read()
        waveform = await asyncio.to_thread(
            _heard, content, suffix if _SUFFIX.fullmatch(suffix) else "", rate, longest
        )
        text = await service.transcribe(waveform, language or None, tier=tier)
        return PlainTextResponse(text) if response_format == "text" else JsonAnswer({"text": text})

    return router


def _check_prompts(backend: Backend, tier: Tier, prompts: Sequence[str], stream: bool) -> None:
    backend.check_lengths(prompts)
    most = 1 if stream else tier.config.settings.max_batch
    if not 1 <= len(prompts) <= most:
        how = " as a stream" if stream else ""
        raise HttpError(
            422, "invalid_request", f"the request has {len(prompts)} prompts; expected 1 to {most}{how}"
        )


async def _whole(form: _Form, generations: Sequence[Generation], before: Sequence[str]) -> Response:
    """All continuations, each in one."""

    async def written(generation: Generation) -> tuple[str, Usage]:
        async with generation:
            text = "".join([piece async for piece in generation])
        assert generation.usage is not None
        return text, generation.usage

    tasks = [asyncio.create_task(written(one)) for one in generations]
    try:
        found = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    choices = [
        form.choice(start + text, usage.finish_reason, index=index)
        for index, (start, (text, usage)) in enumerate(zip(before, found, strict=True))
    ]
    return JsonAnswer(form.whole(choices, _counts([usage for _, usage in found])))


async def _scored(
    form: _Form, prompts: Sequence[str], service: Service, tier: Tier, logprobs: bool
) -> Response:
    """The prompts themselves, and how probable their tokens are."""
    choices, tokens = [], 0
    for index, prompt in enumerate(prompts):
        found = await service.score(prompt, tier=tier)
        choice = form.choice(prompt, "length", index=index)
        if logprobs:
            ends = list(accumulate(map(len, found.tokens)))
            choice["logprobs"] = {
                "tokens": found.tokens,
                "token_logprobs": [None, *found.log_probabilities],
                "top_logprobs": None,
                "text_offset": [0, *ends[:-1]],
            }
        choices.append(choice)
        tokens += len(found.tokens)
    return JsonAnswer(form.whole(choices, _counts([Usage(tokens, 0, "length")])))


async def _streamed(
    form: _Form, generation: Generation, before: str, options: StreamOptions | None
) -> Response:
    usage = options is not None and options.include_usage
    events = _events(form, generation, before, usage)
    failed: Callable[[dict[str, Any]], bytes] = event
    return await EventStream.begin(events, failed)


async def _events(form: _Form, generation: Generation, before: str, include_usage: bool) -> Events:
    async with generation, aclosing(_with_end(generation)) as pieces:
        begun = False
        async for piece, reason in pieces:
            if not begun and (opening := form.opening()):
                yield opening
            if not begun and before:
                yield form.part([form.choice(before, None, part=True)])
            begun = True
            yield form.part([form.choice(piece, reason, part=True)])
        if include_usage and generation.usage is not None:
            yield form.part([], usage=_counts([generation.usage]))
    yield b"data: [DONE]\n\n"


async def _with_end(generation: Generation) -> AsyncGenerator[tuple[str, str | None], None]:
    """The pieces, and at the end why there are no more."""
    async for piece in generation:
        yield piece, None
    yield "", generation.usage.finish_reason if generation.usage else "stop"


def _counts(usages: Sequence[Usage]) -> dict[str, int]:
    prompt = sum(one.prompt_tokens for one in usages)
    completion = sum(one.completion_tokens for one in usages)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _joined(content: str | list[Part]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _encoded(vector: NDArray[np.float32], form: str) -> str | list[float]:
    if form == "float":
        numbers: list[float] = vector.tolist()
        return numbers
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _heard(content: bytes, suffix: str, sampling_rate: int, longest_s: float) -> NDArray[np.float32]:
    """The audio of a file's content; its length is checked first, because a small file may hold hours."""
    import soundfile

    from pressoir.inference.audio import read_audio

    with tempfile.TemporaryDirectory(prefix="pressoir-") as folder:
        path = Path(folder) / f"sound{suffix}"
        path.write_bytes(content)
        try:
            info = soundfile.info(path)
        except (soundfile.SoundFileError, TypeError):
            pass  # `read_audio` says what is wrong
        else:
            too_dense = info.frames * info.channels > longest_s * _MOST_SAMPLES_A_SECOND
            if info.frames > longest_s * info.samplerate or too_dense:
                raise RequestError(
                    f"the file is longer than {longest_s:g} s, or does not declare its length; shorten it"
                )
        return _renamed(read_audio, path, sampling_rate)


def _renamed(
    read: Callable[[Path, int], NDArray[np.float32]], path: Path, sampling_rate: int
) -> NDArray[np.float32]:
    """Say "the file" where an error names a path of ours."""
    try:
        return read(path, sampling_rate)
    except DataError as error:
        raise RequestError(str(error).replace(str(path), "the file")) from error
