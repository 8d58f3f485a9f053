"""The order in which a forward pass needs the tensors, from the model itself and from names alone."""

import random

import pytest
import torch
from transformers import AutoConfig

from pressoir.errors import SourceError
from pressoir.models import skeleton
from pressoir.models.execution_order import in_order, role, units


def config_only(folder, kind, **fields):
    AutoConfig.for_model(kind, vocab_size=50, **fields).save_pretrained(folder)
    return folder


SMALL = {"hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 4}


def llama(folder, **fields):
    return config_only(folder, "llama", architectures=["LlamaForCausalLM"], **{**SMALL, **fields})


def test_embeddings_layers_by_number_norm_head(tmp_path):
    order = skeleton.executed(llama(tmp_path, intermediate_size=48, tie_word_embeddings=False))
    layers = [int(name.split(".")[2]) for name in order if ".layers." in name]
    assert order[0] == "model.embed_tokens.weight"
    assert layers == sorted(layers)
    assert set(layers) == set(range(12))
    assert order[-2:] == ["model.norm.weight", "lm_head.weight"]


def test_within_a_layer_the_norm_comes_before_what_it_feeds(tmp_path):
    """A module list has it last, but a forward pass needs it first."""
    order = skeleton.executed(llama(tmp_path, intermediate_size=48))
    first = [name.removeprefix("model.layers.0.") for name in order if ".layers.0." in name]
    assert first[:2] == ["input_layernorm.weight", "self_attn.q_proj.weight"]
    assert first.index("post_attention_layernorm.weight") < first.index("mlp.gate_proj.weight")


def test_a_final_norm_that_is_declared_first_is_needed_last(tmp_path):
    config_only(
        tmp_path,
        "opt",
        architectures=["OPTForCausalLM"],
        ffn_dim=48,
        word_embed_proj_dim=32,
        **SMALL,
    )
    order = skeleton.executed(tmp_path)
    assert order[-2:] != order[:2]
    assert order.index("model.decoder.final_layer_norm.weight") > order.index(
        "model.decoder.layers.11.fc2.weight"
    )


def test_a_model_that_looks_at_values_is_taken_in_the_order_of_its_modules(tmp_path):
    config_only(
        tmp_path,
        "mixtral",
        architectures=["MixtralForCausalLM"],
        intermediate_size=48,
        num_key_value_heads=2,
        num_local_experts=2,
        **SMALL,
    )
    order = skeleton.executed(tmp_path)
    assert order == [name for name, _ in skeleton.build(tmp_path).named_parameters()]
    assert len(order) > 12 * 2 * 3


def test_a_skeleton_has_no_weights_and_real_buffers(tmp_path):
    model = skeleton.build(llama(tmp_path, intermediate_size=48), torch.bfloat16)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert float(model.model.rotary_emb.inv_freq[0]) == 1.0
    assert not model.training


def test_tied_parameters_are_one(tmp_path):
    model = skeleton.build(llama(tmp_path, intermediate_size=48, tie_word_embeddings=True))
    assert skeleton.tied(model) == [["model.embed_tokens.weight", "lm_head.weight"]]


@pytest.mark.parametrize("content", ["{}", '{"model_type": "no-such"}', "not json"])
def test_a_configuration_that_makes_no_model_is_told(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    for work in (skeleton.build, skeleton.executed):
        with pytest.raises(SourceError, match=str(tmp_path)):
            work(tmp_path)


# From names.

EXECUTED = [
    "m.emb.weight",
    "m.h.0.a.weight",
    "m.h.0.a.bias",
    "m.h.10.a.weight",
    "m.norm.weight",
    "head.weight",
]


def test_any_shuffle_gives_the_one_order():
    names = list(EXECUTED)
    for seed in range(10):
        random.Random(seed).shuffle(names)
        assert in_order(names, EXECUTED) == EXECUTED


def test_scale_and_zero_point_stand_behind_their_weight_and_are_never_parted():
    parts = [f"m.h.0.a.weight{part}" for part in ("_zero_point", "_scale", "")]
    ordered = in_order(["m.h.0.a.bias", *parts, "m.emb.weight"], EXECUTED)
    assert ordered == ["m.emb.weight", *sorted(parts), "m.h.0.a.bias"]
    assert units(ordered) == [["m.emb.weight"], sorted(parts), ["m.h.0.a.bias"]]


def test_a_parameter_that_only_looks_like_a_scale_stands_alone():
    assert units(["logit", "logit_scale"]) == [["logit"], ["logit_scale"]]


def test_what_the_model_does_not_have_stands_at_its_module():
    ordered = in_order([*EXECUTED, "m.h.0.a.masked_bias", "unheard.of"], EXECUTED)
    assert ordered[ordered.index("m.h.0.a.bias") + 1] == "m.h.0.a.masked_bias"
    assert ordered[-1] == "unheard.of"


@pytest.mark.parametrize("change", [lambda n: n.removeprefix("m."), lambda n: f"m.{n}".replace("m.m.", "m.")])
def test_a_checkpoint_may_lack_or_have_the_base_models_prefix(change):
    names = [change(name) for name in EXECUTED]
    assert in_order(sorted(names), EXECUTED, prefix="m") == names


def test_without_a_model_names_alone_decide():
    names = ["wte.weight", "h.2.a", "h.10.a", "ln_f.weight", "lm_head.weight"]
    shuffled = ["lm_head.weight", "h.10.a", "ln_f.weight", "h.2.a", "wte.weight"]
    assert in_order(shuffled, ())[:3] == names[:3]
    assert set(in_order(shuffled, ())[3:]) == set(names[3:])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.embed_tokens.weight", "model.layers.0.x", "model.layers.3.x"], "embeddings, layers 0–3"),
        (["model.layers.11.x", "model.norm.weight", "lm_head.weight"], "layer 11, head"),
        (["transformer.wte.weight", "transformer.wpe.weight"], "embeddings"),
        (["gpt_neox.final_layer_norm.weight", "embed_out.weight"], "head"),
        (["model.encoder.layers.5.x", "model.decoder.layers.0.x"], "encoder layer 5, decoder layer 0"),
        (["model.encoder.conv1.weight", "model.encoder.layer_norm.weight"], "encoder"),
        (["model.decoder.layer_norm.weight", "proj_out.weight"], "head"),
    ],
)
def test_a_shards_role_is_told_from_its_names(names, expected):
    assert role(names) == expected
