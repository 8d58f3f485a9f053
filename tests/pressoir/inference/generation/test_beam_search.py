"""Greedy and beam search over a toy model whose best sequence is known by trying them all."""

import itertools

import numpy as np
import pytest

from pressoir.inference.generation.beam_search import beam, greedy
from pressoir.inference.generation.rules import Rules

VOCABULARY, EOS, START = 5, 0, 4


class Chain:
    """Next-token logits that depend on the two last tokens; keeps each row's tokens, as a cache would."""

    def __init__(self, rows, seed=0):
        self.table = np.random.default_rng(seed).normal(size=(VOCABULARY, VOCABULARY, VOCABULARY)) * 2
        self.rows = [[START] for _ in range(rows)]

    def logits(self, sequence):
        return self.table[sequence[-2], sequence[-1]].astype(np.float32)

    def step(self, tokens):
        for row, new in zip(self.rows, tokens, strict=True):
            row.extend(int(token) for token in new)
        return np.stack([self.logits(row) for row in self.rows])

    def reorder(self, rows):
        self.rows = [list(self.rows[row]) for row in rows]


def prompts(rows):
    return np.full((rows, 1), START, dtype=np.int64)


def log_probability(chain, sequence):
    total, seen = 0.0, [START, START]
    for token in sequence:
        logits = chain.logits(seen).astype(np.float64)
        total += logits[token] - np.log(np.exp(logits).sum())
        seen.append(token)
    return total


def best_of_all(limit, penalty, seed):
    chain = Chain(1, seed)
    words = [token for token in range(VOCABULARY) if token != EOS]
    ended = [(*w, EOS) for n in range(limit) for w in itertools.product(words, repeat=n)]
    cut = list(itertools.product(words, repeat=limit))
    best = max([*ended, *cut], key=lambda s: log_probability(chain, s) / len(s) ** penalty)
    return [token for token in best if token != EOS]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", [0.5, 1.0, 2.0])
def test_a_wide_beam_finds_the_best_sequence_there_is(seed, penalty):
    rules = Rules(frozenset([EOS]), length_penalty=penalty, early_stopping="never")
    assert beam(Chain(300, seed), prompts(300), rules, limit=4) == best_of_all(4, penalty, seed)


def test_greedy_takes_the_best_token_each_time_and_stops_at_the_end_token():
    chain, expected = Chain(1, seed=3), [START, START]
    while len(expected) < 8 and expected[-1] != EOS:
        expected.append(int(chain.logits(expected).argmax()))
    expected = [token for token in expected[2:] if token != EOS]
    assert greedy(Chain(2, seed=3), prompts(2), Rules(frozenset([EOS])), limit=6) == [expected, expected]


def test_a_row_that_ended_does_not_stop_the_others():
    class Two(Chain):
        def step(self, tokens):
            super().step(tokens)
            logits = np.zeros((2, VOCABULARY), dtype=np.float32)
            logits[0, EOS] = logits[1, 2] = 9
            return logits

    chain = Two(2)
    assert greedy(chain, prompts(2), Rules(frozenset([EOS]), pad_id=3), limit=3) == [[], [2, 2, 2]]
    assert chain.rows[0] == [START, START, 3, 3]


@pytest.mark.parametrize(("early", "found", "steps"), [(True, [], 1), (False, [], 1), ("never", [1], 2)])
def test_a_beam_goes_on_as_long_as_the_configuration_hopes_for_something_better(early, found, steps):
    class Late(Chain):
        """Best ends at once; second best goes on, and ends with certainty."""

        taken = 0

        def step(self, tokens):
            super().step(tokens)
            self.taken += 1
            logits = np.full((len(self.rows), VOCABULARY), -9, dtype=np.float32)
            logits[:, EOS], logits[:, 1] = (0.5, 0.0) if self.taken == 1 else (9.0, -9.0)
            return logits

    chain = Late(1)
    rules = Rules(frozenset([EOS]), length_penalty=2.0, early_stopping=early)
    assert (beam(chain, prompts(1), rules, limit=5), chain.taken) == (found, steps)
