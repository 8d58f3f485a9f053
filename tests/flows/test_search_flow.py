"""The search flow on a tiny model: what it finds, what it trains, what it reads, and what survives a kill."""

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
import yaml
from real_evaluation import until

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_harness", "tracked", "no_cold_starts")]


@pytest.fixture
def values(real_recipe, tmp_path):
    """Six recipes of the tiny model, with limits that all of them meet."""
    recipe = yaml.safe_load(real_recipe.to_yaml())
    recipe["prune"] |= {"epochs": 0, "head_sparsity": 0.25, "calibration_samples": 16}
    recipe["distill"]["epochs"] = 2
    return {
        "name": "tiny",
        "recipe": recipe,
        "budget": {"max_size_mb": 50, "max_latency_ms": 1000, "min_accuracy": 0.0},
        "space": {"distill.student.layers": [1, 2, 3], "prune.ffn_sparsity": [0.25, 0.75]},
        "trials": 4,
        "proxy": {"epochs": 1, "slack": 1.0},
        "latency_samples": 10,
        "results": str(tmp_path / "results"),
    }


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Prefect's own log is not what is tested."""
    caplog.set_level(logging.CRITICAL, logger="prefect")


@pytest.fixture
def built(replace_run):
    """Every stage that was really run, with its folder of inputs and its configuration."""
    from pressoir.stage import load_stage, stage_names

    ran = []
    for name in stage_names():
        really = load_stage(name).run

        def run(inputs, config, context, name=name, really=really):
            ran.append((name, config.model_dump_json(), context.out_dir))
            return really(inputs, config, context)

        replace_run(name, run)
    return ran


def in_store(ran, home, *names):
    """Configurations of the stages of those names whose results are kept."""
    root = home / "store"
    return [config for name, config, folder in ran if name in names and folder.is_relative_to(root)]


def test_a_search_finds_a_recipe_that_compress_runs_to_the_same_result(
    values, home, built, monkeypatch, artifacts_of
):
    from mlflow import MlflowClient

    from pressoir.data import sentences
    from pressoir.flows.compress import compress
    from pressoir.flows.search import search
    from pressoir.store.store import Store

    read = []
    load_split = sentences.load_split

    def watched(folder, split, labels=None):
        read.append(split)
        return load_split(folder, split, labels)

    monkeypatch.setattr(sentences, "load_split", watched)
    result = search(values)
    found = result.found
    assert len(found.trials) == 4
    assert {one.outcome.state for one in found.trials} == {"finished"}
    assert len({one.named() for one in found.trials}) == 4
    best = max(one.outcome.figures.accuracy for one in found.trials)
    assert found.winner.outcome.figures.accuracy == best

    # shared stages are built once, each student once
    names = Counter(name for name, _, folder in built if folder.is_relative_to(home / "store"))
    assert (names["data"], names["teacher"], names["benchmark"]) == (1, 1, 1)
    for stage in ("distill", "prune", "quantize", "shard"):
        configs = in_store(built, home, stage)
        assert configs
    distilled = in_store(built, home, "distill")
    assert len(distilled) == len(set(distilled)), "one a student and a length"

    # what was predicted before training is what came out
    for one in found.trials:
        assert one.outcome.predicted.size_mb == pytest.approx(one.outcome.figures.size_mb, rel=0.02)

    # the test split is read once, for the winner
    assert read.count("test") == 1

    # the recipe is one that compress runs, all of it from the store
    built.clear()
    again = compress(str(result.folder / "winner.yaml"))
    assert built == []
    assert again.artifact.digest == result.model == found.winner.outcome.digest
    assert again.rows == result.rows
    assert Store().path(again.artifact).is_dir()

    files = {path.name for path in result.folder.iterdir()}
    assert {"search.yaml", "study.db", "trials.json", "report.md", "pareto.html", "pareto.png"} <= files
    client = MlflowClient(result.tracking_uri, result.tracking_uri)
    parent = client.get_run(result.mlflow_run_id)
    query = f"tags.`mlflow.parentRunId` = '{result.mlflow_run_id}' and tags.trial != ''"
    nested = client.search_runs([parent.info.experiment_id], query)
    assert {run.info.run_name for run in nested} == {f"trial-{one.number}" for one in found.trials}
    one = next(run for run in nested if run.data.tags["trial"] == str(found.winner.number))
    assert one.data.metrics["accuracy"] == best
    assert one.data.params["distill.student.layers"] == str(found.winner.values["distill.student.layers"])
    logged = {file.path for file in client.list_artifacts(result.mlflow_run_id)}
    assert {"winner.yaml", "pareto.html", "pareto.png", "report.md"} <= logged
    artifacts = artifacts_of(result.prefect_run_id)
    assert found.headline() in artifacts["search-report"].data
    assert len(json.loads(artifacts["pareto-front"].data)) == len(found.front)

    # asked again, nothing is done again
    same = search(values)
    assert built == []
    assert same.found == found


def test_a_trial_that_cannot_meet_the_budget_is_never_trained_and_the_nearest_is_named(values, home, built):
    from pressoir.flows.search import search

    values["budget"] = {"max_size_mb": 0.001, "min_accuracy": 0.9}
    result = search(values)
    found = result.found
    assert found.winner is None
    assert {one.outcome.state for one in found.trials} == {"cut"}
    assert in_store(built, home, "distill", "prune", "quantize", "benchmark") == []
    lengths = {json.loads(config)["epochs"] for name, config, _ in built if name in ("distill", "prune")}
    assert lengths == {0}, "what is made to be measured is not trained"
    sizes = {one.number: one.outcome.predicted.size_mb for one in found.trials}
    assert found.nearest.number == min(sizes, key=sizes.get)
    size = sizes[found.nearest.number]
    [miss] = found.misses
    assert (miss.constraint, miss.value) == ("max_size_mb", size)
    report = (result.folder / "report.md").read_text()
    assert f"{size:.2f} MB, {size - 0.001:.2f} MB above max_size_mb 0.001" in report
    assert (result.folder / "nearest.yaml").exists()
    assert not (result.folder / "winner.yaml").exists()


