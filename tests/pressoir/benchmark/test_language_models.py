"""The benchmark of language models: fair turns, right figures, honest words. No test looks at the clock."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pressoir.benchmark import language_models
from pressoir.benchmark import probe as probing
from pressoir.benchmark.classifier_report import Benchmark
from pressoir.benchmark.language_model_report import (
    GenerationBenchmark,
    GenerationRow,
    figure,
    headline,
    percent,
    to_markdown,
)
from pressoir.benchmark.language_models import Times, bits_per_weight, count_parameters, time_in_turn
from pressoir.errors import DataError, PressoirError
from pressoir.inference.text_generation import TextGenerator
from pressoir.models import layouts, loading
from pressoir.recipe.sections import BenchmarkConfig, ExportConfig, QuantizeConfig, ShardConfig
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext
from pressoir.stages import benchmark, export, quantize, shard

CONFIG = BenchmarkConfig(warmup=1, prompts=3, prompt_tokens=12, new_tokens=5)
CONTENDERS = ["source", "source_onnx", "quantize", "export", "shard"]


@pytest.fixture(scope="module", autouse=True)
def _threads():
    """The stage sets this process's threads; give back what was there."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Turns


class FakeDecoder:
    """Takes 10 ms a token of a prompt and 1 ms a new token, times its slowness; notes each call."""

    runtime, vocabulary, context, eos_ids = "pytorch", 10, 1000, frozenset([0])

    def __init__(self, name, slowness, clock, calls):
        self.name, self.slowness, self.clock, self.calls = name, slowness, clock, calls

    def forward(self, input_ids, cache=None, *, last_only=False):
        assert last_only
        fresh = cache is None
        self.calls.append((self.name, int(input_ids[0, 0]) if fresh else "new"))
        self.clock.now_ns += int((10 * input_ids.shape[1] if fresh else 1) * self.slowness * 1e6)
        logits = np.zeros((1, 1, 10), dtype=np.float32)  # the likeliest is 0, which ends a text
        return logits, input_ids.shape[1] + (cache or 0)


@pytest.fixture
def fakes():
    """Two fake decoders A and B (1 and 2 times as slow), their clock and their calls."""
    clock, calls = SimpleNamespace(now_ns=0), []
    return [FakeDecoder(name, i, clock, calls) for i, name in enumerate("AB", 1)], lambda: clock.now_ns, calls


PROMPTS = np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3]])


def test_prefill_and_decoding_are_timed_apart_though_a_text_ends_at_once(fakes):
    decoders, clock, _ = fakes
    times = time_in_turn(decoders, PROMPTS, new_tokens=5, warmup=2, clock=clock)
    assert times == [[Times(30, 4)] * 3, [Times(60, 8)] * 3]


def test_models_take_turns_and_each_first_reads_the_prompt_before_untimed(fakes):
    decoders, clock, calls = fakes
    time_in_turn(decoders, PROMPTS, new_tokens=3, warmup=2, clock=clock)
    warm_up, rounds = calls[:4], calls[4:]
    assert warm_up == [("A", 1), ("A", "new"), ("B", 1), ("B", "new")]
    turn_calls = [rounds[i : i + 5] for i in range(0, len(rounds), 5)]
    turns = [(turn[0][0], turn[0][1], turn[2][1]) for turn in turn_calls]
    assert turns == [("A", 3, 1), ("B", 3, 1), ("B", 1, 2), ("A", 1, 2), ("A", 2, 3), ("B", 2, 3)]
    for turn in turn_calls:
        assert len({name for name, _ in turn}) == 1
        assert [what for _, what in turn[1::2]] == ["new", "new"]


def test_without_a_warm_up_nothing_runs_before_the_first_turn(fakes):
    decoders, clock, calls = fakes
    time_in_turn(decoders, PROMPTS[:1], new_tokens=2, warmup=0, clock=clock)
    assert len(calls) == 2 * (2 + 2)


# The stage


