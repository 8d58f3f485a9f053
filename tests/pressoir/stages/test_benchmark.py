"""The benchmark stage: fair turns, right figures, honest words. No test looks at how long anything took."""

import gc
import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pressoir.benchmark import classifiers
from pressoir.benchmark import probe as probing
from pressoir.benchmark.classifier_details import ClassifierDetails
from pressoir.benchmark.classifier_report import Benchmark, BenchmarkRow, to_markdown
from pressoir.benchmark.size import size_mb
from pressoir.benchmark.timing import drift, sentences_to_time, time_in_turn, turns
from pressoir.data import sentences
from pressoir.errors import DataError, PressoirError
from pressoir.inference.text_classification import TextClassifier
from pressoir.models import loading
from pressoir.models.layouts import count_parameters
from pressoir.recipe.sections import BenchmarkConfig, ExportConfig, QuantizeConfig, ShardConfig
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext
from pressoir.stages import benchmark, export, quantize, shard
from pressoir.system import memory

CONFIG = BenchmarkConfig(warmup=1, latency_samples=12, throughput_batch_size=50, throughput_batches=2)
STAGES = ["teacher", "teacher_onnx", "distill", "quantize", "export", "shard"]


class FakeClock:
    def __init__(self):
        self.now_ns = 0

    def __call__(self):
        return self.now_ns


class FakeEngine:
    """Takes as many milliseconds as its input says times its own slowness, and notes each call."""

    runtime, batch_invariant = "pytorch", True

    def __init__(self, name, slowness, clock, calls):
        self.name, self.slowness, self.clock, self.calls = name, slowness, clock, calls

    def run(self, inputs):
        self.calls.append((self.name, inputs))
        self.clock.now_ns += int(inputs * self.slowness * 1e6)


@pytest.fixture
def fakes():
    """Three fake engines A, B, C (1, 2 and 3 times the input), their clock and their calls."""
    clock, calls = FakeClock(), []
    return [FakeEngine(name, i, clock, calls) for i, name in enumerate("ABC", start=1)], clock, calls


def test_every_batch_is_timed_on_every_engine(fakes):
    engines, clock, _ = fakes
    batches = [5.0, 7.0, 1.0, 2.0]
    times = time_in_turn(engines, [batches] * 3, warmup=2, clock=clock)
    assert times.tolist() == [[5, 7, 1, 2], [10, 14, 2, 4], [15, 21, 3, 6]]


def test_engines_take_turns_of_some_sentences_after_their_warm_up(fakes):
    engines, clock, calls = fakes
    time_in_turn(engines, [[1.0, 2.0, 3.0, 4.0, 5.0]] * 3, warmup=2, clock=clock, turn=2)
    warm_up, rounds = calls[:6], calls[6:]
    assert warm_up == [(name, batch) for name in "ABC" for batch in (1.0, 2.0)]
    order = "".join(name for name, _ in rounds)
    assert order == "AAABBBCCC" + "BBBCCCAAA" + "CCAABB"  # the last turn has one batch left to time


def test_a_turn_begins_untimed_with_the_batches_before_it(fakes):
    engines, clock, calls = fakes
    timed = []

    def clock_of_calls():
        timed.append(len(calls))
        return clock()

    batches = [[10 * engine + batch for batch in range(8)] for engine in range(3)]
    time_in_turn(engines, batches, warmup=0, clock=clock_of_calls, turn=4)
    assert [inputs for name, inputs in calls if name == "A"][:6] == [6, 7, 0, 1, 2, 3]
    assert [inputs for name, inputs in calls if name == "A"][6:] == [2, 3, 4, 5, 6, 7]
    measured = [calls[before] for before, after in zip(timed[::2], timed[1::2], strict=True)]
    assert all(after == before + 1 for before, after in zip(timed[::2], timed[1::2], strict=True))
    assert [inputs for name, inputs in measured if name == "B"] == list(range(10, 18))


@pytest.mark.parametrize("count", range(1, 8))
def test_every_model_comes_right_after_every_other_equally_often(count):
    orders = turns(count)
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len({order[0] for order in orders}) == count  # each starts a round
    followed = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert len(followed) == count * (count - 1)
    assert len(set(followed.values())) <= 1


def test_drift_is_the_range_of_medians_of_successive_fifths():
    steady, slower = np.ones((1, 100)), np.ones((1, 100))
    steady[0, ::10] = 50  # single calls that were disturbed
    slower[0, 80:] = 1.5
    assert drift(steady) == 0
    assert drift(slower) == 0.5
    assert drift(np.concatenate([steady, slower])) == 0.5
    assert drift(np.array([[1.0, 2.0, 3.0]])) == 0, "too few to tell"


