"""Sentence embeddings: pooled as sentence-transformers pools, the same in both runtimes."""

import json
import warnings

import numpy as np
import pytest

from pressoir.errors import SourceError
from pressoir.formats.sentence_modules import POOLING
from pressoir.inference.feature_extraction import (
    SentenceEncoder,
    cls_pooling,
    max_pooling,
    mean_pooling,
)

TEXTS = ["the film was good", "the meal was bad and the hotel was cold and the tour was dull", "soup"]
STATES = np.arange(12, dtype=np.float32).reshape(2, 3, 2)  # (batch, seq, hidden)
MASK = np.array([[1, 1, 0], [0, 1, 1]])


@pytest.fixture
def copied(tiny_bert, tmp_path):
    folder = tmp_path / "encoder"
    folder.mkdir()
    for path in tiny_bert.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / POOLING).parent.mkdir()
    return folder


def reference(folder, text):
    """Hidden states (seq, hidden) of one sentence, by transformers alone."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)([text], return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        return AutoModel.from_pretrained(folder)(**tokens).last_hidden_state[0].numpy()


def test_padding_counts_for_nothing():
    np.testing.assert_array_equal(mean_pooling(STATES, MASK), [[1, 2], [9, 10]])
    np.testing.assert_array_equal(cls_pooling(STATES, MASK), [[0, 1], [8, 9]])
    np.testing.assert_array_equal(max_pooling(STATES, MASK), [[2, 3], [10, 11]])


def test_an_embedding_is_the_mean_of_the_tokens_whatever_the_batch(tiny_bert):
    encoder = SentenceEncoder.open(tiny_bert, 1)
    together = encoder.embed(TEXTS)
    assert together.shape == (3, 32)
    for text, row in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(row, reference(tiny_bert, text).mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(together, encoder.embed(TEXTS, batch_size=1), atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "cls"}],
    ids=["old", "new"],
)
def test_the_folder_says_how_to_pool(copied, settings):
    (copied / POOLING).write_text(json.dumps(settings))
    found = SentenceEncoder.open(copied, 1).embed(TEXTS[:1])[0]
    np.testing.assert_allclose(found, reference(copied, TEXTS[0])[0], atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"pooling_mode": "attention"}, {"pooling_mode": ["mean", "attention"]}, {}],
)
def test_another_pooling_is_refused(copied, settings):
    (copied / POOLING).write_text(json.dumps(settings))
    with pytest.raises(SourceError, match="supported are cls, max, mean"):
        SentenceEncoder.open(copied, 1)


def test_a_sentence_is_cut_where_sentence_transformers_would(copied):
    (copied / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 6}))
    ids = SentenceEncoder.open(copied, 1).encode(TEXTS)["input_ids"]
    assert ids.shape == (3, 6)
    assert ids[1, -1] == 3, "the last token is still [SEP]"


def test_similarity_is_the_cosine(tiny_bert):
    encoder = SentenceEncoder.open(tiny_bert, 1)
    found = encoder.similarity([TEXTS[0], TEXTS[0]], [TEXTS[0], TEXTS[1]])
    a, b = encoder.embed(TEXTS[:2])
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(found, [1, cosine], atol=1e-6)


def test_an_encoder_without_a_pooler_loads(tiny_bert, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path / "no-pooler"
    model = AutoModel.from_pretrained(tiny_bert, add_pooling_layer=False)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    np.testing.assert_allclose(
        SentenceEncoder.open(folder, 1).embed(TEXTS), SentenceEncoder.open(tiny_bert, 1).embed(TEXTS)
    )


def test_a_folder_that_is_no_encoder_is_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 6}))
    with pytest.raises(SourceError, match="is missing weights of an encoder"):
        SentenceEncoder.open(copied, 1)


@pytest.fixture(scope="session")
def encoder_graph(tiny_bert, tmp_path_factory):
    """`encoder_graph(output)`: folder of the tiny BERT's ONNX graph, its hidden states under that name."""
    import torch

    from pressoir.models.loading import load_encoder

    class HiddenStates(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def export(output):
        folder = tmp_path_factory.mktemp("encoder-graph")
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((tiny_bert / name).read_bytes())
        example = torch.ones((2, 5), dtype=torch.long)
        axes = {0: "batch", 1: "seq"}
        names = ["input_ids", "attention_mask"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of every shape
            torch.onnx.export(
                HiddenStates(load_encoder(tiny_bert)),
                (example, example),
                str(folder / "model.onnx"),
                input_names=names,
                output_names=[output],
                dynamic_axes=dict.fromkeys([*names, output], axes),
                dynamo=False,
            )
        return folder

    return export


def test_a_graph_gives_the_same_embeddings(tiny_bert, encoder_graph):
    encoder = SentenceEncoder.open(encoder_graph("last_hidden_state"), 1)
    assert encoder.engine.runtime == "onnxruntime"
    np.testing.assert_allclose(
        encoder.embed(TEXTS), SentenceEncoder.open(tiny_bert, 1).embed(TEXTS), atol=1e-5
    )


def test_a_graph_without_hidden_states_is_refused(encoder_graph):
    with pytest.raises(SourceError, match="has the outputs logits, but embeddings need last_hidden_state"):
        SentenceEncoder.open(encoder_graph("logits"), 1)
