"""A search is refused before its first trial where one of its choices cannot work."""

import pytest

from pressoir.errors import RecipeError
from pressoir.pipeline.sources import Sources
from pressoir.recipe_search.checks import check_search
from pressoir.recipe_search.config import SearchConfig
from pressoir.store.store import Store


@pytest.mark.parametrize(
    ("space", "fault"),
    [
        ({"distill.student.config": [{"num_hidden_layers": 1}, {"num_hidden_layers": 2}]}, None),
        ({"distill.learning_rate": {"low": 1e-4, "high": 5e-4, "step": 1e-4}}, None),
        ({"distill.student": [{"config": {"num_hidden_layers": 1}}, {"layers": 2}]}, "distill"),
        ({"prune.ffn_sparsity": {"low": 0.25, "high": 0.75, "step": 0.25}}, "prune"),
        ({"distill.relation_weight": [0, 1]}, "distill.relation_weight"),
    ],
)
def test_a_choice_that_asks_for_a_step_that_does_not_work_is_refused(
    space, fault, tiny_encoder, tiny_data, tmp_path
):
    files = {split: str(tiny_data / f"{split}.tsv") for split in ("train", "validation", "test")}
    recipe = {
        "model": str(tiny_encoder("megatron-bert")),
        "data": {"source": "files", **files},
        "distill": {"student": {"config": {"num_hidden_layers": 2}}},
        "prune": None,
    }
    config = SearchConfig.from_dict({"recipe": recipe, "budget": {"max_size_mb": 9}, "space": space})
    sources = Sources(Store(tmp_path / "home"))
    if fault is None:
        check_search(config, sources)
    else:
        with pytest.raises(RecipeError, match=rf"'megatron-bert'.*\n  {fault}: "):
            check_search(config, sources)
