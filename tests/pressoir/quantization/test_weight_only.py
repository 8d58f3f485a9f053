"""Quantising whole models: what is stored, how many bits it takes, and that it loads again."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pressoir.errors import DataError, QuantizationError, SourceError
from pressoir.formats import packed_checkpoint
from pressoir.models import loading
from pressoir.quantization import packer, weight_only
from pressoir.quantization.calibration import DecoderStream
from pressoir.quantization.source import SourceModel
from pressoir.recipe.sections import QuantizeConfig
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext
from pressoir.system.files import folder_digest

CLAIMS = {"q8": 8.7, "q4": 4.6, "q3": 3.6, "q2": 2.6}
"""Most bits a weight of matrix products, scales and zero points included, at the default block size."""


@pytest.fixture(scope="session")
def quantise(tmp_path_factory, tiny_text):
    """`quantise(model, scheme=…, …)`: folder and figures of that model, quantised once."""
    made = {}

    def make(model, again=0, **settings):
        key = model, again, *sorted(settings.items())
        if key not in made:
            folder = tmp_path_factory.mktemp("quantised")
            context = StageContext(folder, folder, LogReporter(), seed=0, threads=1)
            inputs = {"model": model, "data": tiny_text}
            made[key] = folder, weight_only.run(inputs, QuantizeConfig(**settings), context)
        return made[key]

    return make


@pytest.fixture(scope="session")
def wide_llama(tiny_llama, tmp_path_factory):
    """A random Llama of width 128: below that a row has one block, whose zero point fills a byte alone."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder = tmp_path_factory.mktemp("wide-llama")
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in tiny_llama.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    return folder


def bits_of_products(folder):
    """Bits a weight of the matrix products, from the sizes of the tensors in the file."""
    state = load_file(folder / "model.safetensors")
    layers = json.loads((folder / "quantization.json").read_text())["layers"]
    products = {name: layer for name, layer in layers.items() if layer["role"] == "matmul"}
    stored = sum(
        state[f"{name}.{part}"].nbytes
        for name in products
        for part in ("weight", "weight_scale", "weight_zero_point")
    )
    return 8 * stored / sum(layer["shape"][0] * layer["shape"][1] for layer in products.values())


@pytest.mark.parametrize("scheme", CLAIMS)
@pytest.mark.parametrize("algorithm", ["rtn", "hqq", "gptq"])
def test_a_level_stores_no_more_bits_than_it_claims(quantise, wide_llama, scheme, algorithm):
    folder, figures = quantise(wide_llama, scheme=scheme, algorithm=algorithm)
    bits = bits_of_products(folder)
    assert bits <= CLAIMS[scheme]
    assert bits >= weight_only.BITS[scheme]
    assert figures["bits_per_weight"] == pytest.approx(bits)
    assert json.loads((folder / "quantization.json").read_text())["bits_per_weight"] == pytest.approx(bits)


def test_the_file_holds_nothing_but_codes_grids_norms_and_biases(quantise, tiny_llama):
    """Every byte is accounted for: no float copy of a weight hides in the file."""
    folder, figures = quantise(tiny_llama, scheme="q4", algorithm="rtn")
    state = load_file(folder / "model.safetensors")
    products = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    tables = 2 * 320 * 64
    blocks = (products + tables) // 64
    norms = 5 * 64
    zero_points = sum(t.nbytes for n, t in state.items() if n.endswith("zero_point"))
    expected = products // 2 + tables + 4 * blocks + zero_points + 4 * norms
    assert sum(tensor.nbytes for tensor in state.values()) == expected
    assert figures["new_mb"] == pytest.approx(expected / 1e6)
    assert zero_points <= blocks


