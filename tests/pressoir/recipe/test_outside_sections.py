"""Stages of other packages are sections of every recipe: in files, `--set`, errors, forms, the reference."""

import os
import subprocess
import sys

import pytest

from pressoir.errors import ExtensionError, RecipeError
from pressoir.recipe.recipe import Recipe, with_outside_sections
from pressoir.reference import markdown


@pytest.fixture
def extended(smooth):
    """The type of recipes, with the section `smooth`."""
    smooth.install()
    return with_outside_sections(Recipe)


def test_without_other_packages_the_type_is_the_plain_one():
    assert with_outside_sections(Recipe) is Recipe
    assert Recipe.outside_sections() == ()


def test_the_section_is_null_unless_the_recipe_sets_it(extended):
    assert issubclass(extended, Recipe)
    assert extended.outside_sections() == ("smooth",)
    assert extended().smooth is None
    assert extended.from_dict({"smooth": {}}).smooth.strength == 0.5
    given = extended.from_dict({}, ["smooth.strength=0.25"])
    assert given.smooth.strength == 0.25
    assert extended.from_dict(extended.model_validate_json(given.model_dump_json()).model_dump()) == given


def test_its_fields_are_checked_like_any_sections(extended):
    with pytest.raises(RecipeError, match=r"smooth\.strenght: unknown field; did you mean `strength`"):
        extended.from_dict({"smooth": {"strenght": 1}})
    with pytest.raises(RecipeError, match=r"smooth\.strength: .*less than or equal to 1"):
        extended.from_dict({"smooth": {"strength": 2}})
    with pytest.raises(RecipeError, match="smoth: unknown field; did you mean `smooth`"):
        extended.from_dict({"smoth": {}})


def test_forms_and_the_reference_have_it(extended):
    schema = extended.model_json_schema()
    assert schema["title"] == "Recipe"
    assert schema["properties"]["smooth"]["description"] == "Smooth the weights."
    assert schema["$defs"]["SmoothConfig"]["properties"]["strength"]["description"] == "How much."
    text = markdown(extended)
    assert "| `smooth` | section or null | see below | Smooth the weights. |" in text
    assert "#### `smooth`" in text
    assert "| `strength` |" in text


def test_a_stage_with_the_name_of_a_recipes_field_is_refused(smooth):
    smooth.install()
    info = next(smooth.folder.glob("*.dist-info"))
    (info / "entry_points.txt").write_text("[pressoir.stages]\nseed = pressoir_smooth:STAGE\n")
    module = smooth.folder / "pressoir_smooth.py"
    module.write_text(module.read_text().replace('name="smooth"', 'name="seed"'))
    with pytest.raises(ExtensionError, match="'seed' has the name of a recipe's field"):
        with_outside_sections(Recipe)


@pytest.mark.process
def test_in_a_new_process_every_module_sees_it_and_recipes_go_over_a_wire(smooth):
    smooth.install()
    program = (
        "import pickle\n"
        "from pressoir.recipe.recipe import Recipe, load\n"
        "from pressoir.recipe_search.config import SECTIONS\n"
        "made = load({'smooth': {'strength': 0.75}})\n"
        "assert pickle.loads(pickle.dumps(made)) == made and type(made) is Recipe\n"
        "print(made.smooth.strength, 'smooth' in SECTIONS)"
    )
    path = os.pathsep.join([str(smooth.folder), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0.75 True\n", "")
