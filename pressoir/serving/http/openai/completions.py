"""Completions of prompts and of chats.

What is not named in a request is the tier's to say: sampling is greedy unless the tier or the request has a
temperature. Log-probabilities are the model's own, before penalties and temperature change them; those of a
prompt (`echo`, `logprobs`, `max_tokens` 0 or more) are what perplexity is made of.

Sources. https://github.com/openai/openai-openapi
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field, model_validator
from starlette.responses import Response

from pressoir.serving.errors import RequestError
from pressoir.serving.generation import (
    Generation,
    GenerationOptions,
    JsonSchema,
    LogitBias,
    Penalty,
    RepetitionPenalty,
    TokenId,
    TopScores,
    Usage,
)
from pressoir.serving.http.answers import event_of, stream_of
from pressoir.serving.http.backend import Backend
from pressoir.serving.http.chat import ChatTemplate
from pressoir.serving.http.openai import logprobs
from pressoir.serving.http.openai.answers import ChatAnswer, ChatChunk, CompletionAnswer, CompletionChunk
from pressoir.serving.http.refusals import ErrorAnswer, HttpError, JsonAnswer, may_answer
from pressoir.serving.http.request_model import (
    WHOLE,
    Batch,
    Ids,
    Many,
    Model,
    NewTokens,
    Refused,
    RequestModel,
    Seed,
    Stop,
    StopText,
    Temperature,
    Text,
    TopK,
    TopP,
    limited,
    tier_with,
)
from pressoir.serving.http.streams import Events, EventStream, event
from pressoir.serving.pool.sharing import Tier
from pressoir.serving.service import Service
from pressoir.serving.settings import merge_settings
from pressoir.sources import resolve
from pressoir.system import reader

if TYPE_CHECKING:
    from pressoir.inference.generation.token_scores import ScoredToken

# Fields of the API, and of servers like it, that would change the answer.
_GENERATION: Refused = {
    "min_tokens": (0,),
    **dict.fromkeys(("n", "best_of", "length_penalty"), (1,)),
    **dict.fromkeys(("allowed_token_ids", "bad_words", "stop_token_ids"), ([],)),
    **dict.fromkeys(("suffix", "prediction", "audio", "web_search_options", "guided_json"), ()),
    **dict.fromkeys(("guided_regex", "guided_choice", "guided_grammar", "structured_outputs"), ()),
    **dict.fromkeys(("grammar", "json_schema", "structural_tag", "logits_processors"), ()),
    **dict.fromkeys(("prompt_logprobs", "truncate_prompt_tokens"), ()),
    **dict.fromkeys(("no_repeat_ngram_size", "mirostat"), (0,)),
    **dict.fromkeys(("ignore_eos", "use_beam_search", "include_stop_str_in_output"), (False,)),
    "skip_special_tokens": (True,),
    "typical_p": (1,),
}
_CHAT: Refused = {
    **_GENERATION,
    **dict.fromkeys(("echo", "continue_final_message", "add_special_tokens"), (False,)),
    "add_generation_prompt": (True,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "verbosity": ("medium",),
    **dict.fromkeys(("tools", "functions"), ([],)),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
}


MOST_MESSAGES = 2048
"""Most messages, and parts of messages, in one chat: each takes time to check."""


class StreamOptions(RequestModel):
    """Options of a stream."""

    include_usage: bool = False


class NamedSchema(RequestModel):
    """A JSON schema, which is obeyed whether it is `strict` or not."""

    name: Annotated[str, Field(max_length=100)] | None = None
    json_schema: Annotated[JsonSchema, Field(alias="schema")]


class ResponseFormat(RequestModel):
    """What the text has to be."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"type": {"enum": ["text", "json_object"]}}},
                {"properties": {"json_schema": {"type": "object"}}, "required": ["json_schema"]},
            ]
        }
    )

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing; specify its schema")
        return self

    @property
    def schema_of_text(self) -> dict[str, Any] | None:
        """The JSON schema; none of plain text."""
        if self.type == "json_object":
            return {"type": "object"}
        return None if self.json_schema is None or self.type == "text" else self.json_schema.json_schema


