"""Whisper (Radford et al., arXiv:2212.04356): a window's log-mel features, an encoder-decoder, a tokenizer.

Without times a sound is cut into windows of 30 s. With times the model writes time stamps, and the next
window begins at the last one, so that nothing is lost on a cut (section 3.8 of the paper, without what is
heard again at a higher temperature). Both give what transformers' `generate` gives, the second what
`return_timestamps=True` does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import RecipeError
from pressoir.formats.folder import Runtime
from pressoir.inference.audio import LogMel, Waveform
from pressoir.inference.engines.encoder_decoder import SequenceToSequence, open_sequence_to_sequence
from pressoir.inference.generation.rules import log_softmax
from pressoir.inference.tokenizers.encoder_decoder import Seq2SeqTokenizer, open_vocabulary
from pressoir.inference.transcript import Heard, Segment, SpeechOptions, compression_ratio

PREVIOUS = "<|startofprev|>"
FRAMES_PER_STAMP = 2
"""Frames of features between two time stamps."""


class Span(NamedTuple):
    """A segment of a window: its time stamps, counted from the window's begin, and its tokens."""

    start: int
    end: int
    tokens: list[int]


class WhisperModel:
    """A model and its folder's settings."""

    def __init__(self, engine: SequenceToSequence, extract: LogMel, vocabulary: Seq2SeqTokenizer) -> None:
        self.engine, self.extract, self.vocabulary = engine, extract, vocabulary

    @classmethod
    def open(cls, folder: Path, threads: int, runtime: Runtime | None = None) -> WhisperModel:
        """See `SpeechRecognizer.open`."""
        engine = open_sequence_to_sequence(folder, threads, runtime)
        return cls(engine, LogMel.read(folder), open_vocabulary(folder))

    @property
    def takes_language(self) -> bool:
        """Whether a language decides what is written."""
        return bool(self._languages())

    def iter_transcript(self, samples: Waveform, options: SpeechOptions) -> Iterator[str]:
        """See `SpeechRecognizer.iter_transcript`."""
        before, start = self.previous(options.prompt), tuple[int, ...]()
        for features in self.features(samples):
            inputs = {"input_features": features[None]}
            # One sound, one language: the first window's.
            start = start or self.prompt(inputs, options.language, translate=options.translate)
            tokens = self.engine.generate(
                inputs,
                prompt=(*before, *start),
                max_new_tokens=options.max_new_tokens,
                num_beams=options.num_beams,
            )
            yield self.vocabulary.decode(self._text(tokens[0]))

    def iter_segments(
        self, samples: Waveform, options: SpeechOptions, *, words: bool = False, scored: bool = True
    ) -> Iterator[Heard]:
        """See `SpeechRecognizer.iter_segments`."""
        if words:
            raise RecipeError("times of words are not supported for Whisper; request those of segments")
        if self.engine.generation.first_stamp is None:
            raise RecipeError("this model has no time stamps: its files name no no_timestamps_token_id")
        least = self.extract.fft  # reflected at its ends, and one frame at least
        spectrum = self.extract.spectrum(np.pad(samples, (0, max(0, least - len(samples)))))
        width = self.extract.window // self.extract.hop
        before, start, seek, count = self.previous(options.prompt), tuple[int, ...](), 0, 0
        while seek < spectrum.shape[1]:
            window = spectrum[:, seek : seek + width]
            inputs = {"input_features": np.pad(window, ((0, 0), (0, width - window.shape[1])))[None]}
            start = start or self.prompt(inputs, options.language, translate=options.translate, times=True)
            prefix = (*before, *start)
            [tokens] = self.engine.generate(
                inputs,
                prompt=prefix,
                max_new_tokens=options.max_new_tokens,
                num_beams=options.num_beams,
                timestamps=True,
            )
            spans, heard = spans_of(tokens, self.engine.generation.first_stamp, window.shape[1])
            limit = self.engine.generation.limit(options.max_new_tokens, len(prefix))
            scores = self._scores(inputs, prefix, tokens, limit) if scored else (nan, nan)
            segments = self._segments(spans, seek, count, *scores)
            yield Heard("".join(segment.text for segment in segments), self._spoken(start), segments)
            seek, count = seek + (heard or window.shape[1]), count + len(segments)

    def features(self, samples: Waveform) -> list[NDArray[np.float32]]:
        """Features (mel bins, frames) of each window of a sound; the last window is padded with silence."""
        starts = range(0, len(samples), self.extract.window)
        return [self.extract(samples[start : start + self.extract.window]) for start in starts]

    def previous(self, text: str | None) -> tuple[int, ...]:
        """Tokens of a text that is taken for what was said before: none of an empty one.

        Raises:
            RecipeError: the model takes none, it is too long, or it has special tokens.
        """
        if not text or not text.strip():
            return ()
        if PREVIOUS not in self.vocabulary.special:
            raise RecipeError(f"prompt is not supported by this model: its tokenizer has no {PREVIOUS}")
        tokens = self.vocabulary.encode(f" {text.strip()}")
        special = {self.vocabulary.id(token): token for token in self.vocabulary.special}
        if (found := next((token for token in tokens if token in special), None)) is not None:
            raise RecipeError(f"prompt has the special token {special[found]}; remove it")
        context = self.engine.generation.context
        if context is not None and len(tokens) > (most := context // 2 - 1):
            raise RecipeError(f"prompt has {len(tokens)} tokens, and this model takes {most}; shorten it")
        return (self.vocabulary.id(PREVIOUS), *tokens)

    def prompt(
        self,
        inputs: dict[str, NDArray[Any]],
        language: str | None = None,
        *,
        translate: bool = False,
        times: bool = False,
    ) -> tuple[int, ...]:
        """The decoder's first tokens: start, and of a multilingual model language and task; no time stamps.

        Without `language`, the one that generation_config.json names or (to transcribe) forces, else the one
        that is heard in `inputs`. A model without a table of languages is given the tokens that its files
        force.

        Raises:
            RecipeError: as in `SpeechRecognizer.transcribe`, or the model does not translate.
        """
        settings, start = self.engine.generation.settings, self.engine.generation.decoder_start
        languages, tasks = self._languages(), settings.get("task_to_id") or {}
        if translate and not (languages and "translate" in tasks):
            raise RecipeError("this model cannot translate speech; use a multilingual Whisper or SeamlessM4T")
        after = settings.get("no_timestamps_token_id")
        plain = () if after is None or times else (int(after),)
        forced = _forced_tokens(settings.get("forced_decoder_ids"))
        if not languages:
            if language not in (None, "en"):
                raise RecipeError(
                    f"language {language!r} is specified, but this model supports one language only; omit it"
                )
            return (start, *(token for token in forced if token not in (None, after)), *plain)
        token = _language_token(settings.get("language") if language is None else language, languages)
        if token is None and not translate and forced and forced[0] in languages.values():
            token = forced[0]
        if token is None:
            logits = self.engine.forced_logits(inputs, np.asarray([[start]], dtype=np.int64))[0, 0]
            token = max(languages.values(), key=lambda index: float(logits[index]))
        task = tasks.get("translate" if translate else "transcribe")
        return (start, int(token), *(() if task is None else (int(task),)), *plain)

    def _languages(self) -> dict[str, int]:
        """Token of each language; none of a model of one language."""
        settings = self.engine.generation.settings
        return dict(settings.get("lang_to_id") or {}) if settings.get("is_multilingual", True) else {}

    def _spoken(self, start: tuple[int, ...]) -> str | None:
        """Code of the language that the decoder's first tokens name."""
        if self.engine.generation.settings.get("is_multilingual") is False:
            return "en"
        found = (name for name, token in self._languages().items() if token in start)
        return next(found, "").strip("<|>") or None

    def _segments(
        self, spans: list[Span], seek: int, count: int, avg_logprob: float, no_speech_prob: float
    ) -> tuple[Segment, ...]:
        """Segments that have a text, of a window that begins at the frame `seek`."""
        frame_s = self.extract.hop / self.extract.sampling_rate
        texts = [self.vocabulary.decode(self._text(span.tokens), strip=False) for span in spans]
        found = [pair for pair in zip(spans, texts, strict=True) if pair[1].strip()]
        ratio = compression_ratio("".join(text for _, text in found).strip())
        return tuple(
            Segment(
                id=count + index,
                seek=round(seek * frame_s * 100),
                start=round((seek + span.start * FRAMES_PER_STAMP) * frame_s, 3),
                end=round((seek + span.end * FRAMES_PER_STAMP) * frame_s, 3),
                text=text,
                tokens=span.tokens,
                temperature=0.0,
                avg_logprob=avg_logprob,
                compression_ratio=ratio,
                no_speech_prob=no_speech_prob,
            )
            for index, (span, text) in enumerate(found)
        )

    def _text(self, tokens: list[int]) -> list[int]:
        """Without time stamps, which tokenizers write."""
        first = self.engine.generation.first_stamp
        return [token for token in tokens if first is None or token < first]

    def _scores(
        self, inputs: dict[str, NDArray[Any]], prefix: tuple[int, ...], tokens: list[int], limit: int
    ) -> tuple[float, float]:
        """Mean log-probability of `tokens` and their end under the rules; probability of no speech."""
        generation = self.engine.generation
        rules, given = generation.rules_of(timestamps=True), [*prefix, *tokens]
        logits = self.engine.forced_logits(inputs, np.asarray([given], dtype=np.int64))[0]
        rows = min(len(tokens) + 1, limit)  # the last one is the end, where the limit left room for it
        total = 0.0
        for row in range(rows):
            scores = rules.apply(
                logits[len(prefix) - 1 + row][None],
                [given[: len(prefix) + row]],
                prompt=len(prefix),
                limit=limit,
            )
            found = log_softmax(scores)[0]
            total += float(found[tokens[row]] if row < len(tokens) else found[sorted(rules.eos_ids)].max())
        assert generation.first_stamp is not None
        silent = log_softmax(logits[prefix.index(generation.decoder_start)][None])[0]
        return total / rows, float(np.exp(silent[generation.first_stamp - 2]))  # before <|notimestamps|>


def spans_of(tokens: list[int], first_stamp: int, frames: int) -> tuple[list[Span], int]:
    """Segments of what was written for `frames` frames, and how many of them were heard to their end.

    Two time stamps in a row separate segments; text behind the last pair is left to the next window. Where
    there is no pair, all is one segment, which ends with its last time stamp, or with the sound.
    """
    stamped = [token >= first_stamp for token in tokens]
    cuts = [index for index in range(1, len(tokens)) if stamped[index - 1] and stamped[index]]
    if not cuts:
        last = max((token - first_stamp for token in tokens if token >= first_stamp), default=0)
        return [Span(0, last or frames // FRAMES_PER_STAMP, tokens)], frames
    ended = stamped[-2:] == [False, True]  # nothing is said behind it
    if ended:
        cuts.append(len(tokens))
    groups = [tokens[start:end] for start, end in zip([0, *cuts], cuts, strict=False)]
    spans = [Span(group[0] - first_stamp, group[-1] - first_stamp, group) for group in groups]
    return spans, frames if ended else spans[-1].end * FRAMES_PER_STAMP


def _language_token(stated: str | None, languages: dict[str, int]) -> int | None:
    """The token of a language; None where none is stated."""
    token = languages.get(f"<|{stated}|>", languages.get(stated or ""))
    if stated is not None and token is None:
        known = sorted(name.strip("<|>") for name in languages)
        near = difflib.get_close_matches(stated, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(
            f"language {stated!r} is not supported by this model; {hint}supported: {', '.join(known)}"
        )
    return token


def _forced_tokens(forced: Any) -> list[int | None]:
    """The tokens of `forced_decoder_ids`, from the decoder's second position on; None: left to the model."""
    return [token for index, (at, token) in enumerate(forced or (), start=1) if at == index]
