"""Rows in groups within a budget of tokens."""

import numpy as np

from pressoir.inference.token_groups import split_inputs, token_groups
from pressoir.inference.tokenizers.tokenizers import FastTokenizer, encode_batch


def test_groups_hold_similar_lengths_within_the_budget():
    assert list(token_groups([5, 1, 3, 2], 6)) == [[1, 3], [2], [0]]
    assert list(token_groups([5, 1], 0)) == [[1], [0]]
    assert list(token_groups([], 5)) == []


def test_a_part_is_padded_to_its_own_longest_row_on_either_side():
    mask = np.array([[0, 0, 1], [1, 1, 1], [0, 1, 1]])
    found = list(split_inputs({"input_ids": mask * 7, "attention_mask": mask}, 4))
    assert [rows for rows, _ in found] == [[0, 2], [1]]
    np.testing.assert_array_equal(found[0][1]["input_ids"], [[0, 7], [7, 7]])
    np.testing.assert_array_equal(found[1][1]["attention_mask"], [[1, 1, 1]])


def test_max_length_truncates_one_call_and_never_lengthens(tiny_classifier):
    tokenizer = FastTokenizer(tiny_classifier)
    text = "the book was bad and dull"

    def ids(max_length=None):
        return encode_batch(tokenizer, [text], max_length)["input_ids"].tolist()

    whole = ids()
    assert ids(4) == FastTokenizer(tiny_classifier, 4)([text])["input_ids"].tolist()
    assert len(ids(4)[0]) == 4
    assert ids() == ids(10**6) == whole
