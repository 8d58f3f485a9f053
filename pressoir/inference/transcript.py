"""What a speech model is asked, and what it writes, with its times: segments, words, probabilities."""

from __future__ import annotations

import zlib
from dataclasses import dataclass


@dataclass(frozen=True)
class SpeechOptions:
    """How a sound is to be transcribed; see `SpeechRecognizer.iter_transcript`."""

    language: str | None = None
    max_new_tokens: int | None = None
    num_beams: int = 1
    translate: bool = False
    prompt: str | None = None


@dataclass(frozen=True)
class Segment:
    """A part of a transcript; times in seconds. The fields are those of OpenAI's API."""

    id: int
    """Its place, from 0."""
    seek: int
    """Where the window began that it was heard in, in hundredths of a second; 0 for CTC models."""
    start: float
    end: float
    text: str
    tokens: list[int]
    """Tokens of the text, for Whisper with its time stamps."""
    temperature: float
    """0: nothing is sampled."""
    avg_logprob: float
    """Mean log-probability of a token: of its window (Whisper) or of its frames (CTC); NaN: not computed."""
    compression_ratio: float
    """UTF-8 bytes of the text of its window (Whisper), or its own (CTC), per byte when compressed by zlib."""
    no_speech_prob: float
    """Probability of the token for no speech in its window (Whisper), or of blanks alone (CTC), or NaN."""


@dataclass(frozen=True)
class Word:
    """A word and its times in seconds."""

    word: str
    start: float
    end: float


@dataclass(frozen=True)
class Heard:
    """What one step of a model has heard."""

    text: str
    """To be joined as it is: a space, where one is needed, is part of it."""
    language: str | None = None
    """Code of what was spoken (`en`); None where the model does not say."""
    segments: tuple[Segment, ...] = ()
    words: tuple[Word, ...] = ()


def compression_ratio(text: str) -> float:
    """Bytes of a text per byte of what zlib makes of it; repetitive text has a high one."""
    content = text.encode()
    return len(content) / len(zlib.compress(content))
