"""Every stage on words with tags: what each makes tags words as transformers does."""

import json

import numpy as np
import onnx
import pytest
import torch
import transformers

from pressoir.benchmark.classifier_report import Benchmark
from pressoir.data import sentences
from pressoir.data.texts import texts_of
from pressoir.errors import SourceError
from pressoir.formats.problems import problem_of
from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.token_alignment import flat
from pressoir.inference.token_classification import TokenClassifier
from pressoir.recipe.sections import (
    BenchmarkConfig,
    DistillConfig,
    ExportConfig,
    OutputsConfig,
    PruneConfig,
    QuantizeConfig,
    ShardConfig,
    TeacherConfig,
    VocabularyConfig,
)
from pressoir.stages import (
    benchmark,
    distill,
    export,
    prune,
    quantize,
    shard,
    teacher,
    teacher_outputs,
    vocabulary,
)

FAST = {"epochs": 1, "batch_size": 32, "learning_rate": 3e-3}


def expected(folder, texts):
    """Logits (words, labels) of first tokens by transformers' own classes, one sentence at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    rows = []
    for words in texts:
        encoded = tokenizer(list(words), is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**encoded).logits[0].numpy()
        ids = encoded.word_ids(0)
        rows += [logits[ids.index(word)] for word in range(len(words))]
    return np.stack(rows)


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
def test_every_stage_takes_words_with_tags(kind, pair_classifier, tag_data, step, no_cold_starts):
    data, rate = tag_data, {**FAST, "epochs": 3}
    base, figures = step("teacher", teacher, TeacherConfig(**rate), model=pair_classifier(kind), data=data)
    assert kind != "bert" or figures["validation_span_f1"] > 0.3
    outputs, _ = step(
        "outputs", teacher_outputs, OutputsConfig(hidden=True, student=None), teacher=base, data=data
    )
    config = DistillConfig(**FAST, student={"layers": 4})
    student, _ = step("distill", distill, config, teacher=base, outputs=outputs, data=data)
    graph, parity = step("onnx", export, ExportConfig(), model=student, data=data)
    assert parity["max_logit_difference"] < 1e-3
    small, _ = step("quantize", quantize, QuantizeConfig(max_accuracy_drop=None), model=student, data=data)
    int8, parity = step("int8", export, ExportConfig(), model=small, data=data)
    assert parity["label_agreement"] > 0.97
    tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    texts = [
        words
        for words in texts_of(sentences.load_split(data, "test"))
        if len(tokenizer(list(words), is_split_into_words=True)["input_ids"]) <= 24  # the model's positions
    ]
    assert len(texts) > 10
    logits = expected(student, texts)
    for folder in (student, graph):
        found = TokenClassifier.open(folder, 1).logits(texts)
        np.testing.assert_allclose(flat(found, texts), logits, atol=1e-4)
    quantised = flat(TokenClassifier.open(int8, 1).logits(texts), texts)
    assert (quantised.argmax(axis=1) == logits.argmax(axis=1)).mean() > 0.95
    if kind == "bert":
        rows = {"teacher": base, "onnx": graph, "int8": int8}
        config = BenchmarkConfig(latency_samples=10, warmup=0)
        measured, figures = step("benchmark", benchmark, config, data=data, **rows)
        report = Benchmark.read(measured / "benchmark.json")
        assert report.rows[0].span_f1 == figures["reference_span_f1"] > 0.3
        assert 0 < report.linear_baseline.span_f1 <= 1
        assert "F1 of the spans" in (measured / "comparison.md").read_text()


def test_a_graph_of_a_token_classifier_computes_all_tokens(pair_classifier, tag_data, step):
    base, _ = step("teacher", teacher, TeacherConfig(epochs=0), model=pair_classifier("bert"), data=tag_data)
    folder, _ = step("onnx", export, ExportConfig(), model=base, data=tag_data)
    graph = onnx.load(folder / "model.onnx").graph
    (output,) = graph.output
    assert [d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim][1:] == [
        "sequence_length",
        7,
    ]
    names = [d.dim_param for d in graph.input[0].type.tensor_type.shape.dim]
    assert names == ["batch_size", "sequence_length"]


def test_pruning_vocabulary_and_shards_take_words_with_tags(pair_classifier, tag_data, step):
    base, _ = step("teacher", teacher, TeacherConfig(epochs=0), model=pair_classifier("bert"), data=tag_data)
    config = PruneConfig(head_sparsity=0.25, ffn_sparsity=0.5, epochs=0)
    pruned, _ = step("prune", prune, config, model=base, data=tag_data)
    cut, counts = step("vocabulary", vocabulary, VocabularyConfig(), model=pruned, data=tag_data)
    assert counts["train_sentence_coverage"] == 1
    sharded, _ = step("shard", shard, ShardConfig(shards=2), model=cut)
    texts = texts_of(sentences.load_split(tag_data, "test"))
    np.testing.assert_allclose(
        TokenClassifier.open(sharded, 1).logits(texts), TokenClassifier.open(cut, 1).logits(texts), atol=1e-5
    )


def test_the_loss_of_an_epoch_is_that_of_transformers(pair_classifier, tag_data, step):
    """Labels stand at first tokens alone: the loss is the cross-entropy of transformers' own logits there."""
    config = TeacherConfig(epochs=1, learning_rate=1e-12)
    folder, _ = step("teacher", teacher, config, model=pair_classifier("bert"), data=tag_data)
    rows = sentences.load_split(tag_data, "validation", TokenClassifier.open(folder, 1).labels)
    logits = torch.from_numpy(expected(folder, texts_of(rows)))
    tags = torch.tensor([tag for row in rows["label"] for tag in row])
    (epoch,) = json.loads((folder / "history.json").read_text())
    assert epoch["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, tags)), abs=0.02)


def test_heads_of_texts_and_of_words_are_not_mixed_up(pair_classifier, tag_data, step):
    base, _ = step("teacher", teacher, TeacherConfig(epochs=0), model=pair_classifier("bert"), data=tag_data)
    config = transformers.AutoConfig.from_pretrained(base).to_dict()
    assert problem_of(config).name == "tags"
    with pytest.raises(SourceError, match="token classifier"):
        TextClassifier.open(base, 1)
    with pytest.raises(SourceError, match="token classifier"):
        TokenClassifier.open(pair_classifier("bert"), 1)
