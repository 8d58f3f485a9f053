"""The three kinds of problem, compared with scikit-learn, SciPy and transformers."""

import json
import shutil

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from pressoir import metrics
from pressoir.errors import SourceError
from pressoir.formats.problems import (
    MULTI_LABEL,
    PROBLEMS,
    REGRESSION,
    SINGLE_LABEL,
    THRESHOLDS,
    choose_thresholds,
    problem_of,
    thresholds_of,
)
from pressoir.inference.text_classification import TextClassifier
from pressoir.recipe import recipe
from pressoir.training.distillation import DistillationLoss
from pressoir.training.losses import LOSSES

TEXTS = ["the soup was awful", "a dull and weak book", "the song was superb", "fine"]
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(60, 5)).astype(np.float32)
SETS = (RANDOM.random((60, 5)) < 0.3).astype(np.float32)
SCORES = (LOGITS[:, 0] + RANDOM.normal(size=60)).astype(np.float32)


def model_of(folder, problem, labels):
    """A random classifier of a kind, saved by transformers."""
    torch.manual_seed(1)
    config = {"problem_type": problem.problem_type, "id2label": dict(enumerate(labels))}
    shutil.copytree(folder.base, folder.out)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder.base, ignore_mismatched_sizes=True, num_labels=len(labels), **config
    )
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    model.save_pretrained(folder.out)
    return model.eval()


@pytest.fixture
def folder(tiny_bert, tmp_path):
    class Folder:
        base, out = tiny_bert, tmp_path / "model"

    return Folder


OF_TEXTS = [name for name, problem in PROBLEMS.items() if problem.problem_type is not None]


@pytest.mark.parametrize("labels_or_scores", [SETS, SCORES])
def test_scores_are_those_of_scikit_learn_and_scipy(labels_or_scores):
    if labels_or_scores is SCORES:
        found = REGRESSION.score(REGRESSION.decide(LOGITS[:, :1], None), SCORES, 1)
        assert found["pearson"] == pytest.approx(pearsonr(LOGITS[:, 0], SCORES).statistic)
        assert found["spearman"] == pytest.approx(spearmanr(LOGITS[:, 0], SCORES).statistic)
        assert found["mae"] == pytest.approx(np.abs(LOGITS[:, 0] - SCORES).mean())
        return
    given = MULTI_LABEL.decide(LOGITS, [0.4] * 5)
    found = MULTI_LABEL.score(given, SETS, 5)
    for average in ("micro", "macro"):
        assert found[f"{average}_f1"] == pytest.approx(f1_score(SETS, given, average=average))


def test_statistics_of_all_samples_give_the_scores_and_intervals_hold_them():
    given, predicted = MULTI_LABEL.decide(LOGITS, None), LOGITS[:, 0].astype(np.float64)
    found = MULTI_LABEL.score(given, SETS, 5) | REGRESSION.score(predicted, SCORES, 1)
    statistics = metrics.label_set_statistics(given, SETS) | metrics.regression_statistics(predicted, SCORES)
    assert statistics.keys() == found.keys() - {"spearman"}
    for name, statistic in statistics.items():
        assert statistic.value(statistic.rows.sum(axis=0, keepdims=True))[0] == pytest.approx(found[name])
    for problem, decided, expected in ((MULTI_LABEL, given, SETS), (REGRESSION, predicted, SCORES)):
        low, high = problem.interval(decided, expected)
        assert low < problem.score(decided, expected, 5)[problem.metric] < high


def test_a_constant_has_no_correlation():
    assert metrics.regression_scores(np.ones(4), np.arange(4))["pearson"] == 0
    (draws,) = metrics.bootstrap(metrics.regression_statistics(np.ones(4), np.arange(4))["pearson"])
    assert not draws.any()


@pytest.mark.parametrize("each", [False, True])
def test_no_other_threshold_gives_a_higher_f1(each):
    chosen = choose_thresholds(LOGITS, SETS, each)
    probabilities = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    assert len(set(chosen)) == (5 if each else 1)
    for label in range(5) if each else [slice(None)]:
        own, right = probabilities[:, label].ravel(), SETS[:, label].ravel()
        threshold = chosen[label] if each else chosen[0]
        best = max(f1_score(right, own >= value) for value in own)
        assert f1_score(right, own >= threshold) == pytest.approx(best)


def test_a_label_that_validation_lacks_gets_the_common_threshold():
    lacking = SETS.copy()
    lacking[:, 2] = 0
    common = choose_thresholds(LOGITS, lacking, each=False)[0]
    assert choose_thresholds(LOGITS, lacking, each=True)[2] == common
    assert choose_thresholds(LOGITS, np.zeros_like(SETS), each=True) == [0.5] * 5


