"""CTC speech models (wav2vec2, HuBERT, WavLM, …): samples in, letters out, however long the sound.

Each frame names a token or the blank; equal neighbours are one, then blanks go (Graves et al., ICML 2006).

Attention over a whole sound takes memory by its length squared, so a sound is heard in overlapping chunks, as
transformers' pipeline does with `chunk_length_s=30`: of neighbours, each gives the frames of half of what
both heard. Text is what transformers' `Wav2Vec2CTCTokenizer` makes of the frames: special tokens other than
the blank are written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import RecipeError
from pressoir.formats.folder import GRAPH, Runtime, read_json, runtime_of
from pressoir.formats.supported import decoding_note
from pressoir.inference.audio import SAMPLING_RATE, Waveform
from pressoir.inference.engines.classifier import Engine, OnnxEngine, TorchEngine
from pressoir.inference.engines.session import batch_invariant, verify_shards
from pressoir.inference.generation.rules import log_softmax
from pressoir.inference.tokenizers.encoder_decoder import open_vocabulary
from pressoir.inference.transcript import Heard, Segment, SpeechOptions, Word, compression_ratio

CHUNK_S = 30.0
PAUSE_S = 0.5
"""Silence between two words of this length parts segments."""
SEGMENT_S = 7.0
"""A segment ends before the word that would make it longer: what a subtitle may last."""
OVERLAP = 6  # of a chunk, this part on each side is heard by its neighbour, too, and left to it

Extract = Callable[[Waveform], dict[str, NDArray[Any]]]
log = logging.getLogger("pressoir")


class Chunk(NamedTuple):
    """Samples `start` to `end` of a sound, of whose frames the outer ones are left out."""

    start: int
    end: int
    left: int
    """Samples at the beginning that another chunk answers for."""
    right: int
    """Samples at the end that another chunk answers for."""


def chunks(samples: int, length: int, overlap: int) -> Iterator[Chunk]:
    """Chunks of `length` samples that overlap by twice `overlap`; a shorter sound is one."""
    for start in range(0, samples, length - 2 * overlap):
        last = start + length >= samples
        yield Chunk(start, min(start + length, samples), overlap if start else 0, 0 if last else overlap)
        if last:
            return


class Span(NamedTuple):
    """A word, and its frames."""

    text: str
    start: int
    end: int


class CtcModel:
    """A CTC model: normalised samples, frame logits, a vocabulary of characters."""

    takes_language = False

    def __init__(
        self,
        engine: Engine,
        vocabulary: CtcVocabulary,
        normalise: bool = True,
        least_samples: int = 400,
        samples_per_frame: int = 320,
        sampling_rate: int = SAMPLING_RATE,
        extract: Extract | None = None,
    ) -> None:
        self.engine, self.vocabulary, self.normalise = engine, vocabulary, normalise
        self.least_samples, self.samples_per_frame = least_samples, samples_per_frame
        self.sampling_rate, self.extract = sampling_rate, extract

    @classmethod
    def open(cls, folder: Path, threads: int, runtime: Runtime | None = None) -> CtcModel:
        """See `SpeechRecognizer.open`."""
        settings, config = read_json(folder / "preprocessor_config.json"), read_json(folder / "config.json")
        engine: Engine
        extract = None
        if runtime_of(folder, runtime) == "onnxruntime":
            verify_shards(folder)
            engine = OnnxEngine(folder / GRAPH, threads, batch_invariant(folder))
        else:
            from pressoir.models.loading import load_ctc, load_feature_extractor

            engine = TorchEngine(load_ctc(folder))
            if config.get("model_type") == "wav2vec2-bert":  # hears a spectrogram
                extract = load_feature_extractor(folder)
        if (note := decoding_note(folder)) is not None:
            log.warning("%s: %s", folder, note)
        return cls(
            engine,
            CtcVocabulary(folder, int(config.get("pad_token_id") or 0)),
            bool(settings.get("do_normalize", True)),
            _receptive_field(config),
            samples_per_frame(config),
            int(settings.get("sampling_rate", SAMPLING_RATE)),
            extract,
        )

    def iter_transcript(self, samples: Waveform, options: SpeechOptions) -> Iterator[str]:
        """The transcript when all chunks are heard, after an empty text for each of the others."""
        self._check(options)
        tokens: list[NDArray[np.intp]] = []
        for logits in self._iter_logits(samples):
            if tokens:
                yield ""
            tokens.append(logits.argmax(axis=1))
        yield self.vocabulary.decode(np.concatenate(tokens))

    def iter_segments(
        self, samples: Waveform, options: SpeechOptions, *, words: bool = False, scored: bool = True
    ) -> Iterator[Heard]:
        """All of it when all chunks are heard, after nothing for each of the others."""
        self._check(options)
        tokens, best, blank = list[NDArray[np.intp]](), list[NDArray[Any]](), list[NDArray[Any]]()
        for logits in self._iter_logits(samples):
            if tokens:
                yield Heard("")
            logprobs = log_softmax(logits)
            tokens.append(logits.argmax(axis=1))
            best.append(logprobs.max(axis=1))
            blank.append(logprobs[:, self.vocabulary.blank])
        frames = np.concatenate(tokens)
        spoken, frame_s = self.vocabulary.words(frames), self.samples_per_frame / self.sampling_rate
        segments = [
            self._segment(index, group, frames, np.concatenate(best), np.concatenate(blank))
            for index, group in enumerate(_grouped(spoken, frame_s))
        ]
        timed = (
            Word(text, round(start * frame_s, 3), round(end * frame_s, 3)) for text, start, end in spoken
        )
        yield Heard(self.vocabulary.decode(frames), None, tuple(segments), tuple(timed))

    def _segment(
        self,
        index: int,
        words: list[Span],
        frames: NDArray[np.intp],
        best: NDArray[np.float32],
        blank: NDArray[np.float32],
    ) -> Segment:
        start, end, frame_s = words[0].start, words[-1].end, self.samples_per_frame / self.sampling_rate
        text = " ".join(word.text for word in words)
        tokens = [int(token) for token, _ in groupby(frames[start:end]) if token != self.vocabulary.blank]
        return Segment(
            id=index,
            seek=0,
            start=round(start * frame_s, 3),
            end=round(end * frame_s, 3),
            text=text,
            tokens=tokens,
            temperature=0.0,
            avg_logprob=float(best[start:end].mean()),
            compression_ratio=compression_ratio(text),
            no_speech_prob=float(np.exp(blank[start:end].sum(dtype=np.float64))),
        )

    def _iter_logits(self, samples: Waveform) -> Iterator[NDArray[np.float32]]:
        """Logits of the frames that each chunk answers for."""
        for chunk in chunks(len(samples), *self.chunk_samples()):
            frames, heard = self.logits(samples[chunk.start : chunk.end]), chunk.end - chunk.start
            total = round(heard / self.samples_per_frame)
            left, right = (round(overlap / heard * total) for overlap in (chunk.left, chunk.right))
            yield frames[left : total - right]

    def _check(self, options: SpeechOptions) -> None:
        """Raises RecipeError for what no CTC model does."""
        if options.translate:
            raise RecipeError(
                "a CTC model cannot translate speech; use a multilingual Whisper or SeamlessM4T"
            )
        if options.prompt:
            raise RecipeError("prompt is not supported by CTC models, which take sound alone; omit it")
        if options.language is not None:
            raise RecipeError(
                f"language {options.language!r} is specified, but a CTC model supports one language only; "
                "omit it"
            )

    def chunk_samples(self) -> tuple[int, int]:
        """Samples of a chunk, and of its overlap on each side: whole frames."""
        frame, seconds = self.samples_per_frame, CHUNK_S * self.sampling_rate
        return round(seconds / frame) * frame, round(seconds / OVERLAP / frame) * frame

    def logits(self, samples: Waveform) -> NDArray[np.float32]:
        """Frame logits (frames, vocabulary) of one chunk, always run alone: padding would change it."""
        # Engines carry whatever arrays a model takes, here float32.
        inputs: Any
        if self.extract is not None:
            short = max(0, self.least_samples - len(samples))
            inputs = self.extract(np.pad(samples, (0, short)))
        else:
            if self.normalise:
                samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
            if len(samples) < self.least_samples:
                samples = np.pad(samples, (0, self.least_samples - len(samples)))
            inputs = {"input_values": samples.astype(np.float32)[None]}
        frames: NDArray[np.float32] = self.engine.run(inputs)[0]
        return frames


class CtcVocabulary:
    """Tokens of a CTC model: `vocab.json` (characters, `|` between words), or a `tokenizer.json`."""

    def __init__(self, folder: Path, blank: int) -> None:
        self._tokens: dict[int, str] | None = None
        self.blank = blank
        if not (folder / "vocab.json").exists():
            self._other = open_vocabulary(folder)
            return
        settings = {
            **_object(folder / "special_tokens_map.json"),
            **_object(folder / "tokenizer_config.json"),
        }
        known = read_json(folder / "vocab.json")
        if any(isinstance(value, dict) for value in known.values()):  # one vocabulary a language (MMS)
            known = known.get(settings.get("target_lang") or "eng") or next(iter(known.values()))
        self._tokens = {int(index): token for token, index in known.items()}
        added = {int(index): str(_content(token)) for index, token in _added(folder, settings)}
        self._tokens |= added
        names = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
        special = {name: _content(settings.get(f"{name}_token", name_)) for name, name_ in names.items()}
        self._unknown, self._pad = special["unk"] or "", special["pad"]
        if self._pad not in self._tokens.values():  # no tokenizer names the blank, but the model does
            self._pad = self._tokens.get(blank, self._pad)
        for token in filter(None, special.values()):  # one that has no id gets the next
            if token not in self._tokens.values():
                self._tokens[max(self._tokens, default=-1) + 1] = token
        self.blank = next((index for index, token in self._tokens.items() if token == self._pad), blank)
        self._separator = _content(settings.get("word_delimiter_token", "|"))
        self._between = settings.get("replace_word_delimiter_char", " ")
        self._lower = bool(settings.get("do_lower_case", False))

    def decode(self, frames: NDArray[Any]) -> str:
        """The text of the best token of each frame (frames,)."""
        if self._tokens is None:
            return self._other.decode([int(index) for index, _ in groupby(frames) if index != self.blank])
        tokens = (self._tokens.get(int(index), self._unknown) for index in frames)
        text = "".join(
            self._between if token == self._separator else token
            for token, _ in groupby(tokens)
            if token != self._pad
        ).strip()
        return text.lower() if self._lower else text

    def words(self, frames: NDArray[Any]) -> list[Span]:
        """Words of the best token of each frame (frames,), as transformers' `output_word_offsets` has them.

        Raises:
            RecipeError: the tokens do not say where words end.
        """
        if self._tokens is None:
            raise RecipeError(
                "times are not supported by this model: it has no vocab.json that names a word delimiter"
            )
        names = (self._tokens.get(int(index), self._unknown) for index in frames)
        end, words, parted = 0, list[Span](), True
        for name, group in groupby(names):
            start, end = end, end + len(list(group))
            if name == self._pad:
                continue
            if name in (self._separator, self._between):
                parted = True
                continue
            text = name.lower() if self._lower else name
            if parted:
                words.append(Span(text, start, end))
            else:
                words[-1] = Span(words[-1].text + text, words[-1].start, end)
            parted = False
        return words


def _grouped(words: list[Span], frame_s: float) -> list[list[Span]]:
    """Words of each segment."""
    groups: list[list[Span]] = []
    for word in words:
        here = bool(groups) and (word.start - groups[-1][-1].end) * frame_s < PAUSE_S
        if here and (word.end - groups[-1][0].start) * frame_s <= SEGMENT_S:
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def samples_per_frame(config: dict[str, Any]) -> int:
    """Samples between the frames of a CTC model: its `inputs_to_logits_ratio` in transformers."""
    if config.get("model_type") == "wav2vec2-bert":
        adapters = int(config.get("num_adapter_layers", 1)) if config.get("add_adapter") else 0
        width = int(config.get("feature_projection_input_dim", 160))
        return int(2 * width * int(config.get("adapter_stride", 2)) ** adapters)
    strides: list[int] = config.get("conv_stride") or [5, 2, 2, 2, 2, 2, 2]
    return prod(strides)


def _added(folder: Path, settings: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Ids and tokens that a tokenizer has beside its `vocab.json`."""
    stated = settings.get("added_tokens_decoder")
    if isinstance(stated, dict) and stated:
        return list(stated.items())
    return [(index, token) for token, index in _object(folder / "added_tokens.json").items()]


def _object(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _content(token: Any) -> str | None:
    """A special token's text: a string, or an object that says how it is matched."""
    return token.get("content") if isinstance(token, dict) else token


def _receptive_field(config: dict[str, Any]) -> int:
    """Samples that the convolutions, or a spectrogram's first frame, need."""
    if config.get("model_type") == "wav2vec2-bert":
        return 400
    field = 1
    layers = zip(config.get("conv_kernel") or (), config.get("conv_stride") or (), strict=False)
    for kernel, stride in reversed(list(layers)):
        field = (field - 1) * stride + kernel
    return field