@pytest.fixture(scope="module")
def folders(tiny_llama, tiny_text, tmp_path_factory):
    """A pipeline's artifacts: a source, its graph, 3-bit weights, their graph, and that in shards."""
    made = {"data": tiny_text, "source": tiny_llama}

    def stage(name, module, config, source):
        out, work = tmp_path_factory.mktemp(name), tmp_path_factory.mktemp(f"{name}-work")
        context = StageContext(out, work, LogReporter(), seed=0, threads=1)
        module.run({"model": made[source], "data": tiny_text}, config, context)
        made[name] = out

    stage("source_onnx", export, ExportConfig(), "source")
    stage("quantize", quantize, QuantizeConfig(scheme="q3", algorithm="rtn"), "source")
    stage("export", export, ExportConfig(), "quantize")
    stage("shard", shard, ShardConfig(shards=2), "export")
    return made


class Recorder(LogReporter):
    """Keeps the last progress of each kind."""

    def __init__(self):
        self.last = {}

    def progress(self, done, total, what):
        assert done > self.last.get(what, (0, 0))[0]
        self.last[what] = (done, total)


COST = probing.Probe(import_s=3.0, load_s=0.5, baseline_rss_mb=400.0, peak_rss_mb=500.0)


@pytest.fixture
def no_children(monkeypatch):
    """Stand in for the fresh processes, which take seconds each; `test_a_cold_start_…` has real ones."""
    monkeypatch.setattr(language_models, "probe", lambda *call: COST)


@pytest.fixture(scope="module")
def measured(folders, tmp_path_factory):
    """The stage run once over all folders: what it asked for, reported, returned and wrote."""
    asked, reporter = [], Recorder()
    out = tmp_path_factory.mktemp("benchmark")
    context = StageContext(out, tmp_path_factory.mktemp("work"), reporter, seed=0, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_models, "probe", lambda *call: asked.append(call) or COST)
        figures = benchmark.run(folders, CONFIG, context)
    result = GenerationBenchmark.read(out / "benchmark.json")
    return SimpleNamespace(asked=asked, progress=reporter.last, out=out, figures=figures, result=result)


def test_a_row_for_each_folder_in_order_with_the_runtime_it_holds(measured, folders):
    rows = [(row.stage, row.runtime) for row in measured.result.rows]
    assert rows == [
        ("source", "pytorch"),
        ("source", "onnxruntime"),
        ("quantize", "pytorch"),
        ("export", "onnxruntime"),
        ("shard", "onnxruntime"),
    ]
    assert [call[:3] for call in measured.asked] == [
        (folders[name], runtime, 1) for name, (_, runtime) in zip(CONTENDERS, rows, strict=True)
    ]


def test_progress_of_every_part_is_reported_to_its_end(measured):
    assert measured.progress == {
        "load time and memory": (5, 5),
        "perplexity": (5 * 16, 5 * 16),  # models × windows of both texts
        "prompts timed": (3, 3),
    }


def test_perplexity_is_the_geometric_mean_over_the_texts(measured, folders):
    from pressoir.data import running_text

    result, generator = measured.result, TextGenerator.open(folders["source"], threads=1)
    expected = {
        name: generator.perplexity(content, 32, 8)
        for name, content in running_text.load_evaluation(folders["data"]).items()
    }
    first = result.rows[0]
    assert first.perplexities == pytest.approx({name: score.value for name, score in expected.items()})
    assert first.perplexity == pytest.approx(math.prod(first.perplexities.values()) ** 0.5)
    assert first.perplexities["good"] != pytest.approx(first.perplexities["bad"], rel=1e-3)
    assert result.scored_tokens == {"bad": 8 * 31, "good": 8 * 31}
    assert result.window == 32


def test_runtimes_and_shards_agree_in_perplexity_and_increase_is_against_the_first_row(measured):
    source, onnx, packed, graph, shards = measured.result.rows
    assert (source.perplexity_increase, source.speedup, source.compression) == (0, 1, 1)
    assert onnx.perplexity == pytest.approx(source.perplexity, rel=1e-5)
    assert graph.perplexity == shards.perplexity == pytest.approx(packed.perplexity, rel=0.02)
    assert packed.perplexity != pytest.approx(source.perplexity, rel=1e-4)
    for row in measured.result.rows:
        assert row.perplexity_increase == pytest.approx(row.perplexity / source.perplexity - 1)
        assert row.compression == source.size_mb / row.size_mb
        assert row.speedup == pytest.approx(row.decode_tokens_per_s / source.decode_tokens_per_s)


