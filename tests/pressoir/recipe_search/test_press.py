"""What `press` tries: its limits, its recipes from gentle to hard, and what `--set` leaves to vary."""

import math

import pytest

from pressoir.errors import RecipeError
from pressoir.pipeline.sources import Sources
from pressoir.recipe.recipe import Recipe
from pressoir.recipe_search.config import with_values
from pressoir.recipe_search.press import budget_from, search_for
from pressoir.store.store import Store

LAYERS, HEADS, NEURONS = "distill.student.layers", "prune.head_sparsity", "prune.ffn_sparsity"


@pytest.fixture
def searched(tiny_bert, tmp_path):
    """`searched(limits, *overrides)`: the search over the tiny model of four layers."""

    def searched(limits, *overrides, model=tiny_bert):
        recipe = Recipe.from_dict({"name": "tiny", "model": str(model)}, overrides)
        fixed = [override.partition("=")[0] for override in overrides]
        return search_for(recipe, budget_from(*limits), fixed, Sources(Store(tmp_path)))

    return searched


@pytest.mark.parametrize("value", [-1, 0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["max_size_mb", "max_latency_ms"])
def test_a_limit_that_no_model_can_have_is_refused_by_name(name, value):
    limits = dict.fromkeys(("max_size_mb", "max_latency_ms", "max_accuracy_drop"))
    with pytest.raises(RecipeError, match=rf"--{name.replace('_', '-')} \({name}\) is {value}; specify"):
        budget_from(**limits | {name: value})


@pytest.mark.parametrize("value", [-0.5, 100.5, math.nan, math.inf])
def test_an_accuracy_drop_is_in_percentage_points(value):
    assert budget_from(None, None, 2.5).max_accuracy_drop == 0.025
    assert budget_from(None, None, 0).max_accuracy_drop == 0
    with pytest.raises(RecipeError, match=r"--max-accuracy-drop .* percentage points, from 0 to 100"):
        budget_from(None, None, value)


def test_without_a_limit_there_is_no_budget():
    assert budget_from(None, None, None) is None


def test_recipes_are_tried_from_gentle_to_hard(searched):
    config = searched((15, None, 2))
    assert (config.trials, config.prefer, config.proxy.epochs) == (7, "accuracy", None)
    assert [list(values.values()) for values in config.first] == [
        [4, 0.0, 0.0, None],
        [2, 0.0, 0.0, None],
        [2, 0.25, 0.5, None],
        [2, 0.0, 0.0, {}],
        [2, 0.25, 0.5, {}],
        [1, 0.25, 0.5, {}],
        [1, 0.5, 0.75, {}],
    ]
    for values in config.first:
        recipe = with_values(config.recipe, values)
        assert (recipe.distill.student.layers, recipe.vocabulary is None) == (
            values[LAYERS],
            values["vocabulary"] is None,
        )


def test_the_vocabulary_is_pruned_for_size_alone(searched):
    fast = searched((None, 3, None))
    assert fast.space.keys() == {LAYERS, HEADS, NEURONS}
    assert len(fast.first) == 5
    small = searched((None, None, 1))
    assert "vocabulary" in small.space
    assert (fast.prefer, small.prefer) == ("accuracy", "size")


@pytest.mark.parametrize(
    ("overrides", "left"),
    [
        (["distill.epochs=2", "prune.epochs=1"], {LAYERS, HEADS, NEURONS, "vocabulary"}),
        (["distill.student.layers=3"], {HEADS, NEURONS, "vocabulary"}),
        (["distill=null"], {HEADS, NEURONS, "vocabulary"}),
        (["prune=null", "vocabulary=null"], {LAYERS}),
        (["prune.head_sparsity=0"], {LAYERS, NEURONS, "vocabulary"}),
        (["distill.student.model=other"], {HEADS, NEURONS}),
    ],
)
def test_what_the_user_sets_is_the_same_in_all_recipes(overrides, left, searched, tiny_bert):
    config = searched((15, None, None), *(text.replace("other", str(tiny_bert)) for text in overrides))
    assert config.space.keys() == left
    assert len({str(values) for values in config.first}) == len(config.first) == config.trials


def test_fields_that_do_not_work_with_the_model_are_left_out(searched, tiny_encoder):
    config = searched((15, None, None), "prune.head_sparsity=0", model=tiny_encoder("mpnet"))
    assert HEADS not in config.space
    assert {values[LAYERS] for values in config.first} == {4, 2, 1}


def test_a_budget_with_nothing_to_vary_is_refused(searched):
    with pytest.raises(RecipeError, match="nothing is left to vary"):
        searched((None, 5, None), "distill=null", "prune=null")
