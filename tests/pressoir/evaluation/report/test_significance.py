"""Intervals and p-values are those that sacrebleu, scipy and a plain loop over jiwer find."""

import dataclasses
import logging

import numpy as np
import pytest
from fake_results import make_result, samples

from pressoir import metrics
from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.records import RunOutcome
from pressoir.evaluation.report import significance
from pressoir.evaluation.report.results import EvaluationOutcome
from pressoir.evaluation.report.scoring import score
from pressoir.metrics import Statistic

WORDS = "a the dog cat man woman runs sits over under green red grass table with two three".split()


def corpus(noise, count=300, seed=0):
    """References, and hypotheses of which a part of the words is wrong."""
    random = np.random.default_rng(0)
    references = [
        [WORDS[i] for i in random.integers(len(WORDS), size=n)] for n in random.integers(3, 12, count)
    ]
    random = np.random.default_rng([seed, 1])
    answers = [[WORDS[0] if random.random() < noise else word for word in words] for words in references]
    return [" ".join(words) for words in answers], [" ".join(words) for words in references]


def statistic(name, noise, seed=0):
    return getattr(metrics, name)(*corpus(noise, seed=seed)).statistic


def interval(one):
    return significance.interval(*significance.scores(one))


def p_value(one, other):
    (found,) = significance.p_values([one], [other])
    return found


def value(one):
    return one.value(one.rows.sum(axis=0, keepdims=True))[0]


def sacrebleu_metric(name):
    import sacrebleu

    return {"bleu": sacrebleu.BLEU, "chrf": sacrebleu.CHRF}[name]()


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_the_sums_over_all_samples_give_the_score_of_the_corpus(name):
    predicted, expected = corpus(0.3)
    public = sacrebleu_metric(name).corpus_score(predicted, [expected]).score
    assert value(statistic(name, 0.3)) == pytest.approx(public, abs=1e-9)
    assert getattr(metrics, name)(predicted, expected).value == pytest.approx(public, abs=1e-9)


@pytest.mark.parametrize("name", ["wer", "cer"])
def test_the_errors_of_all_samples_give_the_rate_of_the_corpus(name):
    import jiwer

    predicted, expected = corpus(0.3)
    assert value(statistic(name, 0.3)) == pytest.approx(getattr(jiwer, name)(expected, predicted))


def test_each_sample_s_row_is_its_own_score():
    import jiwer
    import sacrebleu

    predicted, expected = corpus(0.3, count=40)
    errors, chrf = metrics.wer(predicted, expected).statistic, metrics.chrf(predicted, expected).statistic
    for i, (answer, reference) in enumerate(zip(predicted, expected, strict=True)):
        assert errors.value(errors.rows)[i] == pytest.approx(jiwer.wer(reference, answer))
        assert chrf.value(chrf.rows)[i] == pytest.approx(
            sacrebleu.CHRF().sentence_score(answer, [reference]).score
        )


def test_a_silence_in_which_words_were_heard_counts_as_in_jiwer():
    import jiwer

    found = metrics.wer(["two words"], [""])
    assert found.value == value(found.statistic) == jiwer.wer([""], ["two words"]) == 2


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_the_interval_is_that_of_sacrebleu_s_own_bootstrap(name):
    predicted, expected = corpus(0.3)
    theirs = sacrebleu_metric(name).corpus_score(predicted, [expected], n_bootstrap=1000)
    (scores,) = significance.scores(statistic(name, 0.3))
    low, high = significance.interval(scores)
    assert scores.mean() == pytest.approx(float(theirs._mean), abs=0.15 * float(theirs._ci))
    assert (high - low) / 2 == pytest.approx(float(theirs._ci), rel=0.15)


