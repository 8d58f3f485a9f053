"""How far one decoder's logits and greedy text are from another's, on real text.

Greedy texts are compared without generating twice: the candidate generates, with its cache, and the reference
scores what it wrote in one pass. The texts are equal exactly if every token is the reference's own choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pressoir.inference.engines.decoder_protocol import Decoder
from pressoir.reporting import Reporter


@dataclass(frozen=True)
class Divergence:
    """Where a greedy text first leaves the reference's."""

    prompt: int
    """From 0."""
    position: int
    """New token, from 0."""
    token: int
    expected: int
    """The reference's choice."""
    margin: float
    """The reference's logit of its choice, minus that of the token taken."""


@dataclass
class Parity:
    """One candidate against the reference."""

    windows: int
    window: int
    """Tokens a window."""
    prompts: int
    new_tokens: int
    """Tokens generated after each prompt."""
    max_logit_difference: float = 0.0
    worst_window: int = 0
    worst_position: int = 0
    divergences: list[Divergence] = field(default_factory=list)
    """At most one a prompt."""

    @property
    def equal_prompts(self) -> int:
        """Prompts of which all new tokens are the reference's."""
        return self.prompts - len(self.divergences)

    def describe(self) -> str:
        """One line, and one for each divergence."""
        lines = [
            f"max |Δlogit| {self.max_logit_difference:.2g} on {self.windows} windows of {self.window} "
            f"tokens, {self.new_tokens} greedy tokens equal for {self.equal_prompts} of "
            f"{self.prompts} prompts"
        ]
        lines += [
            f"  prompt {d.prompt} differs at new token {d.position}: {d.token} instead of {d.expected}, "
            f"whose logit is {d.margin:.2g} higher"
            for d in self.divergences
        ]
        return "\n".join(lines)


def compare(
    candidates: Mapping[int, Decoder],
    reference: Decoder,
    windows: NDArray[np.int64],
    prompts: NDArray[np.int64],
    new_tokens: int,
    reporter: Reporter,
) -> dict[int, Parity]:
    """Compare candidates with a reference on windows (windows, tokens) and prompts (prompts, tokens)."""
    shape = (*windows.shape, len(prompts), new_tokens)
    result = {name: Parity(*shape) for name in candidates}
    total = len(windows) + len(prompts) * len(candidates)
    for index, window in enumerate(windows):
        expected = reference.forward(window[None])[0]
        for name, candidate in candidates.items():
            difference = np.abs(candidate.forward(window[None])[0] - expected).max(axis=2)[0]  # (seq,)
            difference[np.isnan(difference)] = np.inf
            worst = int(difference.argmax())
            if difference[worst] > result[name].max_logit_difference:
                result[name].max_logit_difference = float(difference[worst])
                result[name].worst_window, result[name].worst_position = index, worst
        reporter.progress(index + 1, total, "texts compared")
    done = len(windows)
    for name, candidate in candidates.items():
        tokens = greedy(candidate, prompts, new_tokens)
        for index, (prompt, written) in enumerate(zip(prompts, tokens, strict=True)):
            if (found := _divergence(reference, index, prompt, written)) is not None:
                result[name].divergences.append(found)
            done += 1
            reporter.progress(done, total, "texts compared")
    return result


def greedy(decoder: Decoder, prompts: NDArray[np.int64], new_tokens: int) -> NDArray[np.int64]:
    """The likeliest tokens (prompts, new_tokens), one by one with the cache, whether or not a text ends."""
    tokens, cache, written = prompts, None, []
    for _ in range(new_tokens):
        logits, cache = decoder.forward(tokens, cache, last_only=True)
        tokens = logits[:, -1].argmax(axis=1)[:, None]
        written.append(tokens)
    return np.concatenate(written, axis=1)


def _divergence(
    reference: Decoder, index: int, prompt: NDArray[np.int64], written: NDArray[np.int64]
) -> Divergence | None:
    logits = reference.forward(np.concatenate([prompt, written[:-1]])[None])[0][0]  # (seq, vocabulary)
    logits = logits[len(prompt) - 1 :]  # each row predicts the written token of the same index
    choices = logits.argmax(axis=1)
    departs = np.flatnonzero(choices != written)
    if not departs.size:
        return None
    position = int(departs[0])
    token, expected = int(written[position]), int(choices[position])
    margin = float(logits[position, expected] - logits[position, token])
    return Divergence(index, position, token, expected, margin)
