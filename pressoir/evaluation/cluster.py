"""A batch evaluation on several workers: who can hold what, and one run on one of them.

**Why.** Models that fit a machine one after another take the sum of their times. Workers, on this machine or
on others, take them side by side, if each is given no more than its memory holds.

**What.** A worker offers an amount of memory, and a run asks for its predicted peak of it; the scheduler of
the cluster adds up (`flows/dask_cluster.py`). On its worker a run is supervised as on one machine: a child
process, a watchdog, live memory checked before the launch. What it asked for is its allowance. A run that
dies for want of memory within it is tried again with all that a worker offers.

**Journals.** SQLite's write-ahead log works on one machine only (https://www.sqlite.org/wal.html), so each
run has a journal of its own, `<run folder>/workers/<run>/journal.sqlite`, which one worker at a time writes.
When the run has ended, the coordinating process collects it into the run folder's journal, from which
scores are made. What was not collected, because the leader was killed, is when the run is resumed.

No Dask and no Prefect is imported here, and no library that runs models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pressoir.config import Config
from pressoir.evaluation import planner, supervisor
from pressoir.evaluation.config import DaskConfig, EvaluationConfig
from pressoir.evaluation.guards import exclusive
from pressoir.evaluation.jobs import Job
from pressoir.evaluation.journal import Journal
from pressoir.evaluation.planner import GB, PRESETS, Batch, EvaluationPlan, Placement, Skipped
from pressoir.evaluation.records import Estimate, RunOutcome, Verdict
from pressoir.system.files import make_folder

if TYPE_CHECKING:
    from pressoir.evaluation.run import Survey

JOURNAL = "journal.sqlite"
WORKER_BYTES = 300_000_000
"""What a worker process takes for itself: Dask, Prefect and MLflow, whose modules the flow's tasks import."""


@dataclass(frozen=True)
class Offer:
    """What the workers of a cluster offer."""

    largest_bytes: int
    """Memory of the worker that has most."""
    total_bytes: int
    """Of all workers together."""


class Assignment(Config):
    """One run, as it is described to its worker."""

    job: Job
    """Its journal is the run's own."""
    estimate: Estimate
    batch_size: int
    memory_bytes: int
    """What the run asked for, and may take."""
    limits: supervisor.SupervisorLimits

    @classmethod
    def of(
        cls, job: Job, estimate: Estimate, batch_size: int, limits: supervisor.SupervisorLimits
    ) -> Assignment:
        """A run that asks for its predicted peak at a batch size."""
        return cls(
            job=of_worker(job),
            estimate=estimate,
            batch_size=batch_size,
            memory_bytes=estimate.peak_bytes(batch_size),
            limits=limits,
        )

    def failed(self, verdict: Verdict, detail: str) -> RunOutcome:
        """The outcome of a run that nobody could carry out."""
        return RunOutcome(
            model=self.job.model,
            task=self.job.task,
            runtime=self.job.runs_in,
            verdict=verdict,
            detail=detail,
            predicted_peak_bytes=self.estimate.peak_bytes(self.batch_size),
        )


