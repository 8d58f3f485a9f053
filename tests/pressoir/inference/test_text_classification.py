"""The seams every accuracy, benchmark and server goes through."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from pressoir.errors import ShardError, SourceError
from pressoir.inference.engines.classifier import open_engine
from pressoir.inference.text_classification import TextClassifier
from pressoir.models.loading import load_classifier, load_tokenizer, save_model, save_tokenizer
from pressoir.recipe.sections import ExportConfig, QuantizeConfig, ShardConfig
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext
from pressoir.stages import export, quantize, shard

TEXTS = [
    "the film was good",
    "the song was awful and the hotel was grim and cold and poor and the soup was dull",
    "bad",
    "the phone was lovely and warm and the chair was fine",
    "the game was bright and the tour was weak",
]


class RecordingEngine:
    """Answers each sentence with its number of tokens and its first word's id; keeps the batches' sizes."""

    runtime = "pytorch"

    def __init__(self, batch_invariant):
        self.batch_invariant, self.batches = batch_invariant, []

    def run(self, inputs):
        self.batches.append(len(inputs["input_ids"]))
        return np.stack([inputs["attention_mask"].sum(axis=1), inputs["input_ids"][:, 1]], axis=1)


@pytest.fixture(scope="session")
def folders(tiny_classifier, tiny_data, tmp_path_factory):
    """A classifier as a checkpoint, as a graph, in int8, as an int8 graph, and sharded.

    Its weights are the tiny classifier's, larger, so that its logits tell sentences apart.
    """
    model = load_classifier(tiny_classifier)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight *= 8
    made = {"checkpoint": tmp_path_factory.mktemp("loud")}
    save_model(model, made["checkpoint"])
    save_tokenizer(load_tokenizer(tiny_classifier), made["checkpoint"])

    def stage(name, module, config, model):
        out, work = tmp_path_factory.mktemp(name), tmp_path_factory.mktemp(f"{name}-work")
        context = StageContext(out, work, LogReporter(), seed=0, threads=2)
        module.run({"model": made[model], "data": tiny_data}, config, context)
        made[name] = out

    stage("graph", export, ExportConfig(), "checkpoint")
    stage("int8", quantize, QuantizeConfig(max_accuracy_drop=None), "checkpoint")
    stage("int8_graph", export, ExportConfig(), "int8")
    stage("shards", shard, ShardConfig(), "int8_graph")
    return made


@pytest.mark.parametrize("name", ["checkpoint", "graph", "int8", "int8_graph"])
def test_logits_depend_neither_on_the_batch_size_nor_on_the_neighbours(folders, name):
    classifier = TextClassifier.open(folders[name], threads=2)
    alone = np.concatenate([classifier.logits([text]) for text in TEXTS])
    assert np.ptp(alone[:, 0]) > 0.1  # they are told apart at all
    for batch_size in (1, 2, 32):
        np.testing.assert_allclose(classifier.logits(TEXTS, batch_size), alone, atol=1e-5)
    np.testing.assert_allclose(classifier.logits(TEXTS[::-1]), alone[::-1], atol=1e-5)


def test_the_order_of_the_texts_is_kept_though_batches_are_sorted_by_length(tiny_classifier):
    classifier = TextClassifier(RecordingEngine(True), load_tokenizer(tiny_classifier), ["a", "b"])
    lengths = [len(ids) for ids in classifier.tokenizer(TEXTS)["input_ids"]]
    assert classifier.logits(TEXTS, batch_size=2)[:, 0].tolist() == lengths
    assert classifier.engine.batches == [2, 2, 1]


def test_an_engine_whose_results_depend_on_the_batch_gets_one_sentence_at_a_time(tiny_classifier):
    classifier = TextClassifier(RecordingEngine(False), load_tokenizer(tiny_classifier), ["a", "b"])
    classifier.logits(TEXTS, batch_size=32)
    assert classifier.engine.batches == [1] * len(TEXTS)


@pytest.mark.parametrize(
    ("name", "runtime", "invariant"),
    [
        ("checkpoint", "pytorch", True),
        ("graph", "onnxruntime", True),
        ("int8", "pytorch", False),
        ("int8_graph", "onnxruntime", False),
        ("shards", "onnxruntime", False),
    ],
)
def test_the_engine_follows_from_what_the_folder_holds(folders, name, runtime, invariant):
    engine = open_engine(folders[name], threads=2)
    assert (engine.runtime, engine.batch_invariant) == (runtime, invariant)


def test_both_engines_compute_the_same(folders):
    expected = TextClassifier.open(folders["checkpoint"], threads=2).logits(TEXTS)
    np.testing.assert_allclose(
        TextClassifier.open(folders["graph"], threads=2).logits(TEXTS), expected, atol=1e-4
    )


def test_a_sharded_graph_computes_exactly_what_the_graph_computes(folders):
    expected = TextClassifier.open(folders["int8_graph"], threads=1).logits(TEXTS)
    assert np.array_equal(TextClassifier.open(folders["shards"], threads=1).logits(TEXTS), expected)


def test_probabilities_are_named_by_label_and_sum_to_one(tiny_classifier):
    classifier = TextClassifier.open(tiny_classifier, threads=2)
    predicted = classifier.predict(TEXTS)
    assert [list(row) for row in predicted] == [["negative", "positive"]] * len(TEXTS)
    logits = classifier.logits(TEXTS)
    for row, (negative, positive) in zip(predicted, logits, strict=True):
        assert sum(row.values()) == pytest.approx(1)
        assert row["positive"] == pytest.approx(1 / (1 + np.exp(negative - positive)))


def test_sentences_are_cut_at_the_tokenizers_length_and_padded_to_the_longest(tiny_classifier, tmp_path):
    save_model(load_classifier(tiny_classifier), tmp_path)
    tokenizer = load_tokenizer(tiny_classifier)
    tokenizer.model_max_length = 8
    save_tokenizer(tokenizer, tmp_path)
    encoded = TextClassifier.open(tmp_path, threads=2).encode(TEXTS)
    assert encoded["input_ids"].shape == encoded["attention_mask"].shape == (len(TEXTS), 8)
    assert encoded["attention_mask"].sum(axis=1).tolist() == [6, 8, 3, 8, 8]


def test_onnx_runtime_for_a_folder_without_a_graph_is_refused(tiny_classifier):
    with pytest.raises(SourceError, match=r"has no model\.onnx; export the model first"):
        open_engine(tiny_classifier, threads=2, runtime="onnxruntime")


def test_pytorch_for_a_folder_with_only_a_graph_is_refused(folders):
    with pytest.raises(SourceError, match=str(folders["graph"])):
        open_engine(folders["graph"], threads=2, runtime="pytorch")


def test_an_altered_shard_is_not_opened(folders, tmp_path):
    for path in folders["shards"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    victim = sorted(tmp_path.glob("shard_*.safetensors"))[-1]
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(ShardError, match=victim.name):
        open_engine(tmp_path, threads=2)


def test_the_light_tokenizer_gives_the_same_arrays_as_transformers(folders):
    from pressoir.inference.tokenizers.tokenizers import FastTokenizer

    texts = [*TEXTS, "", "Ünknown wörds!", "the film was good and " * 40]
    light, full = FastTokenizer(folders["graph"]), load_tokenizer(folders["graph"])
    assert light.model_max_length == full.model_max_length
    expected = full(texts, padding=True, truncation=True, return_tensors="np")
    found = light(texts)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize(
    ("settings", "stored"),
    [
        ({"truncation_side": "left"}, None),
        ({"padding_side": "left"}, None),
        ({}, {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}),
        (
            {"truncation_side": "right"},
            {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0},
        ),
        ({"model_input_names": ["input_ids", "attention_mask"]}, None),
    ],
)
def test_the_light_tokenizer_cuts_and_pads_on_the_sides_that_transformers_does(
    tiny_classifier, tmp_path, settings, stored
):
    from pressoir.inference.tokenizers.tokenizers import FastTokenizer

    folder = shutil.copytree(tiny_classifier, tmp_path / "model")
    for name, change in (("tokenizer_config.json", settings), ("tokenizer.json", {"truncation": stored})):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(content | change), encoding="utf-8")
    texts = ["the film was good", "the film was bad and the hotel was great " * 40]
    light, full = FastTokenizer(folder), load_tokenizer(folder)
    for limit in (None, 8):
        length = {} if limit is None else {"max_length": limit}
        expected = full(texts, padding=True, truncation=True, return_tensors="np", **length)
        found = light(texts, **length)
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


def test_what_is_cut_is_counted_alike_by_both_tokenizers(tiny_classifier, tmp_path):
    from pressoir.inference.tokenizers.tokenizers import FastTokenizer, truncation

    folder = shutil.copytree(tiny_classifier, tmp_path / "model")
    full = load_tokenizer(folder)
    full.model_max_length = 8
    save_tokenizer(full, folder)
    light = FastTokenizer(folder)
    lengths = [len(full.tokenize(text)) + 2 for text in TEXTS]  # [CLS] and [SEP]
    for tokenizer in (light, full):
        found = truncation(tokenizer, TEXTS)
        assert found == (len(TEXTS), 3, sum(lengths), sum(max(n - 8, 0) for n in lengths), 8, 0)
        assert "3 of 5 texts have more than 8 tokens" in str(found)
    assert light(TEXTS)["input_ids"].shape == (len(TEXTS), 8)


@pytest.mark.process
def test_running_a_graph_imports_no_torch(folders):
    script = (
        "import sys; from pathlib import Path;"
        "from pressoir.inference.text_classification import TextClassifier;"
        "assert not {'pydantic', 'onnxruntime'} & set(sys.modules);"  # a worker begins with this import
        f"model = TextClassifier.open(Path({str(folders['shards'])!r}), threads=1);"
        "assert model.predict(['the film was good']);"
        "assert not {'torch', 'transformers', 'prefect', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
