"""The recipe: what is accepted, what is refused, and how well the refusal helps."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from pressoir.config import Config
from pressoir.errors import RecipeError
from pressoir.recipe import recipe as recipe_module
from pressoir.recipe.recipe import Recipe, load
from pressoir.recipe.sections import DataConfig

CONFIGS = Path(__file__).parents[3] / "configs"
OTHERS = ("evaluation-", "search-", "serving-")
SHIPPED = sorted(path for path in CONFIGS.glob("*.yaml") if not path.name.startswith(OTHERS))
CONFIG_TYPES = [
    value for value in vars(recipe_module).values() if isinstance(value, type) and issubclass(value, Config)
]


def refusal(raw, *overrides):
    """The message with which a mapping is refused."""
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(raw, overrides)
    return str(caught.value)


def written(folder, text, name="recipe.yaml"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- shape ---


def test_an_empty_recipe_is_a_whole_one():
    recipe = Recipe.from_dict({})
    assert (recipe.name, recipe.data.source, recipe.registry_id) == ("demo", "demo", "demo")
    assert None not in (recipe.distill, recipe.prune, recipe.quantize, recipe.shard, recipe.registry)


def test_a_recipe_and_its_sections_are_frozen():
    recipe = Recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        recipe.distill.epochs = 1


@pytest.mark.parametrize("config", CONFIG_TYPES, ids=lambda config: config.__name__)
def test_every_field_is_described_for_the_form_and_the_reference(config):
    assert config.__doc__
    missing = [name for name, field in config.model_fields.items() if not field.description]
    assert not missing, f"{config.__name__} has fields without a docstring: {missing}"


def test_a_stage_set_to_null_is_left_out():
    recipe = Recipe.from_dict(
        {"distill": None, "prune": None, "quantize": None, "shard": None, "registry": None}
    )
    assert [recipe.distill, recipe.prune, recipe.quantize, recipe.shard, recipe.registry] == [None] * 5
    assert recipe.registry_id == "demo"


def test_the_registry_id_wins_over_the_name():
    assert Recipe.from_dict({"name": "a", "registry": {"id": "b"}}).registry_id == "b"


# --- mistakes ---


def test_all_errors_come_at_once_each_with_its_path():
    message = refusal(
        {
            "seed": "abc",
            "distil": {},
            "data": {"max_tokens": 4},
            "prune": {"epcohs": 2},
            "export": {"opset": 99},
        }
    )
    title, *lines = message.splitlines()
    assert title == "recipe has 5 errors:"
    assert {line.strip().partition(":")[0] for line in lines} == {
        "seed",
        "distil",
        "data.max_tokens",
        "prune.epcohs",
        "export.opset",
    }


@pytest.mark.parametrize(
    ("raw", "path", "meant"),
    [
        ({"distil": {}}, "distil", "distill"),
        ({"prune": {"epcohs": 1}}, "prune.epcohs", "epochs"),
        ({"distill": {"student": {"layer": 3}}}, "distill.student.layer", "layers"),
        ({"registry": {"criterion": {"metrics": "speedup"}}}, "registry.criterion.metrics", "metric"),
    ],
)
def test_a_misspelt_field_is_refused_with_a_suggestion(raw, path, meant):
    assert f"  {path}: unknown field; did you mean `{meant}`?" in refusal(raw).splitlines()


def test_an_unknown_field_unlike_any_other_is_refused_without_a_guess():
    assert "  xyzzy: unknown field" in refusal({"xyzzy": 1}).splitlines()


def test_three_wrong_types_are_three_lines_that_show_the_values():
    message = refusal({"threads": "many", "refresh": "perhaps", "distill": {"temperature": [2]}})
    assert message.startswith("recipe has 3 errors:")
    for path, value in (("threads", "'many'"), ("refresh", "'perhaps'"), ("distill.temperature", "[2]")):
        assert any(
            line.startswith(f"  {path}: ") and f"(got {value})" in line for line in message.splitlines()
        )


def test_a_field_of_several_types_is_one_error_at_the_field_that_the_author_wrote():
    message = refusal({"distill": {"student": {"layers": "three"}}, "data": {"text_column": 1.5}})
    assert message.startswith("recipe has 2 errors:")
    assert {line.strip().partition(":")[0] for line in message.splitlines()[1:]} == {
        "distill.student.layers",
        "data.text_column",
    }


@pytest.mark.parametrize("section", [[1], 3, "yes"])
def test_a_section_that_is_no_mapping_is_refused(section):
    assert "  distill: Input should be a valid dictionary" in refusal({"distill": section})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("distill.temperature", ".inf"),
        ("distill.temperature", "0"),
        ("distill.hidden_weight", ".nan"),
        ("distill.alpha", "1.5"),
        ("distill.epochs", "-1"),
        ("teacher.learning_rate", "0"),
        ("teacher.batch_size", "0"),
        ("data.max_tokens", "513"),
        ("shard.max_shard_size_mb", ".inf"),
        ("seed", "-1"),
        ("seed", str(2**32)),
        ("name", "../up"),
        ("name", "Capital"),
        ("task", "regression"),
        ("registry.id", "no/slash"),
    ],
)
def test_a_value_out_of_bounds_is_refused_at_its_field(path, value):
    message = refusal({}, f"{path}={value}")
    assert message.splitlines()[1].startswith(f"  {path}: "), message


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ({"prune": {"sparsity": 0.3}}, ("prune: ", "`sparsity`", "head_sparsity and ffn_sparsity")),
        (
            {"prune": {"granularity": "unstructured", "head_sparsity": 0.2}},
            ("prune: ", "head_sparsity", "use `sparsity`"),
        ),
        ({"prune": {"ffn_sparsity": 1}}, ("prune: ", "would remove everything")),
        (
            {"distill": {"student": {"layers": 3, "model": "distilbert-base-uncased"}}},
            ("distill.student: ", "layers and model", "specify only one"),
        ),
        ({"distill": {"student": {"layers": [1, 1]}}}, ("distill.student: ", "no duplicates")),
        ({"distill": {"student": {"layers": []}}}, ("distill.student: ", "at least one layer")),
        ({"shard": {"shards": 2, "max_shard_size_mb": 5}}, ("shard: ", "not both")),
        ({"data": {"train": "a.tsv", "test": "b.tsv"}}, ("data: ", "source is 'demo'", "`source: files`")),
        ({"data": {"hub_id": "a/b"}}, ("data: ", "hub_id", "`source: hub`")),
        ({"data": {"hub_config": "sst2"}}, ("data: ", "hub_config", "`source: hub`")),
        ({"data": {"source": "files", "test": "a.tsv"}}, ("data: ", "needs a `train` path")),
        ({"data": {"source": "files", "train": "a.tsv"}}, ("data: ", "`test` path", "`test_fraction`")),
        (
            {"data": {"source": "hub", "hub_id": "a/b", "hub_splits": ["train", None, None]}},
            ("data: ", "test split in `hub_splits`", "`test_fraction`"),
        ),
        (
            {"data": {"source": "files", "train": "a.tsv", "test": "b.tsv", "test_fraction": 0.1}},
            ("data: ", "either `test_fraction` or a test split", "'b.tsv'"),
        ),
        ({"data": {"test_fraction": 0.1}}, ("data: ", "either `test_fraction` or a test split", "'demo'")),
        ({"data": {"encoding": "base64"}}, ("data: ", "'base64' is unknown", "cp1252")),
        ({"data": {"delimiter": ";;"}}, ("data.delimiter: ",)),
        ({"data": {"source": "hub"}}, ("data: ", "needs `hub_id`")),
        ({"data": {"labels": ["a", "a"]}}, ("data: ", "two different labels")),
        ({"data": {"labels": ["a"]}}, ("data: ", "at least two")),
    ],
)
def test_a_contradiction_is_refused_with_the_way_out(raw, wanted):
    message = refusal(raw)
    assert [part for part in wanted if part not in message] == []


def test_two_contradictions_of_one_section_are_both_told():
    message = refusal({"data": {"source": "hub", "train": "a.tsv"}})
    assert "needs `hub_id`" in message
    assert "paths are specified" in message


# --- files ---


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.yaml.*No such file.*specify the path of a YAML file"):
        Recipe.from_yaml(tmp_path / "none.yaml")


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match="directory"):
        Recipe.from_yaml(tmp_path)


def test_a_yaml_syntax_error_names_its_line(tmp_path):
    with pytest.raises(RecipeError, match="line 3"):
        Recipe.from_yaml(written(tmp_path, "name: a\nseed: 1\n  data: [\n"))


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match=r"recipe\.yaml is not valid YAML"):
        Recipe.from_yaml(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b\n", "list"), ("hello\n", "str"), ("3\n", "int")])
def test_a_yaml_file_that_is_no_mapping_is_refused(tmp_path, text, kind):
    with pytest.raises(RecipeError, match=f"expected a mapping of fields, not a {kind}"):
        Recipe.from_yaml(written(tmp_path, text))


def test_a_section_written_twice_is_refused_and_not_merged_in_silence(tmp_path):
    path = written(tmp_path, "distill:\n  epochs: 1\nprune: null\ndistill:\n  alpha: 0.5\n")
    with pytest.raises(RecipeError, match=r"(?s)'distill' is specified twice.*line 4"):
        Recipe.from_yaml(path)


def test_a_field_name_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        Recipe.from_yaml(written(tmp_path, "2024-01-01: a\n"))


def test_errors_of_a_file_name_it(tmp_path):
    with pytest.raises(RecipeError, match=r"recipe\.yaml has 1 error:\n  seed: "):
        Recipe.from_yaml(written(tmp_path, "seed: x\n"))


def test_yaml_reads_scientific_notation_as_a_number_and_dates_as_text(tmp_path):
    recipe = Recipe.from_yaml(written(tmp_path, "name: 2024-01-01\ndistill: {learning_rate: 1e-4}\n"))
    assert (recipe.name, recipe.distill.learning_rate) == ("2024-01-01", 1e-4)


def test_an_empty_file_is_the_default_recipe(tmp_path):
    assert Recipe.from_yaml(written(tmp_path, "# nothing yet\n")) == Recipe()


def test_relative_data_paths_are_taken_from_the_working_folder_first_then_from_the_recipes(
    tmp_path, monkeypatch
):
    text = "data: {source: files, train: both.tsv, validation: beside.tsv, test: nowhere.tsv}\n"
    path = written(tmp_path / "recipes", text)
    here = tmp_path / "here"
    for place in (here / "both.tsv", path.parent / "both.tsv", path.parent / "beside.tsv"):
        written(place.parent, "", place.name)
    monkeypatch.chdir(here)
    data = Recipe.from_yaml(path).data
    assert data.train == Path("both.tsv")
    assert data.validation == path.parent / "beside.tsv"
    assert data.test == Path("nowhere.tsv")  # named as it stands in the recipe when it is found missing


# --- overrides ---


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("seed=7", lambda r: r.seed, 7),
        ("distill.epochs=3", lambda r: r.distill.epochs, 3),
        ("distill.learning_rate=1e-5", lambda r: r.distill.learning_rate, 1e-5),
        ("prune=null", lambda r: r.prune, None),
        ("distill.student.layers=[1, 3, 5]", lambda r: r.distill.student.layers, (1, 3, 5)),
        (
            "distill.student.config={hidden_size: 192}",
            lambda r: r.distill.student.config,
            {"hidden_size": 192},
        ),
        ("registry.criterion.metric=accuracy", lambda r: r.registry.criterion.metric, "accuracy"),
        ("description=a=b", lambda r: r.description, "a=b"),
        ("name=2024-01-01", lambda r: r.name, "2024-01-01"),
    ],
)
def test_an_override_sets_one_field_however_deep(override, read, value):
    assert read(Recipe.from_dict({}, (override,))) == value


def test_an_override_leaves_the_rest_of_its_section_and_the_callers_mapping_alone():
    raw = {"distill": {"epochs": 9, "alpha": 0.5}}
    recipe = Recipe.from_dict(raw, ("distill.epochs=1",))
    assert (recipe.distill.epochs, recipe.distill.alpha) == (1, 0.5)
    assert raw == {"distill": {"epochs": 9, "alpha": 0.5}}


def test_the_last_override_of_a_field_wins():
    assert Recipe.from_dict({}, ("seed=1", "seed=2")).seed == 2


def test_an_override_within_a_stage_that_is_off_turns_it_on():
    assert Recipe.from_dict({"prune": None}, ("prune.epochs=5",)).prune.epochs == 5


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("distill.epochs", "expected field=value"),
        ("=3", "expected field=value"),
        ("seed.x=3", "'seed' is a value, not a section"),
        ("distill.epochs=[", "not valid YAML"),
        ("distill.epcohs=3", "distill.epcohs: unknown field; did you mean `epochs`?"),
        ("distill.epochs=many", "distill.epochs: Input should be a valid integer"),
    ],
)
def test_a_wrong_override_is_refused(override, wanted):
    assert wanted in refusal({"seed": 1}, override)


# --- round trip, and what is shipped ---


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe.from_dict(
            {"prune": None, "distill": {"student": {"layers": [0, 2]}}, "description": "Öl: 'yes'\n#no"}
        ),
        Recipe(
            data=DataConfig(source="files", train="a.tsv", test="b.csv", labels=("no", "1"), text_column=0)
        ),
        Recipe(data=DataConfig(source="hub", hub_id="x/y", hub_splits=("train", "dev", "test"))),
    ],
)
def test_to_yaml_reads_back_to_an_equal_recipe(recipe, tmp_path):
    assert Recipe.from_yaml(written(tmp_path, recipe.to_yaml())) == recipe


def test_load_takes_a_recipe_a_path_or_a_mapping(tmp_path):
    path = written(tmp_path, "seed: 5\n")
    assert load(Recipe(seed=5)) == load(path) == load(str(path)) == load({"seed": 5}) == Recipe(seed=5)


def test_the_recipes_of_the_documentation_are_shipped():
    assert {"demo.yaml", "sst2-minilm.yaml", "sst2-bert.yaml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_recipe_is_valid_and_named_like_its_file(path):
    recipe = Recipe.from_yaml(path)
    assert recipe.name == path.stem
    assert recipe.description


def test_a_causal_lm_is_not_taught_and_gets_4_bits_by_default():
    recipe = Recipe.from_dict({"task": "causal-lm"})
    assert (recipe.teacher, recipe.distill, recipe.prune) == (None, None, None)
    assert recipe.quantize.scheme == "q4"
    assert Recipe.from_dict({"task": "causal-lm", "quantize": {"algorithm": "gptq"}}).quantize.scheme == "q4"
    assert Recipe.from_dict({"task": "causal-lm", "quantize": None}).quantize is None
    assert Recipe.from_dict(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"task": "causal-lm", "distill": {}}, "distill: not supported for task 'causal-lm'"),
        ({"task": "causal-lm", "quantize": {"scheme": "int8"}}, "'int8' is for encoders; choose q8"),
        ({"quantize": {"scheme": "q4"}}, "'q4' is for task 'causal-lm'; choose int8"),
        (
            {"task": "causal-lm", "registry": {"criterion": {"metric": "accuracy"}}},
            "accuracy is not available for causal LMs",
        ),
        (
            {"registry": {"criterion": {"metric": "perplexity"}}},
            "perplexity is not available for classifiers",
        ),
        ({"teacher": None}, "teacher: null is only supported for task 'causal-lm'"),
        (
            {"task": "causal-lm", "quantize": {"algorithm": "hqqq"}},
            r"quantize\.algorithm: .*no 'hqqq'; did you mean 'hqq'\? there are: gptq, hqq, rtn",
        ),
        (
            {"task": "causal-lm", "quantize": {"act_order": True, "damping": 0.2}},
            "act_order, damping specified, but algorithm 'hqq' does not use it",
        ),
        ({"quantize": {"algorithm": "gptq"}}, "algorithm specified, but scheme is 'int8'"),
        (
            {"task": "causal-lm", "quantize": {"target_bits": 3, "max_perplexity_increase": "5%"}},
            "`target_bits` or `max_perplexity_increase`, not both",
        ),
        ({"task": "causal-lm", "quantize": {"scheme": "q5"}}, "quantize.scheme.*'q8', 'q4', 'q3' or 'q2'"),
        ({"task": "causal-lm", "text": {"evaluation": {"a b": "x"}}}, "text.evaluation.*pattern"),
    ],
)
def test_what_does_not_belong_together_is_refused(raw, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict(raw)


def test_a_percentage_is_a_fraction():
    quantize = {"scheme": "q4", "max_perplexity_increase": "5%"}
    recipe = Recipe.from_dict({"task": "causal-lm", "quantize": quantize})
    assert recipe.quantize.max_perplexity_increase == pytest.approx(0.05)


def test_texts_are_looked_up_beside_the_recipe(tmp_path):
    for name in ("c.txt", "e.txt"):
        (tmp_path / name).touch()
    (tmp_path / "r.yaml").write_text(
        "task: causal-lm\ntext: {calibration: c.txt, evaluation: {wiki: e.txt}}\n", encoding="utf-8"
    )
    recipe = Recipe.from_yaml(tmp_path / "r.yaml")
    assert recipe.text.calibration == tmp_path / "c.txt"
    assert recipe.text.evaluation == {"wiki": tmp_path / "e.txt"}