class _Continue(RequestModel):
    """Fields shared by both completion requests."""

    model: Annotated[Model, tier_with("generate")]
    temperature: Temperature | None = None
    top_p: TopP | None = None
    stop: StopText | Stop | None = None
    seed: Seed | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: LogitBias | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: TopK | None = None
    response_format: ResponseFormat | None = None

    def options(self, top_scores: int | None) -> dict[str, Any]:
        """For the service."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        more = {name: getattr(self, name) for name in GenerationOptions.model_fields if hasattr(self, name)}
        given = {name: value for name, value in more.items() if value is not None}
        schema = None if self.response_format is None else self.response_format.schema_of_text
        return {
            **{"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p},
            **{"stop": stop, "seed": self.seed},
            "options": GenerationOptions(**given, top_scores=top_scores, json_schema=schema),
        }


NewTokensOrNone = Annotated[int, Field(ge=0), WHOLE, limited("max_new_tokens")]
"""New tokens; 0 of an echoed prompt alone."""


_WHOLE_ANSWER: dict[str, Any] = {"stream": {"const": False}}
_SOMETHING_NEW: dict[str, Any] = {
    "anyOf": [
        {"properties": {"max_tokens": {"anyOf": [{"minimum": 1}, {"type": "null"}]}}},
        {"properties": {**_WHOLE_ANSWER, "echo": {"const": True}}, "required": ["echo"]},
    ]
}
_ONE_PROMPT: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "array", "items": {"type": "integer"}},
    {"type": "array", "maxItems": 1},
]
_ONE_STREAM: dict[str, Any] = {
    "anyOf": [{"properties": _WHOLE_ANSWER}, {"properties": {"prompt": {"anyOf": _ONE_PROMPT}}}]
}
"""What OpenAPI's fields alone do not say: 0 tokens are of an echo, and a stream is of one prompt."""


class Completion(_Continue):
    """A text completion request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "The film was", "max_tokens": 2},
                {"prompt": ["A book", "A soup"], "max_tokens": 2, "logprobs": 1},
                {"prompt": "The film was", "max_tokens": 2, "stream": True},
            ],
            "allOf": [_SOMETHING_NEW, _ONE_STREAM],
        }
    )

    prompt: Annotated[
        Text | Batch[Text] | Annotated[Many[TokenId], Field(min_length=1)] | Batch[Ids],
        WHOLE,
    ]
    max_tokens: NewTokensOrNone | None = None
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=5), WHOLE] | None = None

    refused: ClassVar[Refused] = _GENERATION

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """Texts, or the token ids of texts."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [id for id in self.prompt if isinstance(id, int)]
        return [ids] if ids else [item for item in self.prompt if not isinstance(item, int)]


class Part(RequestModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Call(RequestModel):
    """A function that was called, and what with."""

    name: str
    arguments: str


class ToolCall(RequestModel):
    """A call of an earlier answer."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Call


class ChatMessage(RequestModel):
    """A message of a conversation; what a template has no use for is left out of the prompt by it."""

    role: Annotated[str, Field(max_length=50)]
    content: str | Many[Part] | None = None
    name: str | None = None
    tool_calls: Many[ToolCall] | None = None
    tool_call_id: str | None = None

    refused: ClassVar[Refused] = dict.fromkeys(("function_call", "audio"), ())

    def for_template(self) -> dict[str, Any]:
        """As templates take it: one text, and the arguments of a call as an object, not as its JSON."""
        given = self.model_dump(include={"role", "name", "tool_call_id"}, exclude_none=True)
        if self.tool_calls:
            calls = [call.model_dump(exclude_none=True) for call in self.tool_calls]
            for call in calls:
                call["function"]["arguments"] = _arguments(call["function"]["arguments"])
            given["tool_calls"] = calls
        return {**given, "content": _joined(self.content)}


class Chat(_Continue):
    """A chat completion request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2},
                {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, "stream": True},
            ],
            "anyOf": [
                {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]},
                {"properties": {"top_logprobs": {"enum": [0, None]}}},
            ],
        }
    )

    messages: Annotated[Many[ChatMessage], Field(min_length=1)]
    max_tokens: NewTokens | None = None
    max_completion_tokens: NewTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[TopScores, WHOLE] | None = None

    refused: ClassVar[Refused] = _CHAT

    @model_validator(mode="before")
    @classmethod
    def _few(cls, data: Any) -> Any:
        messages = data.get("messages") if isinstance(data, dict) else None
        if isinstance(messages, list):
            fields = [message for message in messages if isinstance(message, dict)]
            parts = [message.get(name) for message in fields for name in ("content", "tool_calls")]
            number = len(messages) + sum(len(part) for part in parts if isinstance(part, list))
            if number > MOST_MESSAGES:
                raise ValueError(f"{number} messages and parts of them; at most {MOST_MESSAGES} are allowed")
        return data

    @model_validator(mode="after")
    def _scored(self) -> Chat:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs requires logprobs: true")
        return self


_END = {"type": "object", "properties": {"data": {"const": "[DONE]"}}, "required": ["data"]}
"""The schema of a stream's last event."""


class _Form:
    """How one of the two completions looks: its id, its object, and the shape of a choice."""

    def __init__(self, model: str, chat: bool) -> None:
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{os.urandom(12).hex()}"
        self._model, self._chat, self._created = model, chat, int(time.time())

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The answer in one."""
        return {**self._head(""), "choices": choices, "usage": usage}

    def event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """An event of a stream."""
        return event({**self._head(".chunk"), "choices": choices, **more})

    def choice(
        self,
        text: str,
        reason: str | None,
        scored: Sequence[ScoredToken] | None = None,
        *,
        index: int = 0,
        chunk: bool = False,
    ) -> dict[str, Any]:
        """A choice, or a chunk of one; the last chunk has a reason."""
        shape = logprobs.of_chat if self._chat else logprobs.of_completion
        found = None if scored is None else shape(scored)
        common = {"index": index, "logprobs": found, "finish_reason": reason}
        if not self._chat:
            return {**common, "text": text}
        if not chunk:
            return {**common, "message": {"role": "assistant", "content": text}}
        return {**common, "delta": {"content": text} if reason is None else {}}

    def opening(self, more: dict[str, Any]) -> bytes | None:
        """The first event of a conversation's stream says who speaks."""
        if not self._chat:
            return None
        choice = {**self.choice("", None, chunk=True), "delta": {"role": "assistant", "content": ""}}
        return self.event([choice], **more)

    def _head(self, kind: str) -> dict[str, Any]:
        name = f"chat.completion{kind}" if self._chat else "text_completion"
        return {"id": self.id, "object": name, "created": self._created, "model": self._model}


def add_routes(router: APIRouter, backend: Backend) -> None:
    """Add the endpoints to `router`."""
    _add_completions(router, backend)
    _add_chat(router, backend)


def _add_completions(router: APIRouter, backend: Backend) -> None:
    service = backend.service

    @router.post(
        "/completions",
        response_model=CompletionAnswer,
        responses={
            200: {"content": stream_of(_END, event_of(CompletionChunk, ErrorAnswer))},
            **may_answer(404, 504),
        },
    )
    async def completions(body: Completion, request: Request) -> Response:
        """Complete each prompt; with `stream`, a single prompt as server-sent events."""
        tier = backend.tier(request, body.model, "generate")
        prompts, scored, form = body.prompts, body.logprobs is not None, _Form(tier.name, chat=False)
        _check_prompts(backend, tier, prompts, body.stream)
        if body.max_tokens == 0 and body.echo and not body.stream:
            echoes = [await _before(prompt, service, tier, body.logprobs or 0) for prompt in prompts]
            return _echoed(form, echoes, scored)
        options = {**body.options(body.logprobs), "max_new_tokens": body.max_tokens}
        generations = [service.generate(prompt, tier=tier, **options) for prompt in prompts]
        before = [_Before()] * len(prompts)
        if body.echo:
            plain = body.logprobs is None
            before = [
                _Before(prompt)
                if plain and isinstance(prompt, str)
                else await _before(prompt, service, tier, body.logprobs or 0)
                for prompt in prompts
            ]
        if body.stream:
            return await _streamed(form, generations[0], before[0], scored, body.stream_options)
        return await _whole(form, generations, before, scored)


def _add_chat(router: APIRouter, backend: Backend) -> None:
    templates: dict[str, ChatTemplate] = {}

    @router.post(
        "/chat/completions",
        response_model=ChatAnswer,
        responses={
            200: {"content": stream_of(_END, event_of(ChatChunk, ErrorAnswer))},
            **may_answer(404, 504),
        },
    )
    async def chat(body: Chat, request: Request) -> Response:
        """Complete a chat with the model's chat template; with `stream`, as server-sent events."""
        tier = backend.tier(request, body.model, "generate")
        messages = [message.for_template() for message in body.messages]
        backend.check_lengths(message["content"] for message in messages)
        prompt = (await asyncio.to_thread(template, tier)).render(messages)
        _check_prompts(backend, tier, [prompt], body.stream)
        limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        merge_settings(tier.config.settings, {"max_new_tokens": body.max_tokens}, tier.name)
        options = body.options((body.top_logprobs or 0) if body.logprobs else None)
        generation = backend.service.generate(prompt, tier=tier, **options, max_new_tokens=limit)
        form, scored = _Form(tier.name, chat=True), bool(body.logprobs)
        if body.stream:
            return await _streamed(form, generation, _Before(), scored, body.stream_options)
        return await _whole(form, [generation], [_Before()], scored)

    def template(tier: Tier) -> ChatTemplate:
        key = tier.spec.key
        if key not in templates:
            templates[key] = ChatTemplate(resolve.locate(tier.spec.source, backend.store, fetch=False))
        return templates[key]


class _Before(NamedTuple):
    """What an answer begins with: the prompt, if it is echoed, and the scores of its tokens."""

    text: str = ""
    scored: list[ScoredToken] | None = None


def _check_prompts(backend: Backend, tier: Tier, prompts: Sequence[str | list[int]], stream: bool) -> None:
    backend.check_lengths(prompts)
    most = 1 if stream else tier.config.settings.max_batch
    if not 1 <= len(prompts) <= most:
        how = " as a stream" if stream else ""
        raise HttpError(
            422, "invalid_request", f"the request has {len(prompts)} prompts; expected 1 to {most}{how}"
        )


def _echoed(form: _Form, prompts: Sequence[_Before], scored: bool) -> Response:
    """The prompts themselves, and how probable their tokens are."""
    choices = [
        form.choice(prompt.text, "length", prompt.scored if scored else None, index=index)
        for index, prompt in enumerate(prompts)
    ]
    tokens = sum(len(prompt.scored or ()) for prompt in prompts)
    return JsonAnswer(form.whole(choices, _counts([Usage(tokens, 0, "length")])))


async def _before(prompt: str | list[int], service: Service, tier: Tier, top_scores: int) -> _Before:
    """The prompt as an answer begins with it, and the scores of its tokens."""
    found = await service.score(prompt, tier=tier, top_scores=top_scores)
    return _Before(prompt if isinstance(prompt, str) else found.text, found.tokens)


async def _whole(
    form: _Form, generations: Sequence[Generation], before: Sequence[_Before], scored: bool
) -> Response:
    """All continuations, each in one."""

    async def written(generation: Generation) -> tuple[str, Usage]:
        async with generation:
            text = "".join([piece async for piece in generation])
        assert generation.usage is not None
        return text, generation.usage

    tasks = [asyncio.create_task(written(generation)) for generation in generations]
    try:
        found = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    choices = []
    for index, (start, (text, usage)) in enumerate(zip(before, found, strict=True)):
        tokens = [*(start.scored or ()), *logprobs.after(generations[index].scored, len(start.text))]
        reason, shown = usage.finish_reason, tokens if scored else None
        choices.append(form.choice(start.text + text, reason, shown, index=index))
    return JsonAnswer(form.whole(choices, _counts([usage for _, usage in found])))


async def _streamed(
    form: _Form, generation: Generation, before: _Before, scored: bool, options: StreamOptions | None
) -> Response:
    usage = options is not None and options.include_usage
    events = _events(form, generation, before, scored, usage)
    failed: Callable[[dict[str, Any]], bytes] = event
    return await EventStream.begin(events, failed)


async def _events(
    form: _Form, generation: Generation, before: _Before, scored: bool, include_usage: bool
) -> Events:
    # With `include_usage` every chunk has the field: null in all but the last, which has no choice.
    more: dict[str, Any] = {"usage": None} if include_usage else {}
    async with generation, aclosing(_with_end(generation)) as pieces:
        begun, shown = False, 0
        async for piece, reason in pieces:
            if not begun and (opening := form.opening(more)):
                yield opening
            if not begun and before.text:
                prompt = (before.scored or []) if scored else None
                yield form.event([form.choice(before.text, None, prompt, chunk=True)], **more)
            begun = True
            fresh, shown = generation.scored[shown:], len(generation.scored)
            tokens = logprobs.after(fresh, len(before.text)) if scored else None
            yield form.event([form.choice(piece, reason, tokens, chunk=True)], **more)
        if include_usage and generation.usage is not None:
            yield form.event([], usage=_counts([generation.usage]))
    yield b"data: [DONE]\n\n"


async def _with_end(generation: Generation) -> AsyncGenerator[tuple[str, str | None], None]:
    """The pieces, and at the end why there are no more."""
    async for piece in generation:
        yield piece, None
    yield "", generation.usage.finish_reason if generation.usage else "stop"


def _counts(usages: Sequence[Usage]) -> dict[str, int]:
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _joined(content: str | list[Part] | None) -> str:
    if content is None or isinstance(content, str):  # null: of a message that called a tool
        return content or ""
    return "\n".join(part.text for part in content)


def _arguments(given: str) -> Any:
    """The arguments of a call, which are the JSON of an object."""
    try:
        found = reader.parse_json(given, "tool_calls: arguments", RequestError, "send the JSON of an object")
    except RequestError:  # as a model wrote them
        return given
    return found if isinstance(found, dict) else given
