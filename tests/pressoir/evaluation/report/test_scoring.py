"""Raw predictions become scores that can be checked by hand."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from fake_results import DATA, values

from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.records import EvaluationSample
from pressoir.evaluation.report import scoring
from pressoir.evaluation.report.scoring import score
from pressoir.extensions.task import task


def make(task, references, labels=()):
    kept = tuple(
        EvaluationSample(id=str(i), input="?", reference=r, length=1) for i, r in enumerate(references)
    )
    return DataSet(task, kept, "f", labels)


def predicted(field, answers):
    return {str(i): {field: answer} for i, answer in enumerate(answers)}


def test_two_classes_are_scored_by_accuracy_its_interval_and_the_f1_of_the_second():
    data = make("text-classification", [0, 0, 1, 1, 1], ("bad", "good"))
    found = score(data, predicted("label", [0, 1, 1, 1, 0]))
    assert found.metrics["accuracy"] == pytest.approx(3 / 5)
    assert found.metrics["f1"] == pytest.approx(2 / 3)  # precision and recall are 2/3
    assert (found.metrics["accuracy_ci_low"], found.metrics["accuracy_ci_high"]) == pytest.approx(
        (0.2307, 0.8824), abs=1e-4
    )
    assert "F1 is that of class 'good'" in found.notes


def test_tags_are_scored_by_the_spans_that_they_mark():
    data = make("token-classification", [[1, 2, 0], [3, 0, 1]], ("O", "B-PER", "I-PER", "B-LOC"))
    found = score(data, predicted("tags", [[1, 2, 0], [1, 0, -100]]))
    assert found.metrics["span_precision"] == pytest.approx(1 / 2)  # one of the two given is right
    assert found.metrics["span_recall"] == pytest.approx(1 / 3)  # and one of the three expected
    assert found.metrics["span_f1"] == pytest.approx(2 / 5)
    assert found.metrics["tag_accuracy"] == pytest.approx(4 / 6)
    statistic = found.statistics["span_f1"]
    assert statistic.value(statistic.rows.sum(axis=0, keepdims=True))[0] == pytest.approx(2 / 5)
    assert [(sample.sample, sample.figure) for sample in found.worst] == [("1", "3 spans differ")]


def test_more_classes_take_the_macro_average_even_where_only_two_of_them_occur():
    data = make("text-classification", [0, 0, 0, 1], ("a", "b", "c"))
    found = score(data, predicted("label", [0, 0, 1, 1]))
    assert found.metrics["f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert "F1 is the macro average over 2 classes" in found.notes


def test_speech_is_scored_by_word_and_character_errors_with_the_normaliser_named():
    data = make("automatic-speech-recognition", ["One, two three!", "four"])
    found = score(data, predicted("text", ["one two tree", "four"]))
    assert found.metrics == pytest.approx({"wer": 1 / 4, "cer": 1 / 17})
    assert all("norm:basic (NFKC, lower case" in note for note in found.notes)


def test_translations_are_scored_by_bleu_and_chrf_with_their_signatures():
    data = DATA["captions"]
    found = score(data, values(data))
    assert found.metrics == pytest.approx({"bleu": 100, "chrf": 100})
    assert [note.partition("|")[0] for note in found.notes] == ["BLEU", "chrF2"]
    assert all("version:" in note for note in found.notes)


def test_perplexity_weighs_windows_by_their_tokens_and_is_told_by_text_where_there_are_several():
    data = DATA["texts"]
    raw = {
        "wiki:0": {"nll": 10.0, "tokens": 10},
        "wiki:1": {"nll": 2.0, "tokens": 2},
        "news:0": {"nll": 24.0, "tokens": 12},
    }
    found = score(data, raw)
    assert found.metrics == pytest.approx(
        {"perplexity": math.exp(1.5), "perplexity/wiki": math.exp(1), "perplexity/news": math.exp(2)}
    )
    assert "24 tokens" in found.notes[0]
    only = score(data, {name: raw[name] for name in ("wiki:0", "wiki:1")})
    assert list(only.metrics) == ["perplexity"]


def test_a_perplexity_beyond_all_numbers_is_said_and_not_stored():
    found = score(DATA["texts"], {"wiki:0": {"nll": 1e6, "tokens": 10}})
    assert found.metrics == {}
    assert "not representable as a float: perplexity" in found.notes


@pytest.mark.parametrize(
    ("references", "similarities", "expected"),
    [
        ([1, 2, 3, 4], [0.1, 0.2, 0.9, 0.95], 1.0),
        ([1, 2, 3, 4], [0.9, 0.5, 0.2, 0.1], -1.0),
        ([1, 2, 2, 4], [0.1, 0.2, 0.3, 0.2], 0.5),  # ties share the mean rank: by hand 2.25 / 4.5
    ],
)
def test_pairs_are_scored_by_rank_correlation(references, similarities, expected):
    found = score(make("feature-extraction", references), predicted("similarity", similarities))
    assert found.metrics == {"spearman": pytest.approx(expected)}


def test_rank_correlation_agrees_with_scipy_on_many_ties():
    scipy = pytest.importorskip("scipy.stats")
    first = [i * 7 % 5 for i in range(40)]
    second = [i * 3 % 7 / 7 for i in range(40)]
    found = score(make("feature-extraction", first), predicted("similarity", second))
    assert found.metrics["spearman"] == pytest.approx(scipy.spearmanr(first, second).statistic)


@pytest.mark.parametrize("similarities", [[0.5], [0.5, 0.5, 0.5]])
def test_a_correlation_that_is_not_defined_is_not_invented(similarities):
    found = score(make("feature-extraction", [1, 2, 3]), predicted("similarity", similarities))
    assert found.metrics == {}
    assert "undefined" in found.notes[0]


@pytest.mark.parametrize("name", DATA)
def test_without_predictions_there_are_no_metrics_but_a_note(name):
    found = score(DATA[name], {"not of this data": {"label": 1}})
    assert found.metrics == {}
    assert "no predictions to score" in found.notes[0]


def test_only_samples_with_a_prediction_are_scored():
    data = make("text-classification", [0, 1, 1, 0], ("bad", "good"))
    assert score(data, {"1": {"label": 1}, "3": {"label": 1}}).metrics["accuracy"] == 0.5


@pytest.mark.parametrize("name", DATA)
def test_scores_depend_neither_on_the_order_of_arrival_nor_on_the_last_bits(name):
    data = DATA[name]
    found = score(data, values(data))
    backwards = dict(reversed(values(data, noise=1e-12).items()))
    assert score(data, backwards) == found
    assert found.metrics
    assert next(iter(found.metrics)) == task(data.task).main_metric.name


def test_scores_can_be_computed_again_from_the_rounded_predictions():
    data = DATA["texts"]
    raw = {name: {"nll": math.pi * (i + 1), "tokens": 3} for i, name in enumerate(values(data))}
    assert score(data, scoring.rounded(raw)) == score(data, raw)
    assert scoring.rounded({"a": [1.23456789, 2], "b": "1.23456789"}) == {
        "a": [1.23457, 2],
        "b": "1.23456789",
    }


def test_windows_are_in_the_order_of_the_texts_and_of_their_numbers():
    names = ["news:0", "wiki:10", "wiki:2", "unknown:0", "wiki"]
    assert scoring.in_order(DATA["texts"], names) == ["wiki:2", "wiki:10", "news:0"]
    assert scoring.in_order(DATA["digits"], ["3.wav", "0.wav", "7.wav"]) == ["0.wav", "3.wav"]


def test_the_length_of_what_was_heard_adds_up():
    assert scoring.audio_seconds([{"text": "", "audio_s": 0.1}] * 10) == 1.0


@pytest.mark.parametrize(
    ("metric", "value", "name", "figure"),
    [
        ("accuracy", 0.9134, "accuracy", "91.3 %"),
        ("wer", 1.5, "WER", "150.0 %"),
        ("bleu", 27.414, "BLEU", "27.41"),
        ("perplexity/wiki", 12345.6, "perplexity of wiki", "12,346"),
        ("perplexity", 123.45, "perplexity", "123.5"),
        ("spearman", -0.5, "Spearman", "−0.500"),
    ],
)
def test_metrics_are_shown_in_their_own_units(metric, value, name, figure):
    assert (scoring.name_of(metric), scoring.figure_of(metric, value)) == (name, figure)


@pytest.mark.process
def test_scoring_and_reporting_load_no_library_that_runs_models():
    program = """
import sys
from fake_results import DATA, values
from pressoir.evaluation import memory_log
from pressoir.evaluation.report import page, plots, scoring, write
for data in DATA.values():
    assert scoring.score(data, values(data)).metrics
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = done.stdout.split()
    assert {"matplotlib", "jiwer", "sacrebleu", "sklearn"} <= set(loaded)
    assert not {"torch", "transformers", "onnxruntime", "prefect", "mlflow"} & set(loaded)


@pytest.mark.process
def test_a_terminal_that_only_shows_results_waits_for_no_plotting_library():
    program = (
        "import sys, pressoir.evaluation.report.page, pressoir.evaluation.memory_log; print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"matplotlib", "sklearn", "torch", "transformers", "onnxruntime"}
    assert not heavy & set(loaded.stdout.split())
