"""Export: the graph holds the checkpoint's own numbers, computes what it computes, and fails loudly where it
does not."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file

from pressoir.data import sentences
from pressoir.errors import ParityError
from pressoir.export import int8_graph
from pressoir.export.classifier import check_parity, fuse, parity_sentences, trace
from pressoir.export.graph import constants, split_skip_layer_norm
from pressoir.formats.int8_checkpoint import dequantized_state, packed_layers
from pressoir.formats.tensor_bytes import read_header
from pressoir.inference.engines.classifier import OnnxEngine, TorchEngine, open_engine
from pressoir.inference.engines.session import make_session
from pressoir.inference.text_classification import TextClassifier
from pressoir.models import loading
from pressoir.models.layouts import architecture_of, encoder_layers, resize_ffn
from pressoir.models.simulated_int8 import load_simulated
from pressoir.pruning import units
from pressoir.recipe.sections import ExportConfig, QuantizeConfig, ShardConfig
from pressoir.reporting import Silent
from pressoir.stage import StageContext
from pressoir.stages import export, quantize, shard
from pressoir.system.runtime import one_thread

LABELS = ["negative", "positive"]
WORDS = "bert.embeddings.word_embeddings"


def make_context(folder, reporter):
    for name in ("out", "work"):
        (folder / name).mkdir(parents=True)
    return StageContext(folder / "out", folder / "work", reporter, seed=0, threads=2)


def to_int8(model, tiny_data, folder, **config):
    context = make_context(folder, Silent())
    config = QuantizeConfig(**{"max_accuracy_drop": None, **config})
    quantize.run({"model": model, "data": tiny_data}, config, context)
    return context.out_dir


def to_onnx(model, tiny_data, folder, **config):
    context = make_context(folder, Silent())
    figures = export.run({"model": model, "data": tiny_data}, ExportConfig(**config), context)
    return context.out_dir, figures


@pytest.fixture(scope="module")
def classifier(tiny_classifier, tiny_data, tmp_path_factory):
    """The tiny classifier with a head that gives each label to half of the sentences, so that agreement means
    something."""
    folder = tmp_path_factory.mktemp("classifier")
    model, tokenizer = loading.load_classifier(tiny_classifier), loading.load_tokenizer(tiny_classifier)
    model.classifier.weight.data *= 20
    texts = list(sentences.load_split(tiny_data, "validation")["text"])
    logits = TextClassifier(TorchEngine(model), tokenizer, LABELS).logits(texts)
    model.classifier.bias.data[0] += float(np.median(logits[:, 1] - logits[:, 0]))
    loading.save_model(model, folder)
    loading.save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def int8(classifier, tiny_data, tmp_path_factory):
    return to_int8(classifier, tiny_data, tmp_path_factory.mktemp("int8"))


@pytest.fixture(scope="module")
def int8_onnx(int8, tiny_data, tmp_path_factory):
    return to_onnx(int8, tiny_data, tmp_path_factory.mktemp("int8-onnx"))


@pytest.fixture(scope="module")
def float_onnx(classifier, tiny_data, tmp_path_factory):
    return to_onnx(classifier, tiny_data, tmp_path_factory.mktemp("float-onnx"))


def placements(folder):
    report = json.loads((folder / "export.json").read_text())
    return {
        name: int8_graph.Placement(p["codes"], p["scales"], p["columns"] and tuple(p["columns"]), p["bits"])
        for name, p in report["int8_layers"].items()
    }


def assert_holds_the_checkpoints_numbers(graph_folder, checkpoint):
    """Codes, scales and their products in model.onnx equal the safetensors' bit for bit, for every int8
    layer."""
    graph = onnx.load(graph_folder / "model.onnx")
    raw, state = load_file(checkpoint / "model.safetensors"), dequantized_state(checkpoint)
    integers = (torch.int8, torch.uint8)
    packed = {name.removesuffix(".weight") for name, tensor in raw.items() if tensor.dtype in integers}
    where = placements(graph_folder)
    assert set(where) == packed
    for name in packed:
        codes, scales = int8_graph.read_placement(graph, where[name])
        assert codes.dtype == np.int8
        stored = constants(graph)[where[name].codes] if where[name].bits == 4 else None
        bytes_of_codes = codes.tobytes() if stored is None else numpy_helper.to_array(stored).tobytes()
        assert bytes_of_codes == raw[f"{name}.weight"].numpy().tobytes()
        assert scales.tobytes() == raw[f"{name}.weight_scale"].numpy().tobytes()
        blocks = codes.reshape(len(codes), scales.size // len(codes), -1).astype(np.float32)
        product = blocks * scales.reshape(*blocks.shape[:2], 1).astype(np.float32)
        assert product.tobytes() == state[f"{name}.weight"].numpy().tobytes()
    # Nothing of it is there a second time in float32.
    floats = {numpy_helper.to_array(t).tobytes() for t in constants(graph).values() if t.data_type == 1}
    for name in packed:
        weight = state[f"{name}.weight"].numpy()
        assert not {weight.tobytes(), weight.T.tobytes()} & floats


def test_the_graph_holds_the_checkpoints_codes_and_scales_bit_for_bit(int8_onnx, int8):
    assert_holds_the_checkpoints_numbers(int8_onnx[0], int8)


def test_the_int8_graph_is_fused_and_uses_integer_kernels(int8_onnx):
    operators = json.loads((int8_onnx[0] / "export.json").read_text())["operators"]
    assert operators["QAttention"] == 4
    assert operators["DynamicQuantizeMatMul"] == 4 * 3 + 1  # attention output, two feed-forward; the pooler
    assert operators["BiasGelu"] == 4
    assert operators["LayerNormalization"] == 9
    assert "SkipLayerNormalization" not in operators
    assert "MatMul" not in operators
    assert operators["Gemm"] == 1  # the classifier, excluded


def test_the_folder_is_complete_and_opens_as_an_engine(int8_onnx, int8, tiny_data):
    folder, figures = int8_onnx
    names = {path.name for path in folder.iterdir()}
    assert {"model.onnx", "config.json", "tokenizer.json", "quantization.json", "export.json"} <= names
    assert not any(name.endswith((".data", ".safetensors")) for name in names)
    for name in ("config.json", "quantization.json"):
        assert (folder / name).read_bytes() == (int8 / name).read_bytes()
    report = json.loads((folder / "export.json").read_text())
    assert report["graph_bytes"] == (folder / "model.onnx").stat().st_size == figures["graph_mb"] * 1e6
    assert report["opset"] == 17
    assert report["parity"] == {name: figures[name] for name in report["parity"]}
    assert figures["parity_samples"] == 256
    engine = open_engine(folder, threads=1)
    assert engine.runtime == "onnxruntime"
    assert not engine.batch_invariant
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)


def test_int8_agrees_with_the_simulated_model_far_better_than_with_the_float_one(
    int8_onnx, int8, classifier, tiny_data
):
    folder, figures = int8_onnx
    texts = list(sentences.load_split(tiny_data, "validation")["text"])
    tokenizer = loading.load_tokenizer(int8)

    def logits(engine):
        with one_thread():
            return TextClassifier(engine, tokenizer, LABELS).logits(texts)

    graph, simulated = (
        logits(open_engine(folder, 1)),
        logits(TorchEngine(load_simulated(int8), False)),
    )
    plain = logits(TorchEngine(loading.load_classifier(classifier)))
    assert 0 < np.mean(plain.argmax(axis=1)) < 1  # both labels occur
    assert np.abs(graph - simulated).max() <= figures["max_logit_difference"] + 1e-6
    assert np.abs(graph - simulated).mean() < 0.2 * np.abs(graph - plain).mean()
    assert figures["label_agreement"] >= 0.97


def test_float32_agrees_within_a_millionth_with_padding_on_either_side(float_onnx, classifier, tiny_data):
    folder, figures = float_onnx
    assert figures["max_logit_difference"] < 1e-5
    assert figures["label_agreement"] == 1
    assert json.loads((folder / "export.json").read_text())["operators"]["Attention"] == 4
    assert not (folder / "quantization.json").exists()
    texts = list(sentences.load_split(tiny_data, "validation")["text"])[:20]
    for side in ("right", "left"):
        tokenizer = loading.load_tokenizer(classifier)
        tokenizer.padding_side = side
        expected = TextClassifier(TorchEngine(loading.load_classifier(classifier)), tokenizer, LABELS)
        actual = TextClassifier(open_engine(folder, 1), tokenizer, LABELS)
        assert np.abs(actual.logits(texts) - expected.logits(texts)).max() < 1e-5


def test_a_large_table_stays_int8_and_is_looked_up_row_by_row(int8, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(int8_graph, "EXPANDED_TABLE_ELEMENTS", 0)
    folder, figures = to_onnx(int8, tiny_data, tmp_path / "onnx")
    assert_holds_the_checkpoints_numbers(folder, int8)
    graph = onnx.load(folder / "model.onnx")
    gathered = {node.input[0] for node in graph.graph.node if node.op_type == "Gather"}
    assert "bert.embeddings.word_embeddings.weight_codes" in gathered
    assert figures["label_agreement"] >= 0.97


@pytest.fixture(scope="module")
def blocks(classifier, tiny_data, tmp_path_factory):
    return to_int8(classifier, tiny_data, tmp_path_factory.mktemp("int8-q4"), embeddings="q4")


@pytest.fixture(scope="module")
def blocks_onnx(blocks, tiny_data, tmp_path_factory):
    return to_onnx(blocks, tiny_data, tmp_path_factory.mktemp("int8-q4-onnx"))


def test_a_four_bit_table_is_looked_up_by_gather_block_quantized_and_has_four_and_a_half_bits(
    blocks_onnx, blocks
):
    folder, figures = blocks_onnx
    assert_holds_the_checkpoints_numbers(folder, blocks)
    graph = onnx.load(folder / "model.onnx")
    (node,) = [node for node in graph.graph.node if node.op_type == "GatherBlockQuantized"]
    settings = {a.name: a.i for a in node.attribute}
    assert node.domain == "com.microsoft"
    assert (settings["bits"], settings["block_size"]) == (4, 32)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    table, scales = tensors[node.input[0]], tensors[f"{WORDS}.weight_scale"]
    rows, width = dequantized_state(blocks)[f"{WORDS}.weight"].shape
    assert (table.dtype, table.shape) == (np.uint8, (rows, width // 2))
    assert 8 * (table.nbytes + scales.nbytes) / (rows * width) <= 4.6
    assert figures["label_agreement"] >= 0.97
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)


def test_a_four_bit_table_gives_the_graph_the_simulated_models_rows_bit_for_bit(
    blocks_onnx, blocks, tmp_path
):
    graph = onnx.load(blocks_onnx[0] / "model.onnx")
    (node,) = [node for node in graph.graph.node if node.op_type == "GatherBlockQuantized"]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], 1, None))
    table = load_simulated(blocks).bert.embeddings.word_embeddings.weight.detach().numpy()
    onnx.save(graph, tmp_path / "model.onnx")
    session = make_session(tmp_path / "model.onnx", 1)
    ids = np.arange(len(table))[None]
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    (rows,) = session.run([node.output[0]], feed)
    assert np.array_equal(rows[0], table)


def test_four_bits_depart_from_int8_and_the_graph_follows_its_own_checkpoint(
    blocks_onnx, blocks, int8, tiny_data
):
    texts = list(sentences.load_split(tiny_data, "validation")["text"])
    tokenizer = loading.load_tokenizer(blocks)

    def logits(engine):
        with one_thread():
            return TextClassifier(engine, tokenizer, LABELS).logits(texts)

    graph = logits(open_engine(blocks_onnx[0], 1))
    own, other = (logits(TorchEngine(load_simulated(f), False)) for f in (blocks, int8))
    assert np.abs(graph - own).mean() < 0.1 * np.abs(graph - other).mean()


@pytest.mark.parametrize("options", [{"opset": 14}, {"opset": 20}, {"fuse": False}])
def test_a_four_bit_table_survives_other_opsets_and_no_fusion(blocks, tiny_data, tmp_path, options):
    folder, _ = to_onnx(blocks, tiny_data, tmp_path / "onnx", **options)
    assert_holds_the_checkpoints_numbers(folder, blocks)


def nudged(layer, what):
    """A packed layer with one code, or one scale, moved by the least there is."""
    codes, scales = layer.codes.copy(), layer.scales.copy()
    if what == "code":
        codes[3, 5] += 1 if codes[3, 5] < 0 else -1
    else:
        scales[7] = np.nextafter(scales[7], scales.dtype.type(1))
    return replace(layer, codes=codes, scales=scales)


@pytest.mark.parametrize("nudge", ["code", "scale"])
def test_lowering_refuses_a_four_bit_table_that_differs_in_one_number(blocks, tmp_path, nudge):
    graph = fuse(trace(loading.load_classifier(blocks), ExportConfig(), tmp_path), tmp_path)
    layers = packed_layers(blocks)
    layers[WORDS] = nudged(layers[WORDS], nudge)
    with pytest.raises(ParityError, match=r"weights of bert\.embeddings\.word_embeddings:"):
        int8_graph.lower_to_int8(graph, layers)


def test_shards_of_a_four_bit_table_answer_as_the_whole_graph_does(blocks_onnx, tiny_data, tmp_path):
    context = make_context(tmp_path, Silent())
    shard.run({"model": blocks_onnx[0]}, ShardConfig(shards=2), context)
    first = read_header(context.out_dir / "shard_00.safetensors")
    assert {(f"{WORDS}.weight_codes", "U8"), (f"{WORDS}.weight_scale", "F16")} <= {
        (tensor.name, tensor.dtype) for tensor in first
    }
    texts = list(sentences.load_split(tiny_data, "validation")["text"])[:20]
    whole, parts = (
        TextClassifier(open_engine(f, 1), loading.load_tokenizer(f), LABELS).logits(texts)
        for f in (blocks_onnx[0], context.out_dir)
    )
    assert np.array_equal(whole, parts)


def test_a_layer_that_exclusion_split_still_runs_its_other_projections_in_int8(
    classifier, tiny_data, tmp_path
):
    query = "bert.encoder.layer.1.attention.self.query"
    exclude = ("classifier", query, "bert.encoder.layer.3")
    mixed = to_int8(classifier, tiny_data, tmp_path / "int8", exclude=exclude)
    folder, figures = to_onnx(mixed, tiny_data, tmp_path / "onnx")
    operators = json.loads((folder / "export.json").read_text())["operators"]
    assert (operators["QAttention"], operators["MultiHeadAttention"], operators["Attention"]) == (2, 1, 1)
    assert operators["MatMulIntegerToFloat"] == 2  # key and value share one quantised input
    assert_holds_the_checkpoints_numbers(folder, mixed)
    assert figures["max_logit_difference"] < 0.01


@pytest.mark.parametrize("opset", [14, 20])
def test_other_opsets_hold_the_same_numbers(int8, tiny_data, tmp_path, opset):
    folder, figures = to_onnx(int8, tiny_data, tmp_path / "onnx", opset=opset)
    assert {e.domain: e.version for e in onnx.load(folder / "model.onnx").opset_import}[""] == opset
    assert_holds_the_checkpoints_numbers(folder, int8)
    assert figures["label_agreement"] >= 0.97


def test_without_fusion_the_plain_products_are_lowered_all_the_same(int8, tiny_data, tmp_path):
    folder, _ = to_onnx(int8, tiny_data, tmp_path / "onnx", fuse=False)
    operators = json.loads((folder / "export.json").read_text())["operators"]
    assert "QAttention" not in operators
    assert operators["MatMulIntegerToFloat"] == 4 * 3  # query, key and value of each layer share their input
    assert operators["DynamicQuantizeMatMul"] == 4 * 3 + 1
    assert operators["DynamicQuantizeLinear"] == 4
    assert_holds_the_checkpoints_numbers(folder, int8)


def pruned(folder, source, heads, widths):
    model = loading.load_classifier(source)
    model.prune_heads(heads)
    for layer, width in zip(encoder_layers(model), widths, strict=True):
        resize_ffn(layer, architecture_of(model), torch.arange(width))
    model.config.intermediate_sizes = widths
    loading.save_model(model, folder)
    loading.save_tokenizer(loading.load_tokenizer(source), folder)
    return folder


@pytest.mark.parametrize(
    "heads", [{0: [0], 1: [1], 2: [2], 3: [3]}, {0: [0, 1, 2], 2: [1]}], ids=["uniform", "uneven"]
)
def test_pruned_models_export_in_float32_and_int8(heads, classifier, tiny_data, tmp_path):
    source = pruned(tmp_path / "model", classifier, heads, [64, 48, 16, 40])
    _, figures = to_onnx(source, tiny_data, tmp_path / "float")
    assert figures["max_logit_difference"] < 1e-5
    small = to_int8(source, tiny_data, tmp_path / "int8")
    folder, figures = to_onnx(small, tiny_data, tmp_path / "onnx")
    assert_holds_the_checkpoints_numbers(folder, small)
    assert json.loads((folder / "export.json").read_text())["operators"]["QAttention"] == 4
    assert figures["label_agreement"] >= 0.97


def other_architecture(kind, folder, tokenizer):
    import transformers

    sizes = {"vocab_size": len(tokenizer), "id2label": {0: "negative", 1: "positive"}}
    if kind == "distilbert":
        config = transformers.DistilBertConfig(
            dim=32, hidden_dim=64, n_heads=4, n_layers=2, max_position_embeddings=64, **sizes
        )
    else:
        config = transformers.RobertaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_attention_heads=4,
            num_hidden_layers=2,
            max_position_embeddings=66,
            type_vocab_size=1,
            pad_token_id=0,
            **sizes,
        )
    torch.manual_seed(0)
    loading.save_model(loading.new_classifier(config), folder)
    loading.save_tokenizer(tokenizer, folder)
    return folder


@pytest.mark.parametrize("kind", ["distilbert", "roberta"])
def test_other_architectures_export_in_float32_and_int8(kind, classifier, tiny_data, tmp_path):
    source = other_architecture(kind, tmp_path / kind, loading.load_tokenizer(classifier))
    _, figures = to_onnx(source, tiny_data, tmp_path / "float")
    assert figures["max_logit_difference"] < 1e-5
    small = to_int8(source, tiny_data, tmp_path / "int8")
    folder, figures = to_onnx(small, tiny_data, tmp_path / "onnx")
    assert_holds_the_checkpoints_numbers(folder, small)
    assert figures["label_agreement"] >= 0.97


def int8_products(folder):
    """How many products by weights a graph has in int8; none may be left in float32 but those of the head."""
    graph = onnx.load(folder / "model.onnx")
    matrices = {tensor.name for tensor in graph.graph.initializer if len(tensor.dims) == 2}
    left = [n for n in graph.graph.node if n.op_type in ("MatMul", "Gemm") and matrices & {*n.input[1:2]}]
    assert all("classifier" in node.name for node in left)
    count = Counter(node.op_type for node in graph.graph.node)
    return count["DynamicQuantizeMatMul"] + count["MatMulIntegerToFloat"] + 3 * count["QAttention"]


# Products of four layers, and those before and behind them that are not the head's.
PRODUCTS = {"albert": 24 + 2, "big_bird": 24, "deberta-v2": 24 + 1, "esm": 24}
PRODUCTS |= {"mobilebert": 44 + 2, "modernbert": 16 + 1, "mpnet": 24}


@pytest.mark.parametrize("kind", PRODUCTS)
def test_encoders_of_other_kinds_export_in_float32_and_int8(kind, tiny_encoder, tiny_data, tmp_path):
    source = tiny_encoder(kind)
    texts = list(sentences.load_split(tiny_data, "test")["text"])[:9]
    float_folder, figures = to_onnx(source, tiny_data, tmp_path / "float")
    assert figures["max_logit_difference"] < 1e-5
    small = to_int8(source, tiny_data, tmp_path / "int8")
    folder, figures = to_onnx(small, tiny_data, tmp_path / "onnx")
    assert_holds_the_checkpoints_numbers(folder, small)
    assert figures["label_agreement"] >= 0.97
    assert int8_products(folder) == PRODUCTS[kind]
    for graph, checkpoint, tolerance in ((float_folder, source, 1e-5), (folder, small, 0.05)):
        answers = [TextClassifier.open(of, 1).predict(texts) for of in (graph, checkpoint)]
        for actual, expected in zip(*answers, strict=True):
            assert actual == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("kind", ["albert", "deberta-v2"])
def test_encoders_of_other_kinds_export_pruned(kind, tiny_encoder, tiny_data, tmp_path):
    source = tiny_encoder(kind)
    model = loading.load_classifier(source)
    present = units.units(model)
    heads = ((0, 2, 3),) if kind == "albert" else tuple(tuple(range(count)) for count in present.heads)
    neurons = tuple(tuple(range(16 + 16 * index)) for index in range(len(present.neurons)))
    units.remove(model, units.PruningPlan(heads=heads, neurons=neurons))
    loading.save_model(model, tmp_path / "pruned")
    loading.save_tokenizer(loading.load_tokenizer(source), tmp_path / "pruned")
    _, figures = to_onnx(tmp_path / "pruned", tiny_data, tmp_path / "float")
    assert figures["max_logit_difference"] < 1e-5
    small = to_int8(tmp_path / "pruned", tiny_data, tmp_path / "int8")
    folder, figures = to_onnx(small, tiny_data, tmp_path / "onnx")
    assert figures["label_agreement"] >= 0.97
    assert int8_products(folder) == PRODUCTS[kind]


@pytest.mark.parametrize("fused", [True, False])
def test_weights_that_layers_share_are_stored_once(fused, tiny_encoder, tiny_data, tmp_path):
    source = tiny_encoder("albert")
    small = to_int8(source, tiny_data, tmp_path / "int8")
    for checkpoint, name in ((source, "float"), (small, "onnx")):
        folder, _ = to_onnx(checkpoint, tiny_data, tmp_path / name, fuse=fused)
        tensors = onnx.load(folder / "model.onnx").graph.initializer
        matrices = [numpy_helper.to_array(tensor).tobytes() for tensor in tensors if len(tensor.dims) == 2]
        assert len(set(matrices)) == len(matrices)
    assert int8_products(folder) == PRODUCTS["albert"]
    assert_holds_the_checkpoints_numbers(folder, small)


def test_projections_of_relative_positions_are_computed_when_the_graph_is_loaded(
    tiny_encoder, tiny_data, tmp_path
):
    small = to_int8(tiny_encoder("deberta-v2"), tiny_data, tmp_path / "int8")
    folder, _ = to_onnx(small, tiny_data, tmp_path / "onnx")
    assert "deberta.encoder.rel_embeddings" not in placements(folder)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    stored, loaded = (onnx.load(path).graph for path in (folder / "model.onnx", tmp_path / "loaded.onnx"))
    for graph, projections in ((stored, 4 * 2), (loaded, 0)):
        constant = {tensor.name for tensor in graph.initializer}
        for node in graph.node:
            if all(value in constant for value in node.input if value):
                constant.update(node.output)
        products = [node for node in graph.node if node.op_type == "MatMul" and node.output[0] in constant]
        assert len(products) == projections


def test_functions_that_transformers_compiles_are_themselves_again_after_a_trace(tiny_encoder, tmp_path):
    from transformers.models.deberta_v2 import modeling_deberta_v2

    before = modeling_deberta_v2.build_rpos
    graph = trace(loading.load_classifier(tiny_encoder("deberta-v2")), ExportConfig(), tmp_path)
    assert modeling_deberta_v2.build_rpos is before
    assert not [node for node in graph.graph.node if node.op_type == "If"]


def corrupt(graph_path, contains, change):
    """Apply `change` to the one initializer whose name contains `contains`."""
    graph = onnx.load(graph_path)
    (tensor,) = [t for t in graph.graph.initializer if contains in t.name]
    array = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(graph, graph_path)


def parity(folder, checkpoint, tiny_data, quantised, **config):
    model = load_simulated(checkpoint) if quantised else loading.load_classifier(checkpoint)
    texts = list(sentences.load_split(tiny_data, "validation")["text"])
    return check_parity(
        folder / "model.onnx",
        model,
        loading.load_tokenizer(checkpoint),
        texts,
        ExportConfig(**config),
        quantised,
        1,
    )


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_float_graph_with_one_wrong_weight_is_refused_and_the_layer_named(
    layer, float_onnx, classifier, tiny_data, tmp_path
):
    (tmp_path / "model.onnx").write_bytes((float_onnx[0] / "model.onnx").read_bytes())
    parity(tmp_path, classifier, tiny_data, quantised=False)
    node = next(
        node
        for node in onnx.load(tmp_path / "model.onnx").graph.node
        if node.op_type == "MatMul" and f"layer.{layer}/output/dense" in node.name
    )
    corrupt(tmp_path / "model.onnx", node.input[1], lambda w: w * -100)
    place = rf"first layer that differs is bert\.encoder\.layer\.{layer}\.output\.LayerNorm"
    with pytest.raises(ParityError, match=place):
        parity(tmp_path, classifier, tiny_data, quantised=False)


def test_an_int8_graph_with_wrong_scales_is_refused_and_the_layer_named(int8_onnx, int8, tiny_data, tmp_path):
    (tmp_path / "model.onnx").write_bytes((int8_onnx[0] / "model.onnx").read_bytes())
    parity(
        tmp_path, int8, tiny_data, quantised=True, min_label_agreement=0.95
    )  # of 80, random: some near ties
    corrupt(tmp_path / "model.onnx", "layer.2.attention.self.qkv.weight_scale", lambda s: s * -1000)
    place = r"first layer that differs is bert\.encoder\.layer\.2\.attention\.output\.LayerNorm"
    with pytest.raises(ParityError, match=place):
        parity(tmp_path, int8, tiny_data, quantised=True)


def test_a_wrong_head_is_told_apart_from_a_wrong_layer(float_onnx, classifier, tiny_data, tmp_path):
    (tmp_path / "model.onnx").write_bytes((float_onnx[0] / "model.onnx").read_bytes())
    corrupt(tmp_path / "model.onnx", "classifier.weight", lambda w: w + 1)
    with pytest.raises(ParityError, match=r"All 9 LayerNorm outputs agree .* the head after the last one"):
        parity(tmp_path, classifier, tiny_data, quantised=False)


def test_a_graph_that_gives_nan_never_passes(float_onnx, int8_onnx, int8, classifier, tiny_data, tmp_path):
    for source, checkpoint, quantised in ((float_onnx, classifier, False), (int8_onnx, int8, True)):
        (tmp_path / "model.onnx").write_bytes((source[0] / "model.onnx").read_bytes())
        corrupt(tmp_path / "model.onnx", "classifier.bias", lambda b: np.full_like(b, math.nan))
        with pytest.raises(ParityError):
            parity(tmp_path, checkpoint, tiny_data, quantised, min_label_agreement=0.0)


@pytest.mark.parametrize("nudge", ["code", "scale"])
def test_lowering_refuses_a_layer_whose_weight_differs_in_one_bit(int8, tiny_data, tmp_path, nudge):
    graph = fuse(trace(loading.load_classifier(int8), ExportConfig(), tmp_path), tmp_path)
    layers = packed_layers(int8)
    victim = "bert.encoder.layer.1.attention.self.key"
    layers[victim] = nudged(layers[victim], nudge)
    with pytest.raises(ParityError, match=r"weights of bert\.encoder\.layer\.1\.attention\.self\.key:"):
        int8_graph.lower_to_int8(graph, layers)


def test_two_layers_with_equal_weights_both_find_their_place(classifier, tiny_data, tmp_path):
    model = loading.load_classifier(classifier)
    first, second = (layer.output.dense for layer in list(encoder_layers(model))[:2])
    second.weight.data.copy_(first.weight)
    loading.save_model(model, tmp_path / "model")
    loading.save_tokenizer(loading.load_tokenizer(classifier), tmp_path / "model")
    small = to_int8(tmp_path / "model", tiny_data, tmp_path / "int8")
    folder, figures = to_onnx(small, tiny_data, tmp_path / "onnx")
    assert_holds_the_checkpoints_numbers(folder, small)
    assert figures["label_agreement"] >= 0.97


def test_parity_takes_validation_then_train_and_never_test(tiny_data):
    splits = {s: list(sentences.load_split(tiny_data, s)["text"]) for s in ("train", "validation", "test")}
    assert parity_sentences(tiny_data, 70) == splits["validation"][:70]
    many = parity_sentences(tiny_data, 300)
    assert many == [*splits["validation"], *splits["train"][:220]]
    everything = parity_sentences(tiny_data, 10_000)
    assert len(everything) == len(splits["validation"]) + len(splits["train"])
    assert not set(everything) & set(splits["test"])


def test_too_few_sentences_are_all_used_and_the_count_is_told(classifier, tiny_data, tmp_path, reporter):
    context = make_context(tmp_path, reporter)
    inputs = {"model": classifier, "data": tiny_data}
    figures = export.run(inputs, ExportConfig(parity_samples=1000), context)
    assert figures["parity_samples"] == 480
    assert any("only 480 sentences" in text for text in reporter.messages)
    assert not list(context.work_dir.iterdir())


def test_the_same_checkpoint_gives_the_same_graph(int8_onnx, int8, tiny_data, tmp_path):
    again, _ = to_onnx(int8, tiny_data, tmp_path / "again")
    assert (again / "model.onnx").read_bytes() == (int8_onnx[0] / "model.onnx").read_bytes()


def test_splitting_skip_layer_norm_changes_no_result_beyond_rounding(tmp_path):
    shape, rng = [2, 5, 16], np.random.default_rng(0)
    info = [onnx.helper.make_tensor_value_info(n, 1, shape) for n in ("x", "skip", "logits")]
    tensors = [
        numpy_helper.from_array(rng.normal(size=16).astype(np.float32), name)
        for name in ("gamma", "beta", "bias")
    ]
    node = onnx.helper.make_node(
        "SkipLayerNormalization",
        ["x", "skip", "gamma", "beta", "bias"],
        ["logits"],
        domain="com.microsoft",
        epsilon=1e-5,
    )
    graph = onnx.helper.make_graph([node], "g", info[:2], info[2:], tensors)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    feed = {name: rng.normal(size=shape).astype(np.float32) for name in ("x", "skip")}
    results = []
    for name in ("before", "after"):
        onnx.save(model, tmp_path / f"{name}.onnx")
        results.append(OnnxEngine(tmp_path / f"{name}.onnx", 1).run(feed))
        split_skip_layer_norm(model)
    assert [node.op_type for node in model.graph.node] == ["Sum", "LayerNormalization"]
    assert np.allclose(*results, atol=1e-6)
