"""Sentence encoders as ONNX graphs: what sentence-transformers computes, float and int8, and opens itself."""

import json
import shutil

import numpy as np
import pytest

from pressoir.data import similarity
from pressoir.errors import DataError, ParityError
from pressoir.export import embedder
from pressoir.formats.sentence_modules import Dense, Normalize, SentenceModules, write_modules
from pressoir.inference.feature_extraction import SentenceEncoder
from pressoir.metrics import cosines, spearman
from pressoir.recipe.sections import ExportConfig, QuantizeConfig
from pressoir.reporting import Silent
from pressoir.stage import StageContext
from pressoir.stages import export, quantize

TEXTS = ["the film was good", "the meal was bad and the hotel was cold and the tour was dull", "soup"]
WORDS = "good great lovely fine bad awful dull poor".split()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A data folder of scored pairs."""
    folder, rows = tmp_path_factory.mktemp("pairs"), ["sentence1\tsentence2\tscore"]
    for index, first in enumerate(WORDS):
        rows += [f"the film was {first}\tthe film was {second}\t{index % 4}" for second in WORDS]
    (folder / "pairs.tsv").write_text("\n".join(rows) + "\n")
    (folder / "data").mkdir()
    similarity.save_table(folder / "pairs.tsv", folder / "data")
    return folder / "data"


@pytest.fixture
def encoder(tiny_bert, tmp_path):
    """A mean-pooled encoder that is projected from 32 to 12 dimensions and normalised."""
    draw = np.random.default_rng(0)
    dense = Dense(draw.normal(size=(12, 32)).astype(np.float32), None, "identity")
    folder = shutil.copytree(tiny_bert, tmp_path / "encoder")
    write_modules(SentenceModules(("mean",), (dense, Normalize()), 64), 32, folder)
    return folder


@pytest.fixture
def make_context(tmp_path):
    """A context with new folders, each time."""
    names = iter(("first", "second"))

    def make():
        folder = tmp_path / next(names)
        for name in ("out", "work"):
            (folder / name).mkdir(parents=True)
        return StageContext(folder / "out", folder / "work", Silent(), seed=0, threads=2)

    return make


def made(stage, model, data, config, context):
    stage.run({"model": model, "data": data}, config, context)
    return context.out_dir


def test_the_graph_gives_the_embeddings_of_sentence_transformers(encoder, pairs, make_context):
    transformers = pytest.importorskip("sentence_transformers")
    graph = made(export, encoder, pairs, ExportConfig(), make_context())
    expected = transformers.SentenceTransformer(str(encoder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(SentenceEncoder.open(graph, 1).embed(TEXTS), expected, atol=1e-5)
    opened = transformers.SentenceTransformer(str(graph), device="cpu", backend="onnx")
    np.testing.assert_allclose(opened.encode(TEXTS), expected, atol=1e-5)


def test_an_int8_graph_keeps_the_embeddings_and_opens_in_sentence_transformers(encoder, pairs, make_context):
    transformers = pytest.importorskip("sentence_transformers")
    packed = made(quantize, encoder, pairs, QuantizeConfig(), make_context())
    description = json.loads((packed / "quantization.json").read_text())
    assert "steps.0.linear" in description["layers"], "the Dense module is int8, too"
    graph = made(export, packed, pairs, ExportConfig(), make_context())
    floats = transformers.SentenceTransformer(str(encoder), device="cpu").encode(TEXTS)
    found = SentenceEncoder.open(graph, 1).embed(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert cosines(found, floats).min() > 0.98
    opened = transformers.SentenceTransformer(str(graph), device="cpu", backend="onnx")
    assert cosines(opened.encode(TEXTS, batch_size=1), found).min() > 0.99


def test_layers_stay_float_until_the_correlation_holds(encoder, pairs, make_context, monkeypatch):
    from pressoir.quantization import int8_embedder

    scores = iter([0.9, 0.5, 0.6, 0.9])
    monkeypatch.setattr(int8_embedder, "spearman", lambda found, expected: next(scores))
    packed = made(quantize, encoder, pairs, QuantizeConfig(max_accuracy_drop=0.01), make_context())
    description = json.loads((packed / "quantization.json").read_text())
    assert len(description["excluded"]) == 2
    ranked = sorted(description["sensitivity"], key=description["sensitivity"].get, reverse=True)
    assert list(description["excluded"]) == ranked[:2]


def test_a_graph_that_departs_is_refused(encoder, pairs, make_context, monkeypatch):
    monkeypatch.setattr(embedder, "_append", lambda graph, tail: _broken(graph, tail))
    with pytest.raises(ParityError, match="a number differs by"):
        made(export, encoder, pairs, ExportConfig(), make_context())


def _broken(graph, tail, append=embedder._append):
    for tensor in tail.graph.initializer:
        if len(tensor.dims) == 2:
            tensor.raw_data = bytes(len(tensor.raw_data) - 4) + tensor.raw_data[-4:]
    append(graph, tail)


def test_the_correlation_is_that_of_scipy():
    from scipy.stats import spearmanr

    draw = np.random.default_rng(0)
    first, second = draw.integers(0, 5, 50).astype(float), draw.normal(size=50)
    assert spearman(first, second.tolist()) == pytest.approx(spearmanr(first, second).statistic)
    assert spearman(np.ones(3), [1, 2, 3]) == 0


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "sentence1\tscore\na\t1\n", "but not sentence2"),
        ("a.tsv", "sentence1\tsentence2\tscore\na\tb\tmuch\n", "row 1: expected two texts and a number"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": "b", "score": 1}\n', "two different scores"),
    ],
)
def test_malformed_pairs_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        similarity.save_table(tmp_path / name, tmp_path)