def test_garbage_collection_waits_for_the_timing_and_comes_back_after_a_failure(fakes):
    engines, clock, _ = fakes
    states = []

    def fail(inputs):
        states.append(gc.isenabled())
        raise RuntimeError("broken")

    engines[1].run = fail
    with pytest.raises(RuntimeError, match="broken"):
        time_in_turn(engines, [[1.0]] * 3, warmup=0, clock=clock)
    assert states == [False]
    assert gc.isenabled()


def test_the_sample_is_the_seeds_and_takes_each_sentence_once_before_any_twice():
    texts = [str(number) for number in range(20)]
    chosen = sentences_to_time(texts, 30, seed=3)
    assert chosen == sentences_to_time(texts, 30, seed=3)
    assert chosen != sentences_to_time(texts, 30, seed=4)
    assert sorted(chosen[:20]) == sorted(texts)
    assert len(set(chosen[20:])) == 10


def test_size_counts_what_opens_the_model_and_no_report(tmp_path):
    counted = ["model.onnx", "shard_00.safetensors", "config.json", "tokenizer.json", "vocab.txt"]
    counted += [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "quantization.json",
        "shard_manifest.json",
    ]
    for name in counted:
        (tmp_path / name).write_bytes(b"x" * 1000)
    for name in ("SHARDING_INFO.md", "export.json", "artifact.json", "accuracy_curves.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x" * 100_000)
    assert size_mb(tmp_path) == pytest.approx(len(counted) / 1000)


class Recorder(LogReporter):
    """Keeps the last progress of each kind."""

    def __init__(self):
        self.last = {}

    def progress(self, done, total, what):
        self.last[what] = (done, total)


