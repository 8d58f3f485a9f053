"""Comparing decoders: how far logits are apart, and where greedy texts part."""

import numpy as np
import pytest

from pressoir.inference.parity import compare, greedy

VOCABULARY = 16


class Counting:
    """A decoder that always expects the next number; its logit is 1, all others 0, plus some changes."""

    def __init__(self, changes=None):
        self.changes, self.fed = changes or {}, []

    def forward(self, input_ids, cache=None, *, last_only=False):
        seen = cache or 0
        self.fed.append(input_ids.shape)
        logits = np.eye(VOCABULARY, dtype=np.float32)[(input_ids + 1) % VOCABULARY]
        for (position, token), value in self.changes.items():
            if 0 <= position - seen < input_ids.shape[1]:
                logits[:, position - seen, token] += value
        return logits[:, -1:] if last_only else logits, seen + input_ids.shape[1]


WINDOWS = np.arange(6).reshape(2, 3)
PROMPTS = np.array([[0, 1], [4, 5]])


def parity(candidate, reporter, reference=None):
    return compare({0: candidate}, reference or Counting(), WINDOWS, PROMPTS, 5, reporter)[0]


def test_equal_decoders_do_not_differ(reporter):
    found = parity(Counting(), reporter)
    assert (found.max_logit_difference, found.divergences, found.equal_prompts) == (0.0, [], 2)
    assert (found.windows, found.window, found.prompts, found.new_tokens) == (2, 3, 2, 5)


def test_the_largest_difference_is_told_with_its_place(reporter):
    found = parity(Counting({(1, 7): 0.25, (2, 9): -0.5}), reporter)
    assert found.max_logit_difference == 0.5
    assert found.worst_position == 2


def test_logits_that_are_not_finite_differ_infinitely(reporter):
    assert parity(Counting({(0, 3): np.nan}), reporter).max_logit_difference == np.inf
    assert parity(Counting({(0, 3): np.inf}), reporter).max_logit_difference == np.inf


def test_the_first_other_token_is_told_with_the_references_margin(reporter):
    # The third new token (at position 3, after prompt 0, 1 and new tokens 2, 3) should be 4, and is 9.
    found = parity(Counting({(3, 9): 1.5}), reporter, Counting({(3, 9): 0.75}))
    first, second = found.divergences
    assert (first.prompt, first.position, first.token, first.expected) == (0, 2, 9, 4)
    assert first.margin == pytest.approx(0.25)
    assert (second.prompt, second.expected) == (1, 8)
    assert found.equal_prompts == 0
    assert "prompt 0 differs at new token 2: 9 instead of 4" in found.describe()


def test_greedy_text_is_written_with_the_cache():
    decoder = Counting()
    np.testing.assert_array_equal(greedy(decoder, PROMPTS, 3), [[2, 3, 4], [6, 7, 8]])
    assert decoder.fed == [(2, 2), (2, 1), (2, 1)]


def test_progress_ends_at_its_total(reporter):
    parity(Counting(), reporter)
    assert reporter.progressed[-1] == (4, 4, "texts compared")
