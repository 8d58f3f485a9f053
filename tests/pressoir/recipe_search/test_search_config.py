"""What a search's configuration takes, and what it refuses before any work, all of it at once."""

from pathlib import Path

import pytest
import yaml

from pressoir.errors import RecipeError
from pressoir.recipe.recipe import Recipe
from pressoir.recipe_search.config import Range, SearchConfig, options, with_values

CONFIGS = Path(__file__).parents[3] / "configs"
SEARCH = {
    "name": "small",
    "recipe": {"name": "base"},
    "budget": {"max_size_mb": 20},
    "space": {
        "distill.student.layers": [1, 2],
        "prune.ffn_sparsity": {"low": 0.0, "high": 0.5, "step": 0.25},
    },
}


def refusal(**changes):
    with pytest.raises(RecipeError) as caught:
        SearchConfig.from_dict({**SEARCH, **changes})
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("search-*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_search_reads_and_so_does_each_of_its_recipes(path):
    config = SearchConfig.from_yaml(path)
    for key, choices in config.space.items():
        for value in options(choices):
            assert with_values(config.recipe, {key: value}) is not None


def test_the_recipe_is_a_path_beside_the_file_or_the_recipe_itself(tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.tsv").write_text("text\tlabel\n")
    inner = {"name": "base", "data": {"source": "files", "train": "data/train.tsv", "test": "data/test.tsv"}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(inner))
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({**SEARCH, "recipe": "base.yaml"}))
    config = SearchConfig.from_yaml(tmp_path / "search.yaml")
    assert config.recipe.data.train == tmp_path / "data" / "train.tsv", "whole, wherever it is resumed from"
    again = SearchConfig.from_dict(config.model_dump(mode="json"))
    assert again == config
    assert again.identity == config.identity


FIRST = {"distill.student.layers": 2, "prune.ffn_sparsity": 0.25}


@pytest.mark.parametrize(
    "wrong",
    [{"distill.student.layers": 2}, {**FIRST, "prune.ffn_sparsity": 0.3}, {**FIRST, "vocabulary": None}],
    ids=["one is missing", "no choice", "not in the space"],
)
def test_recipes_to_try_first_are_of_the_space(wrong):
    assert SearchConfig.from_dict({**SEARCH, "first": [FIRST]}).first == (FIRST,)
    assert "first.1: specify one of the choices of each field" in refusal(first=[FIRST, wrong])


def test_recipes_to_try_first_make_another_search():
    plain = SearchConfig.from_dict(SEARCH)
    assert SearchConfig.from_dict({**SEARCH, "first": []}).identity == plain.identity
    assert SearchConfig.from_dict({**SEARCH, "first": [FIRST]}).identity != plain.identity


def test_every_error_is_told_at_once_with_its_path():
    text = refusal(
        budget={"max_size_mb": -1, "max_latency": 3},
        recipe={"name": "base", "distill": {"temprature": 3}},
        trials=0,
    )
    for part in (
        "budget.max_size_mb",
        "did you mean `max_latency_ms`",
        "trials",
        "did you mean `temperature`",
    ):
        assert part in text


def test_every_choice_is_held_against_the_recipes_types():
    text = refusal(
        space={
            "distill.student.layers": [2, "two"],
            "prune.ffn_sparsity": {"low": 0.5, "high": 1.5, "step": 0.25},
            "distill.temprature": [2.0],
            "teacher.epochs": [1, 2],
        }
    )
    assert 'space.distill.student.layers: the choice "two" is not valid' in text
    assert "space.prune.ffn_sparsity: the choice 1.5 is not valid" in text
    assert "space.prune.ffn_sparsity: the choice 0.5" not in text
    assert "did you mean `temperature`" in text
    assert "space.teacher.epochs: only fields of" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {}}, "a budget needs at least one limit"),
        ({"budget": {"min_accuracy": 0.5, "max_accuracy_drop": 0.1}}, "not both"),
        ({"space": {}}, "at least 1"),
        ({"space": {"distill.epochs": [1, 1]}}, "a choice is listed twice"),
        ({"space": {"distill.epochs": {"low": 3, "high": 3, "step": 1}}}, "must be below high"),
        ({"space": {"distill": [None], "distill.epochs": [1]}}, "one of its fields is also in the space"),
        ({"recipe": {"name": "lm", "task": "causal-lm"}}, "is not supported; use the recipe of a classifier"),
        ({"recipe": {"name": "base", "refresh": True}}, "would rebuild shared stages"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes, message):
    assert message in refusal(**changes)


def test_a_range_has_both_its_ends_and_no_rounding_errors():
    assert Range(low=0.1, high=0.7, step=0.2).values() == [0.1, 0.3, 0.5, 0.7]
    assert Range(low=1, high=6, step=2).values() == [1, 3, 5]
    assert all(isinstance(value, int) for value in Range(low=1, high=6, step=2).values())


def test_values_reach_sections_that_the_recipe_leaves_out():
    recipe = Recipe.from_dict({"name": "base", "prune": None})
    changed = with_values(recipe, {"prune.ffn_sparsity": 0.25, "distill.student.layers": [0, 5]}, "found")
    assert changed.prune.ffn_sparsity == 0.25
    assert changed.distill.student.layers == (0, 5)
    assert changed.name == "found"
    assert with_values(recipe, {"quantize": None}).quantize is None


def test_another_budget_or_space_is_another_search_more_trials_are_not():
    config = SearchConfig.from_dict(SEARCH)
    assert SearchConfig.from_dict({**SEARCH, "trials": 99, "timeout_s": 5}).folder == config.folder
    for changes in (
        {"budget": {"max_size_mb": 21}},
        {"space": {"distill.student.layers": [1, 2]}},
        {"seed": 1},
        {"recipe": {"name": "base", "seed": 1}},
    ):
        assert SearchConfig.from_dict({**SEARCH, **changes}).folder != config.folder
    renamed = SearchConfig.from_dict({**SEARCH, "recipe": {"name": "other"}})
    assert renamed.identity == config.identity
