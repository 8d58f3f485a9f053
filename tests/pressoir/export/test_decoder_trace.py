"""Tracing without weights: what the graph is made of, and that the model is left as it was."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from pressoir.errors import ParityError
from pressoir.export import decoder_trace, weight_only_graph
from pressoir.export.causal_lm import _ModelWeights
from pressoir.models import loading, weight_layers

LAYERS = {"tiny_llama": 16, "tiny_gpt2": 11, "tiny_qwen2": 16}  # tables, projections and head


def operators(graph):
    return Counter(node.op_type for node in graph.graph.node)


def test_the_trace_names_every_layer_and_has_none_of_its_weights(tiny_lm, request, tmp_path):
    model = loading.load_causal_lm(tiny_lm)
    for module in model.modules():
        if weight_layers.kind_of(module):
            module.weight = nn.Parameter(module.weight.to("meta"))
    trace = decoder_trace.trace(model, 17, tmp_path)
    expected = LAYERS[request.node.callspec.params["tiny_lm"]]
    assert len(trace.layers) == expected
    inline = {tensor.name: list(tensor.dims) for tensor in trace.graph.graph.initializer}
    assert all(inline[f"{name}.weight"][0] == 1 for name in trace.layers)
    assert trace.graph.ByteSize() < 200_000
    assert list(tmp_path.iterdir()) == []


def test_inputs_and_outputs_are_those_of_a_decoder_with_a_cache(tiny_lm, tmp_path):
    graph = decoder_trace.trace(loading.load_causal_lm(tiny_lm), 17, tmp_path).graph.graph
    caches = {f"{layer}.{part}" for layer in range(2) for part in ("key", "value")}
    ids = {"input_ids", "attention_mask", "position_ids"}
    assert {value.name for value in graph.input} == ids | {f"past_key_values.{cache}" for cache in caches}
    assert {value.name for value in graph.output} == {"logits"} | {f"present.{cache}" for cache in caches}


def test_the_model_is_left_as_it_was(tiny_llama, tmp_path):
    model = loading.load_causal_lm(tiny_llama)
    before = {name: (type(module), module) for name, module in model.named_modules()}
    ids = torch.arange(8)[None]
    expected = model(ids).logits
    decoder_trace.trace(model, 17, tmp_path)
    assert {name: (type(module), module) for name, module in model.named_modules()} == before
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


def test_simplifying_leaves_out_repeated_keys_and_most_shape_arithmetic(tiny_llama, tmp_path):
    model = loading.load_causal_lm(tiny_llama)
    plain = operators(decoder_trace.trace(model, 17, tmp_path, simplify=False).graph)
    simple = operators(decoder_trace.trace(model, 17, tmp_path).graph)
    assert plain["Shape"] > 30
    assert simple["Shape"] <= 4
    assert simple["Expand"] < plain["Expand"]  # repeated keys and values
    assert simple["IsNaN"] == 0
    assert simple["Identity"] == 0


def float_graph(folder, model_folder, simplify):
    folder.mkdir()
    model = loading.load_causal_lm(model_folder)
    trace = decoder_trace.trace(model, 17, folder, simplify)
    graph = weight_only_graph.lower(trace, _ModelWeights(model, None), folder, accuracy_level=0)
    onnx.save(graph, folder / "model.onnx")
    return folder / "model.onnx", model


@pytest.mark.parametrize("simplify", [True, False])
def test_padded_batches_and_long_pasts_compute_what_pytorch_computes(tiny_lm, tmp_path, simplify):
    import onnxruntime as ort

    graph, model = float_graph(tmp_path / "graph", tiny_lm, simplify)
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    ids = generator.integers(3, 320, (3, 11))
    mask = np.ones((3, 11), dtype=np.int64)
    mask[1, :4] = mask[2, :9] = 0  # left padding
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    feed = {"attention_mask": mask[:, :7], "input_ids": ids[:, :7], "position_ids": positions[:, :7]}
    heads = {value.name: value.shape for value in session.get_inputs() if value.name.startswith("past")}
    for name, shape in heads.items():
        feed[name] = np.zeros((3, shape[1], 0, shape[3]), dtype=np.float32)
    names = [value.name for value in session.get_outputs()]
    first = dict(zip(names, session.run(names, feed), strict=True))
    for name in heads:
        feed[name] = first[name.replace("past_key_values", "present")]
    feed |= {"attention_mask": mask, "input_ids": ids[:, 7:], "position_ids": positions[:, 7:]}
    second = session.run(["logits"], feed)[0]

    with torch.inference_mode():
        expected = model(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            position_ids=torch.from_numpy(positions),
        ).logits.numpy()
    actual = np.concatenate([first["logits"], second], axis=1)
    real = mask.astype(bool)  # what a padding token sees is nobody's business
    np.testing.assert_allclose(actual[real], expected[real], rtol=0, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_attention_is_scaled_dot_product_attention(groups):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 8, generator=generator)
    key, value = torch.randn(2, 2, groups, 9, 8, generator=generator)
    mask = torch.ones(5, 9, dtype=torch.bool).tril(4)[None, None].expand(2, 1, 5, 9)
    layer = nn.Module()
    layer.num_key_value_groups = 4 // groups
    layer.is_causal = True
    for scaling in (None, 0.5):
        expected, _ = sdpa_attention_forward(layer, query, key, value, mask, scaling=scaling)
        actual, _ = decoder_trace.grouped_attention(layer, query, key, value, mask, scaling=scaling)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_the_librarys_own_attention_is_back_after_a_trace(tiny_llama, tmp_path):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    decoder_trace.trace(loading.load_causal_lm(tiny_llama), 17, tmp_path)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward


def test_an_architecture_that_cannot_be_exported_is_named(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=2,
        )
    )
    with pytest.raises(ParityError, match="'mixtral' cannot be exported"):
        decoder_trace.trace(model, 17, tmp_path)