def test_the_interval_of_a_word_error_rate_is_that_of_scipy_and_of_a_loop_over_jiwer():
    import jiwer
    from scipy.stats import bootstrap

    predicted, expected = corpus(0.3)
    ours = interval(statistic("wer", 0.3))
    rows = statistic("wer", 0.3).rows
    found = bootstrap(
        (rows[:, 0], rows[:, 1]),
        lambda errors, words, axis: errors.sum(axis=axis) / words.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(3),
    )
    width = ours[1] - ours[0]
    assert ours == pytest.approx(tuple(found.confidence_interval), abs=0.1 * width)
    random = np.random.default_rng(4)
    loop = []
    for _ in range(200):
        drawn = random.integers(len(expected), size=len(expected))
        loop.append(jiwer.wer([expected[i] for i in drawn], [predicted[i] for i in drawn]))
    assert ours == pytest.approx(tuple(np.percentile(loop, [2.5, 97.5])), abs=0.25 * width)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Of 200 samples each of a model that is right in 70 % of all cases."""
    random = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        right = random.random(200) < 0.7
        low, high = interval(Statistic.of_ratio(right, np.ones(200)))
        held += low <= 0.7 <= high
    assert 0.90 <= held / 200 <= 0.99


@pytest.mark.parametrize("name", ["bleu", "chrf"])
@pytest.mark.parametrize(("noise", "other"), [(0.30, 0.31), (0.30, 0.33), (0.30, 0.60)])
def test_p_is_that_of_sacrebleu_s_paired_test(name, noise, other):
    from sacrebleu.significance import PairedTest

    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    first, expected = corpus(noise)
    second, _ = corpus(other, seed=1)
    test = PairedTest(
        [("first", first), ("second", second)],
        {name: sacrebleu_metric(name)},
        [expected],
        "ar",
        n_samples=2000,
    )
    (theirs,) = (results[1].p_value for key, results in test()[1].items() if key != "System")
    ours = p_value(statistic(name, noise), statistic(name, other, seed=1))
    error = np.sqrt(theirs * (1 - theirs) * (1 / 1000 + 1 / 2000))
    assert ours == pytest.approx(theirs, abs=4 * error + 0.001)


def test_p_of_right_and_wrong_answers_is_that_of_the_exact_test():
    """Approximate randomisation of accuracies is McNemar's exact test: of 30 that differ, 21 are one's."""
    from scipy.stats import binomtest

    first = [True] * 21 + [False] * 9 + [True] * 70
    second = [False] * 21 + [True] * 9 + [True] * 70
    one, other = (Statistic.of_ratio(right, [1] * 100) for right in (first, second))
    exact = binomtest(21, 30).pvalue
    assert p_value(one, other) == pytest.approx(exact, abs=4 * np.sqrt(exact / 1000))
    assert p_value(one, other) == p_value(other, one)


def outcome(run_id, noise, seed=0, *, data="captions", left_out=(), verdict="ok", count=300):
    """A run on sentences to recognise, without those of some indices."""
    predicted, expected = corpus(noise, count, seed)
    asked = DataSet("automatic-speech-recognition", samples(count, lambda i: expected[i], "a.wav"), "f")
    raw = {str(i): {"text": t, "audio_s": 1.0} for i, t in enumerate(predicted) if i not in left_out}
    found = score(asked, raw)
    ended = RunOutcome(model=run_id, verdict=verdict, metrics=found.metrics)
    return EvaluationOutcome(run_id, run_id, data, asked, ended, [], found)


def test_models_of_the_same_data_are_compared_by_each_metric_the_better_one_first():
    found = significance.compare(
        [outcome("bad", 0.5), outcome("good", 0.2, 1), outcome("else", 0.2, data="b")]
    )
    assert [(one.metric, one.model, one.against, one.samples) for one in found] == [
        ("wer", "bad", "good", 300),
        ("cer", "bad", "good", 300),
    ]
    assert 0 < found[0].low < found[0].difference < found[0].high
    assert found[0].p_value == pytest.approx(1 / 1001, rel=1e-4)


def test_equal_models_do_not_differ():
    found = significance.compare([outcome("one", 0.3), outcome("same", 0.3)])
    assert {(one.difference, one.low, one.high, one.p_value) for one in found} == {(0, 0, 0, 1)}


def test_only_what_both_answered_is_compared():
    """One left the first half out, the other failed at all of it: in the second they are the same."""
    half = range(150)
    whole = outcome("whole", 0.3)
    wrong = {
        str(i): {"text": "nothing" if i in half else text, "audio_s": 1.0}
        for i, text in enumerate(corpus(0.3)[0])
    }
    other = dataclasses.replace(whole, run_id="other", score=score(whole.data, wrong))
    (found, _) = significance.compare([outcome("half", 0.3, left_out=half), other])
    assert (found.samples, found.difference, found.p_value) == (150, 0, 1)


def test_what_no_two_answered_is_not_compared():
    assert not significance.compare(
        [outcome("odd", 0.3, left_out=range(0, 300, 2)), outcome("even", 0.3, left_out=range(1, 300, 2))]
    )


def test_three_are_compared_each_with_each_more_with_the_best_alone():
    runs = [outcome(f"m{i}", 0.2 + i / 10, seed=i) for i in range(5)]

    def pairs(some):
        return [(one.against, one.model) for one in significance.compare(some) if one.metric == "wer"]

    assert pairs(runs[:3]) == [("m0", "m1"), ("m0", "m2"), ("m1", "m2")]
    assert pairs(runs[::-1]) == [("m0", f"m{i}") for i in range(1, 5)]


def test_who_did_not_answer_all_is_not_the_best():
    runs = [outcome("part", 0.1, left_out=range(200), verdict="timeout"), outcome("whole", 0.3, 1)]
    assert {one.against for one in significance.compare(runs)} == {"whole"}


def test_metrics_that_are_no_sums_over_samples_have_no_interval_and_are_not_compared():
    texts, pairs = make_result("gpt2", "texts"), make_result("minilm", "pairs")
    assert significance.intervals(texts.score) == significance.intervals(pairs.score) == {}
    assert not significance.compare([texts, texts, pairs, pairs])


def test_accuracy_keeps_wilson_s_interval_which_a_perfect_score_has_too():
    asked = DataSet("text-classification", samples(20, lambda i: i % 2), "a", ("negative", "positive"))
    found = score(asked, {str(i): {"label": i % 2} for i in range(20)})
    assert significance.intervals(found) == {"accuracy": pytest.approx((0.8389, 1.0), abs=1e-4)}
    assert interval(found.statistics["accuracy"]) == (1, 1)


def test_one_sample_says_nothing_of_others():
    assert significance.intervals(outcome("one", 0.3, count=1).score) == {}


def test_the_same_answers_give_the_same_figures():
    runs = [outcome("one", 0.3), outcome("other", 0.35, seed=1)]
    again = [outcome("one", 0.3), outcome("other", 0.35, seed=1)]
    assert significance.compare(runs) == significance.compare(again)
    assert significance.intervals(runs[0].score) == significance.intervals(again[0].score)