def test_bits_weights_and_room_in_memory(measured, folders):
    rows = measured.result.rows
    stated = json.loads((folders["quantize"] / "quantization.json").read_text())["bits_per_weight"]
    assert [row.bits_per_weight for row in rows] == [32, 32, stated, stated, stated]
    assert 3 < stated < 4
    expected = layouts.count_parameters(loading.load_causal_lm(folders["source"]))
    assert {row.parameters for row in rows} == {expected}
    matrices = 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 128 * 64)  # weights that are quantised, of 2 layers
    assert [row.expanded_mb for row in rows] == [0, 0, 0, matrices / 2e6, matrices / 2e6]
    assert [row.simulated for row in rows] == [False, False, True, False, False]


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_qwen2"])
def test_a_head_that_is_the_embedding_counts_once(request, name):
    folder = request.getfixturevalue(name)
    assert count_parameters(folder) == layouts.count_parameters(loading.load_causal_lm(folder))


def test_bits_of_a_checkpoint_are_those_of_its_type(tiny_llama, tmp_path):
    model = loading.load_causal_lm(tiny_llama).to(torch.bfloat16)
    loading.save_model(model, tmp_path)
    assert bits_per_weight(tmp_path) == 16
    with pytest.raises(PressoirError, match="neither floating-point weights"):
        bits_per_weight(tmp_path / "nothing")


def test_times_explain_the_rows_figures(measured):
    samples = json.loads((measured.out / "latencies.json").read_text())
    for sample, row in zip(samples, measured.result.rows, strict=True):
        assert (sample["stage"], sample["runtime"]) == (row.stage, row.runtime)
        assert len(sample["ttft_ms"]) == len(sample["decode_ms"]) == 3
        assert row.ttft_ms_p50 == np.median(sample["ttft_ms"])
        assert row.ttft_ms_p95 == np.percentile(sample["ttft_ms"], 95)
        assert row.prefill_tokens_per_s == pytest.approx(12 / (row.ttft_ms_p50 / 1e3))
        assert row.decode_tokens_per_s == pytest.approx(4 / (np.median(sample["decode_ms"]) / 1e3))


def test_the_header_says_how_it_was_measured(measured):
    result = measured.result
    assert (result.threads, result.seed, result.warmup, result.task) == (1, 0, 1, "causal-lm")
    assert (result.prompts, result.prompt_tokens, result.new_tokens) == (3, 12, 5)
    assert {"cpu", "threads", "system"} <= set(result.machine)
    assert result.versions["torch"] == torch.__version__


def test_metrics_are_the_last_rows_figures_and_all_finite(measured):
    figures, first, last = measured.figures, measured.result.rows[0], measured.result.rows[-1]
    for name in (
        "perplexity",
        "perplexity_increase",
        "speedup",
        "compression",
        "decode_tokens_per_s",
        "size_mb",
    ):
        assert figures[name] == getattr(last, name)
    assert figures["perplexity_good"] == last.perplexities["good"]
    assert figures["reference_perplexity"] == first.perplexity
    assert all(type(value) is float and math.isfinite(value) for value in figures.values())


def test_a_registry_may_promote_by_the_last_rows_figures(measured):
    from pressoir.recipe.sections import Criterion
    from pressoir.registry.promotion import promotion

    promoted, reason = promotion(measured.figures, None, Criterion(max_perplexity_increase=10.0))
    assert promoted, reason


def test_table_and_pictures_are_written(measured):
    table = (measured.out / "comparison.md").read_text(encoding="utf-8")
    assert table == to_markdown(measured.result)
    for name in ("perplexity_size.png", "decode_speed.png"):
        assert (measured.out / name).read_bytes().startswith(b"\x89PNG")


def test_a_file_is_read_as_what_it_is(measured, tmp_path):
    path = measured.out / "benchmark.json"
    with pytest.raises(PressoirError, match="not a readable benchmark"):
        Benchmark.read(path)
    with pytest.raises(PressoirError, match=r"benchmark\.json cannot be read"):
        GenerationBenchmark.read(tmp_path / "benchmark.json")
    measured.result.write(tmp_path / "benchmark.json")
    assert GenerationBenchmark.read(tmp_path / "benchmark.json") == measured.result


@pytest.mark.process
@pytest.mark.parametrize("name", ["source", "shard"])
def test_a_cold_start_is_measured_in_a_process_of_its_own(folders, name):
    runtime = "pytorch" if name == "source" else "onnxruntime"
    cost = probing.probe(folders[name], runtime, 1, "--the film was")
    assert 50 < cost.baseline_rss_mb <= cost.peak_rss_mb
    assert min(cost.import_s, cost.load_s) > 0


