"""Children side by side, never more than fits, whatever becomes of each of them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from fake_models import COMMAND, MB, drive, expected, make_run
from filelock import FileLock

from pressoir.errors import StoreError
from pressoir.evaluation import supervisor
from pressoir.evaluation.guards import LOCK
from pressoir.evaluation.journal import Journal
from pressoir.evaluation.process import oom_kills
from pressoir.evaluation.supervisor import run_plan
from pressoir.system.cgroups import Files, hierarchies

pytestmark = pytest.mark.process

ALL = {str(i) for i in range(12)}


def stored(run, model):
    """Sample id: raw prediction."""
    journal = Journal(run.journal)
    found = {one.sample: one.value for one in journal.predictions(run.jobs[model].key)}
    journal.close()
    return found


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def until(condition, seconds=30):
    """Whether it comes true in time: nothing is measured, only waited for."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_the_parent_imports_nothing_that_runs_models():
    program = (
        "import sys, pressoir.evaluation.supervisor, pressoir.evaluation.datasets; "
        "print(*{'torch', 'transformers', 'onnxruntime', 'prefect', 'mlflow'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []


def test_every_model_is_run_and_its_figures_come_back(tmp_path):
    run = make_run(tmp_path, {"a": {}, "b": {"together": False}}, batch_size=5)
    events = []
    found = drive(run, on_event=events.append)
    assert set(found) == {"a", "b"}
    for model, outcome in found.items():
        assert (outcome.verdict, outcome.samples, outcome.total) == ("ok", 12, 12)
        assert (outcome.task, outcome.runtime) == ("feature-extraction", "pytorch")
        assert stored(run, model) == {one: expected(one) for one in ALL}
        assert outcome.measured_peak_bytes > 10 * MB
        assert outcome.load_s > 0
    assert (found["a"].batch_size, found["b"].batch_size) == (5, 1)
    assert found["a"].predicted_peak_bytes == 105 * MB
    assert found["b"].predicted_peak_bytes == 101 * MB, "what went through the model at once was one sample"
    kinds = [event.kind for event in events if event.model == "a"]
    assert kinds[0] == "started"
    assert kinds[-1] == "ended"
    assert "loaded" in kinds
    assert [event.done for event in events if event.model == "a" and event.kind == "progress"] == [
        *(0, 0, 5, 10, 12)
    ]


def test_messages_that_come_at_once_are_told_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "wait", lambda pipes, seconds: time.sleep(1.0))  # a parent that is late
    events = []
    drive(make_run(tmp_path, {"a": {}}, batch_size=5), on_event=events.append)
    assert [event.done for event in events if event.kind == "progress"] == [0, 0, 5, 10, 12]


def test_four_ways_to_fail_are_told_apart_and_the_others_finish(tmp_path):
    models = {
        "fine-1": {},
        "killed": {"signal_at": "8", "signal": signal.SIGKILL},
        "hangs": {"hang_at": "4"},
        "damaged": {"source_error": "model.safetensors is not a complete safetensors file"},
        "raises": {"raise_at": "8"},
        "fine-2": {},
    }
    run = make_run(tmp_path, models, max_parallel=3, timeout_s=20)
    found = drive(run)
    assert {model: outcome.verdict for model, outcome in found.items()} == {
        "fine-1": "ok",
        "killed": "killed_signal",
        "hangs": "timeout",
        "damaged": "damaged",
        "raises": "exception",
        "fine-2": "ok",
    }
    assert "SIGKILL, after 8 of 12 samples, at batch size 4" in found["killed"].detail
    assert "after 4 of 12 samples" in found["hangs"].detail
    assert "model.safetensors" in found["damaged"].detail
    assert found["raises"].detail.endswith("StoreError: no prediction for 8")
    assert [found[model].samples for model in models] == [12, 8, 4, 0, 8, 12]
    assert stored(run, "raises") == {str(i): expected(str(i)) for i in range(8)}


def test_a_crash_in_native_code_names_the_signal_and_shows_the_log(tmp_path):
    found = drive(make_run(tmp_path, {"m": {"signal_at": "4", "signal": signal.SIGSEGV}}))["m"]
    assert found.verdict == "killed_signal"
    assert "SIGSEGV" in found.detail


