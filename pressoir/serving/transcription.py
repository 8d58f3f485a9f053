"""A transcript as an asynchronous iterator of pieces, whole at the end; what is asked of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Literal

from pressoir.config import Config
from pressoir.inference.transcript import Segment, Word

Times = Literal["segment", "word"]


class TranscriptionOptions(Config):
    """What a request says of its transcript, and no tier does; see `SpeechRecognizer.iter_transcript`."""

    translate: bool = False
    """Write English, whatever is spoken: multilingual Whisper and SeamlessM4T."""
    prompt: str | None = None
    """What was said before, or names that are about to be: Whisper."""
    times: tuple[Times, ...] = ()
    """The times of segments (Whisper and CTC models) or words (CTC models)."""
    scored: bool = True
    """Compute the probabilities of segments, too, for which Whisper hears each window once more."""


@dataclass(frozen=True)
class Transcript:
    """What was said in a sound."""

    text: str
    duration_s: float
    """Of the sound."""
    language: str | None
    """Code of what was spoken (`en`); None where times are not asked for, or the model does not say."""
    segments: list[Segment]
    words: list[Word]


class Transcription:
    """`async for piece in transcription`: joined, they are its text; then `transcript` is known.

    Nothing starts before the first piece is requested. A caller that stops early must close it (`async with
    transcription` does), so that the model stops as well.
    """

    def __init__(self, source: AsyncGenerator[dict[str, Any], None]) -> None:
        self._source = source
        self.transcript: Transcript | None = None
        """None until the last piece has come."""

    def __aiter__(self) -> Transcription:
        return self

    async def __anext__(self) -> str:
        item = await anext(self._source)
        if "duration_s" in item:
            self.transcript = _read(item)
            item = await anext(self._source)  # ends it
        return str(item["text"])

    async def whole(self) -> Transcript:
        """The transcript, when it is there."""
        async with self:
            async for _ in self:
                pass
        assert self.transcript is not None
        return self.transcript

    async def aclose(self) -> None:
        """Stop it; the model goes on with other requests."""
        await self._source.aclose()

    async def __aenter__(self) -> Transcription:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _read(body: dict[str, Any]) -> Transcript:
    segments, words = body.get("segments", ()), body.get("words", ())
    return Transcript(
        body["text"],
        body["duration_s"],
        body.get("language"),
        [Segment(**segment) for segment in segments],
        [Word(**word) for word in words],
    )
