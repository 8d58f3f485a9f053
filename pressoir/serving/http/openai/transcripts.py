"""How a transcript is written: as OpenAI's JSON, as text, or as subtitles.

Sources. https://github.com/openai/openai-openapi; SubRip as ffmpeg and VLC read it;
https://www.w3.org/TR/webvtt1/
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Literal

from pydantic import BaseModel
from starlette.responses import Response

from pressoir.inference.transcript import Segment, Word
from pressoir.inference.translation import LANGUAGES
from pressoir.serving.http.refusals import JsonAnswer
from pressoir.serving.transcription import Times, Transcript

TranscriptFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
_SUBTITLES = {"srt": "application/x-subrip", "vtt": "text/vtt"}
TIMED: dict[str, tuple[Times, ...]] = dict.fromkeys(("srt", "verbose_json", "vtt"), ("segment",))
"""Formats with times, and those that they need."""
UNKNOWN = "unknown"


class PlainTranscript(BaseModel):
    """An answer of the format `json`."""

    text: str


class VerboseTranscript(BaseModel):
    """An answer of the format `verbose_json`; times in seconds."""

    task: Literal["transcribe", "translate"]
    language: str
    """English name of what is spoken, in lower case; `unknown` where the model does not say."""
    duration: float
    """Of the sound."""
    text: str
    segments: list[Segment] | None = None
    words: list[Word] | None = None


class DeltaEvent(BaseModel):
    """An event of a stream: what a window adds to the text."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str


class DoneEvent(BaseModel):
    """The last event of a stream."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str


TEXTS = {media: {"schema": {"type": "string"}} for media in ("text/plain", *_SUBTITLES.values())}
"""Answers that are not JSON, for OpenAPI."""


def answer(found: Transcript, format: TranscriptFormat, times: Sequence[Times], translate: bool) -> Response:
    """A transcript in a format."""
    if format == "json":
        return JsonAnswer(PlainTranscript(text=found.text).model_dump())
    if format == "text":
        return Response(found.text, media_type="text/plain")
    if format != "verbose_json":
        written = _srt(found.segments) if format == "srt" else _vtt(found.segments)
        return Response(written, media_type=_SUBTITLES[format])
    spoken = "en" if translate else found.language or ""
    verbose = VerboseTranscript(
        task="translate" if translate else "transcribe",
        language=LANGUAGES[spoken][1].lower() if spoken in LANGUAGES else spoken or UNKNOWN,
        duration=found.duration_s,
        text=found.text,
        segments=found.segments if "segment" in times else None,
        words=found.words if "word" in times else None,
    )
    return JsonAnswer(verbose.model_dump(exclude_none=True))


def _srt(segments: Sequence[Segment]) -> str:
    blocks = []
    for number, segment in enumerate(segments, start=1):
        times = f"{_clock(segment.start, ',')} --> {_clock(segment.end, ',')}"
        blocks.append(f"{number}\n{times}\n{_line(segment.text).replace('-->', '->')}\n\n")
    return "".join(blocks)


def _vtt(segments: Sequence[Segment]) -> str:
    cues = (
        f"{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n"
        f"{escape(_line(segment.text), quote=False)}\n\n"
        for segment in segments
    )
    return "WEBVTT\n\n" + "".join(cues)


def _line(text: str) -> str:
    """A text in one line: an empty one would end it."""
    return " ".join(text.split())


def _clock(seconds: float, point: str) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    minutes, second = divmod(whole, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}{point}{milliseconds:03}"
