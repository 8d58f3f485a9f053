"""A run on one of several workers: what each may hold, its own journal, and how what it did comes back."""

import subprocess
import sys
from dataclasses import replace

import pytest
from fake_models import COMMAND, MB, drive, expected, make_run

from pressoir.evaluation import cluster, supervisor
from pressoir.evaluation.cluster import Assignment, Offer
from pressoir.evaluation.config import DaskConfig, EvaluationConfig
from pressoir.evaluation.journal import Journal
from pressoir.evaluation.planner import GB
from pressoir.evaluation.records import RunOutcome

ALL = {str(i): expected(str(i)) for i in range(12)}


def evaluate(run, model, memory=None):
    given = Assignment.of(run.jobs[model], run.estimates[model], 4, run.limits)
    if memory is not None:
        given = given.model_copy(update={"memory_bytes": memory})
    return cluster.evaluate(given, command=COMMAND)


@pytest.fixture
def journal(tmp_path):
    """The journal of the run's folder, as who leads the evaluation holds it."""
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


def stored(journal, run, model):
    return {one.sample: one.value for one in journal.predictions(run.jobs[model].key)}


class TestMemory:
    @pytest.fixture
    def seen(self):
        from pressoir.evaluation.run import survey

        config = EvaluationConfig(
            models=({"id": "m", "model": "x", "data": "d"},), data={"d": {"task": "causal-lm"}}
        )
        return replace(survey(config), budget_bytes=8 * GB), config

    def test_workers_on_this_machine_share_its_budget_less_what_they_take_themselves(self, seen):
        share = 4 * GB - cluster.WORKER_BYTES
        assert cluster.worker_bytes(seen[0], DaskConfig(workers=2)) == share
        assert cluster.worker_bytes(seen[0], DaskConfig(workers=2, memory_gb=1)) == GB
        assert cluster.worker_bytes(seen[0], DaskConfig(workers=2, memory_gb=100)) == share
        assert cluster.worker_bytes(seen[0], DaskConfig(workers=64)) == 1

    def test_what_is_planned_with_is_one_worker_not_this_machine(self, seen):
        found = cluster.seen_by_workers(*seen, Offer(20 * GB, 40 * GB))
        assert (found.budget_bytes, found.max_parallel) == (20 * GB, 1)
        assert (found.strategy, found.batch_size) == ("aggressive", 16)

    def test_the_largest_come_first_and_what_no_worker_holds_is_skipped(self, tmp_path):
        run = make_run(tmp_path, {"small": {}, "huge": {}, "large": {}}, max_parallel=1)
        estimates = {
            name: one.model_copy(update={"fixed_bytes": size * MB})
            for (name, one), size in zip(run.estimates.items(), (100, 900, 200), strict=True)
        }
        plan = cluster.place(run.plan, run.jobs, estimates, Offer(202 * MB, 404 * MB))
        placed = [one for batch in plan.batches for one in batch.placements]
        assert [(one.model, one.batch_size) for one in placed] == [("large", 2), ("small", 4)]
        assert [(one.model, one.peak_bytes, one.budget_bytes) for one in plan.skipped] == [
            ("huge", 901 * MB, 202 * MB)
        ]
        # the workers of a resumed run are larger: what was skipped is placed
        later = cluster.place(plan, run.jobs, estimates, Offer(GB, GB))
        assert [batch.placements[0].model for batch in later.batches] == ["huge", "large", "small"]
        assert later.skipped == ()

    def test_a_run_that_wanted_more_than_it_asked_for_gets_a_whole_worker_once(self, tmp_path):
        run = make_run(tmp_path, {"m": {}})
        given = Assignment.of(run.jobs["m"], run.estimates["m"], 4, run.limits)
        assert given.memory_bytes == 104 * MB
        offer, hungry = Offer(500 * MB, 900 * MB), RunOutcome(model="m", verdict="killed_oom")
        more = cluster.whole_worker(given, hungry, offer)
        assert more == given.model_copy(update={"memory_bytes": 500 * MB})
        assert cluster.whole_worker(more, hungry, offer) is None
        assert cluster.whole_worker(given, RunOutcome(model="m", verdict="exception"), offer) is None


