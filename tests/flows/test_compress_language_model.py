"""The same flow with a causal LM: merge, pack, export, shard, measure, register, on tiny random models."""

import json

import pytest
import yaml

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.usefixtures("prefect_harness", "tracked")]

BRIEF = {"warmup": 1, "prompts": 2, "prompt_tokens": 16, "new_tokens": 8}


@pytest.fixture
def recipe(tiny_llama, tiny_text):
    """A recipe over the tiny Llama and its texts."""
    return {
        "name": "tiny-lm",
        "task": "causal-lm",
        "model": str(tiny_llama),
        "threads": 2,
        "text": {
            "calibration": str(tiny_text / "calibration.txt"),
            "evaluation": {name: str(tiny_text / "evaluation" / f"{name}.txt") for name in ("good", "bad")},
            "window": 32,
            "calibration_windows": 8,
            "evaluation_windows": 8,
        },
        "benchmark": BRIEF,
    }


@pytest.fixture
def other_llama(tiny_llama, tmp_path):
    """A second fine-tune of the same architecture: the tiny Llama with noise on its weights."""
    import torch

    from pressoir.models import loading

    torch.manual_seed(1)
    model = loading.load_causal_lm(tiny_llama)
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    loading.save_model(model, tmp_path / "other")
    loading.save_tokenizer(loading.load_tokenizer(tiny_llama), tmp_path / "other")
    return tmp_path / "other"


def test_a_language_model_is_packed_sharded_measured_and_registered(recipe, home):
    import mlflow
    import pandas as pd

    from pressoir.flows.compress import compress, plan
    from pressoir.inference.text_generation import TextGenerator
    from pressoir.registry.registry import Registry
    from pressoir.tasks.tracking.model_version import _global_tracking_uri

    result = compress(recipe)
    rows = [(row.stage, row.runtime) for row in result.rows]
    assert rows == [
        ("source", "pytorch"),
        ("source", "onnxruntime"),
        ("quantize", "pytorch"),
        ("export", "onnxruntime"),
        ("shard", "onnxruntime"),
    ]
    first, last = result.rows[0], result.rows[-1]
    assert last.bits_per_weight < 4.7  # narrow rows round their zero points up to a byte
    assert last.size_mb < first.size_mb
    assert last.perplexity == pytest.approx(result.rows[3].perplexity, rel=1e-4)
    assert (result.folder / "shard_manifest.json").exists()
    entry = Registry(home).get("tiny-lm")
    assert (entry.type, entry.quantization, entry.digest) == ("causal-lm", "q4", result.artifact.digest)
    expected = "".join(TextGenerator.open(result.folder, 2).generate("the film was", max_new_tokens=64))
    with _global_tracking_uri(result.tracking_uri):
        served = mlflow.pyfunc.load_model("models:/tiny-lm@champion")
        assert served.predict(pd.DataFrame({"text": ["the film was"]}))["continuation"][0] == expected
    assert {row.state for row in plan(_parsed(recipe))} == {"cached"}


@pytest.mark.usefixtures("no_cold_starts")
def test_a_merge_in_3_bits_goes_through_the_same_flow(recipe, tiny_llama, other_llama):
    from pressoir.flows.compress import compress

    merged = compress(
        {
            **recipe,
            "merge": {"method": "slerp", "models": [str(tiny_llama), str(other_llama)], "ratios": [1, 1]},
            "quantize": {"scheme": "q3", "algorithm": "rtn"},
        }
    )
    assert [row.stage for row in merged.rows] == ["merge", "merge", "quantize", "export", "shard"]
    assert merged.rows[-1].bits_per_weight < 3.7
    report = json.loads((merged.folder / "quantization.json").read_text(encoding="utf-8"))
    assert {layer["bits"] for layer in report["layers"].values() if layer["role"] == "matmul"} == {3}


@pytest.mark.usefixtures("no_cold_starts")
def test_a_language_model_may_stay_in_full_precision(recipe):
    from pressoir.flows.compress import compress

    result = compress({**recipe, "quantize": None, "shard": None, "registry": None})
    assert [(row.stage, row.runtime) for row in result.rows] == [
        ("source", "pytorch"),
        ("source", "onnxruntime"),
    ]
    assert result.artifact.stage == "export"


def _parsed(recipe):
    from pressoir.recipe.recipe import Recipe

    return Recipe.from_dict(yaml.safe_load(yaml.safe_dump(recipe)))
