"""What goes wrong with real children in one run is told apart, and the other models finish."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from real_evaluation import Watch, child_of, until


@pytest.fixture(scope="module")
def timeout_s():
    """Plenty for a child to load a model, on whatever machine this is; hanging takes all of it."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import transformers.modeling_utils"], check=True)
    return 15 + round(8 * (time.monotonic() - start))


def truncate(folder):
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)


def not_a_number(folder):
    """Weights as a training that diverged leaves them."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"].fill_(torch.nan)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def copy(tiny_llama, tmp_path):
    """Copies a model, so that something can be done to it; no two are the same model under two names."""

    def copied(name):
        folder = shutil.copytree(tiny_llama, tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": name}))
        return folder

    return copied


@pytest.fixture
def values(tiny_classifier, tiny_llama, tiny_data, tiny_text, copy, timeout_s, tmp_path):
    text = tmp_path / "long.txt"  # thousands of windows, a commit each: whoever is to be stopped is not done
    text.write_text((tiny_text / "evaluation" / "good.txt").read_text() * 100)
    files = {split: str(tiny_data / f"{split}.tsv") for split in ("train", "validation", "test")}
    models = {name: copy(name) for name in ("killed", "hangs", "truncated", "raises", "damaged")}
    truncate(models["damaged"])
    not_a_number(models["raises"])
    lm = {"generation": {"window": 16}, "batch_size": 1}
    return {
        "name": "faults",
        "models": [
            {"id": "classifier", "model": str(tiny_classifier), "data": "reviews"},
            *({"id": name, "model": str(folder), "data": "long", **lm} for name, folder in models.items()),
            {"id": "llama", "model": str(tiny_llama), "data": "good", **lm},
        ],
        "data": {
            "reviews": {"task": "text-classification", "classification": {"source": "files", **files}},
            "long": {"task": "causal-lm", "text": str(text)},
            "good": {"task": "causal-lm", "text": str(tiny_text / "evaluation" / "good.txt")},
        },
        "batches": {"stopped": ["hangs", "killed", "classifier"], "rest": ["truncated", "raises", "llama"]},
        "timeout_s": timeout_s,
        "strategy": "aggressive",
        "threads": 1,
        "results": str(tmp_path / "results"),
    }


@pytest.fixture
def meddle(values):
    """Does to the files and children of a run what a test says, each in a thread; tells if one failed."""
    watch, threads, failed = Watch(values["results"]), [], []

    def start(act):
        def acting():
            try:
                act(watch)
            except BaseException as error:
                failed.append(error)

        threads.append(threading.Thread(target=acting))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()
    assert not failed


def send(number, model):
    """An act: a signal for a model's child, once it has committed some samples and is not at it."""

    def act(watch):
        until(lambda: watch.committed(model) >= 3, f"{model} committed 3 samples")
        child = child_of(psutil.Process(), model)
        child.send_signal(signal.SIGSTOP)
        while watch.writing():  # whoever is stopped within a transaction keeps everybody else from theirs
            child.send_signal(signal.SIGCONT)
            child.send_signal(signal.SIGSTOP)
        if number != signal.SIGSTOP:
            child.send_signal(number)

    return act


@pytest.mark.flow
@pytest.mark.slow
@pytest.mark.usefixtures("prefect_harness", "home")
def test_killed_hanging_truncated_and_raising_children_get_four_verdicts_and_the_others_finish(
    values, meddle, tmp_path
):
    from mlflow import MlflowClient

    from pressoir.flows.batch_evaluation import batch_evaluation

    def truncate_once_prepared(watch):
        until(lambda: watch.exists("plan.json"), "the run planned")
        truncate(tmp_path / "truncated")

    meddle(truncate_once_prepared)
    meddle(send(signal.SIGKILL, "killed"))
    meddle(send(signal.SIGSTOP, "hangs"))
    result = batch_evaluation(values)
    found = {row.result.id: row.result for row in result.rows}
    assert {name: one.verdict for name, one in found.items()} == {
        "classifier": "ok",
        "killed": "killed_signal",
        "hangs": "timeout",
        "truncated": "damaged",
        "raises": "exception",
        "damaged": "damaged",
        "llama": "ok",
    }
    assert found["classifier"].samples == found["classifier"].total == 80
    assert found["llama"].samples == found["llama"].total > 50
    for name in ("killed", "hangs"):
        assert 3 <= found[name].samples < found[name].total
        told = int(re.search(rf"after (\d+) of {found[name].total} samples", found[name].detail)[1])
        assert found[name].samples - told in (0, 1), "it may have been committing what it had not told yet"
    assert "SIGKILL" in found["killed"].detail
    assert f"stopped after {values['timeout_s']} s" in found["hangs"].detail
    for name in ("truncated", "damaged"):
        assert "model.safetensors is not a complete safetensors file" in found[name].detail
    children = {path.stem.rpartition("-")[0] for path in result.folder.glob("jobs/*.json")}
    assert children == found.keys() - {"damaged"}, "one was found out before it was run"
    assert "Traceback" in next(result.folder.glob("jobs/raises-*.log")).read_text()
    assert "the model produced logits that are not finite" in found["raises"].detail

    page = (result.folder / "report.md").read_text()
    for name, verdict in (
        ("killed", "killed_signal"),
        ("hangs", "timeout"),
        ("truncated", "damaged"),
        ("raises", "exception"),
    ):
        assert any(name in line and verdict in line for line in page.splitlines()), name
    told = json.loads((result.folder / "consolidated_results.json").read_text())["models"]
    assert {one["id"]: one["verdict"] for one in told} == {n: one.verdict for n, one in found.items()}
    client = MlflowClient(result.tracking_uri, result.tracking_uri)
    query = f"tags.`mlflow.parentRunId` = '{result.mlflow_run_id}'"
    experiment = client.get_run(result.mlflow_run_id).info.experiment_id
    nested = {run.info.run_name: run.info.status for run in client.search_runs([experiment], query)}
    assert nested == {n: "FINISHED" if one.verdict == "ok" else "FAILED" for n, one in found.items()}
