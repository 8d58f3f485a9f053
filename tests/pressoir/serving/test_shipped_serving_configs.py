"""Every serving configuration that is shipped reads, and the demo's names what the demo makes."""

from pathlib import Path

import pytest

from pressoir.recipe.recipe import Recipe
from pressoir.serving.config import ServingConfig

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("serving-*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_configuration_reads_and_offers_two_tiers_or_more(path):
    assert len(ServingConfig.from_yaml(path).tiers) >= 2


def test_the_demo_serves_the_model_that_its_recipe_registers_beside_its_teacher():
    made = Recipe.from_yaml(CONFIGS / "demo.yaml").name
    tiers = ServingConfig.from_yaml(CONFIGS / "serving-demo.yaml").tiers
    assert {name: tier.model for name, tier in tiers.items()} == {
        "teacher": f"{made}:teacher_onnx",
        "compressed": made,
    }
