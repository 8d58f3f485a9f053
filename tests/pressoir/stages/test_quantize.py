"""int8: what is stored, what it means, what happens when it costs too much accuracy, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pressoir.data import sentences
from pressoir.errors import QuantizationError, SourceError
from pressoir.formats import packing
from pressoir.formats.int8_checkpoint import dequantized_state, packed_layers
from pressoir.inference.engines.classifier import TorchEngine
from pressoir.inference.text_classification import TextClassifier
from pressoir.models import loading
from pressoir.models.layouts import architecture_of, encoder_layers, resize_ffn
from pressoir.models.simulated_int8 import dynamic_quantize, load_simulated
from pressoir.quantization import int8_scheme
from pressoir.quantization.int8 import quantizable, quantize_rows
from pressoir.recipe.sections import QuantizeConfig
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext
from pressoir.stages import quantize
from pressoir.system.runtime import one_thread


def quantise(model, tiny_data, context, **config):
    figures = quantize.run({"model": model, "data": tiny_data}, QuantizeConfig(**config), context)
    return context.out_dir, figures


@pytest.fixture(scope="module")
def made(tiny_classifier, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    context = StageContext(folder, folder / "work", LogReporter(), seed=0, threads=2)
    return quantise(tiny_classifier, tiny_data, context)


@pytest.fixture
def int8(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "int8")


def description(folder):
    return json.loads((folder / "quantization.json").read_text())


def rewrite(folder, **fields):
    (folder / "quantization.json").write_text(json.dumps({**description(folder), **fields}))


def test_every_linear_and_embedding_but_the_excluded_is_stored_as_int8_codes_with_scales(
    int8, tiny_classifier
):
    state, original = load_file(int8 / "model.safetensors"), load_file(tiny_classifier / "model.safetensors")
    packed = {n.removesuffix(".weight") for n, t in state.items() if t.dtype == torch.int8}
    model = loading.load_classifier(tiny_classifier)
    assert packed == {name for name, _ in quantizable(model)} - {"classifier"}
    assert packed == set(description(int8)["layers"])
    for name in packed:
        codes, scales = state[f"{name}.weight"], state[f"{name}.weight_scale"]
        weight = original[f"{name}.weight"]
        assert codes.shape == weight.shape
        assert scales.shape == weight.shape[:1]
        assert codes.min() >= -127
        assert (codes.float().abs().amax(dim=1) == 127).logical_or(weight.abs().amax(dim=1) == 0).all()
        assert ((weight - codes * scales[:, None]).abs() <= scales[:, None] * 0.5001).all()
    rest = set(original) - {f"{name}.weight" for name in packed}
    assert all(torch.equal(state[name], original[name]) for name in rest)
    assert set(state) == set(original) | {f"{name}.weight_scale" for name in packed}


def test_the_description_tells_shape_granularity_error_and_bytes_of_each_layer(int8, tiny_classifier):
    told, original = description(int8), load_file(tiny_classifier / "model.safetensors")
    assert (told["format_version"], told["scheme"], told["activations"]) == (1, "int8", "dynamic")
    assert told["excluded"] == {"classifier": "named in quantize.exclude"}
    state = dequantized_state(int8)
    for name, layer in told["layers"].items():
        weight = original[f"{name}.weight"]
        expected = ((weight - state[f"{name}.weight"]).norm() / weight.norm()).item()
        assert layer["relative_error"] == pytest.approx(expected, rel=1e-4)
        assert layer["shape"] == list(weight.shape)
        assert layer["granularity"] == ("row" if "embeddings" in name else "output channel")
    assert told["original_bytes"] == sum(t.numel() * 4 for t in original.values())
    assert told["new_bytes"] == sum(
        t.numel() * t.element_size() for t in load_file(int8 / "model.safetensors").values()
    )


def test_the_dequantised_state_is_exactly_codes_times_scales(int8):
    raw, state = load_file(int8 / "model.safetensors"), dequantized_state(int8)
    for name, layer in packed_layers(int8).items():
        codes, scales = raw[f"{name}.weight"].numpy(), raw[f"{name}.weight_scale"].numpy()
        expected = codes.astype(np.float32) * scales[:, None]
        assert np.array_equal(state[f"{name}.weight"].numpy(), expected)
        assert np.array_equal(layer.weight, expected)
    assert not any(name.endswith("weight_scale") for name in state)
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


def test_the_figures_are_those_of_the_description(made, tiny_data):
    folder, figures = made
    told = description(folder)
    errors = [layer["relative_error"] for layer in told["layers"].values()]
    assert figures["max_relative_error"] == max(errors)
    assert figures["mean_relative_error"] == pytest.approx(np.mean(errors))
    assert 0 < figures["max_relative_error"] < 0.02
    assert figures["size_ratio"] == told["original_bytes"] / told["new_bytes"] > 2
    assert figures["excluded_layers"] == 1
    labels = sentences.load_split(tiny_data, "validation")["label"]
    simulated = TextClassifier(
        TorchEngine(load_simulated(folder), batch_invariant=False),
        loading.load_tokenizer(folder),
        ["a", "b"],
    )
    with one_thread():
        predicted = simulated.logits(list(sentences.load_split(tiny_data, "validation")["text"])).argmax(
            axis=1
        )
    assert figures["validation_accuracy"] == np.mean(predicted == np.asarray(labels))


def test_only_the_inputs_of_quantised_linear_layers_are_rounded_in_the_simulated_model(int8):
    seen = {}
    model = load_simulated(int8)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _m, args, name=name: seen.__setitem__(name, len(args[0].unique()))
            )
    ids = torch.randint(5, 30, (4, 31), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids)
    assert all(count <= 256 for name, count in seen.items() if name.startswith("bert.encoder"))
    plain = loading.load_classifier(int8)(input_ids=ids).logits
    assert not torch.equal(plain, model(input_ids=ids).logits)
    classifier_input = {}
    model.classifier.register_forward_pre_hook(lambda _m, args: classifier_input.update(x=args[0]))
    model(input_ids=ids)
    rounded = dynamic_quantize(classifier_input["x"])
    assert not torch.equal(classifier_input["x"], rounded)  # excluded: stays in float32


def test_names_are_excluded_by_whole_dotted_parts(tiny_classifier, tiny_data, context):
    folder, _ = quantise(
        tiny_classifier,
        tiny_data,
        context,
        exclude=("bert.encoder.layer.1", "bert.pool", "class"),
        max_accuracy_drop=None,
    )
    excluded = set(description(folder)["excluded"])
    assert excluded
    assert all(name.startswith("bert.encoder.layer.1.") for name in excluded)
    assert "classifier" in description(folder)["layers"]


def fake_scores(monkeypatch, hurt, float_accuracy=0.9):
    """Let the model lose 5 points for each of the layers `hurt` that is in int8, and rank by `hurt`'s
    numbers."""

    class Scorer(int8_scheme.Scorer):
        def _labels(self, accuracy, count):
            right = round(accuracy * count)
            truth = np.asarray(self.truth)
            predicted = np.where(np.arange(count) < right, truth, 1 - truth)
            return np.eye(2, dtype=np.float32)[predicted]

        def float_logits(self, texts):
            return self._labels(float_accuracy, len(texts))

        def logits(self, texts, layers):
            return self._labels(float_accuracy - 0.05 * len(layers & set(hurt)), len(texts))

        def sensitivity(self, texts, context):
            assert len(texts) <= 128
            return {name: hurt.get(name, 0.0) for name in self.packed}

    monkeypatch.setattr(int8_scheme, "Scorer", Scorer)
    return Scorer


def test_the_most_sensitive_layers_go_back_to_float_until_the_limit_holds(
    tiny_classifier, tiny_data, context, monkeypatch, reporter
):
    hurt = {
        "bert.encoder.layer.2.output.dense": 3.0,
        "bert.embeddings.word_embeddings": 2.0,
        "bert.pooler.dense": 1.0,
    }
    scorer = fake_scores(monkeypatch, hurt)
    scorer.truth = sentences.load_split(tiny_data, "validation")["label"]
    folder, figures = quantise(tiny_classifier, tiny_data, context, max_accuracy_drop=0.05)
    told = description(folder)
    assert set(told["excluded"]) == {"classifier", *list(hurt)[:2]}  # one that costs 5 points may stay
    assert "KL divergence 3" in told["excluded"]["bert.encoder.layer.2.output.dense"]
    state = load_file(folder / "model.safetensors")
    assert state["bert.embeddings.word_embeddings.weight"].dtype == torch.float32
    assert state["bert.pooler.dense.weight"].dtype == torch.int8
    assert figures["validation_accuracy_drop"] == pytest.approx(0.05)
    assert figures["excluded_layers"] == 3
    assert any("bert.embeddings.word_embeddings stays in float32" in text for text in reporter.messages)
    assert set(told["sensitivity"]) == set(told["layers"]) | set(list(hurt)[:2])
    loading.load_classifier(folder)


def test_without_a_limit_nothing_is_ranked_or_put_back(tiny_classifier, tiny_data, context, monkeypatch):
    scorer = fake_scores(monkeypatch, {"bert.pooler.dense": 1.0})
    scorer.truth = sentences.load_split(tiny_data, "validation")["label"]
    folder, figures = quantise(tiny_classifier, tiny_data, context, max_accuracy_drop=None)
    assert figures["validation_accuracy_drop"] == pytest.approx(0.05)
    assert list(description(folder)["excluded"]) == ["classifier"]


def test_sensitivity_singles_out_the_layer_that_int8_really_hurts(tiny_classifier, tiny_data, context):
    model = loading.load_classifier(tiny_classifier)
    victim = "bert.encoder.layer.1.attention.output.dense"
    model.get_submodule(victim).weight.data *= 30  # so that it matters beside the residual
    texts = list(sentences.load_split(tiny_data, "validation")["text"])[:12]
    reference = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = dict(quantizable(model))
    packed = {name: quantize_rows(reference[f"{name}.weight"], name) for name in kinds}
    packed[victim] = (packed[victim][0] // 48 * 48, packed[victim][1])  # as if it had 2 bits
    scorer = int8_scheme.Scorer(model, reference, packed, kinds, loading.load_tokenizer(tiny_classifier))
    ranking = scorer.sensitivity(texts, context)
    assert max(ranking, key=ranking.get) == victim
    assert all(value >= -1e-9 for value in ranking.values())  # a KL divergence
    assert all(torch.equal(tensor, reference[name]) for name, tensor in model.state_dict().items())
    assert not model.get_submodule(victim)._forward_pre_hooks


def test_pruned_heads_and_uneven_feed_forward_widths_load_from_int8(
    tiny_classifier, tiny_data, context, tmp_path
):
    model = loading.load_classifier(tiny_classifier)
    model.prune_heads({0: [0], 2: [1, 2]})
    widths = [64, 48, 16, 64]
    for layer, width in zip(encoder_layers(model), widths, strict=True):
        resize_ffn(layer, architecture_of(model), torch.arange(width))
    model.config.intermediate_sizes = widths
    loading.save_model(model, tmp_path / "pruned")
    loading.save_tokenizer(loading.load_tokenizer(tiny_classifier), tmp_path / "pruned")
    folder, _ = quantise(tmp_path / "pruned", tiny_data, context)
    loaded = loading.load_classifier(folder)
    for name, tensor in dequantized_state(folder).items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert loaded.bert.encoder.layer[2].attention.self.query.weight.shape == (16, 32)
    load_simulated(folder)(input_ids=torch.tensor([[2, 5, 6, 3]]))


def test_the_same_input_gives_the_same_bytes(made, tiny_classifier, tiny_data, context):
    first, (second, _) = made[0], quantise(tiny_classifier, tiny_data, context)
    assert sorted(p.name for p in first.iterdir()) == sorted(p.name for p in second.iterdir())
    assert all((second / p.name).read_bytes() == p.read_bytes() for p in first.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "quantization.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "quantization.json").write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
        (lambda f: (f / "quantization.json").write_text("[]"), "is not a JSON object, but"),
        (lambda f: rewrite(f, format_version=99), "format_version is 99"),
        (lambda f: rewrite(f, scheme="int5"), "scheme is 'int5'"),
        (lambda f: rewrite(f, activations="static"), "activations is 'static'"),
        (lambda f: rewrite(f, layers=["x"]), "not an object of objects"),
        (lambda f: rewrite(f, layers={}), "does not describe bert"),
        (
            lambda f: rewrite(f, layers={"ghost": {"kind": "linear", "bits": 8, "shape": [1, 1]}}),
            "no codes or no scales of layer ghost",
        ),
        (
            lambda f: rewrite(f, layers={n: {**v, "bits": 4} for n, v in description(f)["layers"].items()}),
            "4 bits is not supported",
        ),
        (
            lambda f: rewrite(
                f, layers={n: {**v, "shape": [1, 2]} for n, v in description(f)["layers"].items()}
            ),
            "do not match quantization.json",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 40), "cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "is missing"),
    ],
)
def test_a_damaged_folder_is_refused_with_what_is_wrong(int8, damage, message):
    damage(int8)
    readers = (dequantized_state, load_simulated, packed_layers)
    for read in (*readers, loading.load_classifier):
        with pytest.raises(SourceError, match=message):
            read(int8)


def test_float_weights_under_an_int8_description_are_refused(int8, tiny_classifier, tmp_path):
    shutil.copytree(int8, tmp_path / "mixed")
    state = load_file(int8 / "model.safetensors")
    state["bert.pooler.dense.weight"] = state["bert.pooler.dense.weight"].float()
    save_file(state, tmp_path / "mixed" / "model.safetensors")
    with pytest.raises(SourceError, match=r"bert\.pooler\.dense: codes torch\.float32"):
        dequantized_state(tmp_path / "mixed")


WORDS = "bert.embeddings.word_embeddings"


@pytest.fixture(scope="module")
def blocks(tiny_classifier, tiny_data, tmp_path_factory):
    """The same model with its word pieces in 4-bit blocks."""
    folder = tmp_path_factory.mktemp("int8-q4")
    context = StageContext(folder, folder / "work", LogReporter(), seed=0, threads=2)
    return quantise(tiny_classifier, tiny_data, context, embeddings="q4", max_accuracy_drop=None)[0]


def test_four_bit_word_pieces_are_stored_two_a_byte_and_read_back_exactly(blocks, int8, tiny_classifier):
    state, told = load_file(blocks / "model.safetensors"), description(blocks)["layers"][WORDS]
    original = load_file(tiny_classifier / "model.safetensors")[f"{WORDS}.weight"]
    packed, scales = state[f"{WORDS}.weight"], state[f"{WORDS}.weight_scale"]
    rows, width = original.shape
    assert (packed.dtype, list(packed.shape)) == (torch.uint8, [rows, width // 2])
    assert (scales.dtype, list(scales.shape)) == (torch.float16, [rows, width // 32])
    bits = 8 * (packed.numel() + scales.numel() * scales.element_size()) / original.numel()
    assert bits == 4.5
    codes = packing.unpack(packed.numpy(), 4, width).astype(np.int8) - 8
    expected = codes.reshape(rows, -1, 32) * scales.numpy().astype(np.float32)[:, :, None]
    weight = dequantized_state(blocks)[f"{WORDS}.weight"]
    assert np.array_equal(weight.numpy(), expected.reshape(rows, width))
    layer = packed_layers(blocks)[WORDS]
    assert (layer.bits, layer.block_size) == (4, 32)
    assert np.array_equal(layer.codes, codes)
    assert np.array_equal(layer.weight, weight.numpy())
    error = float((original - weight).norm() / original.norm())
    assert 0.02 < error < 0.1
    assert told["relative_error"] == pytest.approx(error, rel=1e-4)
    assert (told["bits"], told["block_size"], told["granularity"]) == (4, 32, "block of 32")
    other = load_file(int8 / "model.safetensors")  # nothing but that table is stored otherwise
    for name in set(state) - {f"{WORDS}.weight", f"{WORDS}.weight_scale"}:
        assert torch.equal(state[name], other[name])


def test_the_simulated_model_looks_its_words_up_in_the_four_bit_table(blocks, int8):
    model, weight = load_simulated(blocks), dequantized_state(blocks)[f"{WORDS}.weight"]
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, weight)
    ids = torch.tensor([[2, 9, 12, 3]])
    assert not torch.equal(model(input_ids=ids).logits, load_simulated(int8)(input_ids=ids).logits)


def test_embeddings_float_leaves_the_word_pieces_alone(tiny_classifier, tiny_data, context):
    folder, _ = quantise(tiny_classifier, tiny_data, context, embeddings="float", max_accuracy_drop=None)
    assert description(folder)["excluded"][WORDS] == "quantize.embeddings is float"
    state = load_file(folder / "model.safetensors")
    assert state[f"{WORDS}.weight"].dtype == torch.float32
    assert state["bert.embeddings.position_embeddings.weight"].dtype == torch.int8


def test_blocks_that_do_not_divide_the_width_are_refused_with_those_that_do(
    tiny_classifier, tiny_data, context
):
    with pytest.raises(QuantizationError, match=r"word_embeddings has 32 inputs.*use block_size 16 or 32"):
        quantise(tiny_classifier, tiny_data, context, embeddings="q4", block_size=64)


def test_blocks_without_four_bit_embeddings_are_refused_before_any_work():
    with pytest.raises(ValueError, match="only if embeddings is 'q4'"):
        QuantizeConfig(block_size=32)
    assert QuantizeConfig(embeddings="q4", block_size=16).scheme == "int8"


def test_a_four_bit_table_that_costs_too_much_gets_eight_bits_before_it_goes_back_to_float(
    tiny_classifier, tiny_data, context, monkeypatch, reporter
):
    class Scorer(fake_scores(monkeypatch, {WORDS: 1.0})):
        def logits(self, texts, layers):
            coarse = WORDS in layers and self.packed[WORDS][1].ndim == 2
            return self._labels(0.8 if coarse else 0.9, len(texts))

    Scorer.truth = sentences.load_split(tiny_data, "validation")["label"]
    monkeypatch.setattr(int8_scheme, "Scorer", Scorer)
    folder, figures = quantise(tiny_classifier, tiny_data, context, embeddings="q4", max_accuracy_drop=0.01)
    told = description(folder)
    assert figures["validation_accuracy_drop"] == pytest.approx(0)
    assert told["layers"][WORDS]["bits"] == 8
    assert list(told["widened"]) == [WORDS]
    assert set(told["excluded"]) == {"classifier"}
    assert any("8 bits instead of 4" in text for text in reporter.messages)
    model, weight = loading.load_classifier(folder), load_file(tiny_classifier / "model.safetensors")
    loaded = model.bert.embeddings.word_embeddings.weight
    assert (loaded - weight[f"{WORDS}.weight"]).norm() < 0.02 * loaded.norm()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_size": 16}, "do not match quantization.json"),
        ({"block_size": 0}, "4 bits is not supported"),
        ({"block_size": "32"}, "4 bits is not supported"),
        ({"block_size": 7}, "do not match quantization.json"),
        ({"shape": [1]}, "do not match quantization.json"),
        ({"shape": ["a", "b"]}, "do not match quantization.json"),
        ({"kind": "linear"}, "4 bits is not supported"),
        ({"bits": 8}, "do not match quantization.json"),
    ],
)
def test_a_damaged_description_of_a_four_bit_table_is_refused(blocks, tmp_path, fields, message):
    folder = shutil.copytree(blocks, tmp_path / "int8-q4")
    layers = description(folder)["layers"]
    rewrite(folder, layers={**layers, WORDS: {**layers[WORDS], **fields}})
    with pytest.raises(SourceError, match=message):
        load_simulated(folder)