@pytest.fixture(scope="module", autouse=True)
def _threads():
    """The stage sets this process's threads; give back what was there."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def save(model, tokenizer_folder, target):
    loading.save_model(model, target)
    loading.save_tokenizer(loading.load_tokenizer(tokenizer_folder), target)


@pytest.fixture(scope="module")
def folders(tiny_classifier, tiny_data, tmp_path_factory):
    """Inputs of the stage. `distill` is the teacher with its head negated: every label is the other one."""
    torch.manual_seed(0)
    model = loading.load_classifier(tiny_classifier)
    with torch.no_grad():
        for parameter in model.parameters():  # no two alike: the exporter stores equal tensors once
            parameter += 0.1 * torch.randn_like(parameter)
    made = {"data": tiny_data, "teacher": tmp_path_factory.mktemp("teacher")}
    made["distill"] = tmp_path_factory.mktemp("distill")
    save(model, tiny_classifier, made["teacher"])
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.neg_()
    save(model, tiny_classifier, made["distill"])

    def stage(name, module, config, source):
        out, work = tmp_path_factory.mktemp(name), tmp_path_factory.mktemp(f"{name}-work")
        context = StageContext(out, work, LogReporter(), seed=0, threads=1)
        module.run({"model": made[source], "data": tiny_data}, config, context)
        made[name] = out

    stage("teacher_onnx", export, ExportConfig(), "teacher")
    stage("quantize", quantize, QuantizeConfig(max_accuracy_drop=None), "distill")
    # A random model's labels hang on a hair: parity of labels is not what is tested here.
    stage("export", export, ExportConfig(min_label_agreement=0.0), "quantize")
    stage("shard", shard, ShardConfig(), "export")
    return {name: made[name] for name in ["data", *STAGES]}


@pytest.fixture(scope="module")
def measured(folders, cold_start, tmp_path_factory):
    """The stage run once over all folders: what it asked for, reported, returned and wrote."""
    asked, reporter = [], Recorder()
    out = tmp_path_factory.mktemp("benchmark")
    context = StageContext(out, tmp_path_factory.mktemp("work"), reporter, seed=0, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "probe", lambda *call: asked.append(call) or cold_start)
        figures = benchmark.run(folders, CONFIG, context)
    result = Benchmark.read(out / "benchmark.json")
    return SimpleNamespace(asked=asked, progress=reporter.last, out=out, figures=figures, result=result)


def test_a_row_for_each_folder_in_order_with_the_runtime_it_holds(measured):
    assert [(row.stage, row.runtime) for row in measured.result.rows] == [
        ("teacher", "pytorch"),
        ("teacher", "onnxruntime"),
        ("distill", "pytorch"),
        ("quantize", "pytorch"),
        ("export", "onnxruntime"),
        ("shard", "onnxruntime"),
    ]


def test_each_cold_start_is_asked_for_in_the_rows_runtime(measured, folders, cold_start):
    expected = [(folders[s], row.runtime, 1) for s, row in zip(STAGES, measured.result.rows, strict=True)]
    assert [call[:3] for call in measured.asked] == expected
    assert {row.peak_rss_mb for row in measured.result.rows} == {cold_start.peak_rss_mb}


def test_progress_of_every_part_is_reported_to_its_end(measured):
    assert measured.progress == {
        "load time and memory": (6, 6),
        "accuracy": (6, 6),
        "latency": (2, 2),  # turns of ten
        "throughput": (1, 1),
        "tokenizers": (12, 12),
    }


def test_accuracy_agreement_and_the_differences_are_those_of_the_first_row(measured, folders, tiny_data):
    result = measured.result
    test = sentences.load_split(tiny_data, "test")
    predicted = TextClassifier.open(folders["teacher"], threads=2).logits(test["text"]).argmax(axis=1)
    correct = int((predicted == np.asarray(test["label"])).sum())
    teacher, onnx, negated = result.rows[:3]
    assert teacher.accuracy == correct / len(test)
    assert teacher.accuracy_ci_low < teacher.accuracy < teacher.accuracy_ci_high
    assert (teacher.agreement, teacher.speedup, teacher.compression, teacher.accuracy_delta) == (1, 1, 1, 0)
    assert (onnx.accuracy, onnx.agreement, onnx.accuracy_delta) == (teacher.accuracy, 1, 0)
    assert negated.accuracy == pytest.approx(1 - teacher.accuracy)
    assert negated.agreement == 0
    assert negated.accuracy_delta == pytest.approx(1 - 2 * teacher.accuracy)
    for row in result.rows:
        assert row.speedup == teacher.latency_ms_p50 / row.latency_ms_p50
        assert row.compression == teacher.size_mb / row.size_mb


def test_all_forms_of_a_network_have_the_same_number_of_weights(measured, folders):
    result = measured.result
    expected = count_parameters(loading.load_classifier(folders["teacher"]))
    assert [row.parameters for row in result.rows] == [expected] * len(STAGES)


def test_latencies_are_kept_sorted_and_explain_the_quantiles(measured):
    result = measured.result
    samples = json.loads((measured.out / "latencies.json").read_text())
    for sample, row in zip(samples, result.rows, strict=True):
        times = sample["latency_ms"]
        assert (sample["stage"], sample["runtime"], len(times)) == (row.stage, row.runtime, 12)
        assert times == sorted(times)
        assert row.latency_ms_p50 == np.median(times)
        assert row.latency_ms_p95 == np.percentile(times, 95)


def test_the_header_says_how_it_was_measured(measured):
    result = measured.result
    assert (result.threads, result.seed, result.test_sentences, result.warmup) == (1, 0, 80, 1)
    assert (result.latency_samples, result.throughput_batch_size, result.throughput_batches) == (12, 50, 2)
    assert {"cpu", "threads", "system"} <= set(result.machine)
    assert result.versions["torch"] == torch.__version__


def test_every_model_has_the_time_of_its_own_tokenizer_the_header_that_of_the_first(measured):
    result = measured.result
    assert all(row.tokenization_ms_p50 > 0 for row in result.rows)
    assert result.tokenization_ms_p50 == result.rows[0].tokenization_ms_p50
    assert measured.figures["tokenization_ms_p50"] == result.rows[-1].tokenization_ms_p50


def test_a_file_without_the_times_of_tokenizers_is_still_read_and_shows_none(tmp_path):
    before = comparison(row(), row("export", "onnxruntime"))
    content = json.loads(before.model_dump_json())
    for one in content["rows"]:
        del one["tokenization_ms_p50"]
    (tmp_path / "benchmark.json").write_text(json.dumps(content))
    old = Benchmark.read(tmp_path / "benchmark.json")
    assert [one.tokenization_ms_p50 for one in old.rows] == [None, None]
    table = [line.split(" | ") for line in to_markdown(old).splitlines() if line.startswith("| ")]
    place = table[0].index("tokenizer ms")
    assert [cells[place] for cells in table[1:]] == ["–", "–"]


def test_metrics_are_the_final_rows_figures_and_all_finite(measured):
    result, figures = measured.result, measured.figures
    last = result.rows[-1]
    for name in (
        "accuracy",
        "f1",
        "agreement",
        "speedup",
        "compression",
        "latency_ms_p50",
        "size_mb",
        "load_s",
    ):
        assert figures[name] == getattr(last, name)
    assert figures["reference_accuracy"] == result.rows[0].accuracy
    assert all(type(value) is float and math.isfinite(value) for value in figures.values())


def test_table_and_pictures_are_written(measured):
    result = measured.result
    table = (measured.out / "comparison.md").read_text(encoding="utf-8")
    assert table == to_markdown(result)
    for name in ("accuracy_latency.png", "sizes.png", "latency_distribution.png"):
        assert (measured.out / name).read_bytes().startswith(b"\x89PNG")


def test_classes_and_the_sentences_on_which_the_first_and_the_last_differ_are_kept(
    measured, folders, tiny_data
):
    found, result = ClassifierDetails.read(measured.out / "details.json"), measured.result
    test = sentences.load_split(tiny_data, "test")
    counts = Counter(test["label"])
    assert [(row.label, row.sentences) for row in found.classes] == [
        ("negative", counts[0]),
        ("positive", counts[1]),
    ]
    macro = np.mean([row.final.f1 for row in found.classes])
    assert macro == pytest.approx(result.rows[-1].macro_f1)
    gained = found.only_final_correct - found.only_reference_correct
    assert gained / len(test) == pytest.approx(result.rows[-1].accuracy_delta)
    one = found.differences[0]
    for stage, answer in (("teacher", one.reference), ("shard", one.final)):
        (expected,) = TextClassifier.open(folders[stage], threads=1).predict([one.text])
        assert answer.label == max(expected, key=expected.get)
        assert answer.probability == pytest.approx(expected[answer.label], abs=1e-4)
        assert answer.expected_probability == pytest.approx(expected[one.expected], abs=1e-4)
    assert ("negative", "positive")[test["label"][list(test["text"]).index(one.text)]] == one.expected


def test_json_keeps_full_precision(measured, tmp_path):
    result = measured.result
    third = result.rows[0].model_copy(update={"accuracy": 1 / 3})
    changed = result.model_copy(update={"rows": (third,)})
    changed.write(tmp_path / "benchmark.json")
    assert Benchmark.read(tmp_path / "benchmark.json") == changed


@pytest.mark.process
def test_a_cold_start_is_measured_in_a_process_of_its_own(folders, context, monkeypatch):
    children, real = [], subprocess.run

    def record(command, **options):
        children.append((command, options["env"]))
        return real(command, **options)

    monkeypatch.setattr(probing.subprocess, "run", record)
    text = "--threads and other words that begin with dashes"
    cost = probing.probe(folders["shard"], "onnxruntime", threads=1, text=text)
    [(command, environment)] = children
    assert command[:3] == [sys.executable, "-m", "pressoir.benchmark.probe"]
    assert environment["OMP_NUM_THREADS"] == "1"
    assert 50 < cost.baseline_rss_mb <= cost.peak_rss_mb
    assert min(cost.import_s, cost.load_s) > 0


@pytest.mark.process
def test_a_childs_peak_memory_is_not_its_parents():
    """`ru_maxrss` survives exec: a child of a big process would report the big one's peak."""
    ballast = np.ones(30_000_000)  # 240 MB
    code = "from pressoir.benchmark import probe; now = probe.rss_mb(); print(probe.peak_rss_mb(), now)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, current = map(float, child.stdout.split())
    assert current <= peak < 150 < ballast.nbytes / 1e6 < memory.peak_rss_mb()


