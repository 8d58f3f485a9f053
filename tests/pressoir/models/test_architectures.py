"""Encoder architectures: ours fit transformers' modules, and one of another package is pruned like ours."""

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from pressoir.data import sentences
from pressoir.errors import ExtensionError
from pressoir.extensions import architecture, loader
from pressoir.models import loading
from pressoir.models.layouts import (
    architecture_of,
    class_names,
    encoder_layers,
    linear,
    position_table,
    projections,
    resize_ffn,
)
from pressoir.pipeline import estimates
from pressoir.pruning import units
from pressoir.recipe.recipe import Recipe
from pressoir.recipe.sections import PruneConfig, StudentConfig, VocabularyConfig
from pressoir.stages import prune, vocabulary
from pressoir.training import relations, students

OURS = (
    *("albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "mobilebert", "modernbert"),
    *("mpnet", "roberta", "xlm-roberta"),
)
PRUNED = tuple(name for name in OURS if "prune" not in architecture.find(name).unsupported)
DEBERTA = {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"}
DEBERTA |= {"pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_biased_input": False}
SETTINGS = {
    "albert": {"embedding_size": 16},
    "deberta-v2": {**DEBERTA, "type_vocab_size": 0, "pad_token_id": 0},
    "mobilebert": {
        **{"embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 2},
        "initializer_range": 0.2,  # it has no normalisations that would make small weights count
    },
    "modernbert": {"pad_token_id": 0, "reference_compile": False, "local_attention": 8},
}
HIDDEN, HEADS, LAYERS, NEURONS, POSITIONS = 32, 4, 3, 64, 40


def sizes(names):
    return {
        names.hidden_size_field: HIDDEN,
        names.head_count_field: HEADS,
        names.layer_count_field: LAYERS,
        names.ffn_width_field: NEURONS,
    }


def made(model_type):
    """A tiny random classifier, whose sizes are given by the names that its entry has for them."""
    torch.manual_seed(0)
    given = sizes(architecture.find(model_type)) | SETTINGS.get(model_type, {})
    config = AutoConfig.for_model(model_type, vocab_size=50, max_position_embeddings=POSITIONS, **given)
    config.num_labels = 2
    return loading.new_classifier(config)


def logits(model):
    with torch.inference_mode():
        return model.eval()(input_ids=torch.arange(5, 17)[None]).logits


# Ours.


def test_these_are_ours():
    names = loader.names(architecture.GROUP)
    assert tuple(name for name in names if loader.origin(architecture.GROUP, name) is None) == OURS


@pytest.mark.parametrize("model_type", OURS)
def test_every_part_is_there_and_as_large_as_the_configuration_says(model_type):
    model, names = made(model_type), architecture.find(model_type)
    assert model.config.to_dict().items() >= sizes(names).items()
    layers = encoder_layers(model)
    assert len(layers) == (1 if names.shared_layers else LAYERS)
    width = SETTINGS.get(model_type, {}).get("intra_bottleneck_size", HIDDEN)
    for layer in layers:
        for name, (module, rows) in projections(layer, names).items():  # MobileBERT's values see whole states
            assert module.weight[rows].shape == (width, HIDDEN if name == "value" else width)
        assert linear(layer, names.attention_output).weight.shape == (width, width)
        rows = NEURONS * (2 if names.gated_ffn else 1)
        assert linear(layer, names.ffn_in).weight.shape == (rows, width)
        assert linear(layer, names.ffn_out).weight.shape == (width, NEURONS)
    if names.position_embeddings is None:
        assert position_table(model) is None
        return
    table = getattr(*position_table(model))
    assert isinstance(table, nn.Embedding)
    assert table.num_embeddings == POSITIONS


@pytest.mark.parametrize("model_type", OURS)
def test_the_parts_are_those_that_a_pass_uses(model_type):
    """The query is not the key: with all keys alike, queries no longer matter, and so on."""

    def scale(model, name, factor):
        names = architecture_of(model)
        with torch.no_grad():
            for layer in encoder_layers(model):
                if name in relations.PROJECTIONS:
                    module, rows = projections(layer, names)[name]
                    module.weight[rows] *= factor
                else:
                    linear(layer, getattr(names, name)).weight.mul_(factor)
        return model

    before = logits(made(model_type))
    for name in (*relations.PROJECTIONS, "attention_output", "ffn_in", "ffn_out"):
        assert not torch.allclose(logits(scale(made(model_type), name, 50)), before), name
    model = scale(made(model_type), "key", 0)
    alike = logits(model)
    torch.testing.assert_close(logits(scale(model, "query", 50)), alike)


@pytest.mark.parametrize("model_type", OURS)
def test_a_student_computes_what_transformers_does_with_those_layers(model_type):
    teacher = made(model_type)
    student = students.make_student(teacher, StudentConfig(layers=(0, 2)), None, print)
    if not architecture.find(model_type).shared_layers:
        del encoder_layers(teacher)[1]
    teacher.config.num_hidden_layers = 2
    assert torch.equal(logits(student), logits(teacher))


def test_a_student_without_the_first_layer_loads_where_that_layer_has_fewer_parts():
    teacher = made("modernbert")
    student = students.make_student(teacher, StudentConfig(layers=(1, 2)), None, print)
    for ours, theirs in zip(encoder_layers(student), encoder_layers(teacher)[1:], strict=True):
        assert torch.equal(ours.mlp.Wi.weight, theirs.mlp.Wi.weight)
        assert torch.equal(ours.attn.Wqkv.weight, theirs.attn.Wqkv.weight)
    assert isinstance(encoder_layers(student)[0].attn_norm, nn.Identity)


def heads_to_keep(model_type):
    """Of each layer that there is; all of them where the entry says that none can be removed."""
    whole, names = (0, 1, 2, 3), architecture.find(model_type)
    kept = (whole,) * 3 if "heads" in names.unsupported else ((0, 2, 3), whole, (1,))
    return kept[:1] if names.shared_layers else kept


@pytest.mark.parametrize("model_type", PRUNED)
def test_a_pruned_model_computes_what_the_whole_one_does_with_those_weights_at_zero(model_type):
    model, names, heads = made(model_type), architecture.find(model_type), heads_to_keep(model_type)
    neurons = (tuple(range(0, NEURONS, 4)), (1, 5, *range(30, 44)), tuple(range(NEURONS)))[: len(heads)]
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for layer, kept, units_kept in zip(encoder_layers(zeroed), heads, neurons, strict=True):
            lost = [head for head in range(HEADS) if head not in kept]
            joined = linear(layer, names.attention_output).weight.unflatten(1, (HEADS, -1))
            joined[:, lost] = 0
            gone = [neuron for neuron in range(NEURONS) if neuron not in units_kept]
            linear(layer, names.ffn_out).weight[:, gone] = 0
    assert not torch.allclose(logits(zeroed), logits(model))
    units.remove(model, units.PruningPlan(heads=heads, neurons=neurons))
    torch.testing.assert_close(logits(model), logits(zeroed))


@pytest.mark.parametrize("model_type", PRUNED)
@pytest.mark.parametrize("neurons", [(16, 16, 16), (48, 16, 64)])
def test_what_pruning_leaves_runs_and_reloads(model_type, neurons, tmp_path):
    model, heads = made(model_type), heads_to_keep(model_type)
    neurons = neurons[: len(heads)]
    plan = units.PruningPlan(heads=heads, neurons=tuple(tuple(range(count)) for count in neurons))
    units.remove(model, plan)
    assert units.units(model) == units.Units(tuple(map(len, heads)), neurons)
    loading.save_model(model, tmp_path)
    again = loading.load_classifier(tmp_path)
    assert units.units(again) == units.units(model)
    torch.testing.assert_close(logits(again), logits(model))
    if len(set(neurons)) == 1:  # transformers alone builds it
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, local_files_only=True)
        torch.testing.assert_close(logits(plain), logits(model))


@pytest.mark.parametrize("model_type", ["electra", "albert"])
def test_importance_is_the_effect_of_a_gate_in_all_repetitions_of_a_layer(
    model_type, tiny_encoder, tiny_data, context
):
    """The gradient by a factor, of 1, of a neuron's output is what removing it changes, to first order."""
    model, tokenizer = (
        load(tiny_encoder(model_type)) for load in (loading.load_classifier, loading.load_tokenizer)
    )
    config = PruneConfig(calibration_samples=4, importance="taylor")
    names, layers = architecture_of(model), encoder_layers(model)
    scores = units.importance(model, tokenizer, tiny_data, config, context)
    gates = [torch.ones(NEURONS, requires_grad=True) for _ in layers]
    for layer, gate in zip(layers, gates, strict=True):
        linear(layer, names.ffn_out).register_forward_pre_hook(lambda _, args, gate=gate: args[0] * gate)
    rows = (
        sentences.load_split(tiny_data, "train", class_names(model))
        .shuffle(seed=context.seed)
        .select(range(4))
    )
    expected = [torch.zeros(NEURONS) for _ in layers]
    for text, label in zip(rows["text"], rows["label"], strict=True):
        found = model(**tokenizer(text, return_tensors="pt")).logits
        loss = nn.functional.cross_entropy(found, torch.tensor([label]))
        for total, gradient in zip(expected, torch.autograd.grad(loss, gates), strict=True):
            total += gradient.abs()
    for actual, total in zip(scores.neurons, expected, strict=True):
        torch.testing.assert_close(actual, total, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("model_type", OURS)
def test_memory_is_estimated_from_the_sizes_in_config_json(model_type, tmp_path):
    made(model_type).config.save_pretrained(tmp_path)
    size = estimates.model_size(Recipe.from_dict({"data": {"max_tokens": 32}}), tmp_path)
    per_layer = 32 * 8 * HIDDEN * (34 + 5 * HEADS * 32 / HIDDEN)
    assert size.activation_bytes(8) == 2 * LAYERS * per_layer


@pytest.mark.process
def test_reading_entries_imports_nothing_heavy():
    program = (
        "import sys; from pressoir.extensions import architecture; architecture.find('bert').layers;"
        "print({'torch', 'transformers', 'onnxruntime', 'prefect', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Another package's: an encoder none of whose parts is named as in BERT.

ENTRY = """
from pressoir.extensions.architecture import EncoderArchitecture

PRUNED = []


def prune_heads(model, heads):
    PRUNED.append(heads)
    model.prune_heads(heads)


ORCHARD = EncoderArchitecture(
    layers="trunk.rings",
    query="look.ask",
    key="look.offer",
    value="look.give",
    attention_output="look.join",
    ffn_in="grow",
    ffn_out="shrink",
    position_embeddings="soil.places",
    layer_count_field="depth",
    hidden_size_field="girth",
    head_count_field="branches",
    ffn_width_field="leaves",
    prune_heads=prune_heads,
    modeling="orchard_modeling",
)
"""

MODELING = """
import torch
from torch import nn
from transformers import (
    AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput


class OrchardConfig(PretrainedConfig):
    model_type = "orchard"
    attribute_map = {
        "num_hidden_layers": "depth", "hidden_size": "girth", "num_attention_heads": "branches"
    }

    def __init__(
        self, vocab_size=50, depth=2, girth=32, branches=4, leaves=64, max_position_embeddings=40, **kwargs
    ):
        super().__init__(**kwargs)
        self.vocab_size, self.depth, self.girth, self.branches = vocab_size, depth, girth, branches
        self.leaves, self.max_position_embeddings = leaves, max_position_embeddings


class Look(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.size, self.present = config.girth // config.branches, list(range(config.branches))
        self.ask, self.offer, self.give, self.join = (
            nn.Linear(config.girth, config.girth, bias=False) for _ in range(4)
        )

    def cut(self, heads):
        kept = [index for index, head in enumerate(self.present) if head not in heads]
        self.present = [self.present[index] for index in kept]
        rows = torch.cat([torch.arange(self.size) + index * self.size for index in kept])
        for module in (self.ask, self.offer, self.give):
            module.weight = nn.Parameter(module.weight.detach()[rows].clone())
            module.out_features = len(rows)
        self.join.weight = nn.Parameter(self.join.weight.detach()[:, rows].clone())
        self.join.in_features = len(rows)

    def forward(self, states, mask):
        asked, offered, given = (
            module(states).unflatten(-1, (-1, self.size)).transpose(1, 2)
            for module in (self.ask, self.offer, self.give)
        )
        found = nn.functional.scaled_dot_product_attention(asked, offered, given, attn_mask=mask)
        return self.join(found.transpose(1, 2).flatten(2))


class Ring(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.look, self.even = Look(config), nn.LayerNorm(config.girth)
        self.grow = nn.Linear(config.girth, config.leaves, bias=False)
        self.shrink = nn.Linear(config.leaves, config.girth)

    def forward(self, states, mask):
        states = states + self.look(self.even(states), mask)
        return states + self.shrink(torch.relu(self.grow(states)))


class Soil(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.girth)
        self.places = nn.Embedding(config.max_position_embeddings, config.girth)


class Trunk(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.rings = nn.ModuleList(Ring(config) for _ in range(config.depth))


class OrchardPreTrainedModel(PreTrainedModel):
    config_class = OrchardConfig
    base_model_prefix = "orchard"

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(std=0.2)


class OrchardModel(OrchardPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.soil, self.trunk = Soil(config), Trunk(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.soil.words

    def set_input_embeddings(self, words):
        self.soil.words = words

    def _prune_heads(self, heads_to_prune):
        for layer, heads in heads_to_prune.items():
            self.trunk.rings[layer].look.cut(heads)

    def forward(self, input_ids, attention_mask=None, **_):
        states = self.soil.words(input_ids) + self.soil.places.weight[: input_ids.shape[1]]
        mask = None if attention_mask is None else attention_mask[:, None, None].bool()
        for ring in self.trunk.rings:
            states = ring(states, mask)
        return BaseModelOutput(last_hidden_state=states)


class OrchardForSequenceClassification(OrchardPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.orchard, self.head = OrchardModel(config), nn.Linear(config.girth, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        states = self.orchard(input_ids, attention_mask).last_hidden_state
        return SequenceClassifierOutput(logits=self.head(states[:, 0]))


AutoConfig.register("orchard", OrchardConfig, exist_ok=True)
AutoModel.register(OrchardConfig, OrchardModel, exist_ok=True)
AutoModelForSequenceClassification.register(
    OrchardConfig, OrchardForSequenceClassification, exist_ok=True
)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of installed packages with one that declares the architecture `orchard`."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "orchard.py").write_text(ENTRY)
    (folder / "orchard_modeling.py").write_text(MODELING)
    info = folder / "orchard-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: orchard\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        f"[{architecture.GROUP}]\norchard = orchard:ORCHARD\nbroken = json:loads\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        loader._entries.cache_clear()
        yield folder
    loader._entries.cache_clear()


@pytest.fixture(scope="module")
def orchard(site, tiny_bert, tmp_path_factory):
    """A random classifier of that architecture, with the tokenizer of the tiny BERT."""
    architecture.register("orchard")
    folder = tmp_path_factory.mktemp("orchard")
    tokenizer = loading.load_tokenizer(tiny_bert)
    torch.manual_seed(0)
    config = AutoConfig.for_model("orchard", vocab_size=len(tokenizer), depth=3)
    config.id2label, config.label2id = {0: "negative", 1: "positive"}, {"negative": 0, "positive": 1}
    loading.save_model(loading.new_classifier(config), folder)
    loading.save_tokenizer(tokenizer, folder)
    return folder


@pytest.mark.process
def test_a_process_that_has_never_heard_of_it_loads_it(site, orchard, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{site}:{':'.join(filter(None, sys.path))}")
    program = (
        "import sys; from pathlib import Path; from pressoir.models import loading;"
        "print(type(loading.load_classifier(Path(sys.argv[1]))).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, orchard], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "OrchardForSequenceClassification"


def test_its_layers_and_projections_are_found(orchard):
    model = loading.load_classifier(orchard)
    assert encoder_layers(model) is model.orchard.trunk.rings
    assert units.units(model) == units.Units((4, 4, 4), (64, 64, 64))
    with relations.captured(model) as seen:
        logits(model)
    assert relations.stacked(seen).shape == (1, 12, 3, 32)
    resize_ffn(model.orchard.trunk.rings[1], architecture_of(model), torch.arange(10))
    assert model.orchard.trunk.rings[1].shrink.weight.shape == (32, 10)
    assert logits(model).shape == (1, 2)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_it_is_pruned_by_importance_with_its_own_way_to_remove_heads(orchard, tiny_data, context, allocation):
    import orchard as declared

    declared.PRUNED.clear()
    config = PruneConfig(
        epochs=0, rounds=2, allocation=allocation, head_sparsity=0.5, ffn_sparsity=0.5, calibration_samples=32
    )
    prune.run({"model": orchard, "data": tiny_data}, config, context)
    left = units.units(loading.load_classifier(context.out_dir))
    assert sum(left.heads) == 6
    assert sum(left.neurons) == pytest.approx(96, abs=32)  # in steps of 16 a layer
    assert sum(len(heads) for round_ in declared.PRUNED for heads in round_.values()) == 6
    written = json.loads((context.out_dir / "config.json").read_text())
    if allocation == "uniform":
        assert written["leaves"] == 32
        assert "intermediate_sizes" not in written


def test_a_student_takes_some_of_its_layers(orchard):
    teacher = loading.load_classifier(orchard)
    student = students.make_student(teacher, StudentConfig(layers=(0, 2)), None, print)
    assert student.config.depth == 2
    for ours, theirs in ((0, 0), (1, 2)):
        assert torch.equal(
            encoder_layers(student)[ours].grow.weight, encoder_layers(teacher)[theirs].grow.weight
        )
    assert len(encoder_layers(teacher)) == 3


def test_its_vocabulary_and_positions_are_cut(orchard, tiny_data, context):
    figures = vocabulary.run({"model": orchard, "data": tiny_data}, VocabularyConfig(positions=True), context)
    assert (figures["positions_before"], figures["positions"]) == (40, 32)
    cut = loading.load_classifier(context.out_dir)
    assert cut.orchard.soil.places.num_embeddings == 32
    assert cut.orchard.soil.words.num_embeddings == figures["pieces"]
    text = "the film was good"
    for_old, for_new = (
        loading.load_tokenizer(folder)(text, return_tensors="pt") for folder in (orchard, context.out_dir)
    )
    with torch.inference_mode():
        torch.testing.assert_close(
            cut(for_new["input_ids"]).logits,
            loading.load_classifier(orchard)(for_old["input_ids"]).logits,
        )


def test_an_entry_of_another_kind_is_refused(site):
    with pytest.raises(ExtensionError, match=r"'broken' in pressoir\.architectures is a function"):
        architecture.find("broken")


def test_a_name_that_the_model_does_not_have_is_said(tiny_classifier):
    layer = encoder_layers(loading.load_classifier(tiny_classifier))[0]
    with pytest.raises(ExtensionError, match=r"'ffn\.lin1' is declared as a part of a BertLayer"):
        linear(layer, "ffn.lin1")
    with pytest.raises(ExtensionError, match="'attention' of a BertLayer is a BertAttention; a Linear"):
        linear(layer, "attention")


def test_classes_that_cannot_be_imported_name_the_architecture(site, orchard, tmp_path, monkeypatch):
    from dataclasses import replace

    import orchard as declared

    monkeypatch.setattr(declared, "ORCHARD", replace(declared.ORCHARD, modeling="no_such_module"))
    copy = shutil.copytree(orchard, tmp_path / "copy")
    with pytest.raises(ExtensionError, match=r"'orchard' in .* has its classes in no_such_module"):
        loading.load_classifier(copy)
