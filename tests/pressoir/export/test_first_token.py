"""The choice of the token that is read moves up to the last attention, only where that changes nothing."""

import json
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pressoir.data import sentences
from pressoir.export import first_token
from pressoir.export.classifier import check_graph, fuse, trace
from pressoir.export.graph import remove_unused
from pressoir.inference.engines.classifier import OnnxEngine, TorchEngine, open_engine
from pressoir.inference.text_classification import TextClassifier
from pressoir.models import loading
from pressoir.recipe.sections import ExportConfig, QuantizeConfig
from pressoir.reporting import Silent
from pressoir.stage import StageContext
from pressoir.stages import export, quantize

HIDDEN, TOKENS = 8, 6
SIZES = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 40, "max_position_embeddings": 34}


def bert(seed, layers, heads=4, act="gelu"):
    from transformers import BertConfig

    return seed, BertConfig(**SIZES, num_hidden_layers=layers, num_attention_heads=heads, hidden_act=act)


def roberta():
    from transformers import RobertaConfig

    return 3, RobertaConfig(**SIZES, num_hidden_layers=2, num_attention_heads=4, pad_token_id=1)


def distilbert():
    from transformers import DistilBertConfig

    return 4, DistilBertConfig(
        dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=40, max_position_embeddings=34
    )


def random_classifier(seed, config):
    torch.manual_seed(seed)
    config.num_labels = 3
    model = loading.new_classifier(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def batch(model, seed):
    """Sentences of 9, 5 and 2 tokens, padded on the right."""
    rng, pad = np.random.default_rng(seed), model.config.pad_token_id or 0
    ids = rng.integers(5, 40, (3, 9))
    mask = (np.arange(9) < np.array([[9], [5], [2]])).astype(np.int64)
    return {
        "input_ids": np.where(mask, ids, pad),
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(ids),
    }


def fused(model, tmp_path, monkeypatch):
    """The fused graph without and with the choice moved, and the number of nodes it passed."""
    move, passed = first_token.choose_early, []
    graph = trace(model, ExportConfig(), tmp_path)
    monkeypatch.setattr(first_token, "choose_early", lambda graph: 0)
    late = fuse(graph, tmp_path)
    monkeypatch.setattr(first_token, "choose_early", lambda graph: passed.append(move(graph)))
    early = fuse(graph, tmp_path)
    monkeypatch.setattr(first_token, "choose_early", move)
    for each in (late, early):
        remove_unused(each)
    return late, early, passed[0]


def run(graph, inputs, tmp_path):
    onnx.save(graph, tmp_path / "model.onnx")
    return OnnxEngine(tmp_path / "model.onnx", 1).run(inputs)


# Of a BERT-like layer pass: the attention's projection, its sum and normalisation, the two products with
# activation, sum and normalisation; one Sum holds both residual and bias.
PASSED = 8


@pytest.mark.parametrize(
    "make",
    [
        lambda: bert(0, 1),
        lambda: bert(1, 2, heads=2),
        lambda: bert(2, 3, act="relu"),
        lambda: bert(5, 2, act="gelu_new"),
        roberta,
        distilbert,
    ],
    ids=["one layer", "two heads", "relu", "gelu_new", "roberta", "distilbert"],
)
def test_the_logits_are_those_of_the_late_choice_and_of_pytorch(make, tmp_path, monkeypatch):
    seed, config = make()
    model = random_classifier(seed, config)
    late, early, passed = fused(model, tmp_path, monkeypatch)
    assert passed >= PASSED
    check_graph(early)
    inputs = batch(model, seed)
    expected = TorchEngine(model).run(inputs)
    assert np.ptp(expected[:, 0]) > 0.1  # the sentences differ
    for graph in (late, early):
        assert np.abs(run(graph, inputs, tmp_path) - expected).max() < 2e-5


def test_the_early_choice_adds_one_gather_and_removes_no_operator(tmp_path, monkeypatch):
    late, early, passed = fused(random_classifier(*bert(0, 2)), tmp_path, monkeypatch)
    counts = [Counter(node.op_type for node in graph.graph.node) for graph in (late, early)]
    assert counts[1] - counts[0] == {"Gather": 1}  # of the context and of the residual, where one was
    assert not counts[0] - counts[1]
    assert passed == PASSED
    values = onnx.shape_inference.infer_shapes(early).graph.value_info
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    assert all(ranks.get(f"{value}_chosen", 2) == 2 for value in ranks)
    (context,) = (n for n in early.graph.node if n.op_type == "Gather" and "Reshape" in n.input[0])
    readers = [node.op_type for node in early.graph.node if context.output[0] in node.input]
    assert readers == ["MatMul"]  # the projection reads the one token


def test_a_choice_that_was_moved_is_not_moved_again(tmp_path, monkeypatch):
    _, early, _ = fused(random_classifier(*bert(0, 2)), tmp_path, monkeypatch)
    before = early.SerializeToString()
    assert first_token.choose_early(early) == 0
    assert early.SerializeToString() == before


def small(nodes, *tensors, outputs=("y",)):
    """A graph of x (batch, tokens, hidden); `index` is token 0."""
    given = {"index": np.array(0), "w": np.eye(HIDDEN, dtype=np.float32), "b": np.ones(HIDDEN, np.float32)}
    given |= dict(tensors)
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **settings) for op, ins, outs, settings in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", TOKENS, HIDDEN])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in given.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def choose(source, index="index"):
    return ("Gather", [source, index], ["y"], {"axis": 1})