@pytest.mark.parametrize("algorithm", ["rtn", "hqq", "gptq"])
def test_every_architecture_loads_again_and_computes_nearly_the_same(quantise, tiny_lm, algorithm):
    original = loading.load_causal_lm(tiny_lm)
    ids = torch.arange(3, 35)[None]
    with torch.inference_mode():
        expected, errors = original(ids).logits, []
        for scheme in ("q8", "q4"):
            folder, _ = quantise(tiny_lm, scheme=scheme, algorithm=algorithm)
            loaded = loading.load_causal_lm(folder)
            errors.append(float((loaded(ids).logits - expected).norm() / expected.norm()))
            tables = [model.get_input_embeddings().weight for model in (original, loaded)]
            assert float((tables[0] - tables[1]).norm() / tables[0].norm()) < 0.01
    assert errors[0] < 0.1  # random weights of this size feel every bit
    assert errors[0] < 0.2 * errors[1]


@pytest.mark.parametrize("scheme", ["q4", "q2"])
def test_the_recorded_errors_are_those_of_the_file(quantise, tiny_lm, scheme):
    folder, figures = quantise(tiny_lm, scheme=scheme, algorithm="hqq")
    source, packed = SourceModel(tiny_lm), packed_checkpoint.open_packed(folder)
    errors = {}
    for name, info in packed.layers.items():
        weight = source.matrix(name).numpy()
        errors[name] = np.linalg.norm(weight - packed.layer(name).dequantize()) / np.linalg.norm(weight)
        assert info.relative_error == pytest.approx(errors[name], rel=1e-4)
    assert figures["max_relative_error"] == pytest.approx(max(errors.values()), rel=1e-4)


def test_conv1d_is_stored_with_a_row_an_output(quantise, tiny_gpt2):
    layers = packed_checkpoint.open_packed(quantise(tiny_gpt2, scheme="q4", algorithm="rtn")[0]).layers
    assert layers["transformer.h.0.attn.c_attn"].kind == "conv1d"
    assert layers["transformer.h.0.attn.c_attn"].shape == (192, 64)
    assert layers["transformer.h.0.mlp.c_proj"].shape == (64, 128)


def test_the_default_block_gives_way_to_a_smaller_one_where_it_does_not_divide(quantise, tiny_llama):
    layers = packed_checkpoint.open_packed(quantise(tiny_llama, scheme="q2", algorithm="rtn")[0]).layers
    sizes = {name.rsplit(".", 1)[-1]: layer.block_size for name, layer in layers.items()}
    assert (sizes["q_proj"], sizes["down_proj"], sizes["embed_tokens"]) == (64, 128, 64)


def test_a_block_size_that_does_not_divide_is_refused_before_anything_is_written(tiny_llama, context):
    config = QuantizeConfig(scheme="q4", algorithm="rtn", block_size=128)
    with pytest.raises(
        QuantizationError, match=r"layers\.0\.self_attn\.q_proj has 64 inputs.*16 or 32 or 64"
    ):
        weight_only.run({"model": tiny_llama}, config, context)
    assert list(context.out_dir.iterdir()) == []


@pytest.mark.parametrize(("rule", "bits"), [("int8", 8), ("q4", 4), ("float", None)])
def test_embeddings_and_head_follow_their_own_rule(quantise, tiny_lm, rule, bits):
    folder, _ = quantise(tiny_lm, scheme="q2", algorithm="rtn", embeddings=rule)
    packed = packed_checkpoint.open_packed(folder)
    tables = [layer for layer in packed.layers.values() if layer.role != "matmul"]
    assert [layer.bits for layer in tables] == ([bits, bits] if bits else [])
    if bits is None:
        reasons = packed.description["excluded"]
        assert len(reasons) == 2
        assert set(reasons.values()) == {"quantize.embeddings is float"}
        original = load_file(tiny_lm / "model.safetensors")
        loaded = dict(packed_checkpoint.dequantized_tensors(folder))
        assert loaded.keys() == original.keys()
        assert all(torch.equal(loaded[n], original[n]) for n in original if "wte" in n or "embed" in n)
    loading.load_causal_lm(folder)