@pytest.mark.process
def test_a_child_that_fails_is_an_error_with_its_last_lines(tmp_path):
    with pytest.raises(PressoirError, match="failed in a fresh process") as caught:
        probing.probe(tmp_path, "pytorch", threads=1, text="good")
    last = str(caught.value).splitlines()[-1]
    assert "Error: " in last
    assert str(tmp_path) in last
    assert len(str(caught.value)) < 3000


def test_a_child_that_hangs_is_an_error(tmp_path, monkeypatch):
    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(probing.subprocess, "run", hang)
    with pytest.raises(PressoirError, match="did not finish within 900 s"):
        probing.probe(tmp_path, "pytorch", threads=1, text="good")


def test_logits_that_are_not_numbers_are_refused(folders, tmp_path, context, no_cold_starts):
    model = loading.load_classifier(folders["teacher"])
    model.classifier.bias.data.fill_(math.nan)
    save(model, folders["teacher"], tmp_path / "broken")
    with pytest.raises(PressoirError, match=r"prune \(.*broken\) produces logits that are not finite"):
        benchmark.run({"data": folders["data"], "prune": tmp_path / "broken"}, CONFIG, context)


def test_a_model_with_its_labels_in_another_order_has_the_same_accuracy(
    folders, tmp_path, context, no_cold_starts
):
    model = loading.load_classifier(folders["teacher"])
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter.flip(0))
    loading.rename(model.config, ["positive", "negative"])
    save(model, folders["teacher"], tmp_path / "swapped")
    inputs = {"data": folders["data"], "teacher": folders["teacher"], "distill": tmp_path / "swapped"}
    benchmark.run(inputs, CONFIG, context)
    first, last = Benchmark.read(context.out_dir / "benchmark.json").rows
    assert (last.accuracy, last.f1, last.agreement) == (first.accuracy, first.f1, 1.0)