@pytest.mark.process
class TestOnAWorker:
    def test_a_run_keeps_within_what_it_asked_for(self, tmp_path):
        run = make_run(tmp_path, {"m": {}}, fixed=300 * MB)
        outcome = evaluate(run, "m")
        assert (outcome.verdict, outcome.samples) == ("ok", 12)
        job = (tmp_path / "workers" / "m" / "jobs" / "m-1.json").read_text()
        assert f'"allowance_bytes": {304 * MB}' in job

    def test_a_run_that_takes_more_is_ended_however_much_memory_the_machine_has(self, tmp_path):
        run = make_run(tmp_path, {"m": {"shared_bytes": 300 * MB, "hold_s": 2}}, fixed=100 * MB)
        outcome = evaluate(run, "m")
        assert outcome.verdict == "skipped_oom"
        assert "0.10 GB allowed" in outcome.detail
        assert evaluate(run, "m", memory=3 * GB).verdict == "ok"


@pytest.mark.process
class TestJournals:
    def test_what_a_worker_did_is_collected_once(self, tmp_path, journal):
        run = make_run(tmp_path, {"m": {}})
        cluster.collect(run.jobs["m"], journal)  # there is nothing yet
        outcome = evaluate(run, "m")
        for _ in range(2):
            cluster.collect(run.jobs["m"], journal)
        assert stored(journal, run, "m") == ALL
        assert supervisor.ended_well(journal, run.jobs["m"]) == outcome
        assert len(journal.outcomes("m")) == 1

    def test_what_was_collected_is_not_run_again_on_one_machine(self, tmp_path, journal):
        run = make_run(tmp_path, {"m": {}})
        outcome = evaluate(run, "m")
        cluster.collect(run.jobs["m"], journal)
        assert drive(run) == {"m": outcome}
        assert len(run.calls("m")) == 12

    def test_a_part_is_collected_too_but_not_as_a_good_end(self, tmp_path, journal):
        run = make_run(tmp_path, {"m": {"raise_at": "8"}})
        assert evaluate(run, "m").verdict == "exception"
        cluster.collect(run.jobs["m"], journal)
        assert len(stored(journal, run, "m")) == 8
        assert supervisor.ended_well(journal, run.jobs["m"]) is None
        run.behave("m")
        assert evaluate(run, "m").verdict == "ok"
        cluster.collect(run.jobs["m"], journal)
        assert stored(journal, run, "m") == ALL
        assert supervisor.ended_well(journal, run.jobs["m"]).samples == 12

    def test_what_nobody_was_there_to_collect_is_collected_when_the_run_is_resumed(self, tmp_path):
        run = make_run(tmp_path, {"m": {"raise_at": "8"}, "idle": {}})
        cluster.collect_all(run.jobs)
        assert not run.journal.exists(), "a run without workers has nothing to collect"
        evaluate(run, "m")
        cluster.collect_all(run.jobs)
        run.behave("m")
        assert drive(run)["m"].samples == 12
        assert len(run.calls("m")) == 12 + len(["8", "9", "10", "11"])

    def test_a_worker_goes_on_where_one_machine_stopped(self, tmp_path, journal):
        run = make_run(tmp_path, {"m": {"raise_at": "8"}})
        assert drive(run)["m"].verdict == "exception"
        run.behave("m")
        cluster.hand_over(run.jobs["m"], journal)
        assert evaluate(run, "m").samples == 12
        assert sorted(run.calls("m")) == sorted([*ALL, *"8", *"9", "10", "11"])


@pytest.mark.process
def test_no_cluster_and_nothing_that_runs_models_is_imported():
    program = (
        "import sys, pressoir.evaluation.cluster; "
        "print(*{'torch', 'transformers', 'onnxruntime', 'prefect', 'mlflow', 'dask'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []
