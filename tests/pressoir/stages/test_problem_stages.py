"""Every stage on several labels per text, and on scores, of texts and of pairs: what each makes answers as
transformers does, and the benchmark's figures are those of scikit-learn and SciPy."""

import json
import random

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score

from pressoir.benchmark.classifier_report import Benchmark
from pressoir.benchmark.page_plots import charts
from pressoir.data import sentences
from pressoir.data.texts import texts_of
from pressoir.inference.text_classification import TextClassifier
from pressoir.publishing import model_card
from pressoir.recipe.recipe import Recipe
from pressoir.recipe.sections import (
    BenchmarkConfig,
    DataConfig,
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
from pressoir.store.store import Store

pytestmark = pytest.mark.slow
LEARNT = {"epochs": 8, "batch_size": 16, "learning_rate": 3e-3}
BRIEF = {**LEARNT, "epochs": 2}
GOOD, BAD, NOUNS = (
    words.split() for words in ("good great lovely fine", "bad awful dull poor", "film book meal")
)
"""Words that the tiny model's tokenizer has."""
TYPES = {"multi-label": "multi_label_classification", "regression": "regression"}


def make_data(folder, problem, pairs):
    """Sentences of words that are good or bad: which kinds they have, or how many more good ones."""
    draw, columns = random.Random(7), {"text_pair_column": "other"} if pairs else {}
    for split, count in {"train": 160, "validation": 48, "test": 48}.items():
        lines = []
        for number in range(count):
            good, bad = (number // 2) % 3, (number // 6) % 3
            words = [*draw.choices(GOOD, k=good), *draw.choices(BAD, k=bad)]
            words += draw.choices(NOUNS, k=2)
            draw.shuffle(words)
            found = [name for name, held in (("praise", good), ("blame", bad)) if held]
            label = found if problem == "multi-label" else good - bad + 0.25
            row = {"text": f"the {' '.join(words)} {number}", "label": label}
            if pairs:
                row["other"] = f"{draw.choice(NOUNS)} and the"
            lines.append(json.dumps(row))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = {split: folder / f"{split}.jsonl" for split in ("train", "validation", "test")}
    config = DataConfig(source="files", problem=problem, **columns, **files)
    data = folder / "data"
    data.mkdir()
    sentences.save(sentences.load(config, seed=0), data, max_tokens=24)
    return data, config


def expected(folder, texts):
    """Logits of transformers' own classifier and tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = tokenizer(
        *([list(side) for side in zip(*texts, strict=True)] if isinstance(texts[0], tuple) else [texts]),
        padding=True,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        return model(**inputs).logits.numpy()


@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs"])
@pytest.mark.parametrize("problem", TYPES)
def test_every_stage_takes_it(problem, pairs, tiny_bert, step, tmp_path, no_cold_starts):
    data, config = make_data(tmp_path, problem, pairs)
    base, learnt = step("teacher", teacher, TeacherConfig(**LEARNT), model=tiny_bert, data=data)
    main = {"multi-label": "micro_f1", "regression": "pearson"}[problem]
    assert learnt[f"validation_{main}"] > 0.8
    hidden = OutputsConfig(hidden=True, student={"layers": 2})
    outputs, _ = step("outputs", teacher_outputs, hidden, teacher=base, data=data)
    learner = DistillConfig(**LEARNT, student={"layers": 2})
    student, _ = step("distill", distill, learner, teacher=base, outputs=outputs, data=data)
    units = PruneConfig(**BRIEF, head_sparsity=0.25, ffn_sparsity=0.5)
    pruned, _ = step("prune", prune, units, teacher=base, outputs=outputs, model=student, data=data)
    cut, _ = step("vocabulary", vocabulary, VocabularyConfig(), model=pruned, data=data)
    small, _ = step("quantize", quantize, QuantizeConfig(max_accuracy_drop=None), model=cut, data=data)
    graph, parity = step("onnx", export, ExportConfig(), model=cut, data=data)
    assert parity["max_logit_difference"] < 1e-3
    int8, _ = step("int8", export, ExportConfig(min_label_agreement=0.5), model=small, data=data)
    sharded, _ = step("shard", shard, ShardConfig(shards=2), model=int8)
    rows = {"teacher": base, "onnx": graph, "shard": sharded}
    brief = BenchmarkConfig(latency_samples=10, warmup=0)
    measured, _ = step("benchmark", benchmark, brief, data=data, **rows)

    test = sentences.load_split(data, "test")
    texts, right = texts_of(test), test["label"][:]
    logits = expected(cut, texts)
    for folder in (cut, graph):
        found = TextClassifier.open(folder, 1).logits(texts)
        np.testing.assert_allclose(found, logits, atol=1e-4)
    for folder in (base, student, cut, graph, small, sharded):
        assert json.loads((folder / "config.json").read_text())["problem_type"] == TYPES[problem]

    report = Benchmark.read(measured / "benchmark.json")
    assert report.linear_baseline is None
    row, decided = report.rows[-1], TextClassifier.open(sharded, 1).decide(texts)
    if problem == "regression":
        assert row.pearson == pytest.approx(pearsonr(decided, right).statistic)
        assert row.spearman == pytest.approx(spearmanr(decided, right).statistic)
        assert row.mae == pytest.approx(np.abs(np.subtract(decided, right)).mean())
    else:
        names = sentences.info(data)["labels"]
        hot = [
            [[name in labels for name in names] for labels in side] for side in (named(right, names), decided)
        ]
        assert row.micro_f1 == pytest.approx(f1_score(*hot, average="micro"))
        assert row.macro_f1 == pytest.approx(f1_score(*hot, average="macro"))
    assert getattr(row, f"{main}_ci_low") <= row.score <= getattr(row, f"{main}_ci_high")
    assert charts(report)

    shipped = tmp_path / "shipped"
    recipe = Recipe(name="tiny", model=str(tiny_bert), data=config)
    Store(tmp_path / "home")
    shipped.mkdir()
    for path in sharded.iterdir():
        (shipped / path.name).write_bytes(path.read_bytes())
    model_card.write(shipped, recipe, report, Store(tmp_path / "home"))
    card = (shipped / "README.md").read_text(encoding="utf-8")
    assert {"multi-label": "any number of the labels", "regression": "a score"}[problem] in card


def named(rows, names):
    """The labels of each row by name."""
    return [{names[index] for index in row} for row in rows]
