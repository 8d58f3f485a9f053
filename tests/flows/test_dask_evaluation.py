"""The batch-evaluation flow on workers: who runs what where, within what each holds, and what comes back."""

import json
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack

import pytest

from pressoir.errors import RecipeError

RUNS = ["classifier", "gpt2", "llama.bad", "llama.good"]


@pytest.fixture
def values(tiny_classifier, tiny_llama, tiny_gpt2, tiny_data, tiny_text, tmp_path):
    """Four runs: a classifier, and two language models, of which one has two texts."""
    files = {split: str(tiny_data / f"{split}.tsv") for split in ("train", "validation", "test")}
    brief = {"window": 32}
    return {
        "name": "tiny",
        "models": [
            {"id": "classifier", "model": str(tiny_classifier), "data": "reviews"},
            {"id": "llama", "model": str(tiny_llama), "data": ["good", "bad"], "generation": brief},
            {"id": "gpt2", "model": str(tiny_gpt2), "data": "good", "generation": brief},
        ],
        "data": {
            "reviews": {"task": "text-classification", "classification": {"source": "files", **files}},
            "good": {"task": "causal-lm", "text": str(tiny_text / "evaluation" / "good.txt")},
            "bad": {"task": "causal-lm", "text": str(tiny_text / "evaluation" / "bad.txt")},
        },
        "samples": 6,
        "results": str(tmp_path / "results"),
    }


@pytest.fixture
def client():
    """Opens a cluster of two workers, each with four threads and with `memory` bytes to offer."""
    from distributed import Client, LocalCluster

    with ExitStack() as stack:

        def open_(memory=None):
            cluster = LocalCluster(
                n_workers=2,
                threads_per_worker=4,
                resources={"MEMORY": memory} if memory else None,
                memory_limit=None,
                dashboard_address="127.0.0.1:0",
            )
            return stack.enter_context(Client(stack.enter_context(cluster), set_as_default=False))

        yield open_


def told(result, number=float):
    """The part of the results that must not depend on who ran them where; `number` reads one."""
    text = (result.folder / "consolidated_results.json").read_text()
    return json.loads(text, parse_float=number)["models"]


def detailed(result, number=float):
    """Every prediction."""
    lines = (result.folder / "consolidated_detailed.jsonl").read_text().splitlines()
    return [json.loads(line, parse_float=number) for line in lines]


def near(text):
    """Equal to a number like this: sums of other threads and batches round otherwise."""
    return pytest.approx(float(text), rel=1e-4)


def attempts(result):
    """Every child that was started, by its job's file."""
    return sorted(path.stem for path in result.folder.glob("**/jobs/*.json"))


def overlap(spans):
    """Most of the `spans` that held at one moment."""
    moments = sorted([(start, 1) for start, _ in spans] + [(stop, -1) for _, stop in spans])
    held, most = 0, 0
    for _, change in moments:
        held += change
        most = max(most, held)
    return most


@pytest.mark.flow
@pytest.mark.slow
@pytest.mark.usefixtures("prefect_harness", "tracked")
class TestCluster:
    def test_workers_give_what_one_machine_gives_and_a_resumed_run_runs_nothing(self, values, tasks_of):
        from pressoir.flows.batch_evaluation import batch_evaluation

        alone = batch_evaluation(values)
        spread = batch_evaluation({**values, "dask": {"workers": 2}})
        assert {row.result.verdict for row in spread.rows} == {"ok"}
        assert told(spread) == told(alone, near)
        assert detailed(spread) == detailed(alone, near)
        stats = json.loads((spread.folder / "memory_stats.json").read_text())
        assert sorted(stats["peaks"]["by_child"]) == RUNS, "children of workers on this machine are weighed"
        wanted = {f"evaluate-{run}" for run in RUNS}
        assert wanted <= tasks_of(spread.prefect_run_id, len(wanted) + 2).keys()

        before = attempts(spread)
        assert [name.rsplit("-", 1)[0] for name in before] == RUNS
        again = batch_evaluation({**values, "dask": {"workers": 2}}, resume=spread.folder.name)
        assert attempts(again) == before
        assert told(again) == told(spread)
        # what a cluster has done is not done again without one
        home = batch_evaluation(values, resume=spread.folder.name)
        assert attempts(home) == before
        assert told(home) == told(spread)

    def test_a_worker_never_gets_more_than_it_holds(self, values, client):
        from distributed import get_task_stream

        from pressoir.flows.batch_evaluation import batch_evaluation

        for model in values["models"]:
            model["memory_gb"] = 0.8
        # has to be told of, not waited for: a task that no worker can hold would wait for ever
        values["models"].append({**values["models"][0], "id": "huge", "memory_gb": 1.9})
        running = client(memory=1_500_000_000)
        with get_task_stream(running) as stream:
            result = batch_evaluation({**values, "dask": {"address": running.scheduler.address}})
        verdicts = {row.result.id: row.result.verdict for row in result.rows}
        assert verdicts == {**dict.fromkeys(RUNS, "ok"), "huge": "skipped_memory"}
        assert "1.90 GB, the largest worker offers 1.50 GB" in result.rows[-1].result.detail
        spans = defaultdict(list)
        for one in stream.data:
            # half a second is for clocks and hand-over: a child takes seconds to start
            spans[one["worker"]] += [
                (span["start"], span["stop"] - 0.5)
                for span in one["startstops"]
                if span["action"] == "compute"
            ]
        assert sum(map(len, spans.values())) == 4
        assert len(spans) == 2, "both workers had something to do"
        # Each has four threads, but memory for one of the models.
        assert {overlap(held) for held in spans.values()} == {1}

    def test_a_cluster_that_says_nothing_of_memory_is_refused(self, values, client):
        from pressoir.flows.batch_evaluation import batch_evaluation

        address = client().scheduler.address
        with pytest.raises(RecipeError, match=f'dask worker {address} --resources "MEMORY=8e9"'):
            batch_evaluation({**values, "dask": {"address": address}})


@pytest.mark.process
def test_without_a_cluster_no_dask_is_imported():
    program = (
        "import sys, pressoir.evaluation.cluster\n"
        "import pressoir.flows.batch_evaluation, pressoir.flows.commands.evaluate\n"
        "print(*{'dask', 'distributed', 'prefect_dask'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_workers_of_a_running_cluster_tell_of_their_memory_themselves(values):
    from pressoir.evaluation.config import load

    with pytest.raises(RecipeError, match="`memory_gb` applies to workers started on this machine"):
        load({**values, "dask": {"address": "tcp://10.0.0.1:8786", "memory_gb": 4}})
