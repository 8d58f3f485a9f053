"""Kill -9 at any point, run again: nothing that was committed runs twice, and the result is the same."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fake_models import COMMAND, drive, expected, make_run

from pressoir.evaluation.child import __main__ as child
from pressoir.evaluation.config import DataSetConfig, GenerationConfig
from pressoir.evaluation.jobs import Job
from pressoir.evaluation.journal import Journal
from pressoir.evaluation.planner import plan
from pressoir.evaluation.records import Estimate
from pressoir.evaluation.supervisor import SupervisorLimits, run_plan
from pressoir.recipe.sections import DataConfig

SAMPLES = [str(i) for i in range(12)]

CHILD_POINTS = [
    *(("start", 1), ("done", 1), ("opened", 1)),
    *(("before", 1), ("predicted", 1), ("inserted", 1), ("committed", 1)),
    *(("inserted", 2), ("committed", 2), ("committed", 3), ("ran", 1)),
]
PARENT_POINTS = [
    *(("begun", 1), ("launched", 1), ("launched", 2), ("loaded", 1), ("progress", 3), ("progress", 6)),
    *(("ended", 1), ("noting", 1), ("noted", 1), ("noted", 2)),
]


def stored(journal, key):
    """Sample id: raw prediction and the attempt that made it."""
    opened = Journal(journal)
    rows = opened._database.execute(
        "SELECT sample, prediction, attempt FROM predictions WHERE key = ?", (key,)
    ).fetchall()
    opened.close()
    assert len({row[0] for row in rows}) == len(rows)
    return {sample: (json.loads(prediction), attempt) for sample, prediction, attempt in rows}


@pytest.fixture
def check_resumed():
    """`check_resumed(run, model, before)`: whole, as it should be, and nothing of `before` was run again."""

    def check(run, model, before, calls_before):
        found = stored(run.journal, run.jobs[model].key)
        assert {sample: value for sample, (value, _) in found.items()} == {
            sample: expected(sample) for sample in SAMPLES
        }
        for sample, row in before.items():
            assert found[sample] == row
        again = run.calls(model)[calls_before:]
        assert not set(again) & set(before)
        assert sorted([*before, *again], key=int) == SAMPLES

    return check


@pytest.mark.process
@pytest.mark.parametrize("die", CHILD_POINTS, ids=lambda die: "-".join(map(str, die)))
def test_a_child_killed_anywhere_is_told_from_its_end_and_the_next_run_goes_on(tmp_path, die, check_resumed):
    run = make_run(tmp_path, {"m": {"die": die}})
    first = drive(run)["m"]
    before, calls_before = stored(run.journal, run.jobs["m"].key), len(run.calls("m"))
    assert first.verdict == "killed_signal"
    assert "SIGKILL" in first.detail
    assert first.samples == len(before)
    assert len(before) % 4 == 0, "a batch is committed whole, or not at all"
    run.behave("m")
    second = drive(run)["m"]
    assert (second.verdict, second.samples, second.total) == ("ok", 12, 12)
    check_resumed(run, "m", before, calls_before)


@pytest.mark.process
@pytest.mark.parametrize("die", PARENT_POINTS, ids=lambda die: "-".join(map(str, die)))
def test_a_parent_killed_anywhere_takes_its_children_along_and_the_next_run_goes_on(
    tmp_path, die, check_resumed
):
    models = {"a": {"sleep_s": 0.05}, "b": {"sleep_s": 0.05}}
    told = tmp_path / "run.json"
    told.write_text(json.dumps({"folder": str(tmp_path), "models": models, "die": die}))
    parent = subprocess.run([*COMMAND, "--drive", str(told)], capture_output=True, text=True)
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    # At once: should a child still be writing, the next one waits for it.
    run = make_run(tmp_path, models)
    # What the killed parent's children commit until they are gone, they commit before we look.
    wait_for_locks(run)
    before = {name: stored(run.journal, job.key) for name, job in run.jobs.items()}
    calls = {name: len(run.calls(name)) for name in run.jobs}
    found = drive(run)
    for name in run.jobs:
        assert (found[name].verdict, found[name].samples) == ("ok", 12)
        check_resumed(run, name, before[name], calls[name])


def wait_for_locks(run):
    from filelock import FileLock

    for path in run.folder.glob("jobs/*.lock"):
        with FileLock(path, timeout=10):
            pass


@pytest.mark.process
def test_killed_again_and_again_it_still_comes_to_its_end(tmp_path, check_resumed):
    run = make_run(tmp_path, {"m": {}})
    for die in (("predicted", 1), ("inserted", 1), ("committed", 1), ("inserted", 1), ("committed", 1)):
        run.behave("m", die=die)
        assert drive(run)["m"].verdict == "killed_signal"
    before, calls = stored(run.journal, run.jobs["m"].key), len(run.calls("m"))
    assert len(before) == 8
    run.behave("m")
    assert drive(run)["m"].verdict == "ok"
    check_resumed(run, "m", before, calls)


@pytest.mark.process
def test_a_child_that_outlives_its_parent_keeps_the_next_one_waiting(tmp_path):
    """The kernel may take a moment to end a process; two never write under one key at once."""
    run = make_run(tmp_path, {"m": {"sleep_s": 0.3}})
    told = run.jobs["m"].model_copy(update={"allowance_bytes": 10**10})
    (tmp_path / "jobs").mkdir()
    path = tmp_path / "jobs" / "orphan.json"
    path.write_text(told.model_dump_json())
    orphan = subprocess.Popen([*COMMAND, str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not run.calls("m"):
        time.sleep(0.01)
    found = drive(run)["m"]
    assert (found.verdict, found.samples) == ("ok", 12)
    assert orphan.wait() == 0
    assert sorted(run.calls("m"), key=int) == SAMPLES


class TestRealModels:
    """The same with real children and tiny models."""

    @pytest.fixture
    def real_run(self, tmp_path, tiny_classifier, tiny_data, tiny_llama, tiny_text):
        files = {split: tiny_data / f"{split}.tsv" for split in ("train", "validation", "test")}
        data = {
            "classifier": DataSetConfig(
                task="text-classification", classification=DataConfig(source="files", **files)
            ),
            "lm": DataSetConfig(task="causal-lm", text=tiny_text / "evaluation" / "good.txt"),
        }
        folders = {"classifier": tiny_classifier, "lm": tiny_llama}

        def make(folder):
            folder.mkdir()
            jobs = {
                name: Job(
                    model=name,
                    folder=folders[name],
                    task=one.task,
                    data=one,
                    key=f"key of {name}",
                    journal=folder / "journal.sqlite",
                    batch_size=4,
                    generation=GenerationConfig(window=32),
                )
                for name, one in data.items()
            }
            estimates = {
                name: Estimate(model=name, fixed_bytes=10**9, per_sample_bytes=10**6, origin="config")
                for name in jobs
            }
            planned = plan(list(estimates.values()), dict.fromkeys(jobs, 4), 10**10, 2)
            return planned, jobs, estimates, SupervisorLimits(threads=2, timeout_s=300)

        return lambda name: make(tmp_path / name)

    @pytest.mark.process
    def test_killed_in_their_midst_they_end_with_the_same_predictions(self, tmp_path, real_run):
        options = {"available": lambda: 10**11}
        whole = real_run("whole")[1]
        ends = {name: child.run(job, lambda _: None) for name, job in whole.items()}
        assert {end.verdict for end in ends.values()} == {"ok"}, ends

        killed = real_run("killed")
        seen = {}

        def kill(event):
            if event.kind == "progress" and event.done >= 8 and event.model not in seen:
                seen[event.model] = event.pid
                os.kill(event.pid, signal.SIGKILL)

        first = {one.model: one for one in run_plan(*killed, **options, on_event=kill)}
        assert {one.verdict for one in first.values()} == {"killed_signal"}
        logs = [path.read_text() for path in (tmp_path / "killed" / "jobs").glob("*.log")]
        assert len(logs) == 2
        assert not any("before its thread limit" in log for log in logs)
        journal = tmp_path / "killed" / "journal.sqlite"
        before = {name: stored(journal, job.key) for name, job in killed[1].items()}
        assert all(0 < len(before[name]) < first[name].total for name in before)
        second = {one.model: one for one in run_plan(*killed, **options)}
        for name, job in killed[1].items():
            assert (second[name].verdict, second[name].samples) == ("ok", second[name].total)
            ours, theirs = stored(journal, job.key), stored(whole[name].journal, job.key)
            assert ours.items() >= before[name].items()
            assert {one: value for one, (value, _) in ours.items()} == {
                one: value for one, (value, _) in theirs.items()
            }


@pytest.mark.process
def test_the_child_is_light_until_its_threads_are_limited():
    program = (
        "import sys, pressoir.evaluation.child; "
        "print(*{'numpy', 'torch', 'onnxruntime', 'pydantic'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []
