"""Transcriptions of audio files, and translations into English.

Sources. https://github.com/openai/openai-openapi
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import APIRouter, File, Form, Request, UploadFile
from numpy.typing import NDArray
from pydantic import AfterValidator
from starlette.responses import Response

from pressoir.errors import DataError
from pressoir.serving.errors import RequestError
from pressoir.serving.http.answers import event_of, stream_of
from pressoir.serving.http.backend import Backend
from pressoir.serving.http.openai import transcripts
from pressoir.serving.http.openai.transcripts import TIMED, TranscriptFormat
from pressoir.serving.http.refusals import ErrorAnswer, Responses, may_answer
from pressoir.serving.http.request_model import TIERS, Refused, refusal_of
from pressoir.serving.http.streams import EventStream, event
from pressoir.serving.transcription import Times, Transcription, TranscriptionOptions

_SUFFIX = re.compile(r"\.[a-z0-9]{1,5}", re.ASCII)
# Fields of the API that would change the answer, with the values that would not; brackets are left out.
_REFUSED: Refused = {
    "chunking_strategy": ("auto",),
    **dict.fromkeys(("include", "known_speaker_names", "known_speaker_references"), ()),
    **dict.fromkeys(("keywords", "languages"), ()),
}
_REFUSED_OF_TRANSLATIONS: Refused = {
    **_REFUSED,
    "language": ("",),
    "stream": ("false",),
    "timestamp_granularities": ("segment",),
}
_MOST_SAMPLES_A_SECOND = 384_000  # two channels at 192 kHz
_ANSWERS: Responses = {
    **may_answer(404, 504),
    200: {
        "model": transcripts.VerboseTranscript | transcripts.PlainTranscript,
        "description": "In the `response_format`; `json` has the text alone.",
        "content": transcripts.TEXTS,
    },
}
_STREAMED: Responses = {
    **_ANSWERS,
    200: {
        **_ANSWERS[200],
        "description": "In the `response_format`; with `stream`, events `transcript.text.delta` and, at "
        "the end, `transcript.text.done`.",
        "content": {
            **transcripts.TEXTS,
            **stream_of(event_of(transcripts.DeltaEvent, transcripts.DoneEvent, ErrorAnswer)),
        },
    },
}


def _unsampled(temperature: float) -> float:
    if temperature != 0:
        raise ValueError("only 0 is supported, because transcripts are not sampled; omit it")
    return temperature


Sound = Annotated[UploadFile, File(description="WAV, FLAC, OGG, MP3, AIFF, …")]
Tier = Annotated[
    str,
    Form(min_length=1, max_length=100, description="A tier.", json_schema_extra={TIERS: "transcribe"}),
]
Prompt = Annotated[str, Form(description="What was said before, or names: Whisper.")]
Temperature = Annotated[
    float,
    Form(description="Only 0 is supported.", json_schema_extra={"const": 0}),
    AfterValidator(_unsampled),
]
Format = Annotated[TranscriptFormat, Form()]
Granularities = Annotated[
    list[Times],
    Form(alias="timestamp_granularities[]", description="Of `verbose_json`.", max_length=2),
]


def add_routes(router: APIRouter, backend: Backend) -> None:
    """Add the endpoints to `router`."""

    @router.post("/audio/transcriptions", response_class=Response, responses=_STREAMED)
    async def transcriptions(
        request: Request,
        file: Sound,
        model: Tier,
        language: Annotated[str, Form(max_length=50)] = "",
        prompt: Prompt = "",
        response_format: Format = "json",
        temperature: Temperature = 0,
        stream: Annotated[bool, Form()] = False,
        granularities: Granularities = [],  # noqa: B006
    ) -> Response:
        """Transcribe an audio file; with `stream`, window by window as server-sent events."""
        times = tuple(dict.fromkeys(granularities)) or TIMED.get(response_format, ())
        if "word" in times and response_format != "verbose_json":
            raise RequestError("timestamp_granularities[]: word requires response_format: verbose_json")
        if stream and response_format in TIMED:
            raise RequestError(f"stream is not supported for response_format: {response_format}; use json")
        needed = times if response_format in TIMED else ()
        scored = response_format == "verbose_json"
        asked = TranscriptionOptions(prompt=prompt or None, times=needed, scored=scored)
        found = await _begin(backend, request, file, model, asked, language or None)
        if stream:
            return await EventStream.begin(_events(found), event)
        return transcripts.answer(await found.whole(), response_format, times, translate=False)

    @router.post("/audio/translations", response_class=Response, responses=_ANSWERS)
    async def translations(
        request: Request,
        file: Sound,
        model: Tier,
        prompt: Prompt = "",
        response_format: Format = "json",
        temperature: Temperature = 0,
    ) -> Response:
        """Translate an audio file into English, by a multilingual Whisper or SeamlessM4T."""
        times = TIMED.get(response_format, ())
        scored = response_format == "verbose_json"
        asked = TranscriptionOptions(translate=True, prompt=prompt or None, times=times, scored=scored)
        found = await _begin(backend, request, file, model, asked)
        return transcripts.answer(await found.whole(), response_format, times, translate=True)


async def _begin(
    backend: Backend,
    request: Request,
    file: UploadFile,
    model: str,
    options: TranscriptionOptions,
    language: str | None = None,
) -> Transcription:
    """A transcription of what a form asks for."""
    fields = ((name.partition("[")[0], value) for name, value in (await request.form()).multi_items())
    refused = _REFUSED_OF_TRANSLATIONS if options.translate else _REFUSED
    if (reason := refusal_of(fields, refused)) is not None:
        raise RequestError(reason)
    tier = backend.tier(request, model, "transcribe")
    backend.check_lengths([options.prompt])
    rate = (await backend.info(tier))["sampling_rate"]
    longest = tier.config.settings.max_audio_s
    suffix = Path(file.filename or "").suffix.lower()
    content = await file.read()
    waveform = await asyncio.to_thread(
        _heard, content, suffix if _SUFFIX.fullmatch(suffix) else "", rate, longest
    )
    return backend.service.transcription(waveform, language, tier=tier, options=options)


async def _events(transcription: Transcription) -> AsyncGenerator[bytes, None]:
    async with transcription:
        async for piece in transcription:
            if piece:
                yield event(transcripts.DeltaEvent(delta=piece).model_dump())
    assert transcription.transcript is not None
    yield event(transcripts.DoneEvent(text=transcription.transcript.text).model_dump())


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
