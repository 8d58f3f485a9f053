"""Exporting a causal LM: the graph computes what the checkpoint computes, or nothing is published."""

import json

import numpy as np
import onnx
import pytest
import torch

from pressoir.errors import ParityError, SourceError
from pressoir.export import causal_lm, decoder_trace, weight_only_graph
from pressoir.inference.engines.decoder import OnnxDecoder, TorchDecoder
from pressoir.inference.parity import Divergence, Parity
from pressoir.models import loading, weight_layers
from pressoir.pipeline.build import build_stage
from pressoir.recipe.sections import ExportConfig, QuantizeConfig
from pressoir.sources.resolve import Source
from pressoir.stage import StageContext
from pressoir.stages import export, quantize
from pressoir.store.store import Store

LEVELS = ("q8", "q4", "q3", "q2")


class Listener:
    def __init__(self):
        self.messages = []

    def progress(self, done, total, what): ...
    def metric(self, name, value, step=None): ...

    def message(self, text):
        self.messages.append(text)


def make_context(folder, reporter=None):
    for name in ("out", "work"):
        (folder / name).mkdir(parents=True)
    return StageContext(folder / "out", folder / "work", reporter or Listener(), seed=0, threads=1)


def pack(model, folder, **config):
    context = make_context(folder)
    block_size = 64 if config["scheme"] == "q2" else None  # the tiny models have rows of 64
    config = QuantizeConfig(**{"algorithm": "rtn", "block_size": block_size, **config})
    quantize.run({"model": model}, config, context)
    return context.out_dir


def to_onnx(model, tiny_text, folder, reporter=None, **config):
    context = make_context(folder, reporter)
    figures = export.run({"model": model, "data": tiny_text}, ExportConfig(**config), context)
    return context.out_dir, figures


@pytest.fixture(scope="module")
def q4_llama(tiny_llama, tmp_path_factory):
    """The tiny Llama in 4 bits, without its graph."""
    return pack(tiny_llama, tmp_path_factory.mktemp("q4-llama"), scheme="q4")


@pytest.fixture(scope="module")
def exported(q4_llama, tiny_text, tmp_path_factory):
    """The graph of it, its figures, and what was said."""
    reporter = Listener()
    out, figures = to_onnx(q4_llama, tiny_text, tmp_path_factory.mktemp("q4-llama-onnx"), reporter)
    return out, figures, reporter


def report(folder):
    return json.loads((folder / "export.json").read_text())