# What is refused


def test_a_model_with_another_tokenizer_is_refused(folders, tmp_path, context, no_children):
    import shutil

    other = shutil.copytree(folders["source"], tmp_path / "other")
    path = other / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizer"}  # which begins with <s>
    path.write_text(json.dumps(settings))
    inputs = {"data": folders["data"], "source": folders["source"], "other": other}
    with pytest.raises(PressoirError, match=r"other \(.*\) tokenizes text differently from source"):
        benchmark.run(inputs, CONFIG, context)


def test_prompts_beyond_the_context_are_refused(folders, context, no_children):
    config = BenchmarkConfig(prompt_tokens=250, new_tokens=7)
    with pytest.raises(PressoirError, match=r"context of 256 tokens, but a timed text has 257; lower bench"):
        benchmark.run({name: folders[name] for name in ("data", "source")}, config, context)


def test_a_text_shorter_than_a_window_is_refused(folders, tmp_path, context, no_children):
    import shutil

    data = shutil.copytree(folders["data"], tmp_path / "data")
    (data / "evaluation" / "bad.txt").write_text("too short\n")
    with pytest.raises(DataError, match="fewer than one window of 32"):
        benchmark.run({"data": data, "source": folders["source"]}, CONFIG, context)


def test_a_short_text_gives_its_prompts_again(folders):
    generator = TextGenerator.open(folders["source"], threads=1)
    contender = language_models._Contender("source", folders["source"], COST, generator, {})
    text = "the film was good and the soup was dull"
    ids = generator.tokenizer.encode(text)
    config = BenchmarkConfig(prompts=5, prompt_tokens=len(ids) // 2, new_tokens=4)
    prompts = language_models._prompts([contender], text, config)
    half = len(ids) // 2
    assert prompts.tolist() == [ids[:half], ids[half : 2 * half]] * 2 + [ids[:half]]


# Words


def make_row(stage, runtime="onnxruntime", perplexity=88.3, bits=32.0, size_mb=26.4, decode=85.0, **more):
    return GenerationRow(
        stage=stage,
        runtime=runtime,
        perplexity=perplexity,
        perplexities={"wiki": perplexity},
        perplexity_increase=perplexity / 88.3 - 1,
        bits_per_weight=bits,
        parameters=6_500_000,
        size_mb=size_mb,
        compression=26.4 / size_mb,
        ttft_ms_p50=40.0,
        ttft_ms_p95=50.0,
        prefill_tokens_per_s=1600.0,
        decode_tokens_per_s=decode,
        speedup=decode / 85.0,
        baseline_rss_mb=400.0 if runtime == "pytorch" else 80.0,
        peak_rss_mb=500.0,
        load_s=0.1,
        **more,
    )


SOURCE = make_row("source", "pytorch")
GRAPH = make_row("source", decode=150.0)
PACKED = make_row("quantize", "pytorch", 89.6, 4.56, 5.9, 84.0)
EXPORT = make_row("export", perplexity=89.6, bits=4.56, size_mb=6.1, decode=255.0)
SHARD = make_row("shard", perplexity=89.6, bits=4.56, size_mb=6.1, decode=250.0)


def make_benchmark(*rows, texts=("wiki",)):
    return GenerationBenchmark(
        recorded_at="2025-01-01T00:00:00+00:00",
        machine={"cpu": "a CPU"},
        versions={"torch": "2.6"},
        threads=2,
        seed=0,
        window=128,
        scored_tokens=dict.fromkeys(texts, 12700),
        prompts=8,
        prompt_tokens=64,
        new_tokens=64,
        warmup=20,
        rows=rows,
    )


def notes_of(*rows):
    return [line[2:] for line in to_markdown(make_benchmark(*rows)).splitlines() if line.startswith("- ")]


def test_the_headline_says_what_was_gained_and_lost():
    assert headline(make_benchmark(SOURCE, GRAPH, PACKED, EXPORT, SHARD)) == (
        "shard (onnxruntime) against source (pytorch): 2.9× faster, 4.3× smaller, "
        "perplexity 88.30 → 89.60 (+1.5 %)"
    )
    assert headline(make_benchmark(SOURCE)) == "source (pytorch): perplexity 88.30, 85.00 tokens per second"


def test_every_line_of_the_table_has_as_many_cells_as_its_head():
    row = make_row("source", "pytorch").model_copy(update={"perplexities": {"a": 5.0, "b": 2345.6}})
    table = [
        line for line in to_markdown(make_benchmark(row, texts=("a", "b"))).splitlines() if line[:1] == "|"
    ]
    assert {line.count("|") for line in table} == {table[0].count("|")}
    assert " a | b | bits " in table[0]
    assert " reference | 5.00 | 2,346 | 32.00 " in table[2]


def test_a_pipeline_that_pays_off_gets_no_reproach():
    notes = notes_of(SOURCE, GRAPH, PACKED, EXPORT, SHARD)
    assert notes == [
        "The runtime alone makes source 1.8× faster; shard (onnxruntime) is 1.7× faster than that.",
        "quantize (pytorch): packed weights are expanded to float32 to measure perplexity; only the "
        "exported graph is optimised for speed and memory.",
        "RSS is measured in a fresh process and includes the imported libraries: 400 MB in pytorch, "
        "80 MB in onnxruntime.",
    ]


def test_rows_that_gain_no_speed_are_named_with_what_they_are_held_against():
    slow, same = make_row("q2", bits=2.4, decode=100.0), make_row("q8", bits=8.6, decode=152.0)
    notes = notes_of(SOURCE, GRAPH, slow, same)
    parent = "source (onnxruntime) with 150.0 tokens per second"
    assert f"Did not pay off in speed, slower than {parent}: q2 (onnxruntime) 100.0." in notes
    assert f"No faster than {parent}: q8 (onnxruntime) 152.0." in notes


def test_a_graph_that_is_slower_than_pytorch_is_named():
    notes = notes_of(SOURCE, make_row("source", decode=60.0))
    expected = "slower than source (pytorch) with 85.00 tokens per second: source (onnxruntime) 60.00."
    assert f"Did not pay off in speed, {expected}" in notes


def test_shards_need_not_be_faster_but_not_slower_either():
    slower = make_row("shard", perplexity=89.6, bits=4.56, decode=200.0)
    notes = notes_of(SOURCE, GRAPH, PACKED, EXPORT, slower)
    assert any("slower than export (onnxruntime)" in note for note in notes)
    assert not any("shard (onnxruntime)" in note for note in notes_of(SOURCE, GRAPH, EXPORT, SHARD)[1:])


def test_perplexity_that_rises_much_or_falls_is_said():
    notes = notes_of(SOURCE, make_row("q2", perplexity=400.0, decode=900.0), make_row("q8", perplexity=88.0))
    assert "Perplexity rises by more than 5 %: q2 (onnxruntime) +353.0 %." in notes
    assert any("lower than that of the reference: q8 (onnxruntime) −0.3 %. Quantisation" in n for n in notes)
    nothing = notes_of(
        SOURCE, make_row("q8", perplexity=88.3 * 1.0003), make_row("q8", perplexity=88.3 * 0.9997)
    )
    assert not any("erplexity" in note for note in nothing)


def test_both_sizes_of_3_bit_weights_are_said():
    [note] = [n for n in notes_of(SOURCE, make_row("q3", bits=3.55, expanded_mb=3.2)) if "3-bit" in n]
    assert note.endswith("when loaded: q3 (onnxruntime) 2.4 MB on disk, 3.2 MB in memory.")


def test_a_reference_in_half_precision_is_said():
    half = make_row("source", "pytorch", bits=16.0)
    assert any("stored in 16 bits per weight and computes in float32" in note for note in notes_of(half))
    assert not any("computes in float32" in note for note in notes_of(SOURCE))


def test_numbers_have_as_many_digits_as_they_can_bear():
    assert [figure(value) for value in (3.14159, 88.345, 353.84, 1415.2)] == [
        "3.14",
        "88.34",
        "353.8",
        "1,415",
    ]
    parts = (0.0, 0.00049, 0.0152, -0.034, 3.53, 12.345)
    assert [percent(part) for part in parts] == [
        "±0.0 %",
        "±0.0 %",
        "+1.5 %",
        "−3.4 %",
        "+353.0 %",
        "+1,234 %",
    ]
