"""Sentence encoders: the same embeddings as sentence-transformers, in every mode, and folders it reads."""

import json
import shutil

import numpy as np
import pytest
import torch

from pressoir.errors import SourceError
from pressoir.formats.sentence_modules import (
    MODES,
    MODULES,
    PROMPTS,
    SETTINGS,
    Dense,
    Normalize,
    SentenceModules,
    read_modules,
    write_modules,
)
from pressoir.inference.engines.classifier import TorchEngine
from pressoir.inference.feature_extraction import SentenceEncoder
from pressoir.inference.text_classification import TextClassifier
from pressoir.models import loading
from pressoir.models.sentence_embedder import load_embedder, load_embedder_tokenizer

sentence_transformers = pytest.importorskip("sentence_transformers")
TEXTS = ["the film was good", "the meal was bad and the hotel was cold and the tour was dull", "soup"]


def embedded(folder):
    model = load_embedder(folder)
    names = [str(index) for index in range(model.dimensions)]
    return TextClassifier(TorchEngine(model), load_embedder_tokenizer(folder), names).logits(
        TEXTS, batch_size=8
    )


def reference(folder):
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return model.encode(TEXTS)


@pytest.fixture
def copied(tiny_bert, tmp_path):
    return shutil.copytree(tiny_bert, tmp_path / "encoder")


def dense(activation, width, out, seed=0):
    draw = np.random.default_rng(seed)
    weight = draw.normal(size=(out, width)).astype(np.float32)
    return Dense(weight, draw.normal(size=out).astype(np.float32), activation)


@pytest.mark.parametrize(
    "modules",
    [
        *(SentenceModules((mode,), (Normalize(),), 64) for mode in MODES if mode != "cls"),
        SentenceModules(("mean",), (dense("tanh", 32, 12), dense("identity", 12, 8), Normalize()), 6),
        SentenceModules(
            ("cls", "lasttoken"), (Normalize(), dense("relu", 64, 8), dense("sigmoid", 8, 8)), 64
        ),
    ],
    ids=[*MODES[1:], "dense", "joined"],
)
def test_embeddings_are_those_of_sentence_transformers(copied, modules):
    write_modules(modules, 32, copied)
    expected = reference(copied)
    np.testing.assert_allclose(embedded(copied), expected, atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(SentenceEncoder.open(copied, 1).embed(TEXTS), expected, atol=2e-5, rtol=1e-4)


def test_a_folder_that_sentence_transformers_wrote_is_read(copied, tmp_path):
    parts = sentence_transformers.models
    transformer = parts.Transformer(str(copied), max_seq_length=16)
    steps = [transformer, parts.Pooling(32, "max"), parts.Dense(32, 8, activation_function=torch.nn.ReLU())]
    written = sentence_transformers.SentenceTransformer(modules=[*steps, parts.Normalize()], device="cpu")
    written.save(str(tmp_path / "written"))
    modules = read_modules(tmp_path / "written")
    assert modules.pooling == ("max",)
    assert [type(step).__name__ for step in modules.steps] == ["Dense", "Normalize"]
    np.testing.assert_allclose(embedded(tmp_path / "written"), written.encode(TEXTS), atol=1e-5)


def test_what_is_saved_is_read_back(copied, tmp_path):
    write_modules(SentenceModules(("mean",), (dense("tanh", 32, 12), Normalize()), 64, (12, 4)), 32, copied)
    model = load_embedder(copied)
    model.append(dense("identity", 12, 6, seed=1))
    assert [type(step).__name__ for step in model.steps] == ["DenseLayer", "DenseLayer", "NormalizeLayer"]
    loading.save_model(model, tmp_path / "saved")
    loading.save_tokenizer(loading.load_tokenizer(copied), tmp_path / "saved")
    assert read_modules(tmp_path / "saved").dimensions == (12, 4)
    np.testing.assert_allclose(embedded(tmp_path / "saved"), reference(tmp_path / "saved"), atol=1e-5)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (MODULES, [{"type": "other.Thing", "path": ""}], "another package's code"),
        (MODULES, [{"type": "sentence_transformers.models.CLIPModel", "path": ""}], "module 0 is CLIPModel"),
        (MODULES, {"0": "Transformer"}, "not a list of modules"),
        (MODULES, [{"type": "sentence_transformers.models.Transformer", "path": "0_T"}], "save it again"),
        (MODULES, [{"type": "sentence_transformers.models.Transformer", "path": "../x"}], "not the name"),
        (SETTINGS, {"do_lower_case": True}, "do_lower_case"),
        (SETTINGS, {"max_seq_length": -1}, "max_seq_length is -1"),
        (PROMPTS, {"default_prompt_name": "query"}, "the prompt 'query'"),
    ],
)
def test_what_would_change_embeddings_is_refused_by_name(copied, file, content, said):
    (copied / file).write_text(json.dumps(content))
    with pytest.raises(SourceError, match=said):
        read_modules(copied)


def test_a_module_after_pooling_that_is_not_known_is_refused(copied):
    write_modules(SentenceModules(("mean",), (Normalize(),), 64), 32, copied)
    text = (copied / MODULES).read_text().replace("models.Normalize", "models.LayerNorm")
    (copied / MODULES).write_text(text)
    with pytest.raises(SourceError, match="has a module LayerNorm, which is not supported"):
        read_modules(copied)
