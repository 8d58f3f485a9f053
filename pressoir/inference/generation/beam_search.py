"""Search for a sequence, token by token, where a runtime gives only the next token's logits.

Greedy and beam search in numpy, with the rules that a model's `generation_config.json` sets. Both give what
transformers' `generate` gives without sampling.

Beam search follows Graves, arXiv:1211.3711, with the length normalisation of Wu et al., arXiv:1609.08144,
eq. 14, in the simpler form that transformers uses: log-probability / length^penalty.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pressoir.inference.generation.rules import Rules, Tokens, log_softmax


class Decoding(Protocol):
    """Rows of a batch that are being decoded; it keeps the cache."""

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append `tokens` (rows, n), and return the logits (rows, vocabulary) of what comes next."""

    def reorder(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows' caches; a row may be taken several times."""


def greedy(
    decoding: Decoding,
    prompt: NDArray[np.int64],
    rules: Rules,
    limit: int,
    sources: Sequence[Tokens] | None = None,
) -> list[list[int]]:
    """The most probable token each time: for each row of `prompt` (rows, n) at most `limit` new tokens.

    The end token is not part of the result. For `sources` see `Rules.apply`.
    """
    results: list[list[int]] = [[] for _ in prompt]
    running = np.ones(len(prompt), dtype=bool)
    tokens, sequences = prompt, prompt.tolist()
    ends = np.asarray(sorted(rules.eos_ids), dtype=np.int64)
    for _ in range(limit):
        scores = rules.apply(
            decoding.step(tokens), sequences, prompt=prompt.shape[1], limit=limit, sources=sources
        )
        chosen = scores.argmax(axis=1)
        running &= ~np.isin(chosen, ends)
        for row in np.flatnonzero(running):
            results[row].append(int(chosen[row]))
        if not running.any():
            break
        tokens = np.where(running, chosen, rules.pad_id).astype(np.int64)[:, None]
        for sequence, token in zip(sequences, tokens[:, 0], strict=True):
            sequence.append(int(token))
    return results


def beam(
    decoding: Decoding, prompt: NDArray[np.int64], rules: Rules, limit: int, source: Tokens | None = None
) -> list[int]:
    """The best sequence that `width` beams find; `prompt` (width, n) is the same sequence in every row.

    The end token is not part of the result. `source` is the one sequence's, see `Rules.apply`.
    """
    width, length = prompt.shape
    start, sources = prompt[0].tolist(), None if source is None else [source] * width
    beams: list[tuple[int, ...]] = [()] * width
    # Only the first beam counts at first: the others are copies of it.
    totals = np.full(width, -1e9, dtype=np.float64)
    totals[0] = 0.0
    finished: list[tuple[float, int, tuple[int, ...]]] = []  # a heap: the worst first; of equals, the latest
    tokens = prompt
    for generated in range(limit):
        allowed = rules.apply(
            log_softmax(decoding.step(tokens)),
            [[*start, *sequence] for sequence in beams],
            prompt=length,
            limit=limit,
            sources=sources,
        ).astype(np.float64)
        vocabulary = allowed.shape[1]
        flat = (totals[:, None] + allowed).reshape(-1)
        count = min(max(2, 1 + len(rules.eos_ids)) * width, flat.size)
        best = np.argpartition(-flat, count - 1)[:count]
        best = best[np.argsort(-flat[best], kind="stable")]
        next_rows, next_beams, next_totals = list[int](), list[tuple[int, ...]](), list[float]()
        size = generated + 1
        for rank, index in enumerate(best):
            row, token = divmod(int(index), vocabulary)
            ended = token in rules.eos_ids
            sequence = beams[row] if ended else (*beams[row], token)
            if ended or size == limit:
                if rank < width:
                    score = float(flat[index]) / size**rules.length_penalty
                    heapq.heappush(finished, (score, -(generated * count + rank), sequence))
                    if len(finished) > width:
                        heapq.heappop(finished)
            elif len(next_rows) < width:
                next_rows.append(row)
                next_beams.append(sequence)
                next_totals.append(float(flat[index]))
        if size == limit or _done(finished, width, next_totals[0], size, limit, rules):
            break
        beams, totals = next_beams, np.asarray(next_totals)
        decoding.reorder(np.asarray(next_rows, dtype=np.int64))
        tokens = np.asarray([[sequence[-1]] for sequence in beams], dtype=np.int64)
    return list(max(finished)[2])


def _done(
    finished: list[tuple[float, int, tuple[int, ...]]],
    width: int,
    best_running: float,
    size: int,
    limit: int,
    rules: Rules,
) -> bool:
    """Whether no running beam is expected to beat the worst of `width` finished ones."""
    if len(finished) < width:
        return False
    if rules.early_stopping is True:
        return True
    longest = limit if rules.early_stopping == "never" and rules.length_penalty > 0 else size
    possible: float = best_running / longest**rules.length_penalty
    return finished[0][0] >= possible
