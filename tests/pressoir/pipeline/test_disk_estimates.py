"""What a run is expected to take of memory and disk."""

import json

import pytest

from pressoir.pipeline import estimates
from pressoir.recipe.recipe import Recipe


def recipe(**sections):
    return Recipe.from_dict({"data": {"max_tokens": 32}, **sections})


@pytest.mark.parametrize("stage", ["augment", "vocabulary"])
def test_stages_that_classify_hold_two_models_and_one_layer_of_a_batch(stage, tiny_classifier):
    parameters = estimates.parameter_count(tiny_classifier)
    config = json.loads((tiny_classifier / "config.json").read_text())
    layer = estimates.activation_bytes(config, 64, 32, layers=1)
    found = estimates.estimate_peak_bytes(stage, recipe(), tiny_classifier)
    assert found == estimates.PROCESS_BYTES + 2 * 4 * parameters + layer
    assert 4 * layer == estimates.activation_bytes(config, 64, 32)  # of its four layers


def test_a_cut_vocabulary_is_one_more_artifact_on_disk(tiny_classifier):
    less, more = (
        estimates.estimate_disk_bytes(recipe(vocabulary=given), tiny_classifier, 100) for given in (None, {})
    )
    assert more - less == 4 * estimates.parameter_count(tiny_classifier)


def test_sentences_that_are_added_have_hidden_states_too(tiny_classifier, tmp_path):
    text = tmp_path / "unlabelled.txt"
    text.write_text("one\ntwo\nthree\n")
    data = {"max_tokens": 32, "unlabelled": str(text)}
    plain = recipe(distill={"hidden_weight": 1}, data=data)
    added = recipe(distill={"hidden_weight": 1}, data=data, augment={"copies": 4})
    one, five_and_three = (
        estimates.estimate_disk_bytes(each, tiny_classifier, count)
        for each, count in ((plain, 1), (added, 1))
    )
    eight = estimates.estimate_disk_bytes(plain, tiny_classifier, 8)
    assert five_and_three == eight > one
