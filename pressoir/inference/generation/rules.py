"""What a model's `generation_config.json` allows at each step of a search, in numpy.

Every setting that changes a text written greedily or by beams is obeyed as in transformers' `generate` (its
`LogitsProcessor`s, in its order), or refused by name. Sampling is not: nothing here is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

Tokens = Sequence[int]

# Settings that change the text and are not implemented, with the values that leave it as it is.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "force_words_ids": (),
    "constraints": (),
    "guidance_scale": (1,),
    "stop_strings": (),
    "max_time": (),
    "token_healing": (False,),
    "watermarking_config": (),
    # Whisper's: windows that are heard again at another temperature, or left out.
    "compression_ratio_threshold": (),
    "logprob_threshold": (),
    "no_speech_threshold": (),
}


@dataclass(frozen=True)
class Timestamps:
    """Whisper's time stamps: the first token is one, they come in pairs, and time does not run backwards.

    Where they are together more probable than any other token, one of them follows. As in section 3.8 of
    Radford et al., arXiv:2212.04356, and transformers' `WhisperTimeStampLogitsProcessor`.
    """

    first: int
    """Token of 0.00 s; all tokens from it on are times, and the one before it is <|notimestamps|>."""
    end: int
    """Token that ends a text; all tokens below are text."""
    latest_first: int | None = None
    """The latest time stamp that a text may begin with; None: any."""

    def apply(self, scores: NDArray[np.float32], generated: Sequence[Tokens]) -> None:
        """Set what may not follow the `generated` tokens of each row of `scores` to −inf."""
        scores[:, self.first - 1] = -np.inf
        for row, tokens in zip(scores, generated, strict=True):
            self._follow(row, tokens)
            times, others = row[self.first :], row[: self.first]
            highest = times.max(initial=-np.inf)
            if np.isfinite(highest):
                together = highest + np.log(np.exp(times - highest).sum())
                if together > others.max():
                    others[:] = -np.inf

    def _follow(self, row: NDArray[np.float32], tokens: Tokens) -> None:
        if not tokens:
            row[: self.first] = -np.inf
            if self.latest_first is not None:
                row[self.first + self.latest_first + 1 :] = -np.inf
            return
        is_time = tokens[-1] >= self.first
        opens = is_time and (len(tokens) < 2 or tokens[-2] >= self.first)
        if opens:  # text follows
            row[self.first :] = -np.inf
        elif is_time:  # its pair, or the end
            row[: self.end] = -np.inf
        latest = next((token for token in reversed(tokens) if token >= self.first), None)
        if latest is not None:
            row[self.first : latest + (0 if is_time and not opens else 1)] = -np.inf


@dataclass(frozen=True)
class Rules:
    """What may be generated, and when it ends."""

    eos_ids: frozenset[int]
    """Tokens that end a sequence."""
    pad_id: int = 0
    """Fed to a finished row of a batch."""
    bias: Mapping[tuple[int, ...], float] = field(default_factory=dict)
    """Added to the score of the last token where the tokens before it were generated; −inf: a bad word."""
    encoder_repetition_penalty: float = 1.0
    """Favours (above 1) the tokens of the source."""
    repetition_penalty: float = 1.0
    """Disfavours (above 1) generated tokens: Keskar et al., arXiv:1909.05858, section 4.1."""
    no_repeat_ngram_size: int = 0
    """No n-gram of this size is generated twice; 0: no limit."""
    encoder_no_repeat_ngram_size: int = 0
    """No n-gram of this size of the source is generated; 0: no limit."""
    min_length: int = 0
    """Sequences do not end before this many tokens, prompt included."""
    min_new_tokens: int = 0
    """Sequences do not end before this many tokens, prompt left out."""
    forced_first: int | None = None
    """The first token, such as the target language."""
    forced_last: int | None = None
    """The token at the length limit."""
    length_decay: tuple[int, float] | None = None
    """After so many tokens the end becomes more probable, by this factor a token."""
    suppressed: tuple[int, ...] = ()
    """Never generated."""
    suppressed_first: tuple[int, ...] = ()
    """Not generated as the first free token."""
    timestamps: Timestamps | None = None
    """Of Whisper, where it writes times."""
    renormalize: bool = False
    """Beam search: probabilities add up to 1 again after all of these."""
    length_penalty: float = 1.0
    """Beam search: a sequence's log-probability is divided by its length to this power."""
    early_stopping: bool | Literal["never"] = False
    """Beam search: stop at the first `width` finished sequences; False: when no better one is likely."""

    @classmethod
    def read(cls, settings: Mapping[str, Any], eos_ids: frozenset[int], pad_id: int) -> Self:
        """The rules that the settings of `generation_config.json` state.

        Raises:
            ValueError: a setting that would change the text is not supported; the message names it.
        """
        for name, harmless in _REFUSED.items():
            value = settings.get(name)
            if value is not None and value not in harmless:
                raise ValueError(f"{name}: {value!r} is not supported; remove it, or set it to null")
        decay = settings.get("exponential_decay_length_penalty")
        bias = {tuple(tokens): float(value) for tokens, value in _pairs(settings.get("sequence_bias"))}
        for word in settings.get("bad_words_ids") or ():
            if tuple(word) not in {(end,) for end in eos_ids}:
                bias[tuple(word)] = -np.inf
        return cls(
            eos_ids=eos_ids,
            pad_id=pad_id,
            bias=bias,
            encoder_repetition_penalty=float(settings.get("encoder_repetition_penalty") or 1.0),
            repetition_penalty=float(settings.get("repetition_penalty") or 1.0),
            no_repeat_ngram_size=int(settings.get("no_repeat_ngram_size") or 0),
            encoder_no_repeat_ngram_size=int(settings.get("encoder_no_repeat_ngram_size") or 0),
            min_length=int(settings.get("min_length") or 0),
            min_new_tokens=int(settings.get("min_new_tokens") or 0),
            forced_first=settings.get("forced_bos_token_id"),
            forced_last=settings.get("forced_eos_token_id"),
            length_decay=None if decay is None else (int(decay[0]), float(decay[1])),
            suppressed=tuple(settings.get("suppress_tokens") or ()),
            suppressed_first=tuple(settings.get("begin_suppress_tokens") or ()),
            renormalize=bool(settings.get("renormalize_logits")),
            length_penalty=1.0 if (power := settings.get("length_penalty")) is None else float(power),
            early_stopping=settings.get("early_stopping") or False,
        )

    def apply(
        self,
        scores: NDArray[np.float32],
        sequences: Sequence[Tokens],
        *,
        prompt: int,
        limit: int,
        sources: Sequence[Tokens] | None = None,
    ) -> NDArray[np.float32]:
        """`scores` (rows, vocabulary) of the next token, with what is not allowed set to −inf.

        `sequences` are the rows' tokens so far, the first `prompt` of them given; at most `limit` more may
        follow those. `sources` are the rows' source tokens; None where the source is sound.
        """
        scores, generated = scores.copy(), len(sequences[0]) - prompt
        ends = sorted(self.eos_ids)
        for row, tokens in enumerate(sequences):
            self._follow(scores[row], tokens, None if sources is None else sources[row])
        if len(sequences[0]) < self.min_length or generated < self.min_new_tokens:
            scores[:, ends] = -np.inf
        # As in transformers: a forced first token (which only a prompt of one leaves room for) is not free.
        forces_first = self.forced_first is not None and prompt == 1
        if forces_first and generated == 0:
            scores = _only(scores, self.forced_first)
        if self.forced_last is not None and generated == limit - 1:
            scores = _only(scores, self.forced_last)
        if self.length_decay is not None and generated > self.length_decay[0]:
            growth = self.length_decay[1] ** (generated - self.length_decay[0]) - 1
            scores[:, ends] += np.abs(scores[:, ends]) * np.float32(growth)
        scores[:, list(self.suppressed)] = -np.inf
        if generated == int(forces_first):
            scores[:, list(self.suppressed_first)] = -np.inf
        if self.timestamps is not None:
            self.timestamps.apply(scores, [tokens[prompt:] for tokens in sequences])
        return log_softmax(scores) if self.renormalize else scores

    def _follow(self, scores: NDArray[np.float32], tokens: Tokens, source: Tokens | None) -> None:
        """What depends on the tokens of a row so far changes its `scores` (vocabulary,)."""
        added: dict[int, float] = {}
        for sequence, value in self.bias.items():
            before = len(sequence) - 1
            if before < len(tokens) and tuple(tokens[len(tokens) - before :]) == sequence[:-1]:
                added[sequence[-1]] = added.get(sequence[-1], 0.0) + value
        for token, value in added.items():
            scores[token] += value
        if source is not None:
            penalize(scores, source, 1 / self.encoder_repetition_penalty)
        penalize(scores, tokens, self.repetition_penalty)
        if self.no_repeat_ngram_size:
            scores[_repeating(tokens, tokens, self.no_repeat_ngram_size)] = -np.inf
        if self.encoder_no_repeat_ngram_size and source is not None:
            scores[_repeating(source, tokens, self.encoder_no_repeat_ngram_size)] = -np.inf


