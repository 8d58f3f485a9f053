"""A step that does not work with a model's architecture is refused before any work, and what is known of the
exporter is true."""

import json
import shutil

import pytest

from pressoir.errors import RecipeError
from pressoir.extensions import architecture, loader
from pressoir.models.architectures import EXPORTED
from pressoir.pipeline.architecture_checks import check_architectures
from pressoir.pipeline.sources import Sources
from pressoir.recipe.recipe import Recipe
from pressoir.store.store import Store

WITHOUT = {"distill": None, "prune": None}


@pytest.fixture
def refusal(tmp_path):
    """`refusal(model, sections)`: the message with which a recipe is refused; None where it is not."""

    def check(model, **sections):
        recipe = Recipe.from_dict({"model": str(model), **sections})
        try:
            check_architectures(recipe, recipe.model, Sources(Store(tmp_path / "home")))
        except RecipeError as error:
            return str(error)
        return None

    return check


def test_every_step_works_with_bert(tiny_bert, refusal):
    assert refusal(tiny_bert, vocabulary={}, distill={"relation_weight": 1}) is None


def test_a_type_without_a_token_classifier_is_refused_for_tags_of_words(tiny_bert, tmp_path, refusal):
    files = {"source": "files", "train": "train.jsonl", "test": "test.jsonl"}
    words = {"task": "token-classification", "data": files}
    assert refusal(tiny_bert, **words) is None
    other = shutil.copytree(tiny_bert, tmp_path / "bart")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "bart"}))
    told = refusal(other, **words, **WITHOUT)
    assert "task: transformers has no token classifier of it; use one of albert, bert" in told


def test_narrow_embeddings_are_a_berts(tiny_bert, tiny_encoder, refusal):
    narrow = {"student": {"layers": 2, "embedding_size": 16}}
    assert refusal(tiny_bert, distill=narrow) is None
    told = refusal(tiny_encoder("roberta"), distill=narrow)
    assert "distill.student.embedding_size: only a BERT's layers are also an ELECTRA's; leave it out" in told
    assert told.endswith("Supported are bert")


def test_of_an_unknown_type_layers_relations_heads_and_neurons_are_not_known(tiny_encoder, refusal):
    told = refusal(tiny_encoder("megatron-bert"), distill={"relation_weight": 1}).splitlines()
    assert [line.split(":")[0].strip() for line in told[1:]] == [
        "distill",
        "distill.relation_weight",
        "prune",
    ]
    assert "model type 'megatron-bert'" in told[0]
    assert all("albert, bert, camembert, de" in line for line in told[1:])
    assert "distill.student.config" in told[1]
    assert "prune: null" in told[3]


def test_what_does_without_them_is_let_through(tiny_encoder, tiny_bert, refusal):
    model = tiny_encoder("megatron-bert")
    assert refusal(model, vocabulary={}, **WITHOUT) is None
    assert refusal(model, distill={"student": {"config": {"num_hidden_layers": 2}}}, prune=None) is None
    smaller = {"student": {"model": str(tiny_bert)}}
    assert refusal(model, distill=smaller) is None
    told = refusal(model, distill={**smaller, "relation_weight": 1})
    assert told.splitlines()[0].startswith(str(model))
    assert len(told.splitlines()) == 2


def test_the_model_that_is_at_fault_is_named(tiny_encoder, tiny_bert, refusal):
    student = tiny_encoder("megatron-bert")
    told = refusal(tiny_bert, distill={"student": {"model": str(student)}}).splitlines()
    assert told[0].startswith(f"{student} is of the model type 'megatron-bert'")
    assert [line.split(":")[0].strip() for line in told[1:]] == ["prune"]


@pytest.mark.parametrize("model_type", ["deberta-v2", "modernbert", "mpnet"])
def test_heads_are_kept_where_they_cannot_be_removed(model_type, tiny_encoder, refusal):
    model = tiny_encoder(model_type)
    for prune, field in (({}, "prune.head_sparsity"), ({"target": {"parameters": 9}}, "prune.target")):
        told = refusal(model, prune=prune)
        assert [line.split(":")[0].strip() for line in told.splitlines()[1:]] == [field]
    assert refusal(model, vocabulary={}, distill={"relation_weight": 1}, prune={"head_sparsity": 0}) is None
    assert refusal(model, prune={"granularity": "unstructured"}) is None


def test_what_the_exporter_does_not_know_is_refused_whatever_else_the_recipe_does(tiny_encoder, refusal):
    told = refusal(tiny_encoder("fnet"), quantize=None, **WITHOUT)
    assert (
        "export: the exporter makes no graph of it that works with text alone; use a model of another type"
        in told
    )


def test_neurons_are_kept_where_a_layer_has_several_feed_forward_parts(tiny_encoder, refusal):
    model = tiny_encoder("mobilebert")
    told = refusal(model).splitlines()
    assert [line.split(":")[0].strip() for line in told[1:]] == ["prune", "prune.head_sparsity"]
    assert "several feed-forward parts" in told[1]
    assert refusal(model, vocabulary={}, distill={"relation_weight": 1}, prune=None) is None


def test_every_step_works_with_shared_layers_that_are_one(tiny_encoder, refusal, tmp_path):
    model = tiny_encoder("albert")
    assert refusal(model, vocabulary={}, distill={"relation_weight": 1}) is None
    several = shutil.copytree(model, tmp_path / "several")
    config = json.loads((several / "config.json").read_text())
    (several / "config.json").write_text(json.dumps(config | {"num_hidden_groups": 2}))
    told = refusal(several).splitlines()
    assert [line.split(":")[0].strip() for line in told[1:]] == ["distill", "prune"]
    assert all("num_hidden_groups is 1, and config.json has 2;" in line for line in told[1:])
    assert refusal(several, **WITHOUT) is None


def test_a_language_model_is_not_checked_here(tiny_llama, refusal):
    assert refusal(tiny_llama, task="causal-lm") is None


def test_the_exporter_knows_the_types_that_are_let_through():
    import optimum.exporters.onnx.model_configs  # noqa: F401  registers them
    from optimum.exporters.tasks import TasksManager

    own = {
        name
        for name in loader.names(architecture.GROUP)
        if loader.origin(architecture.GROUP, name) is None
        and "export" not in architecture.find(name).unsupported
    }
    known = TasksManager._SUPPORTED_MODEL_TYPE
    for model_type in {*EXPORTED, *own}:
        assert "text-classification" in known[model_type]["onnx"], model_type
    assert not own & set(EXPORTED)
