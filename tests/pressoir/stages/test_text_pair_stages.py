"""Every stage on pairs: what each makes answers pairs as transformers does, and knows that it takes them."""

import json

import numpy as np
import pytest
import torch
import transformers

from pressoir.benchmark.classifier_report import Benchmark
from pressoir.data import sentences
from pressoir.data.labelled_table import save_demo, save_table
from pressoir.data.texts import texts_of
from pressoir.errors import DataError
from pressoir.extensions.task import task
from pressoir.inference.text_classification import TextClassifier
from pressoir.pipeline.inspection import inspect_model
from pressoir.pruning.vocabulary import pieces
from pressoir.publishing.loading import loading as lines_that_load
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
LIMIT = 12
"""Tokens at which most pairs are cut."""


@pytest.fixture
def short_data(pair_data, tmp_path):
    """The pairs, cut at `LIMIT` tokens."""
    folder = tmp_path / "short"
    folder.mkdir()
    for path in pair_data.glob("*.jsonl"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "data.json").write_text(json.dumps({**sentences.info(pair_data), "max_tokens": LIMIT}))
    return folder


def expected(folder, pairs):
    """Logits of transformers' own classifier and tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    first, second = map(list, zip(*pairs, strict=True))
    inputs = tokenizer(first, second, truncation="longest_first", padding=True, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == LIMIT
    with torch.no_grad():
        return model(**inputs).logits.numpy()


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
def test_every_stage_takes_pairs(kind, pair_classifier, short_data, step, no_cold_starts):
    data = short_data
    base, _ = step("teacher", teacher, TeacherConfig(**FAST), model=pair_classifier(kind), data=data)
    outputs, _ = step(
        "outputs", teacher_outputs, OutputsConfig(hidden=True, student=None), teacher=base, data=data
    )
    config = DistillConfig(**FAST, student={"layers": 4})
    student, _ = step("distill", distill, config, teacher=base, outputs=outputs, data=data)
    graph, parity = step("onnx", export, ExportConfig(), model=student, data=data)
    assert parity["max_logit_difference"] < 1e-3
    small, _ = step("quantize", quantize, QuantizeConfig(max_accuracy_drop=None), model=student, data=data)
    int8, _ = step("int8", export, ExportConfig(), model=small, data=data)
    rows = {"teacher": base, "onnx": graph, "int8": int8}
    if kind == "bert":
        config = BenchmarkConfig(latency_samples=10, warmup=0)
        measured, _ = step("benchmark", benchmark, config, data=data, **rows)
        report = Benchmark.read(measured / "benchmark.json")
        assert "both texts joined" in report.linear_baseline.ngrams
        assert report.texts_truncated > 0

    pairs = texts_of(sentences.load_split(data, "test"))
    logits = expected(student, pairs)
    for folder in (student, graph):
        np.testing.assert_allclose(TextClassifier.open(folder, 1).logits(pairs), logits, atol=1e-4)
    for folder in (base, student, graph, small, int8):
        assert json.loads((folder / "config.json").read_text())["text_pair"] is True
    assert inspect_model(str(int8)).pairs
    assert '"text_pair": ' in lines_that_load(graph, task("text-classification")).code


def test_pruning_vocabulary_and_shards_take_pairs(pair_classifier, short_data, step, tmp_path):
    data, base = short_data, pair_classifier("bert")
    config = PruneConfig(head_sparsity=0.25, ffn_sparsity=0.5, epochs=0)
    pruned, _ = step("prune", prune, config, model=base, data=data)
    cut, counts = step("vocabulary", vocabulary, VocabularyConfig(), model=pruned, data=data)
    assert counts["train_sentence_coverage"] == 1
    sharded, _ = step("shard", shard, ShardConfig(shards=2), model=cut)
    pairs = texts_of(sentences.load_split(data, "test"))
    np.testing.assert_allclose(
        TextClassifier.open(sharded, 1).logits(pairs), TextClassifier.open(cut, 1).logits(pairs), atol=1e-5
    )


def test_the_vocabulary_keeps_what_either_text_uses(pair_classifier, short_data, step):
    for split in sentences.SPLITS:
        rows = [json.loads(line) for line in (short_data / f"{split}.jsonl").read_text().splitlines()]
        lines = [json.dumps({**row, "text": "the film", "text_pair": "was good"}) for row in rows]
        (short_data / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    folder, _ = step(
        "vocabulary", vocabulary, VocabularyConfig(), model=pair_classifier("roberta"), data=short_data
    )
    kept = pieces(json.loads((folder / "tokenizer.json").read_text()))
    tokenizer = transformers.AutoTokenizer.from_pretrained(pair_classifier("roberta"))
    first, second = set(tokenizer.tokenize("the film")), set(tokenizer.tokenize("was good"))
    assert second - first
    assert first | second <= set(kept)
    assert len(kept) < len(tokenizer)


def test_a_table_for_a_model_of_pairs_has_both_texts(pair_classifier, tmp_path):
    table = tmp_path / "a.tsv"
    table.write_text("text\ttext_pair\tlabel\nx\ty\tsame\n")
    save_table(table, pair_classifier("bert"), tmp_path)
    assert texts_of(sentences.load_split(tmp_path, "validation")) == [("x", "y")]
    table.write_text("text\tlabel\nx\tsame\n")
    with pytest.raises(DataError, match="text_pair"):
        save_table(table, pair_classifier("bert"), tmp_path)
    with pytest.raises(DataError, match="trained on pairs"):
        save_demo(pair_classifier("bert"), tmp_path)