def test_a_float_model_computes_in_onnx_what_it_computes_in_pytorch(tiny_lm, tiny_text, tmp_path):
    out, figures = to_onnx(tiny_lm, tiny_text, tmp_path)
    assert 0 < figures["max_logit_difference"] <= 1e-4
    assert figures["published_greedy_agreement"] == 1.0
    ids = np.random.default_rng(0).integers(3, 320, (2, 24))
    expected = TorchDecoder(loading.load_causal_lm(tiny_lm)).forward(ids)[0]
    decoder = OnnxDecoder(out, 1)
    whole = decoder.forward(ids)[0]
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-4)
    _, cache = decoder.forward(ids[:, :20])
    np.testing.assert_allclose(decoder.forward(ids[:, 20:], cache)[0], whole[:, 20:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_a_packed_model_computes_in_onnx_what_its_dequantised_weights_compute(
    tiny_lm, tiny_text, tmp_path, level
):
    packed = pack(tiny_lm, tmp_path / "packed", scheme=level)
    out, figures = to_onnx(packed, tiny_text, tmp_path / "onnx", accuracy_level=0)
    assert 0 < figures["max_logit_difference"] <= 1e-4
    assert figures["published_max_logit_difference"] == figures["max_logit_difference"]
    parity = report(out)["parity"]
    assert parity.keys() == {"level_0"}
    assert parity["level_0"]["divergences"] == []
    assert (parity["level_0"]["windows"], parity["level_0"]["prompts"]) == (8, 8)
    assert parity["level_0"]["new_tokens"] == 64
    ids = np.arange(3, 35)[None]
    expected = TorchDecoder(loading.load_causal_lm(packed)).forward(ids)[0]
    np.testing.assert_allclose(OnnxDecoder(out, 1).forward(ids)[0], expected, rtol=0, atol=1e-4)


def test_the_fast_level_is_published_and_its_difference_told(exported):
    out, figures, reporter = exported
    graph = onnx.load(out / "model.onnx", load_external_data=False)
    levels = {a.i for node in graph.graph.node for a in node.attribute if a.name == "accuracy_level"}
    assert levels == {4}
    told = report(out)
    assert told["accuracy_level"] == 4
    assert told["parity"].keys() == {"level_0", "level_4"}
    # Rounding activations to int8 must show, else the fast kernels did not run.
    assert figures["published_max_logit_difference"] > 10 * figures["max_logit_difference"]
    assert figures["published_max_logit_difference"] == told["parity"]["level_4"]["max_logit_difference"]
    departures = told["parity"]["level_4"]["divergences"]
    assert figures["published_greedy_agreement"] == 1 - len(departures) / 8
    assert all(departure["margin"] > 0 for departure in departures)
    assert any(text.startswith("accuracy level 4: max |Δlogit|") for text in reporter.messages)


def test_the_folder_holds_what_a_model_needs_and_nothing_else(exported, q4_llama):
    names = {path.name for path in exported[0].iterdir()}
    assert names == {
        *("model.onnx", "model.onnx.data", "export.json", "config.json", "generation_config.json"),
        *("quantization.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    }
    for name in ("config.json", "quantization.json", "tokenizer.json", "tokenizer_config.json"):
        assert (exported[0] / name).read_bytes() == (q4_llama / name).read_bytes()


def test_the_report_tells_both_sizes_of_three_bit_weights(tiny_llama, tiny_text, tmp_path):
    packed = pack(tiny_llama, tmp_path / "packed", scheme="q3")
    out, figures = to_onnx(packed, tiny_text, tmp_path / "onnx")
    told = report(out)
    graph = onnx.load(out / "model.onnx", load_external_data=False)
    assert told["packed3_layers"] == len(weight_only_graph.packed3(graph)) == 14
    sizes = told["weights"]
    expanded = OnnxDecoder(out, 1).expanded_bytes
    assert sizes["memory_bytes"] - sizes["disk_bytes"] == expanded // 4  # one bit of each code's four
    assert sizes["disk_bytes"] == pytest.approx((out / "model.onnx.data").stat().st_size, rel=0.02)
    assert figures["weights_in_memory_mb"] == sizes["memory_bytes"] / 1e6


def test_without_data_the_embedded_reviews_are_the_text(q4_llama, tmp_path):
    context = make_context(tmp_path)
    figures = export.run({"model": q4_llama}, ExportConfig(), context)
    assert figures["parity_windows"] == 8
    assert report(context.out_dir)["parity"]["level_0"]["window"] == 128


def test_low_memory_proves_the_same_without_the_float_model(
    q4_llama, exported, tiny_text, tmp_path, monkeypatch
):
    def refuse(*args, **options):
        raise AssertionError("the float model was loaded")

    monkeypatch.setattr(loading, "load_causal_lm", refuse)
    out, figures = to_onnx(q4_llama, tiny_text, tmp_path, low_memory=True)
    assert figures["max_logit_difference"] == pytest.approx(exported[1]["max_logit_difference"], abs=1e-6)
    assert (out / "model.onnx.data").read_bytes() == (exported[0] / "model.onnx.data").read_bytes()


@pytest.mark.parametrize("embeddings", ["q4", "float"])
def test_the_embeddings_own_rule_reaches_the_graph(tiny_qwen2, tiny_text, tmp_path, embeddings):
    packed = pack(tiny_qwen2, tmp_path / "packed", scheme="q8", embeddings=embeddings)
    out, figures = to_onnx(packed, tiny_text, tmp_path / "onnx")
    assert figures["max_logit_difference"] <= 1e-4
    operators = report(out)["operators"]
    assert operators.get("GatherBlockQuantized", 0) == (1 if embeddings == "q4" else 0)
    assert operators["MatMulNBits"] == (15 if embeddings == "q4" else 14)


def test_a_tied_float_head_is_stored_once(tiny_gpt2, tiny_text, tmp_path):
    out, _ = to_onnx(tiny_gpt2, tiny_text, tmp_path)
    parameters = sum(p.numel() for p in loading.load_causal_lm(tiny_gpt2).parameters())
    size = (out / "model.onnx.data").stat().st_size
    assert 0.9 * 4 * parameters < size < 4 * parameters + 4096


@pytest.mark.parametrize("low_memory", [False, True])
def test_an_embedding_that_scales_what_it_looks_up_is_one_table_with_its_head(
    tiny_gemma3, tiny_text, tmp_path, low_memory
):
    packed = pack(tiny_gemma3, tmp_path / "packed", scheme="q4")
    out, figures = to_onnx(packed, tiny_text, tmp_path / "onnx", low_memory=low_memory)
    assert figures["max_logit_difference"] <= 1e-4
    operators = report(out)["operators"]
    assert (operators["GatherBlockQuantized"], operators["MatMulNBits"]) == (1, 15)
    stored = (packed / "model.safetensors").stat().st_size
    assert (out / "model.onnx.data").stat().st_size < 1.2 * stored


def test_a_float_table_that_is_scaled_is_stored_once_too(tiny_gemma3, tiny_text, tmp_path):
    out, figures = to_onnx(tiny_gemma3, tiny_text, tmp_path)
    assert figures["max_logit_difference"] <= 1e-4
    parameters = sum(p.numel() for p in loading.load_causal_lm(tiny_gemma3).parameters())
    assert (out / "model.onnx.data").stat().st_size < 4 * parameters + 4096


def test_a_model_of_a_short_context_is_checked_within_it(tmp_path, tiny_llama, tiny_text):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=24,
    )
    loading.save_model(LlamaForCausalLM(config), tmp_path / "short")
    loading.save_tokenizer(loading.load_tokenizer(tiny_llama), tmp_path / "short")
    out, _ = to_onnx(tmp_path / "short", tiny_text, tmp_path / "onnx")
    checked = report(out)["parity"]["level_0"]
    assert checked["window"] == 24
    assert checked["new_tokens"] == 12


@pytest.mark.parametrize("fuse", [True, False])
def test_unfused_graphs_compute_the_same(q4_llama, tiny_text, tmp_path, fuse):
    out, figures = to_onnx(q4_llama, tiny_text, tmp_path, fuse=fuse)
    assert report(out)["fused"] is fuse
    assert figures["max_logit_difference"] <= 1e-4


def test_a_graph_that_departs_from_pytorch_is_not_published(tiny_llama, tiny_text, tmp_path, monkeypatch):
    real = decoder_trace.trace

    def tampered(model, *args, **options):
        trace = real(model, *args, **options)
        with torch.no_grad():  # the graph is made from these weights, PyTorch's side was loaded before
            model.model.layers[1].mlp.down_proj.weight.mul_(1.05)
        return trace

    loaded = loading.load_causal_lm(tiny_llama)
    monkeypatch.setattr(causal_lm.decoder_trace, "trace", tampered)
    real_decoder = causal_lm.TorchDecoder
    monkeypatch.setattr(causal_lm, "TorchDecoder", lambda model: real_decoder(loaded))
    store = Store(tmp_path / "home")
    source = Source(reference="tiny", folder=tiny_llama, digest="0" * 64)
    data = Source(reference="text", folder=tiny_text, digest="1" * 64)
    with pytest.raises(ParityError, match=r"max \|Δlogit\| is .* above export.max_logit_difference 0.001"):
        build_stage(
            "export", ExportConfig(), {"model": source, "data": data}, store, Listener(), seed=0, threads=1
        )
    assert list(store.artifacts()) == []
    assert not list((tmp_path / "home").rglob("model.onnx"))


@pytest.mark.parametrize(("margin", "refused"), [(0.0019, False), (0.0021, True)])
def test_another_greedy_text_is_refused_unless_it_is_a_tie(
    q4_llama, tiny_text, tmp_path, monkeypatch, margin, refused
):
    def pretend(candidates, reference, windows, prompts, new_tokens, reporter):
        found = Parity(8, 32, 8, 64, divergences=[Divergence(3, 17, 5, 6, margin)])
        return dict.fromkeys(candidates, found)

    monkeypatch.setattr(causal_lm, "compare", pretend)
    if refused:
        with pytest.raises(ParityError, match="prompt 3, new token 17 is 5 instead of 6"):
            to_onnx(q4_llama, tiny_text, tmp_path)
    else:
        out, figures = to_onnx(q4_llama, tiny_text, tmp_path)
        assert figures["published_greedy_agreement"] == 0.875
        assert report(out)["parity"]["level_0"]["divergences"][0]["margin"] == margin


def test_a_fast_level_that_overflows_is_refused(q4_llama, tiny_text, tmp_path, monkeypatch):
    def pretend(candidates, reference, windows, prompts, new_tokens, reporter):
        return {level: Parity(8, 32, 8, 64, np.inf if level else 0.0) for level in candidates}

    monkeypatch.setattr(causal_lm, "compare", pretend)
    with pytest.raises(ParityError, match=r"accuracy level 4 .* not finite"):
        to_onnx(q4_llama, tiny_text, tmp_path)


def test_a_quantised_layer_that_no_graph_can_hold_is_named(q4_llama, tiny_text, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_layers, "embedding_scale", lambda table: None)
    with pytest.raises(ParityError, match=r"layer model.embed_tokens is a Embedding.*quantize.exclude"):
        to_onnx(q4_llama, tiny_text, tmp_path)


def test_a_packed_folder_that_does_not_fit_its_configuration_is_refused(q4_llama, tiny_text, tmp_path):
    import shutil

    broken = shutil.copytree(q4_llama, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(SourceError, match=r"is missing weights \(model.layers.2"):
        to_onnx(broken, tiny_text, tmp_path / "onnx")


def test_graph_and_data_are_the_same_each_time(q4_llama, exported, tiny_text, tmp_path):
    out, _ = to_onnx(q4_llama, tiny_text, tmp_path)
    for name in ("model.onnx", "model.onnx.data"):
        assert (out / name).read_bytes() == (exported[0] / name).read_bytes()