def test_a_child_that_cannot_even_start_is_an_exception_with_its_last_words(tmp_path):
    command = (sys.executable, "-c", "import sys; sys.exit('no such thing')")
    found = drive(make_run(tmp_path, {"m": {}}), command=command)["m"]
    assert found.verdict == "exception"
    assert "no such thing" in found.detail


def test_children_of_a_batch_share_its_room_and_the_threads(tmp_path):
    run = make_run(tmp_path, {"a": {}, "b": {}}, fixed=300 * MB, per_sample=0, budget=900 * MB, threads=5)
    running, most = set(), 0

    def watch(event):
        nonlocal most
        if event.kind == "started":
            running.add(event.model)
        if event.kind == "ended":
            running.discard(event.model)
        most = max(most, len(running))

    assert {outcome.verdict for outcome in drive(run, on_event=watch).values()} == {"ok"}
    assert most == 2
    told = [run.told(model)[0] for model in "ab"]
    assert [job["threads"] for job in told] == [2, 2]
    assert all(job["allowance_bytes"] >= 300 * MB for job in told)
    assert sum(job["allowance_bytes"] for job in told) <= 900 * MB


def test_a_model_alone_is_allowed_the_whole_budget(tmp_path):
    run = make_run(tmp_path, {"a": {}}, budget=900 * MB, threads=2)
    drive(run)
    (told,) = run.told("a")
    assert (told["allowance_bytes"], told["threads"]) == (900 * MB, 2)


def test_what_does_not_fit_beside_a_sibling_now_waits_until_it_has_ended(tmp_path):
    run = make_run(tmp_path, {"a": {}, "b": {}}, fixed=300 * MB, per_sample=0)
    order = []
    found = drive(
        run,
        available=lambda: 500 * MB,  # the plan was made when there was more
        on_event=lambda event: order.append(f"{event.kind} {event.model}"),
    )
    assert {outcome.verdict for outcome in found.values()} == {"ok"}
    assert order.index("ended a") < order.index("started b")


def test_the_reserve_is_kept(tmp_path):
    run = make_run(tmp_path, {"a": {}}, fixed=300 * MB, per_sample=MB, reserve_bytes=150 * MB)
    found = drive(run, available=lambda: 452 * MB)["a"]
    assert (found.verdict, found.batch_size) == ("ok", 2)
    assert run.told("a")[0]["allowance_bytes"] == 302 * MB


def test_with_nothing_running_the_batch_shrinks_to_what_is_left_now(tmp_path):
    run = make_run(tmp_path, {"a": {}}, fixed=300 * MB, per_sample=10 * MB)
    found = drive(run, available=lambda: 325 * MB)["a"]
    assert (found.verdict, found.batch_size, found.predicted_peak_bytes) == ("ok", 2, 320 * MB)


def test_memory_that_comes_back_in_time_is_waited_for(tmp_path):
    looks = []

    def available():
        looks.append(1)
        return 50 * MB if len(looks) < 5 else 1000 * MB

    run = make_run(tmp_path, {"a": {}}, patience_s=30)
    events = []
    found = drive(run, available=available, on_event=lambda event: events.append(event.kind))["a"]
    assert (found.verdict, found.batch_size) == ("ok", 4)
    assert events.count("waiting") == 1


def test_pages_of_the_models_files_are_given_back_before_a_model_is_kept_waiting(tmp_path, monkeypatch):
    run = make_run(tmp_path, {"a": {}, "b": {}}, fixed=300 * MB)
    dropped = set()
    monkeypatch.setattr(supervisor, "_drop_pages", dropped.add)
    events = []
    found = drive(
        run,
        available=lambda: 400 * MB if len(dropped) == 2 else 200 * MB,
        on_event=lambda event: events.append(event.kind),
    )
    assert {outcome.verdict for outcome in found.values()} == {"ok"}
    assert dropped == {tmp_path / "a", tmp_path / "b"}
    assert "waiting" not in events


def test_what_never_fits_is_skipped_with_its_numbers_and_not_attempted(tmp_path):
    run = make_run(tmp_path, {"a": {}, "b": {}}, fixed=300 * MB, per_sample=10 * MB)
    found = drive(run, available=lambda: 200 * MB)
    assert {outcome.verdict for outcome in found.values()} == {"skipped_memory"}
    assert "0.31 GB" in found["a"].detail
    assert "0.20 GB" in found["a"].detail
    planned_out = make_run(tmp_path, {"c": {}}, fixed=300 * MB, budget=200 * MB)
    outcome = drive(planned_out)["c"]
    assert outcome.verdict == "skipped_memory"
    assert "0.30 GB" in outcome.detail
    assert "0.20 GB" in outcome.detail
    assert not list(tmp_path.glob("jobs/*.json"))


@pytest.mark.skipif(sys.platform != "linux", reason="memory that only Linux tells apart")
class TestWatchdog:
    def test_more_than_the_allowance_is_killed_and_tried_again_at_half_the_batch(self, tmp_path):
        run = make_run(
            tmp_path,
            {"a": {"shared_bytes": 90 * MB, "hold_s": 1}},
            samples=6,
            batch_size=4,
            budget=300 * MB,
            fixed=50 * MB,
        )
        found = drive(run)["a"]
        assert (found.verdict, found.samples) == ("ok", 6)
        assert [job["batch_size"] for job in run.told("a")] == [4, 2]
        assert found.batch_size == 2

    def test_finished_samples_are_kept(self, tmp_path):
        behaviour = {"shared_bytes": 90 * MB, "hold_s": 1}
        run = make_run(tmp_path, {"a": behaviour}, samples=6, batch_size=2, budget=300 * MB, fixed=50 * MB)
        jobs = {"a": run.jobs["a"].model_copy(update={"max_batch_size": 4})}
        run.jobs.update(jobs)  # samples 0 and 1 fit; then four shorter ones go together
        run.folder.joinpath("pairs.tsv").write_text(
            "".join(f"{'x' * length}\tb\t0.5\n" for length in (40, 40, 20, 20, 20, 20))
        )
        found = drive(run)["a"]
        assert (found.verdict, found.samples, found.batch_size) == ("ok", 6, 2)
        assert run.calls("a") == ["0", "1", "2", "3", "4", "5", "2", "3", "4", "5"]

    def test_at_one_sample_and_alone_it_is_given_up(self, tmp_path):
        run = make_run(
            tmp_path,
            {"a": {"shared_bytes": 450 * MB, "hold_s": 1}, "b": {}},
            samples=3,
            batch_size=2,
            budget=400 * MB,
            fixed=50 * MB,
        )
        found = drive(run)
        assert (found["a"].verdict, found["a"].samples) == ("skipped_oom", 0)
        assert "of the 0.40 GB allowed" in found["a"].detail
        assert found["b"].verdict == "ok"
        assert [job["batch_size"] for job in run.told("a")] == [2, 1]

    def test_a_library_that_aborts_for_want_of_memory_gets_a_smaller_batch_too(self, tmp_path):
        run = make_run(tmp_path, {"a": {"abort_at": "0"}}, batch_size=4)
        found = drive(run)["a"]
        assert found.verdict == "skipped_oom"
        assert "bad_alloc" in found.detail
        assert [job["batch_size"] for job in run.told("a")] == [4, 2, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux alone")
class TestAllocationsThatFail:
    def test_the_batch_that_fits_is_found_without_a_kill(self, tmp_path):
        run = make_run(
            tmp_path, {"a": {"bytes": 36 * MB}}, samples=24, batch_size=16, budget=400 * MB, fixed=50 * MB
        )
        found = drive(run)["a"]
        assert (found.verdict, found.samples) == ("ok", 24)
        # About 330 MB are left: not enough for 16 samples, nor for 12, which are tried once.
        assert found.batch_size == 8
        assert found.measured_peak_bytes < 400 * MB
        assert len(run.told("a")) == 1

    def test_a_single_sample_that_does_not_fit_alone_is_skipped(self, tmp_path):
        run = make_run(tmp_path, {"a": {"bytes": 400 * MB}, "b": {}}, batch_size=2, budget=400 * MB)
        found = drive(run)
        assert found["a"].verdict == "skipped_oom"
        assert "a single sample does not fit in 0.40 GB" in found["a"].detail
        assert found["b"].verdict == "ok"

    def test_a_share_that_is_too_small_is_no_verdict_alone_it_has_more(self, tmp_path):
        run = make_run(
            tmp_path,
            {"a": {"bytes": 250 * MB}, "b": {"sleep_s": 0.5}},
            samples=2,
            batch_size=1,
            budget=400 * MB,
        )
        found = drive(run)
        assert {outcome.verdict for outcome in found.values()} == {"ok"}
        assert len(run.told("a")) == 2


def test_all_attempts_together_have_the_time_of_one(tmp_path):
    run = make_run(tmp_path, {"a": {"abort_at": "0", "load_s": 1.5}}, batch_size=4, timeout_s=4)
    found = drive(run)["a"]
    assert len(run.told("a")) < 3 or found.verdict == "timeout"


def test_a_process_whose_memory_is_in_pieces_is_followed_by_a_fresh_one(tmp_path):
    run = make_run(tmp_path, {"a": {"dry_after": 6}}, batch_size=4)
    found = drive(run)["a"]
    assert (found.verdict, found.samples) == ("ok", 12)
    told = [job["batch_size"] for job in run.told("a")]
    assert told == [4, 2, 1]
    assert len(set(run.calls("a"))) == 12


class TestKernel:
    @pytest.fixture
    def cgroup(self):
        """Makes a memory cgroup of so many bytes; skips where that is not allowed."""
        made = []

        def make(size):
            for hierarchy in hierarchies("memory", Files()):
                folder = hierarchy.folders[-1] / f"pressoir-oom-{os.getpid()}"
                with contextlib.suppress(OSError):
                    folder.mkdir()
                    made.append(folder)
                    for name in ("memory.max", "memory.limit_in_bytes"):
                        if (folder / name).exists():
                            (folder / name).write_text(str(size))
                            return folder
            pytest.skip("cannot make a cgroup")

        yield make
        for folder in made:
            folder.rmdir()

    def test_its_oom_killer_is_told_from_anybody_elses_sigkill(self, tmp_path, cgroup):
        folder = cgroup(500 * MB)
        told = {
            "folder": str(tmp_path),
            "models": {"greedy": {"shared_bytes": 300 * MB}, "small": {}},
            "options": {"samples": 4, "batch_size": 2, "max_parallel": 1},
        }
        (tmp_path / "run.json").write_text(json.dumps(told))
        program = (
            "import runpy, sys; from pathlib import Path; "
            "Path(sys.argv[1], 'cgroup.procs').write_text('0'); del sys.argv[1]; "
            "runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        # `python -c` has `-c` as its first argument; the script finds itself by its own path.
        program = program.replace("sys.argv[0]", repr(COMMAND[1]))
        answer = subprocess.run(
            [sys.executable, "-c", program, str(folder), "--drive", str(tmp_path / "run.json")],
            capture_output=True,
            text=True,
            check=True,
        )
        journal = Journal(tmp_path / "journal.sqlite")
        ends = [json.loads(end) for end in journal.outcomes("greedy")]
        journal.close()
        assert [end["verdict"] for end in ends] == ["killed_oom", "ok"], answer.stdout
        assert "killed by the kernel because it ran out of memory" in ends[0]["detail"]
        assert ends[1]["batch_size"] == 1
        assert "outcome small ok" in answer.stdout

    def test_the_count_of_such_kills_is_the_cgroups_or_the_machines(self, tmp_path):
        proc = tmp_path / "proc"
        (proc / "self").mkdir(parents=True)
        (proc / "vmstat").write_text("nr_free_pages 1\noom_kill 7\n")
        assert oom_kills(tmp_path) == 7
        (proc / "self" / "cgroup").write_text("0::/app\n")
        (proc / "self" / "mountinfo").write_text("31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        app = tmp_path / "sys/fs/cgroup/app"
        app.mkdir(parents=True)
        (app / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\n")
        assert oom_kills(tmp_path) == 2


class TestEnding:
    def started(self, run):
        """An iterator that has given its first outcome while the other child runs, and that child's id."""
        pids = {}
        outcomes = run_plan(
            run.plan,
            run.jobs,
            run.estimates,
            run.limits,
            on_event=lambda event: pids.setdefault(event.model, event.pid) if event.pid else None,
            available=lambda: 10**11,
            command=COMMAND,
        )
        assert next(outcomes).model == "quick"
        return outcomes, pids["hangs"]

    def test_closing_the_iterator_ends_the_children(self, tmp_path):
        run = make_run(tmp_path, {"quick": {}, "hangs": {"hang_at": "4"}})
        outcomes, pid = self.started(run)
        assert not gone(pid)
        outcomes.close()
        assert gone(pid)
        journal = Journal(run.journal)
        assert journal.outcomes("hangs") == [None], "nobody knows how it would have ended"
        journal.close()

    def test_an_exception_of_whoever_listens_ends_the_children(self, tmp_path):
        pids = []

        def interrupted(event):
            if event.kind == "loaded":
                pids.append(event.pid)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            drive(make_run(tmp_path, {"hangs": {"hang_at": "0"}}), on_event=interrupted)
        assert gone(pids[0])

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
    def test_children_never_outlive_their_parent(self, tmp_path, number):
        told = {"folder": str(tmp_path), "models": {"hangs": {"hang_at": "0"}}}
        (tmp_path / "run.json").write_text(json.dumps(told))
        parent = subprocess.Popen(
            [*COMMAND, "--drive", str(tmp_path / "run.json")],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # else ignored in the background
        )
        lines = iter(parent.stdout.readline, "")
        pid = next(int(line.split()[2]) for line in lines if line.startswith("loaded"))
        assert next(lines).startswith("progress"), "it has told all it had to tell, and hangs"
        assert until(lambda: (tmp_path / "hangs" / "calls.log").exists())
        assert not gone(pid)
        parent.send_signal(number)
        parent.communicate()
        assert parent.returncode == {signal.SIGTERM: 143}.get(number, -number)
        assert until(lambda: gone(pid))

    def test_a_second_run_over_the_same_folder_is_refused(self, tmp_path):
        run = make_run(tmp_path, {"a": {}})
        with FileLock(tmp_path / LOCK), pytest.raises(StoreError, match="another process is using"):
            drive(run)
        assert not run.told("a")
        assert drive(run)["a"].verdict == "ok"


class TestAgain:
    def test_what_ended_well_is_not_started_again_and_its_outcome_is_the_same(self, tmp_path):
        run = make_run(tmp_path, {"a": {}, "b": {"raise_at": "8"}})
        first = drive(run)
        run.behave("b")
        second = drive(run)
        assert second["a"] == first["a"]
        assert len(run.told("a")) == 1
        assert (first["b"].verdict, second["b"].verdict, second["b"].samples) == ("exception", "ok", 12)
        assert run.calls("b").count("0") == 1

    def test_more_samples_than_last_time_are_a_new_attempt(self, tmp_path):
        run = make_run(tmp_path, {"a": {}})
        whole = dict(run.jobs)
        run.jobs["a"] = whole["a"].model_copy(update={"samples": 5})
        assert drive(run)["a"].total == 5
        assert drive(run)["a"].total == 5
        assert len(run.told("a")) == 1
        run.jobs.update(whole)
        assert drive(run)["a"].total == 12
        assert sorted(run.calls("a"), key=int) == [str(i) for i in range(12)]

    def test_one_model_under_two_names_is_run_once(self, tmp_path):
        run = make_run(tmp_path, {"a": {"sleep_s": 0.2}, "b": {}})
        run.jobs["b"] = run.jobs["b"].model_copy(update={"key": run.jobs["a"].key})
        order = []
        found = drive(run, on_event=lambda event: order.append(f"{event.kind} {event.model}"))
        assert order.index("ended a") < order.index("started b")
        assert [found[model].samples for model in "ab"] == [12, 12]
        assert len(run.calls("a")) + len(run.calls("b")) == 12
