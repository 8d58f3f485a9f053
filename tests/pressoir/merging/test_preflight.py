"""What is refused before any work, what is only said, and that everything is told at once."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pressoir.errors import MergeError
from pressoir.merging import preflight as module
from pressoir.merging import resources
from pressoir.merging.checkpoint import read_checkpoint
from pressoir.merging.preflight import preflight
from pressoir.recipe.sections import MergeConfig


def sibling(folder, target, change=None, **config):
    """A copy of a model with noise on every weight; `change` alters its tensors, `config` its fields."""
    shutil.copytree(folder, target)
    generator = torch.Generator().manual_seed(len(target.name))
    tensors = load_file(target / "model.safetensors")
    tensors = {name: t + 0.01 * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}
    if change is not None:
        change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    edit(target / "config.json", lambda content: content.update(config))
    return target


def edit(path, change):
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def check(tmp_path, *folders, base=None, problems=(), **config):
    inputs = {f"parent_{i}": folder for i, folder in enumerate(folders)} | ({"base": base} if base else {})
    names = [str(folder) for folder in folders]
    settings = {"models": names, "base": str(base) if base else None, "method": "linear", **config}
    return preflight(MergeConfig.model_validate(settings), inputs, tmp_path / "out", problems)


def refusal(tmp_path, *folders, **config):
    with pytest.raises(MergeError) as caught:
        check(tmp_path, *folders, **config)
    return str(caught.value)


@pytest.fixture(scope="module")
def other(tiny_llama, tmp_path_factory):
    return sibling(tiny_llama, tmp_path_factory.mktemp("siblings") / "other")


@pytest.fixture(scope="module")
def third(tiny_llama, tmp_path_factory):
    return sibling(tiny_llama, tmp_path_factory.mktemp("siblings") / "third-one")


def test_two_fine_tunes_of_one_model_pass_without_a_word(tiny_llama, other, tmp_path):
    plan = check(tmp_path, tiny_llama, other)
    assert plan.warnings == ()
    assert plan.notes == ()
    assert plan.layers == 2
    assert all(not plan.unmerged(model) for model in plan.models)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"method": "slerp", "models": 3}, "slerp needs exactly two, not 3"),
        ({"method": "slerp", "models": 1}, "slerp needs exactly two, not 1"),
        ({"method": "linear", "models": 1}, "linear needs at least two, not 1"),
        ({"method": "ties", "models": 1}, "ties needs a base and at least one other model"),
        ({"method": "passthrough"}, "--slices 0:0-4 1:2-6"),
        ({"ratios": [1, 2, 3]}, "3 given for 2 models"),
        ({"ratios": [0.5]}, "1 given for 2 models"),
        ({"ratios": [1.5, -0.5]}, "-0.5 is negative"),
        ({"ratios": [0, 0]}, "their sum is 0"),
        ({"method": "slerp", "ratios": [1, 1], "t": 0.5}, "t and ratios are both given"),
        ({"method": "slerp", "t": 1.5}, "must be between 0 and 1"),
        ({"method": "ties", "density": 0}, "must be greater than 0"),
        ({"method": "ties", "density": [0.5, 1.1]}, "at most 1"),
        ({"method": "linear", "density": 0.5}, "density: not supported by linear, only by ties, dare_ties"),
        ({"method": "passthrough", "ratios": [1, 1]}, "ratios: not supported by passthrough"),
        ({"method": "slerp", "parameters": [{"weight": 1}, {}]}, "weight: not supported by slerp"),
        ({"parameters": [{}]}, "1 entries for 2 models"),
        (
            {"ratios": [1, 1], "parameters": [{"weight": 1}, {}]},
            "parameters.weight and ratios are both given",
        ),
        ({"method": "slerp", "t": [{"filter": "mlp", "value": 1}]}, "the last entry, and no other"),
        ({"tokenizer_source": 2}, "there is no model 2"),
    ],
)
def test_a_setting_that_cannot_be_followed_is_refused(config, told, tiny_llama, other, third, tmp_path):
    count = config.pop("models", 2)
    assert told in refusal(tmp_path, *(tiny_llama, other, third)[:count], **config)


@pytest.mark.parametrize(
    ("method", "slices", "told"),
    [
        ("passthrough", [[(0, 0, 3)]], "layers 0 to 2 of parent_0"),
        ("passthrough", [[(2, 0, 1)]], "there is no model 2"),
        ("passthrough", [[(0, 1, 1)]], "the end of a layer range must be after its start"),
        ("passthrough", [[(0, 0, 1), (1, 0, 1)]], "2 sources, but passthrough needs 1"),
        ("slerp", [[(0, 0, 1)]], "1 sources, but slerp needs 2"),
        ("linear", [[(0, 0, 1), (1, 0, 2)]], "have [1, 2] layers; they must have the same number"),
        ("linear", [[(0, 0, 1), (0, 1, 2)]], "specifies a model twice"),
    ],
)
def test_slices_that_do_not_exist_are_refused(method, slices, told, tiny_llama, other, tmp_path):
    written = [{"sources": [{"model": m, "layer_range": (a, b)} for m, a, b in part]} for part in slices]
    assert told in refusal(tmp_path, tiny_llama, other, method=method, slices=written)


def test_every_finding_is_told_at_once(tiny_llama, tiny_gpt2, other, tmp_path):
    narrow = sibling(
        tiny_llama,
        tmp_path / "narrow",
        lambda tensors: tensors.update({"model.norm.weight": torch.ones(32)}),
        num_attention_heads=8,
    )
    pickled = tmp_path / "pickled"
    shutil.copytree(other, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    text = refusal(
        tmp_path,
        other,
        narrow,
        tiny_gpt2,
        pickled,
        method="slerp",
        ratios=[1, -1],
        problems=["no model called x"],
    )
    for told in (
        "slerp needs exactly two, not 4",
        "2 given for 4 models",
        "-1 is negative",
        "no model called x",
        "model.norm.weight [32] against [64]",
        "num_attention_heads 8 against 4",
        "architecture: parent_2",
        "GPT2LMHeadModel",
        "pickled weights",
    ):
        assert told in text


def test_different_architectures_are_refused_with_an_explanation(tiny_llama, tiny_gpt2, tmp_path):
    text = refusal(tmp_path, tiny_llama, tiny_gpt2)
    assert "is a GPT2LMHeadModel" in text
    assert "a LlamaForCausalLM" in text
    assert "merge models fine-tuned from the same base" in text
    assert "--allow-crimes" in text


def test_models_of_which_no_tensor_fits_are_refused_even_with_allow_crimes(tiny_llama, tiny_bert, tmp_path):
    text = refusal(tmp_path, tiny_llama, tiny_bert, allow_crimes=True)
    assert "nothing would be merged" in text


def test_a_tensor_that_one_model_lacks_and_one_too_many_are_told(tiny_llama, other, tmp_path):
    def change(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.1.adapter.weight"] = torch.ones(2)

    text = refusal(tmp_path, other, sibling(tiny_llama, tmp_path / "changed", change))
    assert "1 tensors missing: model.layers.1.mlp.up_proj.weight" in text
    assert "1 tensors too many: model.layers.1.adapter.weight" in text


def wide(tensors):
    for name in ("up_proj", "gate_proj", "down_proj"):
        key = f"model.layers.1.mlp.{name}.weight"
        tensors[key] = torch.zeros(64, 256) if name == "down_proj" else torch.zeros(256, 64)


def test_with_allow_crimes_what_is_not_merged_is_listed(tiny_llama, other, tmp_path):
    folder = sibling(tiny_llama, tmp_path / "wide", wide)
    assert "3 tensors of another shape" in refusal(tmp_path, other, folder)
    plan = check(tmp_path, other, folder, allow_crimes=True, method="ties")
    assert plan.unmerged(plan.models[1]) == [
        f"model.layers.1.mlp.{name}_proj.weight" for name in ("down", "gate", "up")
    ]
    assert "3 of 21 tensors: model.layers.*.mlp.down_proj.weight" in plan.warnings[-1]


def test_a_vocabulary_of_other_tokens_is_refused_and_the_way_out_is_named(tiny_llama, other, tmp_path):
    swapped = sibling(tiny_llama, tmp_path / "swapped")

    def swap(content):
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    edit(swapped / "tokenizer.json", swap)
    text = refusal(tmp_path, other, swapped)
    assert "2 tokens with another id" in text
    assert "tokenizer_source: union" in text
    plan = check(tmp_path, other, swapped, tokenizer_source="union")
    assert any("aligns the embeddings by token" in warning for warning in plan.warnings)


def test_a_larger_vocabulary_is_refused_unless_embeddings_are_aligned(tiny_llama, other, tmp_path):
    def grow(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], torch.zeros(1, 64)])

    grown = sibling(tiny_llama, tmp_path / "grown", grow, vocab_size=321)
    edit(grown / "tokenizer.json", lambda content: content["model"]["vocab"].update({"<|new|>": 320}))
    text = refusal(tmp_path, other, grown)
    assert "model.embed_tokens.weight [321, 64] against [320, 64]" in text
    assert "1 tokens new ('<|new|>')" in text
    assert check(tmp_path, other, grown, tokenizer_source="union").warnings


def test_other_splitting_rules_and_ids_without_a_row_are_said(tiny_llama, other, tmp_path):
    changed = sibling(tiny_llama, tmp_path / "changed")
    edit(changed / "tokenizer.json", lambda content: content.update(normalizer={"type": "Lowercase"}))
    assert any("other normalizer" in text for text in check(tmp_path, other, changed).warnings)
    edit(
        other_copy := shutil.copytree(other, tmp_path / "copy") / "config.json",
        lambda c: c.update(vocab_size=300),
    )
    warnings = check(tmp_path, other_copy.parent, changed).warnings
    assert any("no tensor has the 300 rows" in text for text in warnings)
    assert any("ids up to 319, but its embedding 300 rows" in text for text in warnings)


def test_labels_in_another_order_are_refused_and_other_names_are_said(tiny_classifier, tmp_path):
    labels = [{"0": "positive", "1": "negative"}, {"0": "bad", "1": "good"}]
    turned, renamed = (
        sibling(tiny_classifier, tmp_path / f"labels-{i}", id2label=names) for i, names in enumerate(labels)
    )
    assert "the same in another order" in refusal(tmp_path, tiny_classifier, turned)
    assert any("['bad', 'good']" in text for text in check(tmp_path, tiny_classifier, renamed).warnings)


def test_fields_that_change_what_weights_mean_are_said(tiny_llama, other, tmp_path):
    changed = sibling(tiny_llama, tmp_path / "changed", rope_theta=5e5)
    assert any(
        "rope_theta 500000.0 against 10000.0" in text for text in check(tmp_path, other, changed).warnings
    )


def test_types_that_differ_are_said_and_the_result_has_the_bases(tiny_llama, other, tmp_path):
    half = sibling(tiny_llama, tmp_path / "half", lambda t: t.update({n: v.half() for n, v in t.items()}))
    plan = check(tmp_path, half, other)
    assert any("types differ" in note and "stored as float16" in note for note in plan.notes)
    assert check(tmp_path, half, other, out_dtype="bfloat16").out_dtype == "bfloat16"


def test_a_missing_base_is_the_first_model_and_that_is_said(tiny_llama, other, tmp_path):
    plan = check(tmp_path, tiny_llama, other, method="ties", ratios=[0.5, 0.5])
    assert plan.base.folder == tiny_llama
    assert any("no base is given, so the first model is it" in note for note in plan.notes)
    assert any("the ratio of parent_0" in note and "is not used" in note for note in plan.notes)


def test_a_base_that_is_also_a_model_is_not_merged_into_itself(tiny_llama, other, third, tmp_path):
    plan = check(tmp_path, other, third, tiny_llama, base=tiny_llama, method="dare_ties")
    assert plan.base.name == "parent_2"
    assert [model.name for model in plan.models] == ["parent_2", "parent_0", "parent_1"]


def test_ratios_that_do_not_sum_to_one_are_said_with_what_becomes_of_them(tiny_llama, other, tmp_path):
    assert "normalised to 0.75, 0.25" in check(tmp_path, tiny_llama, other, ratios=[3, 1]).notes[0]
    assert "not normalised" in check(tmp_path, tiny_llama, other, ratios=[3, 1], normalize=False).notes[0]
    note = check(tmp_path, tiny_llama, other, ratios=[3, 1], method="slerp").notes[0]
    assert "t = 0.25 (the ratios sum to 4)" in note


def test_a_model_that_was_not_handed_over_is_told(tiny_llama, other, tmp_path):
    config = MergeConfig(method="ties", models=("a", "b"), base="c")
    with pytest.raises(MergeError, match=r"base \(c\) is not among the inputs"):
        preflight(config, {"parent_0": tiny_llama, "parent_1": other}, tmp_path)


def test_a_longer_context_is_said_but_does_not_hinder(tiny_llama, other, tmp_path):
    longer = sibling(tiny_llama, tmp_path / "longer", max_position_embeddings=512)
    assert any(
        "max_position_embeddings 512 against 256" in t for t in check(tmp_path, other, longer).warnings
    )


def test_one_folder_named_twice_is_refused(tiny_llama, other, tmp_path):
    (tmp_path / "link").symlink_to(tiny_llama)
    assert "are the same folder" in refusal(tmp_path, tiny_llama, other, tmp_path / "link")


def test_a_quantised_model_and_a_bare_graph_are_refused(tiny_llama, other, tmp_path):
    quantised, graph = (shutil.copytree(other, tmp_path / name) for name in ("quantised", "graph"))
    (quantised / "quantization.json").write_text("{}", encoding="utf-8")
    (graph / "model.safetensors").rename(graph / "model.onnx")
    text = refusal(tmp_path, tiny_llama, quantised, graph)
    assert "is quantised" in text
    assert "only an ONNX graph and no *.safetensors weights" in text


def test_weights_that_are_no_floats_are_refused(tiny_llama, other, tmp_path):
    def change(tensors):
        tensors["model.norm.weight"] = torch.ones(64, dtype=torch.int8)

    text = refusal(tmp_path, tiny_llama, sibling(tiny_llama, tmp_path / "integers", change))
    assert "model.norm.weight and others are stored as I8" in text


def test_buffers_that_old_versions_saved_do_not_count(tiny_classifier, tmp_path):
    def change(tensors):
        tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]

    old = sibling(tiny_classifier, tmp_path / "old", change)
    assert not any("position_ids" in text for text in check(tmp_path, tiny_classifier, old).warnings)


def test_a_config_that_names_no_class_is_refused(tiny_llama, tmp_path):
    folder = sibling(tiny_llama, tmp_path / "nameless", architectures=None)
    assert "config.json must specify one class" in refusal(tmp_path, folder, tiny_llama)


def test_a_density_that_leaves_nothing_of_a_small_tensor_is_refused_with_the_way_out(
    tiny_classifier, tmp_path
):
    folder = sibling(tiny_classifier, tmp_path / "other")
    text = refusal(tmp_path, tiny_classifier, folder, method="ties", density=0.2)
    assert "0.2 of the 2 elements of classifier.bias" in text
    way_out = [{"filter": "classifier.bias", "value": 1}, {"value": 0.2}]
    check(tmp_path, tiny_classifier, folder, method="ties", density=way_out)


def test_too_little_disk_and_memory_are_told_with_what_is_needed(tiny_llama, other, tmp_path, monkeypatch):
    memory = resources.effective_memory()
    monkeypatch.setattr(
        resources,
        "effective_memory",
        lambda: type(memory)(
            **{**{name: getattr(memory, name) for name in memory.__slots__}, "available_bytes": 10}
        ),
    )
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda path: usage)
    text = refusal(tmp_path, tiny_llama, other)
    assert "disk: the merge writes 0.00 GB" in text
    assert "memory: mergekit may need up to 0.70 GB, but 0.00 GB is available" in text


def test_without_mergekit_the_refusal_says_how_to_get_it(tiny_llama, other, tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert "pip install mergekit" in refusal(tmp_path, tiny_llama, other)


def test_a_sharded_checkpoint_is_read_through_its_index(tiny_llama, other, tmp_path):
    folder = shutil.copytree(other, tmp_path / "sharded")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    plan = check(tmp_path, tiny_llama, folder)
    assert plan.warnings == ()
    assert {t.file.name for t in plan.models[1].tensors.values()} == set(parts)


def test_a_published_reference_does_not_tell_where_a_folder_lies(tiny_llama):
    assert read_checkpoint(tiny_llama, "base", str(tiny_llama)).public_reference == tiny_llama.name
    assert read_checkpoint(tiny_llama, "base", "org/name@main").public_reference == "org/name@main"
