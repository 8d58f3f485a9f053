"""A comparison on the vocabulary stage and the linear baseline; the rest is in stages/test_benchmark.py."""

import pytest

from pressoir.benchmark.classifier_report import Benchmark, BenchmarkRow, LinearBaseline, to_markdown


def row(stage, runtime="pytorch", **changes):
    figures = {
        **{"accuracy": 0.9, "accuracy_ci_low": 0.87, "accuracy_ci_high": 0.92, "f1": 0.9, "agreement": 1.0},
        **{"size_mb": 90.0, "parameters": 22_000_000, "latency_ms_p50": 15.0, "latency_ms_p95": 20.0},
        **{"throughput_per_s": 100.0, "baseline_rss_mb": 200.0, "peak_rss_mb": 500.0, "load_s": 0.5},
        **{"speedup": 1.0, "compression": 1.0, "accuracy_delta": 0.0},
    }
    return BenchmarkRow(stage=stage, runtime=runtime, **{**figures, **changes})


def notes(*rows, **more):
    conditions = {
        **{
            "recorded_at": "2026-01-01T00:00:00+00:00",
            "machine": {},
            "versions": {},
            "threads": 2,
            "seed": 0,
        },
        **{"test_sentences": 500, "warmup": 1, "latency_samples": 100, "throughput_batch_size": 32},
        **{"throughput_batches": 3, "tokenization_ms_p50": 0.1},
    }
    return to_markdown(Benchmark(rows=rows, **{**conditions, **more}))


SMALL = {"parameters": 11_000_000, "size_mb": 45.0, "compression": 2.0}


@pytest.mark.parametrize(("latency", "more"), [(15.1, False), (14.9, False), (18.0, True)])
def test_a_cut_vocabulary_is_credited_with_its_size_and_not_blamed_for_its_speed(latency, more):
    text = notes(
        row("teacher"),
        row("teacher", "onnxruntime", latency_ms_p50=5.0),
        row("vocabulary", latency_ms_p50=latency, **SMALL),
        row("export", "onnxruntime", latency_ms_p50=2.0),
    )
    assert "| vocabulary | pytorch | 90.0 % (87.0–92.0) | ±0.0 | 45.0 | 2.0× |" in text
    assert "vocabulary (pytorch) has 50.0 % fewer weights than teacher (pytorch)" in text
    assert f"({latency:.2f} against 15.00 ms)" in text
    assert ("removed words are split into more tokens" in text) is more
    assert "vocabulary (pytorch) did not pay off" not in text
    assert "vocabulary (pytorch) is no faster" not in text


def test_the_student_is_compared_with_the_cut_model():
    text = notes(
        row("teacher"), row("vocabulary", latency_ms_p50=15.0, **SMALL), row("distill", latency_ms_p50=14.9)
    )
    assert "distill (pytorch) is no faster than vocabulary (pytorch) (14.90 against 15.00 ms)." in text


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ({"free_cpus": 1.0}, "other programs left 1.0 CPUs to 2 threads"),
        ({"free_cpus": 1.9, "drift": 0.1}, None),
        ({"free_cpus": 24.0}, None),  # a host of many CPUs, most of them busy, of which a container uses two
        ({"drift": 0.6}, "a model's median time varied by 60 % between fifths of its timings"),
        ({}, None),  # of an older version
    ],
)
def test_a_busy_machine_is_said_right_under_the_headline(conditions, said):
    text = notes(row("teacher"), row("export", "onnxruntime"), **conditions)
    line = text.splitlines()[2]
    if said is None:
        assert "busy" not in text
    else:
        assert line.startswith(f"**The machine was busy: {said}.")


BASE = {
    **{"ngrams": "words", "training_sentences": 1264, "train_s": 0.8, "macro_f1": 0.66, "parameters": 9000},
    **{"accuracy": 0.67, "accuracy_ci_low": 0.61, "accuracy_ci_high": 0.72, "size_mb": 0.5},
    **{"latency_ms_p50": 0.5, "latency_ms_p95": 0.7, "throughput_per_s": 9000.0},
}


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        (0.80, "teacher (pytorch) gains +13.0 points on it, more than chance explains."),
        (0.70, "so this test split does not show that the data needs a Transformer."),
        (0.55, "+12.0 points more than teacher (pytorch). This data does not need a Transformer."),
    ],
)
def test_the_report_says_whether_the_data_needs_a_transformer(accuracy, said):
    text = notes(row("teacher", accuracy=accuracy), linear_baseline=LinearBaseline(**BASE))
    [line] = [one for one in text.splitlines() if one.startswith("| linear baseline")]
    [head] = [one for one in text.splitlines() if one.startswith("| stage")]
    assert line.count("|") == head.count("|")
    assert "| linear baseline | scikit-learn | 67.0 % (61.0–72.0) |" in line
    assert said in text
    assert "trained on 1264 sentences in 0.8 s) reaches 67.0 %" in text


def test_without_a_baseline_the_report_has_no_row_of_it():
    assert "linear" not in notes(row("teacher"))