def test_a_short_distillation_cuts_before_a_long_one(values, home, built):
    from pressoir.flows.search import search

    values["budget"] = {"min_accuracy": 1.0}
    values["recipe"]["distill"] |= {"learning_rate": 1e-9, "alpha": 0.0, "hidden_weight": 0.0}
    values["proxy"] = {"epochs": 1, "slack": 0.0}
    values["space"] = {"distill.student.config": [{"intermediate_size": 32}, {"intermediate_size": 16}]}
    values["recipe"]["distill"]["student"] = {"config": {"intermediate_size": 48}}
    result = search(values)
    assert {one.outcome.state for one in result.found.trials} == {"cut"}
    assert {json.loads(config)["epochs"] for config in in_store(built, home, "distill")} == {1}
    for one in result.found.trials:
        assert "after the short distillation" in one.outcome.reason
        assert one.outcome.short_accuracy < 1.0
    [miss] = result.found.misses
    assert miss.constraint == "min_accuracy"


def test_a_trial_that_fails_is_told_of_and_the_others_go_on(values):
    from pressoir.flows.search import search

    values["space"] = {"distill.student.layers": [1, 9]}
    found = search(values).found
    states = {one.values["distill.student.layers"]: one.outcome.state for one in found.trials}
    assert states == {1: "finished", 9: "failed"}
    [failed] = [one for one in found.trials if one.outcome.state == "failed"]
    assert "RecipeError" in failed.outcome.reason
    assert found.winner.values == {"distill.student.layers": 1}


def told(folder):
    """What must not differ between two searches: all but times."""
    found = json.loads((folder / "trials.json").read_text())
    trials = [
        (
            one["number"],
            one["values"],
            one["outcome"]["state"],
            one["outcome"]["short_accuracy"],
            one["outcome"]["figures"]["accuracy"],
            one["outcome"]["figures"]["size_mb"],
            one["outcome"]["digest"],
        )
        for one in found["trials"]
    ]
    return trials, found["winner"]["number"]


@pytest.mark.slow
def test_killed_half_way_and_resumed_it_ends_as_an_uninterrupted_search(values, tmp_path):
    from prefect.settings import PREFECT_API_URL

    values["trials"] = 3
    processes = []

    def start(place):
        config = tmp_path / f"{place}.yaml"
        config.write_text(yaml.safe_dump({**values, "results": str(tmp_path / place)}))
        environment = {
            **os.environ,
            "PREFECT_API_URL": PREFECT_API_URL.value(),
            "PRESSOIR_HOME": str(tmp_path / f"home-{place}"),
        }
        with (tmp_path / f"{place}.log").open("ab") as log:
            process = psutil.Popen(
                [sys.executable, "-m", "pressoir.flows", "search", str(config)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parents[2],
            )
        processes.append(process)
        return process

    def log(place):
        return (tmp_path / f"{place}.log").read_text()

    try:
        whole = start("whole")
        assert whole.wait(timeout=900) == 0, log("whole")[-3000:]
        for text in ("trial 1: predicted", "trial 2: after the short"):
            killed = start("killed")
            until(
                lambda killed=killed, text=text: text in log("killed") or killed.poll() is not None, text, 900
            )
            assert killed.poll() is None, log("killed")[-3000:]
            killed.kill()
            killed.wait()
        last = start("killed")
        assert last.wait(timeout=900) == 0, log("killed")[-3000:]
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    [one], [two] = (list((tmp_path / place).glob("tiny-*")) for place in ("whole", "killed"))
    assert told(two) == told(one)
    assert "2 of 3 trials completed" in log("killed")


@pytest.mark.slow
def test_two_workers_find_what_one_process_finds(values, home, built, tmp_path):
    from distributed import Client, LocalCluster, get_task_stream

    from pressoir.flows.search import search

    values["space"]["distill.student.layers"] = [1, 2]
    with ExitStack() as stack:
        cluster = LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            resources={"MEMORY": 1},
            memory_limit=None,
            dashboard_address="127.0.0.1:0",
        )
        client = stack.enter_context(Client(stack.enter_context(cluster), set_as_default=False))
        address = client.scheduler.address
        with get_task_stream(client) as stream:
            apart = {"results": str(tmp_path / "spread"), "dask": {"address": address}}
            spread = search({**values, **apart}).found
    workers = {one["worker"] for one in stream.data}
    assert len(workers) == 2, "both had something to do"
    assert {one.outcome.state for one in spread.trials} == {"finished"}
    assert len(spread.trials) == 4
    assert spread.winner is not None

    # one process asks for the same stages: the workers have built each of them
    alone = search(values).found
    assert in_store(built, home, "distill", "prune", "quantize") == []
    models = {one.named(): one.outcome.digest for one in spread.trials}
    assert {one.named(): one.outcome.digest for one in alone.trials} == models


def test_without_a_cluster_no_dask_is_imported():
    program = (
        "import sys, pressoir.flows.search, pressoir.flows.commands.search\n"
        "print(*{'dask', 'distributed', 'prefect_dask'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