def test_a_model_with_other_labels_is_refused_with_both_lists(folders, tmp_path, context, no_cold_starts):
    model = loading.load_classifier(folders["teacher"])
    loading.rename(model.config, ["ham", "spam"])
    save(model, folders["teacher"], tmp_path / "strange")
    both = r"prune .*strange.*\('ham', 'spam'\), but the data have 2 \('negative', 'positive'\)"
    with pytest.raises(DataError, match=both):
        benchmark.run({"data": folders["data"], "prune": tmp_path / "strange"}, CONFIG, context)


def test_no_model_at_all_is_refused(tiny_data, context):
    with pytest.raises(PressoirError, match="needs at least one model"):
        benchmark.run({"data": tiny_data}, CONFIG, context)


def row(stage="teacher", runtime="pytorch", **changes):
    figures = {
        "accuracy": 0.9,
        "accuracy_ci_low": 0.87,
        "accuracy_ci_high": 0.92,
        "f1": 0.9,
        "agreement": 1.0,
        "size_mb": 90.0,
        "parameters": 22_000_000,
        "latency_ms_p50": 15.0,
        "latency_ms_p95": 20.0,
        "tokenization_ms_p50": 0.05,
        "throughput_per_s": 100.0,
        "baseline_rss_mb": 400.0,
        "peak_rss_mb": 500.0,
        "load_s": 0.5,
        "speedup": 15.0 / changes.get("latency_ms_p50", 15.0),
        "compression": 90.0 / changes.get("size_mb", 90.0),
        "accuracy_delta": changes.get("accuracy", 0.9) - 0.9,
    }
    return BenchmarkRow(stage=stage, runtime=runtime, **{**figures, **changes})


def comparison(*rows, **changes):
    header = {
        "recorded_at": "2026-01-01T00:00:00+00:00",
        "machine": {"cpu": "Some CPU", "cpu_features": "avx2", "cpus": "2", "system": "Linux"},
        "versions": {"torch": "2.13.0"},
        "threads": 2,
        "seed": 0,
        "test_sentences": 500,
        "warmup": 1,
        "latency_samples": 100,
        "throughput_batch_size": 32,
        "throughput_batches": 8,
        "tokenization_ms_p50": 0.2,
    }
    return Benchmark(rows=rows, **{**header, **changes})


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["accuracy", "latency_ms_p50", "peak_rss_mb", "speedup", "accuracy_delta"])
def test_a_figure_that_is_not_a_number_is_refused(field, value):
    with pytest.raises(ValidationError, match=field):
        row(**{field: value})


@pytest.mark.parametrize("content", ["", "{}", '{"rows": []}', "[1]"])
def test_a_broken_benchmark_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "benchmark.json"
    path.write_text(content)
    with pytest.raises(PressoirError, match=str(path)):
        Benchmark.read(path)


def test_the_table_has_the_headline_and_every_row():
    final = row(
        "shard", "onnxruntime", accuracy=0.891, size_mb=16.0, latency_ms_p50=1.44, throughput_per_s=2345.6
    )
    text = to_markdown(comparison(row(), row("distill", latency_ms_p50=8.0, size_mb=60.0), final))
    change = "10.4× faster, 5.6× smaller, −0.9 points of accuracy"
    assert text.splitlines()[0] == f"**shard (onnxruntime) against teacher (pytorch): {change}**"
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| teacher | pytorch | 90.0 % (87.0–92.0) | reference | 90.0 | 1.0× | 15.00 |")
    assert table[3].startswith(
        "| distill | pytorch | 90.0 % (87.0–92.0) | ±0.0 | 60.0 | 1.5× | 8.00 | 20.00 | 0.050 | 1.9× |"
    )
    assert (
        "| 89.1 % (87.0–92.0) | −0.9 | 16.0 | 5.6× | 1.44 | 20.00 | 0.050 | 10.4× | 2346 | 500 | 0.50 |"
        in table[4]
    )
    assert "Some CPU (features: avx2), 2 threads on 2 CPUs" in text