@pytest.mark.parametrize("algorithm", ["hqq", "gptq"])
def test_excluded_modules_stay_float(quantise, tiny_llama, algorithm):
    excluded = ("model.layers.1.mlp", "model.layers.0.self_attn.q_proj")
    folder, figures = quantise(tiny_llama, scheme="q4", algorithm=algorithm, exclude=excluded)
    original, tensors = (
        load_file(tiny_llama / "model.safetensors"),
        dict(packed_checkpoint.dequantized_tensors(folder)),
    )
    unchanged = {n for n in original if original[n].ndim == 2 and torch.equal(original[n], tensors[n])}
    assert unchanged == {
        "model.layers.0.self_attn.q_proj.weight",
        *(f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }
    assert figures["excluded_layers"] == 4


def test_a_tied_head_excluded_keeps_the_embedding_float_too(quantise, tiny_qwen2):
    folder, _ = quantise(tiny_qwen2, scheme="q4", algorithm="rtn", exclude=("lm_head",))
    assert set(packed_checkpoint.open_packed(folder).description["excluded"]) == {
        "lm_head",
        "model.embed_tokens",
    }
    loading.load_causal_lm(folder)


@pytest.mark.parametrize("algorithm", ["rtn", "hqq", "gptq"])
def test_the_same_inputs_give_the_same_bytes(quantise, tiny_llama, algorithm):
    first, second = (quantise(tiny_llama, again=n, scheme="q3", algorithm=algorithm)[0] for n in (0, 1))
    assert folder_digest(first) == folder_digest(second)


def test_half_precision_sources_of_several_files_are_read_alike(quantise, tiny_llama, tmp_path):
    model = loading.load_causal_lm(tiny_llama).half()
    for name, size in (("whole", "1GB"), ("parts", "100KB")):
        model.save_pretrained(tmp_path / name, max_shard_size=size)
        for file in tiny_llama.glob("tokenizer*"):
            shutil.copyfile(file, tmp_path / name / file.name)
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    folders = [quantise(tmp_path / name, scheme="q4", algorithm="gptq")[0] for name in ("whole", "parts")]
    states = [load_file(folder / "model.safetensors") for folder in folders]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_pieces_of_a_matrix_are_the_matrix(quantise, tiny_llama, monkeypatch):
    whole, _ = quantise(tiny_llama, scheme="q3", algorithm="hqq")
    monkeypatch.setattr("pressoir.quantization.source.CHUNK_WEIGHTS", 64 * 24)
    pieces, _ = quantise(tiny_llama, again=1, scheme="q3", algorithm="hqq")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, pieces)]
    assert weights[0] == weights[1]


