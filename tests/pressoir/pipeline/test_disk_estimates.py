"""What a run is expected to take of memory and disk."""

import pytest

from pressoir.pipeline import estimates
from pressoir.recipe.recipe import Recipe
from pressoir.stage import stage_names


def recipe(**sections):
    return Recipe.from_dict({"data": {"max_tokens": 32}, **sections})


@pytest.mark.parametrize("stage", ["augment", "vocabulary"])
def test_stages_that_classify_hold_two_models_and_one_layer_of_a_batch(stage, tiny_classifier):
    parameters = estimates.parameter_count(tiny_classifier)
    size = estimates.model_size(recipe(), tiny_classifier)
    layer = size.activation_bytes(64, layers=1)
    found = estimates.estimate_peak_bytes(stage, recipe(), tiny_classifier)
    assert found == estimates.PROCESS_BYTES + 2 * 4 * parameters + layer
    assert 4 * layer == size.activation_bytes(64)  # of its four layers


def test_each_stage_of_a_recipe_has_an_estimate_and_training_the_largest(tiny_classifier):
    found = {
        stage: estimates.estimate_peak_bytes(stage, recipe(augment={}, vocabulary={}), tiny_classifier)
        for stage in stage_names()
    }
    assert found["data"] == estimates.PROCESS_BYTES < found["teacher"]
    assert max(found.values()) == found["distill"] == found["prune"]
    finished = recipe(teacher={"checkpoint": str(tiny_classifier)})
    assert estimates.estimate_peak_bytes("teacher", finished, tiny_classifier) < found["teacher"]


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