@pytest.mark.parametrize("name", OF_TEXTS)
def test_the_loss_on_labels_is_transformers_own(name, folder):
    problem, labels = PROBLEMS[name], ["a"] if name == "regression" else ["a", "b", "c"]
    model = model_of(folder, problem, labels)
    inputs = AutoTokenizer.from_pretrained(folder.base)(TEXTS, padding=True, return_tensors="pt")
    rows = {"single-label": [0, 1, 2, 1], "multi-label": [[0], [], [1, 2], [2]]}.get(name, [0.5, 3, -1, 2.25])
    targets = torch.from_numpy(problem.targets(rows, len(labels)))
    with torch.inference_mode():
        outputs = model(**inputs, labels=targets)
    ours = LOSSES[name].hard(outputs.logits, targets, None, "mean")
    assert ours.item() == pytest.approx(outputs.loss.item(), rel=1e-6)


@pytest.mark.parametrize("name", OF_TEXTS)
def test_a_student_that_says_what_its_teacher_says_learns_nothing_more(name):
    count = 1 if name == "regression" else 5
    teacher = torch.from_numpy(LOGITS[:, :count])
    student = teacher.clone().requires_grad_()
    loss = DistillationLoss(temperature=3.0, alpha=1.0, hidden_weight=0, problem=name)
    targets = torch.from_numpy({"single-label": SETS.argmax(axis=1), "multi-label": SETS}.get(name, SCORES))
    loss(student, targets, teacher).backward()
    assert student.grad.abs().max() < 1e-6
    other = (teacher + 0.5 * torch.arange(count) + 0.1).requires_grad_()
    loss(other, targets, teacher).backward()
    assert other.grad.abs().max() > 1e-4


@pytest.mark.parametrize(
    ("problem", "labels", "function"),
    [(MULTI_LABEL, ["a", "b", "c"], "sigmoid"), (REGRESSION, ["x"], "none")],
)
def test_answers_are_those_of_transformers_pipeline(problem, labels, function, folder):
    model_of(folder, problem, labels)
    run = pipeline("text-classification", model=str(folder.out), device="cpu")
    expected = [
        {entry["label"]: entry["score"] for entry in row}
        for row in run(TEXTS, function_to_apply=function, top_k=None)
    ]
    classifier = TextClassifier.open(folder.out, threads=1)
    for ours, theirs in zip(classifier.predict(TEXTS), expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_stored_thresholds_decide_and_stay_when_transformers_saves_the_model(folder, tmp_path):
    model = model_of(folder, MULTI_LABEL, ["a", "b", "c"])
    model.config.label_thresholds = [0.0, 1.0, 0.5]
    model.save_pretrained(folder.out)
    again = AutoModelForSequenceClassification.from_pretrained(folder.out)
    again.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())[THRESHOLDS] == [0.0, 1.0, 0.5]
    classifier = TextClassifier.open(folder.out, threads=1)
    for decided, row in zip(classifier.decide(TEXTS), classifier.predict(TEXTS), strict=True):
        assert decided == ["a", *(["c"] if row["c"] >= 0.5 else [])]


@pytest.mark.parametrize("stored", [[0.5], [0.5, 2, 0.1], ["a", "b", "c"], 0.5, [True, False, True]])
def test_thresholds_that_are_no_probability_of_each_label_are_refused(stored):
    config = {"problem_type": MULTI_LABEL.problem_type, "id2label": {0: "a", 1: "b", 2: "c"}}
    with pytest.raises(SourceError, match=r"label_thresholds in config\.json is not a list of 3 numbers"):
        thresholds_of({**config, THRESHOLDS: stored})
    assert thresholds_of(config) is None


def test_the_problem_is_the_configurations_or_follows_from_its_outputs():
    assert problem_of({"id2label": {"0": "LABEL_0"}}) is REGRESSION
    assert problem_of({}) is SINGLE_LABEL
    assert problem_of({"problem_type": "multi_label_classification", "id2label": {"0": "x"}}) is MULTI_LABEL
    with pytest.raises(SourceError, match="problem_type 'ranking'"):
        problem_of({"problem_type": "ranking"})
    with pytest.raises(SourceError, match="regression model with 3 outputs"):
        problem_of({"problem_type": "regression", "id2label": dict(enumerate("abc"))})


def test_agreement_is_the_same_label_the_same_set_or_the_variance_of_the_scores():
    assert SINGLE_LABEL.agreement(np.array([0, 1, 2]), np.array([0, 1, 1])) == pytest.approx(2 / 3)
    some, others = np.array([[1, 0], [1, 1]]) > 0, np.array([[1, 0], [1, 0]]) > 0
    assert MULTI_LABEL.agreement(some, others) == 0.5
    scores = np.array([1.0, 2.0, 3.0])
    assert REGRESSION.agreement(scores, scores) == 1
    assert REGRESSION.agreement(scores + np.array([0.1, -0.1, 0]), scores) == pytest.approx(0.99)
    assert REGRESSION.agreement(-scores, scores) == 0


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_divergence_is_nothing_only_between_equal_logits(problem):
    logits = LOGITS[:, : 1 if problem is REGRESSION else 5]
    assert problem.divergence(logits, logits) == pytest.approx(0, abs=1e-9)
    assert problem.divergence(logits, logits[::-1]) > 0.1
    assert np.isfinite(problem.divergence(1000 * logits, -1000 * logits))


def test_a_recipe_names_the_metrics_of_the_problems():
    assert {name: problem.selecting for name, problem in PROBLEMS.items()} == recipe._METRICS