def worker_bytes(seen: Survey, dask: DaskConfig) -> int:
    """Memory that each worker on this machine can offer to models: its share of the budget, at most."""
    share = max(seen.budget_bytes // dask.workers - WORKER_BYTES, 1)
    return share if dask.memory_gb is None else min(share, round(dask.memory_gb * GB))


def seen_by_workers(seen: Survey, config: EvaluationConfig, offer: Offer) -> Survey:
    """The survey to plan with: a run has one worker's memory, and is a batch of its own."""
    strategy = config.strategy or planner.pick_strategy(offer.largest_bytes, config.memory)
    return replace(
        seen,
        strategy=strategy,
        batch_size=PRESETS[strategy].batch_size,
        budget_bytes=offer.largest_bytes,
        max_parallel=1,
    )


def place(
    plan: EvaluationPlan, jobs: Mapping[str, Job], estimates: Mapping[str, Estimate], offer: Offer
) -> EvaluationPlan:
    """The plan for the workers that there are now: a resumed run may find others.

    The largest runs come first. What no worker can hold is skipped: a scheduler would wait for ever for one
    that can.
    """
    batches, skipped = [], []
    runs = {placement.model: batch.name for batch in plan.batches for placement in batch.placements}
    for run in [*runs, *(skipped_run.model for skipped_run in plan.skipped)]:
        estimate, room = estimates[run], offer.largest_bytes
        if size := planner.largest_batch(estimate, jobs[run].batch_size, room):
            placement = Placement(model=run, batch_size=size, peak_bytes=estimate.peak_bytes(size))
            batches.append(Batch(name=runs.get(run, run), placements=(placement,)))
        else:
            skipped.append(Skipped(model=run, peak_bytes=estimate.peak_bytes(1), budget_bytes=room))
    batches.sort(key=lambda batch: -batch.peak_bytes)
    return EvaluationPlan(budget_bytes=offer.total_bytes, batches=tuple(batches), skipped=tuple(skipped))


def of_worker(job: Job) -> Job:
    """A run's job with the journal that its worker writes."""
    return job.model_copy(update={"journal": job.journal.parent / "workers" / job.model / JOURNAL})


def evaluate(
    given: Assignment,
    on_event: Callable[[supervisor.Event], None] | None = None,
    command: Sequence[str] = supervisor.COMMAND,
) -> RunOutcome:
    """Evaluate one run here, within the memory that it asked for; what it has done before is not done again.

    Raises:
        StoreError: another process runs into its journal, or the journal cannot be used.
    """
    run, size = given.job.model, given.batch_size
    placement = Placement(model=run, batch_size=size, peak_bytes=given.estimate.peak_bytes(size))
    plan = EvaluationPlan(
        budget_bytes=given.memory_bytes, batches=(Batch(name=run, placements=(placement,)),), skipped=()
    )
    [outcome] = supervisor.run_plan(
        plan, {run: given.job}, {run: given.estimate}, given.limits, on_event=on_event, command=command
    )
    return outcome


def collect(job: Job, into: Journal) -> None:
    """Take over what a run's worker has predicted, and that it ended well; nothing is taken over twice.

    Raises:
        StoreError: one of the journals cannot be used.
    """
    source = of_worker(job).journal
    if source.exists():
        with closing(Journal(source)) as journal:
            _copy(job, journal, into)


def collect_all(jobs: Mapping[str, Job]) -> None:
    """Take over what workers have done that nobody was there to collect: a run is resumed.

    Raises:
        StoreError: see `collect`; or another process evaluates into the same folder.
    """
    left = [job for job in jobs.values() if of_worker(job).journal.exists()]
    if not left:
        return
    path = left[0].journal
    with exclusive(path.parent), closing(Journal(path)) as journal:
        for job in left:
            collect(job, journal)


def hand_over(job: Job, journal: Journal) -> None:
    """Give a run's worker what has been predicted before, on one machine, so that it is not predicted again.

    Raises:
        StoreError: one of the journals cannot be used.
    """
    if journal.done(job.key):
        target = of_worker(job).journal
        make_folder(target.parent)
        with closing(Journal(target)) as into:
            _copy(job, journal, into)


def _copy(job: Job, source: Journal, into: Journal) -> None:
    there = into.done(job.key)
    new = [prediction for prediction in source.predictions(job.key) if prediction.sample not in there]
    outcome = supervisor.ended_well(source, job)
    if new or (outcome is not None and supervisor.ended_well(into, job) is None):
        attempt = into.begin(job.model, job.attempt_key)
        into.add(job.key, attempt, new)
        into.end(attempt, outcome.model_dump_json() if outcome is not None else "null")


def whole_worker(given: Assignment, outcome: RunOutcome, offer: Offer) -> Assignment | None:
    """The second try of a run that wanted more memory than it asked for; None where there is no more."""
    if outcome.verdict not in ("skipped_oom", "killed_oom") or given.memory_bytes >= offer.largest_bytes:
        return None
    return given.model_copy(update={"memory_bytes": offer.largest_bytes})