def log_softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-probabilities of `scores` (rows, vocabulary)."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    result: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def penalize(scores: NDArray[np.float32], tokens: Tokens, penalty: float) -> None:
    """Divide the positive scores of `tokens` by `penalty`, multiply their negative ones by it."""
    if penalty != 1.0:
        chosen = np.unique(np.asarray(tokens, dtype=np.int64))
        found = scores[chosen]
        scores[chosen] = np.where(found < 0, found * np.float32(penalty), found / np.float32(penalty))


def _repeating(earlier: Tokens, tokens: Tokens, size: int) -> list[int]:
    """Tokens that would end, after `tokens`, an n-gram of `size` that `earlier` has."""
    if len(tokens) < size - 1:
        return []
    before = list(tokens[len(tokens) - size + 1 :])
    starts = range(len(earlier) - size + 1)
    return [earlier[i + size - 1] for i in starts if list(earlier[i : i + size - 1]) == before]


def _only(scores: NDArray[np.float32], token: int | None) -> NDArray[np.float32]:
    scores[:] = -np.inf
    scores[:, token] = 0.0
    return scores


def _pairs(bias: Any) -> list[tuple[Tokens, float]]:
    """`sequence_bias`, which files hold as pairs."""
    return (
        list(bias.items()) if isinstance(bias, Mapping) else [(tokens, value) for tokens, value in bias or ()]
    )
