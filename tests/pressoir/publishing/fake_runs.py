"""Benchmarks of runs that never were, and the folders that they would have left."""

from pressoir.benchmark.classifier_details import details
from pressoir.benchmark.classifier_report import Benchmark
from pressoir.benchmark.language_model_report import GenerationBenchmark
from pressoir.recipe.recipe import Recipe

CONDITIONS = {
    "recorded_at": "2020-01-01T00:00:00+00:00",
    "machine": {"cpu": "Abacus 9000", "cpus": "2", "system": "Linux"},
    "versions": {"python": "3.11.7", "onnxruntime": "1.31.1"},
    "threads": 2,
    "seed": 42,
    "warmup": 1,
}
MEMORY = {"baseline_rss_mb": 90.0, "peak_rss_mb": 105.0, "load_s": 0.3}


def classifier_row(stage, runtime, **figures):
    intervals = {"accuracy_ci_low": 0.85, "accuracy_ci_high": 0.9}
    given = {"accuracy": 0.88, **intervals, "f1": 0.87, "macro_f1": 0.865, "agreement": 1.0, "size_mb": 91.6}
    given |= {"parameters": 100, "latency_ms_p50": 15.81, "latency_ms_p95": 20.0, "throughput_per_s": 128.0}
    given |= {"speedup": 1.0, "compression": 1.0, "accuracy_delta": 0.0, **MEMORY, **figures}
    return {"stage": stage, "runtime": runtime, **given}


FINAL = {
    **{"accuracy": 0.8704128440366973, "accuracy_ci_low": 0.846, "accuracy_ci_high": 0.891, "f1": 0.871},
    **{"size_mb": 15.9, "latency_ms_p50": 0.86, "speedup": 18.5, "compression": 5.8, "accuracy_delta": -0.01},
}


def classifier_benchmark(**fields):
    rows = [classifier_row("teacher", "pytorch"), classifier_row("shard", "onnxruntime", **FINAL)]
    sizes = {"latency_samples": 300, "throughput_batch_size": 32, "throughput_batches": 8}
    given = {"test_sentences": 872, "tokenization_ms_p50": 0.1, "f1_label": "positive", "texts_truncated": 3}
    return Benchmark.model_validate({**CONDITIONS, **sizes, **given, "rows": rows, **fields})


def generation_row(stage, runtime, perplexity, bits, **figures):
    given = {"perplexity": perplexity, "perplexities": {"good": perplexity, "bad": 2 * perplexity}}
    given |= {"perplexity_increase": perplexity / 20 - 1, "bits_per_weight": bits, "parameters": 100}
    given |= {"size_mb": 10.0, "compression": 1.0, "ttft_ms_p50": 5.0, "ttft_ms_p95": 6.0, "speedup": 1.0}
    given |= {"prefill_tokens_per_s": 100.0, "decode_tokens_per_s": 26.7, **MEMORY, **figures}
    return {"stage": stage, "runtime": runtime, **given}


def generation_benchmark():
    rows = [
        generation_row("source", "pytorch", 20.0, 32),
        generation_row("shard", "onnxruntime", 21.0, 4.5, compression=6.4, speedup=7.9),
    ]
    counts = {"window": 128, "prompts": 8, "prompt_tokens": 64, "new_tokens": 64}
    scored = {"scored_tokens": {"good": 1270, "bad": 2540}}
    return GenerationBenchmark.model_validate({**CONDITIONS, **counts, **scored, "rows": rows})


HOSTILE = (
    "<script>document.title = 'taken over'</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}",
    "</pre></details></table>",
)
BASELINE = {
    **{"ngrams": "words", "training_sentences": 500, "train_s": 0.5, "accuracy": 0.8, "macro_f1": 0.79},
    **{"accuracy_ci_low": 0.77, "accuracy_ci_high": 0.83, "parameters": 9000, "size_mb": 0.4},
    **{"latency_ms_p50": 0.2, "latency_ms_p95": 0.3, "throughput_per_s": 9000.0},
}
TEXTS = [*HOSTILE, "a plain sentence", "word " * 1000, "x" * 400, "the same to both"]


def fake_details(texts=TEXTS, labels=("negative", HOSTILE[0])):
    """Two models that differ on all sentences but the last: the first knows the labels."""
    import numpy as np

    count = len(texts)
    expected = np.arange(count) % len(labels)
    reference = np.full((count, len(labels)), 0.1 / (len(labels) - 1))
    reference[np.arange(count), expected] = 0.9
    final = reference[:, ::-1].copy()
    final[:, :] += np.linspace(0.0, 0.05, count)[:, None] * np.where(
        final == final.max(axis=1)[:, None], -1, 1
    )
    final[-1] = reference[-1]
    return details(texts, expected, labels, reference, final)


def write_run(folder, benchmark, found=None, recipe=None):
    """What `compress --output` writes, without the model."""
    (folder / "report").mkdir(parents=True)
    for place in (folder, folder / "report"):
        benchmark.write(place / "benchmark.json")
    if found is not None:
        found.write(folder / "report" / "details.json")
    if recipe is not None:
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    return folder


def hostile_run(folder):
    """A classifier's run in which all that others write would like to be more than text."""
    stages = [("teacher", "pytorch"), ("teacher", "onnxruntime"), ("quantize", "pytorch")]
    rows = [
        classifier_row(*names, size_mb=91.6 - i, latency_ms_p50=15.8 - i) for i, names in enumerate(stages)
    ]
    rows.append(classifier_row("shard", "onnxruntime", **FINAL))
    machine = {"cpu": HOSTILE[0], "cpu_features": "avx2", "cpus": "2", "threads": "2", "system": HOSTILE[1]}
    benchmark = classifier_benchmark(
        rows=rows, machine=machine, linear_baseline=BASELINE, tokens_truncated=17
    )
    recipe = Recipe.from_dict({"name": "tiny", "description": HOSTILE[0], "model": HOSTILE[1]})
    return write_run(folder, benchmark, fake_details(), recipe)