def outputs(model):
    from onnx.reference import ReferenceEvaluator

    x = np.random.default_rng(0).normal(size=(2, TOKENS, HIDDEN)).astype(np.float32)
    return ReferenceEvaluator(model).run(None, {"x": x})


def test_what_treats_tokens_alone_is_passed_and_gives_the_same():
    model = small(
        [
            ("MatMul", ["x", "w"], ["p"], {}),
            ("Add", ["p", "b"], ["q"], {}),
            ("Add", ["q", "x"], ["r"], {}),
            ("Relu", ["r"], ["s"], {}),
            choose("s"),
        ]
    )
    before = outputs(model)
    assert first_token.choose_early(model) == 4
    assert [node.op_type for node in model.graph.node] == ["Gather", "MatMul", "Add", "Add", "Relu"]
    assert np.array_equal(outputs(model)[0], before[0])


left = ("left", np.random.default_rng(1).normal(size=(TOKENS, TOKENS)).astype(np.float32))
table = ("table", np.random.default_rng(1).normal(size=(TOKENS, HIDDEN)).astype(np.float32))
wide = ("wide", np.ones((1, 1, HIDDEN), np.float32))
one = ("one", np.array([0]))
norm = {"axis": 2}
STAY = {
    "mean pooling": small([("Relu", ["x"], ["p"], {}), ("ReduceMean", ["p"], ["y"], {"axes": [1]})]),
    "another reader": small(
        [("Relu", ["x"], ["p"], {}), choose("p"), ("ReduceMax", ["p"], ["z"], {"axes": [1]})],
        outputs=("y", "z"),
    ),
    "also an output": small([("Relu", ["x"], ["p"], {}), choose("p")], outputs=("y", "p")),
    "tokens mixed from the left": small([("MatMul", ["left", "x"], ["p"], {}), choose("p")], left),
    "a row for each token": small([("Add", ["x", "table"], ["p"], {}), choose("p")], table),
    "a constant of three axes": small([("Add", ["x", "wide"], ["p"], {}), choose("p")], wide),
    "an axis counted from the front": small(
        [("LayerNormalization", ["x", "b", "b"], ["p"], norm), choose("p")]
    ),
    "a list of tokens": small([("Relu", ["x"], ["p"], {}), choose("p", "one")], one),
    "another axis": small([("Relu", ["x"], ["p"], {}), ("Gather", ["p", "index"], ["y"], {"axis": 2})]),
}


@pytest.mark.parametrize("name", STAY)
def test_what_is_read_or_mixed_otherwise_stays_as_it_is(name):
    model = onnx.ModelProto.FromString(STAY[name].SerializeToString())
    before = outputs(model)
    first_token.choose_early(model)
    assert model.SerializeToString() == STAY[name].SerializeToString()
    assert all(np.array_equal(a, b) for a, b in zip(outputs(model), before, strict=True))


def test_only_what_the_choice_alone_reads_is_passed():
    model = small(
        [
            ("Relu", ["x"], ["p"], {}),
            ("Tanh", ["p"], ["q"], {}),
            choose("q"),
            ("ReduceMax", ["p"], ["z"], {"axes": [1]}),
        ],
        outputs=("y", "z"),
    )
    before = outputs(model)
    assert first_token.choose_early(model) == 1
    assert all(np.array_equal(a, b) for a, b in zip(outputs(model), before, strict=True))


@pytest.mark.slow
def test_int8_labels_agree_with_those_of_the_late_choice(tiny_classifier, tiny_data, tmp_path, monkeypatch):
    tokenizer = loading.load_tokenizer(tiny_classifier)
    model = loading.load_classifier(tiny_classifier)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    loading.save_model(model, tmp_path / "model")
    loading.save_tokenizer(tokenizer, tmp_path / "model")

    def stage(run, name, config, source):
        out, work = tmp_path / name, tmp_path / f"{name}-work"
        out.mkdir(), work.mkdir()
        context = StageContext(out, work, Silent(), seed=0, threads=1)
        run({"model": source, "data": tiny_data}, config, context)
        return out

    packed = stage(quantize.run, "int8", QuantizeConfig(max_accuracy_drop=None), tmp_path / "model")
    config = ExportConfig(min_label_agreement=0.5)
    early = stage(export.run, "early", config, packed)
    monkeypatch.setattr(first_token, "choose_early", lambda graph: 0)
    late = stage(export.run, "late", config, packed)
    texts = list(sentences.load_split(tiny_data, "test")["text"])
    logits = [TextClassifier(open_engine(f, 1), tokenizer, ["0", "1"]).logits(texts) for f in (early, late)]
    difference, spread = np.abs(logits[0] - logits[1]).max(), np.ptp(logits[1][:, 0] - logits[1][:, 1])
    assert 0 < difference < 0.05 * spread  # another scale of activations, so not bit for bit
    labels = [each.argmax(axis=1) for each in logits]
    assert np.mean(labels[0] == labels[1]) >= 0.97
    operators = [json.loads((f / "export.json").read_text())["operators"] for f in (early, late)]
    assert operators[0] == operators[1] | {"Gather": operators[1]["Gather"] + 1}
