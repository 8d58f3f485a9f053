"""The types of speech model that `model_types.py` compares, and what transformers writes of each.

How transformers is asked, and the tiny random models, are the tests'.
"""

from __future__ import annotations

import importlib
import io
import re
import sys
import warnings
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import loopback
import numpy as np
from numpy.typing import NDArray
from translation_types import tiny_models

from pressoir.inference.audio import SAMPLING_RATE, read_audio
from pressoir.inference.automatic_speech_recognition import SpeechRecognizer

TESTS = Path(__file__).parents[1] / "tests" / "pressoir"
THREADS = 1

Texts = list[str]
Sounds = Sequence[NDArray[np.float32]]


@dataclass(frozen=True)
class Speech:
    """A type of speech model, and a tiny random one of it; or a model that is given."""

    name: str
    write: Callable[[Path], object] | None
    """Writes a checkpoint into a folder."""
    asks: Callable[[Path, Sounds, int], Texts]
    """What transformers writes of sounds, with so many beams."""
    language: str | None = None
    exported: bool = True
    beams: bool = True
    letters: bool = False
    """Whether a token is a letter; else it is a word."""
    folder: Path | None = None
    source: Path | None = None
    request: dict[str, Any] = field(default_factory=dict)

    def make(self, work: Path) -> Path:
        """See `Type`."""
        if self.folder is not None:
            return self.folder
        assert self.write is not None
        folder = work / re.sub(r"\W+", "-", self.name)
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of random models
            self.write(folder)
        return folder

    def inputs(self, most: int) -> Sounds:
        """See `Type`: sounds of 16 bits a sample, as the files that are served."""
        if self.source is not None:
            return [read_audio(path, SAMPLING_RATE) for path in sorted(self.source.glob("*.wav"))[:most]]
        generator, sounds = np.random.default_rng(0), []
        for pitch in np.geomspace(100, 5000, most):
            time = np.arange(int(SAMPLING_RATE * generator.uniform(0.6, 0.95))) / SAMPLING_RATE
            sound = generator.uniform(0.1, 0.7) * np.sin(2 * np.pi * pitch * time * (1 + time))
            noise = generator.uniform(0.001, 0.1) * generator.standard_normal(len(time))
            sounds.append((np.clip(sound + noise, -1, 1) * 32767).astype(np.int16).astype(np.float32) / 32768)
        return sounds

    def expected(self, folder: Path, inputs: Sounds, num_beams: int) -> tuple[Texts, int]:
        """See `Type`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of random models
            texts = self.asks(folder, inputs, num_beams)
        return texts, len({token for text in texts for token in (text if self.letters else text.split())})

    def written(self, folder: Path, runtime: Any, inputs: Sounds, num_beams: int) -> Texts:
        """See `Type`."""
        recognizer = SpeechRecognizer.open(folder, THREADS, runtime)
        return [
            " ".join(recognizer.iter_transcript(samples, self.language, num_beams=num_beams)).strip()
            for samples in inputs
        ]

    def answered(self, port: int, tier: str, inputs: Sounds) -> Texts:
        """See `Type`."""
        fields = {"model": tier, **({"language": self.language} if self.language else {})}
        texts = []
        with httpx.Client(base_url=f"http://{loopback.HOST}:{port}", timeout=120) as client:
            for samples in inputs:
                answer = client.post(
                    "/v1/audio/transcriptions", data=fields, files={"file": ("sound.wav", _wav(samples))}
                )
                texts.append(str(answer.raise_for_status().json()["text"]))
        return texts


def given(folder: Path, source: Path) -> Speech:
    """A Whisper model that exists, and a folder of WAV files."""
    return Speech(folder.name, None, _whisper({}), folder=folder, source=source)


def _tests(name: str) -> Any:
    """A module of the tests."""
    for folder in ("evaluation", "inference"):
        if (path := str(TESTS / folder)) not in sys.path:
            sys.path.append(path)
    return importlib.import_module(name)


def _whisper(asked: dict[str, Any]) -> Callable[[Path, Sounds, int], Texts]:
    def asks(folder: Path, sounds: Sounds, num_beams: int) -> Texts:
        reference = _tests("test_whisper_generate").by_transformers
        return [text.strip() for text in reference(folder, sounds, num_beams=num_beams, **asked)]

    return asks


def _ctc(folder: Path, sounds: Sounds, num_beams: int) -> Texts:
    return [_tests("test_ctc").by_pipeline(folder, samples) for samples in sounds]


def _own(kind: str, language: str | None) -> Callable[[Path, Sounds, int], Texts]:
    def asks(folder: Path, sounds: Sounds, num_beams: int) -> Texts:
        reference = _tests("test_transformers_speech").by_transformers
        texts: Texts = reference(folder, kind, sounds, language, num_beams)
        return texts

    return asks


def _make(maker: str, *arguments: Any) -> Callable[[Path], object]:
    return lambda folder: getattr(_tests("speech_models"), maker)(folder, *arguments)


def _made_by(kind: str) -> Callable[[Path], object]:
    return lambda folder: _tests("speech_models").MAKERS[kind](folder, tiny_models()._train_sentencepiece)


def _pytorch(name: str, kind: str, ours: str | None, theirs: str | None) -> Speech:
    """A type that transformers runs."""
    settings = {"source_language": ours} if ours else {}
    return Speech(name, _made_by(kind), _own(kind, theirs), ours, exported=False, request=settings)


TYPES = (
    Speech("Whisper", _make("make_whisper", "multilingual"), _whisper({"task": "transcribe"})),
    Speech("Whisper, English only", _make("make_whisper", "English only"), _whisper({})),
    Speech(
        "Whisper, 128 bins",
        _make("make_whisper", "128 bins, rules"),
        _whisper({"language": "fr"}),
        "fr",
    ),
    *(
        Speech(
            kind, _make("make_ctc", kind), _ctc, beams=False, letters=True, exported=kind != "Wav2Vec2Bert"
        )
        for kind in ("Wav2Vec2", "Hubert", "WavLM", "Data2VecAudio", "Wav2Vec2Bert")
    ),
    _pytorch("Moonshine", "moonshine", None, None),
    _pytorch("Speech2Text", "speech_to_text", "fr", "fr"),
    _pytorch("SeamlessM4T", "seamless_m4t", "fr", "fra"),
    _pytorch("SeamlessM4T v2", "seamless_m4t_v2", "fr", "fra"),
    _pytorch("Gemma 3n", "gemma3n", "fr", "fr"),
)


def _wav(samples: NDArray[np.float32]) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLING_RATE)
        file.writeframes((samples * 32768).astype("<i2").tobytes())
    return content.getvalue()