def notes(*rows, **changes):
    return [line for line in to_markdown(comparison(*rows, **changes)).splitlines() if line.startswith("- ")]


def said(lines, words):
    return any(words in line for line in lines)


def test_a_slower_and_larger_result_is_called_that():
    text = to_markdown(comparison(row(), row("export", "onnxruntime", latency_ms_p50=30.0, size_mb=180.0)))
    assert "2.0× slower, 2.0× larger" in text
    assert (
        "export (onnxruntime) did not pay off: it is slower than teacher (pytorch) (30.00 against 15.00 ms)"
        in text
    )


def test_zeroed_weights_that_bring_no_speed_are_said_to_be_so():
    lines = notes(row(), row("distill", latency_ms_p50=8.0), row("prune", latency_ms_p50=7.9))
    assert said(
        lines,
        "prune (pytorch) is no faster than distill (pytorch) (7.90 against 8.00 ms): individual weights",
    )


def test_a_pruned_model_that_is_smaller_but_no_faster_has_no_zeros_to_blame():
    lines = notes(row(), row("prune", latency_ms_p50=14.9, parameters=11_000_000))
    assert said(lines, "prune (pytorch) is no faster than teacher (pytorch) (14.90 against 15.00 ms).")
    assert not said(lines, "individual weights")


def test_stages_that_pay_off_get_no_word_against_them():
    lines = notes(row(), row("distill", latency_ms_p50=8.0), row("prune", latency_ms_p50=6.0))
    assert not said(lines, "no faster")
    assert not said(lines, "did not pay off")


def test_simulated_int8_is_neither_blamed_for_its_speed_nor_the_measure_of_the_export():
    rows = row(), row("quantize", latency_ms_p50=40.0), row("export", "onnxruntime", latency_ms_p50=20.0)
    lines = notes(*rows)
    assert said(lines, "quantize (pytorch) simulates int8 in float32")
    assert not said(lines, "quantize (pytorch) did not pay off")
    assert said(lines, "export (onnxruntime) did not pay off: it is slower than teacher (pytorch)")
    [line] = [line for line in to_markdown(comparison(*rows)).splitlines() if line.startswith("| quantize")]
    assert "simulated" in line


def test_sharding_is_not_expected_to_be_faster():
    lines = notes(
        row(),
        row("export", "onnxruntime", latency_ms_p50=2.0),
        row("shard", "onnxruntime", latency_ms_p50=2.0),
    )
    assert not said(lines, "no faster")


def test_what_the_runtime_alone_gains_is_told_apart_from_what_the_model_gains():
    rows = (
        row(),
        row("teacher", "onnxruntime", latency_ms_p50=5.0),
        row("shard", "onnxruntime", latency_ms_p50=1.5),
    )
    assert said(
        notes(*rows),
        "The runtime alone makes teacher 3.0× faster; shard (onnxruntime) is 3.3× faster than that.",
    )


def test_a_difference_inside_the_interval_is_said_to_be_so():
    lines = notes(row(), row("shard", "onnxruntime", accuracy=0.88, latency_ms_p50=1.0))
    assert said(
        lines,
        "−2.0 points is within the confidence interval of the reference (87.0–92.0 %): 500 test sentences "
        "are too few",
    )


def test_a_difference_outside_the_interval_is_said_to_be_so():
    lines = notes(row(), row("shard", "onnxruntime", accuracy=0.8, latency_ms_p50=1.0))
    assert said(lines, "−10.0 points is outside the confidence interval of the reference (87.0–92.0 %)")


def test_no_difference_needs_no_word():
    assert not said(notes(row(), row("shard", "onnxruntime", latency_ms_p50=1.0)), "interval")


def test_sentences_timed_twice_are_owned_up_to():
    words = "some were timed more than once"
    assert said(notes(row(), latency_samples=300, test_sentences=80), words)
    assert not said(notes(row(), latency_samples=80, test_sentences=80), words)


def test_a_single_row_has_a_headline_too():
    assert to_markdown(comparison(row())).startswith(
        "**teacher (pytorch): accuracy 90.0 %, 15.00 ms per sentence**"
    )
