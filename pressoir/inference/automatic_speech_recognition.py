"""Speech recognition over two kinds of model: Whisper (an encoder-decoder) and CTC (wav2vec2, HuBERT, …).

Waveforms in, transcripts out. In ONNX Runtime no torch is imported: features and CTC decoding are numpy, and
tokens become text by the `tokenizers` library, or by a CTC model's `vocab.json`.

CTC (Graves et al., ICML 2006): each frame names a token or the blank; equal neighbours are one, then blanks
go.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import RecipeError
from pressoir.formats.folder import GRAPH, Runtime, read_json, runtime_of
from pressoir.inference.arguments import opened
from pressoir.inference.audio import SAMPLING_RATE, LogMel, Waveform, check_waveforms
from pressoir.inference.engines.classifier import Engine, OnnxEngine, TorchEngine
from pressoir.inference.engines.encoder_decoder import SequenceToSequence, open_sequence_to_sequence
from pressoir.inference.engines.session import batch_invariant, verify_shards
from pressoir.inference.tokenizers.encoder_decoder import Seq2SeqTokenizer, open_vocabulary


class SpeechRecognizer:
    """One of the two kinds of model; `sampling_rate` is what it hears."""

    def __init__(self, model: WhisperModel | CtcModel, sampling_rate: int = SAMPLING_RATE) -> None:
        self.model, self.sampling_rate = model, sampling_rate

    @classmethod
    def open(
        cls, folder: Path | str, threads: int | None = None, runtime: Runtime | None = None
    ) -> SpeechRecognizer:
        """Open a model folder: ONNX Runtime where it has the graphs, else PyTorch; `runtime` insists.

        Raises:
            SourceError: the folder has no such model, no features' settings or no vocabulary.
        """
        folder, threads = opened(folder, threads)
        config = read_json(folder / "config.json")
        rate = int(read_json(folder / "preprocessor_config.json").get("sampling_rate", SAMPLING_RATE))
        if str((config.get("architectures") or [""])[0]).endswith("ForCTC"):
            return cls(CtcModel.open(folder, threads, runtime), rate)
        return cls(WhisperModel.open(folder, threads, runtime), rate)

    def transcribe(self, audio: Sequence[Waveform], language: str | None = None) -> list[str]:
        """Transcripts of mono float32 waveforms at `sampling_rate` Hz, in their order.

        Sound longer than Whisper's window (30 s; see `WhisperModel.features`) is cut there, and a word on
        the cut may be lost. `language` is a code such as `en`, for a multilingual Whisper alone; without it
        the language is detected, for each sound.

        Raises:
            DataError: a waveform is not mono float32, empty, or not finite.
            RecipeError: the language is unknown to the model, or the model has one language.
        """
        check_waveforms(audio)
        return [self.model.transcribe(samples, language) for samples in audio]

    def iter_transcript(
        self,
        samples: Waveform,
        language: str | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
    ) -> Iterator[str]:
        """The transcript of one waveform, window by window; see `transcribe`, and `join_windows`.

        A CTC model takes the whole waveform at once, and neither `max_new_tokens` nor `num_beams`.
        """
        check_waveforms([samples])
        if isinstance(self.model, CtcModel):
            yield self.model.transcribe(samples, language)
        else:
            yield from self.model.iter_transcript(samples, language, max_new_tokens, num_beams)


class WhisperModel:
    """Whisper: log-mel features of a window, an encoder-decoder, a tokenizer."""

    def __init__(self, engine: SequenceToSequence, extract: LogMel, vocabulary: Seq2SeqTokenizer) -> None:
        self.engine, self.extract, self.vocabulary = engine, extract, vocabulary

    @classmethod
    def open(cls, folder: Path, threads: int, runtime: Runtime | None = None) -> WhisperModel:
        """See `SpeechRecognizer.open`."""
        engine = open_sequence_to_sequence(folder, threads, runtime)
        return cls(engine, LogMel.read(folder), open_vocabulary(folder))

    def transcribe(self, samples: Waveform, language: str | None = None) -> str:
        """See `SpeechRecognizer.transcribe`."""
        return join_windows(self.iter_transcript(samples, language))

    def iter_transcript(
        self,
        samples: Waveform,
        language: str | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
    ) -> Iterator[str]:
        """See `SpeechRecognizer.iter_transcript`."""
        for features in self.features(samples):
            inputs = {"input_features": features[None]}
            prompt = self.prompt(inputs, language)
            tokens = self.engine.generate(
                inputs, prompt=prompt, max_new_tokens=max_new_tokens, num_beams=num_beams
            )
            yield self.vocabulary.decode(tokens[0])

    def features(self, samples: Waveform) -> list[NDArray[np.float32]]:
        """Features (mel bins, frames) of each window of a sound; the last window is padded with silence."""
        starts = range(0, len(samples), self.extract.window)
        return [self.extract(samples[start : start + self.extract.window]) for start in starts]

    def prompt(self, inputs: dict[str, NDArray[Any]], language: str | None = None) -> tuple[int, ...]:
        """The decoder's first tokens: start, and of a multilingual model language, task, no time stamps.

        Raises:
            RecipeError: as in `SpeechRecognizer.transcribe`.
        """
        generation = self.engine.generation
        start, languages = generation.decoder_start, generation.settings.get("lang_to_id") or {}
        after = generation.settings.get("no_timestamps_token_id")
        plain = () if after is None else (int(after),)
        if not languages:
            if language not in (None, "en"):
                raise RecipeError(
                    f"language {language!r} is specified, but this model supports one language only; omit it"
                )
            return (start, *plain)
        token = languages.get(f"<|{language}|>")
        if language is not None and token is None:
            known = sorted(name.strip("<|>") for name in languages)
            near = difflib.get_close_matches(language, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise RecipeError(
                f"language {language!r} is not supported by this model; {hint}supported: {', '.join(known)}"
            )
        if token is None:
            logits = self.engine.forced_logits(inputs, np.asarray([[start]], dtype=np.int64))[0, 0]
            token = max(languages.values(), key=lambda index: float(logits[index]))
        task = (generation.settings.get("task_to_id") or {}).get("transcribe")
        return (start, int(token), *(() if task is None else (int(task),)), *plain)


def join_windows(transcripts: Iterable[str]) -> str:
    """One transcript of those of consecutive windows."""
    return " ".join(filter(None, transcripts))


class CtcModel:
    """A CTC model: normalised samples, frame logits, a vocabulary of characters."""

    def __init__(
        self, engine: Engine, vocabulary: CtcVocabulary, normalise: bool = True, least_samples: int = 400
    ) -> None:
        self.engine, self.vocabulary, self.normalise = engine, vocabulary, normalise
        self.least_samples = least_samples

    @classmethod
    def open(cls, folder: Path, threads: int, runtime: Runtime | None = None) -> CtcModel:
        """See `SpeechRecognizer.open`."""
        engine: Engine
        if runtime_of(folder, runtime) == "onnxruntime":
            verify_shards(folder)
            engine = OnnxEngine(folder / GRAPH, threads, batch_invariant(folder))
        else:
            from pressoir.models.loading import load_ctc

            engine = TorchEngine(load_ctc(folder))
        settings, config = read_json(folder / "preprocessor_config.json"), read_json(folder / "config.json")
        vocabulary = CtcVocabulary(folder, int(config.get("pad_token_id") or 0))
        return cls(engine, vocabulary, bool(settings.get("do_normalize", True)), _receptive_field(config))

    def transcribe(self, samples: Waveform, language: str | None = None) -> str:
        """See `SpeechRecognizer.transcribe`."""
        if language is not None:
            raise RecipeError(
                f"language {language!r} is specified, but a CTC model supports one language only; omit it"
            )
        return self.vocabulary.decode(self.logits(samples).argmax(axis=1))

    def logits(self, samples: Waveform) -> NDArray[np.float32]:
        """Frame logits (frames, vocabulary) of one sound, always run alone: padding would change it."""
        if self.normalise:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        if len(samples) < self.least_samples:
            samples = np.pad(samples, (0, self.least_samples - len(samples)))
        # Engines carry whatever arrays a model takes, here float32.
        inputs: Any = {"input_values": samples.astype(np.float32)[None]}
        frames: NDArray[np.float32] = self.engine.run(inputs)[0]
        return frames


class CtcVocabulary:
    """Tokens of a CTC model: `vocab.json` (characters, `|` between words), or a `tokenizer.json`."""

    def __init__(self, folder: Path, blank: int) -> None:
        self.blank = blank
        path = folder / "tokenizer_config.json"
        settings = read_json(path) if path.exists() else {}
        self._separator = _content(settings.get("word_delimiter_token")) or "|"
        self._lower = bool(settings.get("do_lower_case", False))
        self._special = {_content(settings.get(f"{name}_token")) for name in ("bos", "eos", "pad", "unk")}
        self._tokens: dict[int, str] | None = None
        if (folder / "vocab.json").exists():
            known = read_json(folder / "vocab.json")
            if any(isinstance(value, dict) for value in known.values()):  # one vocabulary a language (MMS)
                known = known.get(settings.get("target_lang") or "eng") or next(iter(known.values()))
            self._tokens = {int(index): token for token, index in known.items()}
        else:
            self._other = open_vocabulary(folder)

    def decode(self, frames: NDArray[Any]) -> str:
        """The text of the best token of each frame (frames,)."""
        changes = np.flatnonzero(np.diff(frames, prepend=-1))
        ids = [int(index) for index in frames[changes] if index != self.blank]
        if self._tokens is None:
            return self._other.decode(ids)
        tokens = (self._tokens.get(index, "") for index in ids)
        text = "".join(
            " " if token == self._separator else token for token in tokens if token not in self._special
        )
        text = " ".join(text.split())
        return text.lower() if self._lower else text


def _content(token: Any) -> str | None:
    """A special token's text: a string, or an object that says how it is matched."""
    return token.get("content") if isinstance(token, dict) else token


def _receptive_field(config: dict[str, Any]) -> int:
    """Samples that the convolutions need for one frame."""
    field = 1
    layers = zip(config.get("conv_kernel") or (), config.get("conv_stride") or (), strict=False)
    for kernel, stride in reversed(list(layers)):
        field = (field - 1) * stride + kernel
    return field