def test_names_without_the_base_model_s_prefix_are_understood(quantise, tiny_gpt2, tmp_path):
    """As in OpenAI's own GPT-2 files."""
    folder = shutil.copytree(tiny_gpt2, tmp_path / "old")
    state = load_file(folder / "model.safetensors")
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    state["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)  # a mask, which later versions compute
    save_file(state, folder / "model.safetensors")
    old, new = (
        quantise(f, scheme="q4", algorithm="rtn")[0] / "model.safetensors" for f in (folder, tiny_gpt2)
    )
    assert old.read_bytes() == new.read_bytes()


def test_gptq_reduces_the_error_of_the_outputs_and_not_of_the_weights(quantise, tiny_llama, tiny_text):
    """On the calibration text itself, where GPTQ has what it asks for."""
    inputs = {"model": tiny_llama, "data": tiny_text}
    config = QuantizeConfig(scheme="q2", algorithm="gptq")
    windows, _ = weight_only._windows(inputs, SourceModel(tiny_llama), config, mixed=False)
    original = loading.load_causal_lm(tiny_llama)
    errors, relative = {}, {}
    for algorithm in ("rtn", "gptq"):
        folder, figures = quantise(tiny_llama, scheme="q2", algorithm=algorithm)
        relative[algorithm] = figures["mean_relative_error"]
        with torch.inference_mode():
            states = [
                m.model(torch.from_numpy(windows)).last_hidden_state
                for m in (original, loading.load_causal_lm(folder))
            ]
        errors[algorithm] = float((states[0] - states[1]).norm())
    assert errors["gptq"] < 0.9 * errors["rtn"]
    assert relative["gptq"] > relative["rtn"]


def test_a_model_run_layer_by_layer_is_the_model(tiny_lm, tiny_text):
    source = SourceModel(tiny_lm)
    config = QuantizeConfig(scheme="q4", algorithm="gptq")
    windows, _ = weight_only._windows({"model": tiny_lm, "data": tiny_text}, source, config, mixed=False)
    stream = DecoderStream(source, windows)
    hidden = stream.embed()
    for layer in range(len(stream)):
        hidden = stream.through(layer, hidden)
    ids = torch.from_numpy(windows)
    model = loading.load_causal_lm(tiny_lm)
    with torch.inference_mode():
        logits = model(ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert stream.perplexity(hidden) == pytest.approx(float(loss.exp()), rel=1e-4)
    assert stream.divergences(hidden, hidden) == pytest.approx([0], abs=1e-6)
    assert all(parameter.is_meta for parameter in source.skeleton.parameters())  # nothing was kept


def test_a_layer_is_calibrated_on_what_is_quantised_before_it(tiny_lm, monkeypatch):
    """Values that became 0 give the attention's output projection inputs of 0."""
    source = SourceModel(tiny_lm)
    stream = DecoderStream(source, np.arange(3, 67).reshape(4, 16))
    hidden, order, seen, new = stream.embed(), [], {}, {}

    def quantizer(name, weight, hessian):
        order.append(name)
        seen[name] = hessian.clone()
        new[name] = torch.zeros_like(weight) if name.endswith(("v_proj", "c_attn")) else weight * 0.5
        return new[name]

    read, biases = source.read, ("v_proj.bias", "c_attn.bias")
    monkeypatch.setattr(source, "read", lambda n: read(n) * 0 if n.endswith(biases) else read(n))
    result = stream.quantize(0, hidden, quantizer, set(stream.inside(0)))
    parts = [name.rsplit(".", 1)[-1] for name in order]
    if "q_proj" in parts:
        assert parts == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        assert torch.equal(seen[order[0]], seen[order[2]])
    else:
        assert parts == ["c_attn", "c_proj", "c_fc", "c_proj"]
    after_attention = seen[next(n for n in order if n.endswith(("o_proj", "attn.c_proj")))]
    assert torch.count_nonzero(after_attention) == 0
    assert torch.count_nonzero(seen[order[0]]) > 0
    expected = stream.through(0, hidden, new)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(result, expected, strict=True))


def test_what_reads_one_tensor_shares_one_hessian(tiny_qwen2):
    stream = DecoderStream(SourceModel(tiny_qwen2), np.arange(3, 67).reshape(4, 16))
    hidden = stream.embed()
    with stream.filled(0):
        groups = [group for group, _ in stream.hessians(0, hidden, set(stream.inside(0)))]
    names = [[name.rsplit(".", 1)[-1].removesuffix("_proj") for name in group] for group in groups]
    assert names == [["q", "k", "v"], ["o"], ["gate", "up"], ["down"]]


def test_a_hessian_is_the_mean_of_the_inputs_products(tiny_llama):
    source = SourceModel(tiny_llama)
    stream = DecoderStream(source, np.arange(3, 67).reshape(4, 16))
    hidden = stream.embed()
    names = {"model.layers.0.self_attn.q_proj"}
    with stream.filled(0):
        ((group, hessian),) = stream.hessians(0, hidden, names)
    norm = loading.load_causal_lm(tiny_llama).model.layers[0].input_layernorm
    with torch.inference_mode():
        x = torch.cat([norm(batch).flatten(0, 1) for batch in hidden])
    assert group == list(names)
    assert torch.allclose(hessian, x.T @ x / len(x), atol=1e-4)


def test_windows_of_a_last_smaller_batch_run_too(tiny_llama, monkeypatch):
    monkeypatch.setattr("pressoir.quantization.calibration._BATCH_TOKENS", 32)
    windows = np.arange(3, 83).reshape(5, 16)
    whole = DecoderStream(SourceModel(tiny_llama), windows)
    hidden = whole.through(0, whole.embed())
    assert [len(batch) for batch in hidden] == [2, 2, 1]
    alone = DecoderStream(SourceModel(tiny_llama), windows[4:])
    assert torch.allclose(alone.through(0, alone.embed())[0], hidden[2], atol=1e-5)


def test_metadata_tells_what_was_made_of_what(quantise, tiny_llama, tmp_path):
    folder, figures = quantise(tiny_llama, scheme="q3", algorithm="hqq")
    told = json.loads((folder / "metadata.json").read_text())
    assert (told["level"], told["algorithm"]) == ("q3", "hqq")
    assert told["bits_per_weight"] == figures["bits_per_weight"]
    assert told["original_bytes"] / told["new_bytes"] == figures["size_ratio"]
    assert told["relative_error"].keys() == packed_checkpoint.open_packed(folder).layers.keys()
    assert len(told["source_digest"]) == 64
    assert told["versions"]["torch"] == torch.__version__
    assert "peak_rss_mb" not in told  # it would change the artifact's digest
    weight_only.write_metadata(folder, target=tmp_path / "m.json", peak_rss_mb=12.5)
    assert json.loads((tmp_path / "m.json").read_text()) == {**told, "peak_rss_mb": 12.5}
    assert figures["peak_rss_mb"] > 50


def test_the_tokenizer_is_copied_as_it_is(quantise, tiny_llama):
    folder, _ = quantise(tiny_llama, scheme="q4", algorithm="rtn")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (folder / name).read_bytes() == (tiny_llama / name).read_bytes()


def test_progress_counts_layers(tiny_llama, context, reporter):
    weight_only.run({"model": tiny_llama}, QuantizeConfig(scheme="q4", algorithm="rtn"), context)
    assert reporter.progressed == [(done, 16, "layers quantised") for done in range(1, 17)]


@pytest.mark.parametrize("algorithm", ["rtn", "gptq"])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_values_that_are_not_finite_are_named(tiny_llama, tmp_path, context, tiny_text, algorithm, name):
    folder = shutil.copytree(tiny_llama, tmp_path / "broken")
    state = load_file(folder / "model.safetensors")
    state[name].view(-1)[5] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = QuantizeConfig(scheme="q4", algorithm=algorithm)
    with pytest.raises(QuantizationError, match=name.replace(".", r"\.")):
        weight_only.run({"model": folder, "data": tiny_text}, config, context)


def test_a_quantised_model_is_not_quantised_again(quantise, tiny_llama, context):
    folder, _ = quantise(tiny_llama, scheme="q4", algorithm="rtn")
    with pytest.raises(QuantizationError, match="already quantised"):
        weight_only.run({"model": folder}, QuantizeConfig(scheme="q4"), context)


def test_an_encoder_is_refused(tiny_classifier, context):
    with pytest.raises(QuantizationError, match=r"text-classification.*use int8"):
        weight_only.run({"model": tiny_classifier}, QuantizeConfig(scheme="q4"), context)


def test_int8_is_refused(tiny_llama, context):
    with pytest.raises(QuantizationError, match="'int8' is not weights-only; use one of q8, q4"):
        weight_only.run({"model": tiny_llama}, QuantizeConfig(), context)


def test_weights_that_do_not_fit_the_configuration_are_refused(tiny_llama, tmp_path, context):
    folder = shutil.copytree(tiny_llama, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(SourceError, match=r"specifies model\.layers\.2\..*has none"):
        weight_only.run({"model": folder}, QuantizeConfig(scheme="q4"), context)


def test_a_model_without_matrix_products_is_refused(tiny_gpt2, tmp_path, context):
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(n_embd=64, n_layer=0, n_head=4, vocab_size=320, n_positions=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "empty")
    with pytest.raises(QuantizationError, match="nothing to quantise"):
        weight_only.run({"model": tmp_path / "empty"}, QuantizeConfig(scheme="q4"), context)


def test_all_excluded_is_refused(tiny_llama, context):
    config = QuantizeConfig(scheme="q4", exclude=("model.layers",))
    with pytest.raises(QuantizationError, match="nothing to quantise"):
        weight_only.run({"model": tiny_llama}, config, context)


def test_too_little_calibration_text_is_told(tiny_llama, tiny_text, tmp_path, context):
    folder = shutil.copytree(tiny_text, tmp_path / "short")
    (folder / "calibration.txt").write_text("good")
    with pytest.raises(DataError, match="fewer than one window of 32"):
        weight_only.run(
            {"model": tiny_llama, "data": folder}, QuantizeConfig(scheme="q4", algorithm="gptq"), context
        )


@pytest.mark.parametrize(
    ("scheme", "algorithm", "error"), [("q8", "rtn", 0.02), ("q4", "rtn", 0.3), ("q4", "gptq", 0.3)]
)
def test_an_embedding_that_scales_what_it_looks_up_is_packed_with_its_head(
    quantise, tiny_gemma3, scheme, algorithm, error
):
    folder, _ = quantise(tiny_gemma3, scheme=scheme, algorithm=algorithm)
    packed = packed_checkpoint.open_packed(folder)
    head, table = packed.layers["lm_head"], packed.layers["model.embed_tokens"]
    assert (head.role, head.tied_to, head.bits) == ("head", "model.embed_tokens", 8)
    assert (table.role, table.kind) == ("embedding", "embedding")
    # the table itself is stored, without its scale
    weight = load_file(tiny_gemma3 / "model.safetensors")["model.embed_tokens.weight"]
    np.testing.assert_allclose(packed.layer("model.embed_tokens").dequantize(), weight, atol=0.01)
    ids = torch.arange(3, 35)[None]
    with torch.inference_mode():
        expected = loading.load_causal_lm(tiny_gemma3)(ids).logits
        actual = loading.load_causal_lm(folder)(ids).logits
    assert torch.isfinite(actual).all()
    assert float((actual - expected).norm() / expected.norm()) < error


def test_a_head_tied_to_an_embedding_that_does_more_stays_float_with_it(
    quantise, tiny_gemma3, tmp_path, monkeypatch
):
    from torch.nn import functional
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    monkeypatch.setattr(
        Gemma3TextScaledWordEmbedding,
        "forward",
        lambda self, ids: functional.embedding(ids, self.weight).tanh(),
    )
    model = shutil.copytree(tiny_gemma3, tmp_path / "model")  # not the one that other tests quantise
    folder, _ = quantise(model, scheme="q8", algorithm="gptq")
    assert {layer.role for layer in packed_checkpoint.open_packed(folder).layers.values()} == {"matmul"}
    ids = torch.arange(3, 35)[None]
    with torch.inference_mode():
        expected, actual = (
            loading.load_causal_lm(model)(ids).logits,
            loading.load_causal_lm(folder)(ids).logits,
        )
    assert float((actual - expected).norm() / expected.norm()) < 0.02


def test_the_block_size_falls_to_sixteen_and_no_further(tiny_llama):
    matrix = SourceModel(tiny_llama).matrices["model.layers.0.mlp.up_proj"]
    narrow = type(matrix)(matrix.name, matrix.kind, matrix.role, (128, 48))
    assert packer.describe(narrow, 4, QuantizeConfig(scheme="q4")).block_size == 16
    odd = type(matrix)(matrix.name, matrix.kind, matrix.role, (128, 40))
    with pytest.raises(QuantizationError, match=r"up_proj has 40 inputs, which 64 does not divide; exclude"):
        packer.describe(odd, 4, QuantizeConfig(scheme="q4"))
