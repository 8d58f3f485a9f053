"""Run a plan: children side by side, never more than fits, whatever becomes of each of them.

**Why.** A plan is made from estimates before anything runs. Afterwards other processes may take memory, or a
model may take more than was estimated, hang, or crash. None of that may end the run or exhaust the machine's
memory.

**What.** Batch after batch, and side by side within one. Before EVERY launch the memory is measured again:

- live: what is available now, less the reserve, less what running children were promised and did not take;
- planned: the plan's budget, less what running children were promised.

The lesser of the two must hold the model's predicted peak. Else the launch waits for the children that run;
where none does, the models' files are dropped from the kernel's cache, and it waits for a few seconds; then
the batch size is cut to what fits; and where not even one sample does, the model is skipped. A child's
allowance is its share of that room, by predicted peak, so that siblings together stay within it.

A child is watched: PSS above its allowance, or too much time, and it is killed. Whoever dies for want of
memory is tried again alone with all the room there is and half the batch; its finished samples are kept. When
that gets no further sample done, one at a time, it ends in `skipped_oom`, or in `killed_oom` if it was the
kernel that killed.

**Resuming.** Run the plan again over the same journal. Models that ended well are not started; the others
are tried anew, and no sample that was committed is run again. A lock keeps two runs apart.

No torch is imported here, nor any other library that runs models.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pressoir.config import Config, Positive, PositiveReal
from pressoir.evaluation.guards import ended_by_sigterm, exclusive
from pressoir.evaluation.jobs import Job, Loaded, Progress
from pressoir.evaluation.journal import Journal
from pressoir.evaluation.planner import Batch, EvaluationPlan, largest_batch
from pressoir.evaluation.process import Child, Ended
from pressoir.evaluation.records import Estimate, RunOutcome, Verdict
from pressoir.system.files import disk_errors
from pressoir.system.memory import effective_memory
from pressoir.system.runtime import available_cpus

COMMAND = (sys.executable, "-m", "pressoir.evaluation.child")
_POLL_S = 0.1

Available = Callable[[], int]
"""Bytes of memory that can still be taken."""


class SupervisorLimits(Config):
    """What a run may use."""

    reserve_bytes: int = 0
    """Of the available memory, kept free for others."""
    max_parallel: Positive | None = None
    """Most children at once; null: as many as a batch of the plan has."""
    threads: Positive | None = None
    """CPU threads of all children together; null: the CPUs really available."""
    timeout_s: PositiveReal = 3600.0
    """A model that takes longer, all its attempts together, is stopped."""
    patience_s: float = 5.0
    """How long to wait for others to give memory back before a model gets a smaller batch, or is skipped."""


@dataclass(frozen=True)
class Event:
    """An event, to be displayed or recorded."""

    kind: Literal["batch", "started", "loaded", "progress", "ended", "waiting"]
    batch: str
    model: str = ""
    """Empty for `batch`, which is when a batch begins."""
    pid: int | None = None
    """The child's, from `started` to `ended`."""
    done: int = 0
    """Samples that have a prediction."""
    total: int = 0
    batch_size: int | None = None
    detail: str = ""
    """`ended`: the verdict of the attempt; `waiting`: for what."""


def run_plan(
    plan: EvaluationPlan,
    jobs: Mapping[str, Job],
    estimates: Mapping[str, Estimate],
    limits: SupervisorLimits,
    *,
    on_event: Callable[[Event], None] | None = None,
    available: Available | None = None,
    command: Sequence[str] = COMMAND,
) -> Iterator[RunOutcome]:
    """Run every model of the plan that has not ended well before; give each one's outcome as it ends.

    `jobs` and `estimates` go by the model's id. All jobs name one journal; beside it are `jobs/`, with what
    each child was given and its log, and the lock. Children run on, watched, while the caller handles an
    outcome. `on_event` is called in the caller's thread. Closing the iterator, an exception, Ctrl-C or
    SIGTERM ends the children; what they committed stays.

    Raises:
        StoreError: another process runs into the same journal, or the journal cannot be used.
    """
    if not jobs:
        return
    journal = next(iter(jobs.values())).journal
    supervisor = _Supervisor(plan, jobs, estimates, limits, available or _available, command)
    with exclusive(journal.parent), ended_by_sigterm():
        thread = threading.Thread(target=supervisor.run, args=(journal,), daemon=True)
        thread.start()
        try:
            while (news := supervisor.news.get()) is not None:
                if isinstance(news, RunOutcome):
                    yield news
                elif isinstance(news, BaseException):
                    raise news
                elif on_event is not None:
                    on_event(news)
        finally:
            supervisor.stopped.set()
            thread.join()


def ended_well(journal: Journal, job: Job) -> RunOutcome | None:
    """The outcome of an earlier attempt that did all that is asked for."""
    for stored in reversed(journal.outcomes(job.model, job.attempt_key)):
        with suppress(ValidationError):
            outcome = RunOutcome.model_validate_json(stored or "null")
            if outcome.verdict == "ok" and outcome.samples == outcome.total:
                return outcome
    return None


@dataclass
class _Task:
    """A model of the batch that is run, and what became of it so far."""

    job: Job
    estimate: Estimate
    batch_size: int
    left_s: float
    alone: bool = False
    """To be run with all the room there is, and nobody beside it."""
    patient_until: float | None = None
    attempt: int = 0
    load_s: float = 0.0
    total: int = 0
    peak: int = 0
    largest: int = 0
    """Most samples that it let through the model together, or tried to."""

    @property
    def peak_bytes(self) -> int:
        return self.estimate.peak_bytes(self.batch_size)


class _Supervisor:
    """The thread that starts and watches children; it talks through `news`."""

    def __init__(
        self,
        plan: EvaluationPlan,
        jobs: Mapping[str, Job],
        estimates: Mapping[str, Estimate],
        limits: SupervisorLimits,
        available: Available,
        command: Sequence[str],
    ) -> None:
        self._plan, self._jobs, self._estimates, self._limits = plan, jobs, estimates, limits
        self._available, self._command = available, command
        self._threads = limits.threads or available_cpus()
        self._running: dict[Child, _Task] = {}
        self._batch = ""
        self._folder = next(iter(jobs.values())).journal.parent / "jobs"
        self.news: queue.SimpleQueue[RunOutcome | Event | BaseException | None] = queue.SimpleQueue()
        self.stopped = threading.Event()

    def run(self, journal: Path) -> None:
        """Run the plan; end with None, or with an exception."""
        try:
            self._journal = Journal(journal)
            try:
                with disk_errors(self._folder):
                    self._folder.mkdir(exist_ok=True)
                    self._skip_what_never_fits()
                    for batch in self._plan.batches:
                        self._run_batch(batch)
            finally:
                for child in self._running:
                    child.kill()
                for child in self._running:
                    child.close()
                self._journal.close()
        except BaseException as error:
            self.news.put(error)
        self.news.put(None)

    def _skip_what_never_fits(self) -> None:
        for skipped_run in self._plan.skipped:
            task = self._task(skipped_run.model, 1)
            detail = f"a single sample needs {_gb(skipped_run.peak_bytes)}, the budget is "
            self._conclude(task, "skipped_memory", detail + _gb(skipped_run.budget_bytes))

    def _run_batch(self, batch: Batch) -> None:
        self._batch = batch.name
        self.news.put(Event("batch", batch.name))
        side_by_side = min(len(batch.placements), self._limits.max_parallel or len(batch.placements))
        threads = max(1, self._threads // max(side_by_side, 1))
        waiting = []
        for placement in batch.placements:
            if (before := ended_well(self._journal, self._jobs[placement.model])) is not None:
                self.news.put(before)
            else:
                waiting.append(self._task(placement.model, placement.batch_size))
        while (waiting or self._running) and not self.stopped.is_set():
            while (task := self._next(waiting, side_by_side)) is not None:
                waiting.remove(task)
                beside = side_by_side - len(self._running) - 1
                self._launch(task, [other for other in waiting if not other.alone][:beside], threads)
            self._listen()
            for child in [child for child in self._running if child.has_ended()]:
                waiting += self._close(child)

    def _task(self, model: str, batch_size: int) -> _Task:
        return _Task(self._jobs[model], self._estimates[model], batch_size, self._limits.timeout_s)

    def _next(self, waiting: list[_Task], side_by_side: int) -> _Task | None:
        """The first task that can be started now; those that can never be are concluded."""
        if len(self._running) >= side_by_side or self.stopped.is_set():
            return None
        keys = {task.job.key for task in self._running.values()}
        for task in list(waiting):
            if self._running and (task.alone or any(other.alone for other in self._running.values())):
                continue
            if task.job.key in keys:  # the same model under two names: the second finds all done
                continue
            room = self._room()
            if task.peak_bytes <= room:
                return task
            if self._running:
                continue
            if task.patient_until is None:
                task.patient_until = time.monotonic() + self._limits.patience_s
                for job in self._jobs.values():
                    if job.remote is None:
                        _drop_pages(job.folder)
                if task.peak_bytes <= (room := self._room()):
                    return task
                self._tell("waiting", task, detail=f"for memory: {_gb(task.peak_bytes)} of {_gb(room)}")
            if time.monotonic() < task.patient_until:
                continue
            size = largest_batch(task.estimate, task.batch_size, room)
            if size > 0:
                task.batch_size = size
                return task
            waiting.remove(task)
            self._conclude(
                task,
                "skipped_memory",
                f"a single sample needs {_gb(task.estimate.peak_bytes(1))}, but {_gb(max(room, 0))} are "
                "available now",
            )
        return None

    def _room(self) -> int:
        """Bytes that another child may take; see the module."""
        owed = sum(max(child.job.allowance_bytes - child.pss, 0) for child in self._running)
        live = self._available() - self._limits.reserve_bytes - owed
        planned = self._plan.budget_bytes - sum(child.job.allowance_bytes for child in self._running)
        return min(live, planned)

    def _launch(self, task: _Task, beside: Sequence[_Task], threads: int) -> None:
        """Start an attempt; `beside` are those that are to be started next to it."""
        room = self._room()
        wanted = task.peak_bytes + sum(other.peak_bytes for other in beside)
        share = room if task.alone or not beside else room * task.peak_bytes // max(wanted, 1)
        task.alone = task.alone or not (beside or self._running)
        task.attempt = self._journal.begin(task.job.model, task.job.attempt_key)
        job = task.job.model_copy(
            update={
                "batch_size": task.batch_size,
                "attempt": task.attempt,
                "allowance_bytes": max(share, min(task.peak_bytes, room), 1),
                "threads": threads,
            }
        )
        child = Child(job, self._folder, self._command, task.left_s)
        self._running[child] = task
        self._tell("started", task, child)

    def _listen(self) -> None:
        """Wait for messages a little while; look after the children's memory and time."""
        pipes = [child.stdout for child in self._running if not child.silent]
        if pipes:
            wait(pipes, _POLL_S)
        else:
            self.stopped.wait(_POLL_S)
        for child, task in self._running.items():
            child.watch()
            self._hear(task, child)

    def _hear(self, task: _Task, child: Child) -> None:
        """Pass on what the child has said since, message by message."""
        for message in child.read():
            if isinstance(message, Loaded):
                self._tell("loaded", task, child)
            elif isinstance(message, Progress):
                self._tell("progress", task, child, progress=message)

    def _close(self, child: Child) -> list[_Task]:
        """Take note of an attempt that has ended; give its task back if it is to be tried again."""
        task = self._running.pop(child)
        self._hear(task, child)
        child.close()
        ended = child.cause()
        task.left_s -= child.seconds
        task.load_s += child.loaded.seconds if child.loaded is not None else 0.0
        task.total = child.progress.total if child.progress is not None else task.total
        task.largest = max(task.largest, child.largest)
        resident = child.end.peak_bytes if child.end is not None else None
        task.peak = max(task.peak, resident or child.peak)
        self._tell("ended", task, child, ended.verdict)
        if self.stopped.is_set():
            return []
        if ended.of_memory and task.left_s > 0 and self._shrink(task, child, ended):
            outcome = self._outcome(task, ended.verdict, ended.detail)
            self._journal.end(task.attempt, outcome.model_dump_json())
            return [task]
        hopeless = ended.of_memory and not ended.by_kernel
        self._conclude(task, "skipped_oom" if hopeless else ended.verdict, ended.detail)
        return []

    def _shrink(self, task: _Task, child: Child, ended: Ended) -> bool:
        """Make less of a task whose child died for want of memory; False if that is not possible."""
        together = child.progress.batch_size if child.progress is not None else 0
        if ended.verdict == "killed_oom" and together > 1:
            task.batch_size = min(task.batch_size, together // 2)
        elif child.finished:  # a fresh process does not have its memory in pieces
            task.batch_size = max(1, min(task.batch_size, child.largest // 2))
        elif task.alone:
            return False
        elif together == 1:
            task.batch_size = 1
        task.job = task.job.model_copy(update={"max_batch_size": task.batch_size})
        task.alone, task.patient_until = True, None
        return True

    def _outcome(self, task: _Task, verdict: Verdict, detail: str) -> RunOutcome:
        job, stored = task.job, self._journal.totals(task.job.key)
        size = min(task.largest, task.batch_size) or task.batch_size
        return RunOutcome(
            model=job.model,
            task=job.task,
            runtime=job.runs_in,
            verdict=verdict,
            detail=detail,
            samples=min(stored.samples, task.total) if task.total else stored.samples,
            total=task.total,
            batch_size=stored.batch_size,
            predicted_peak_bytes=task.estimate.peak_bytes(size),
            measured_peak_bytes=task.peak or None,
            seconds=stored.seconds,
            load_s=task.load_s,
        )

    def _conclude(self, task: _Task, verdict: Verdict, detail: str) -> None:
        outcome = self._outcome(task, verdict, detail)
        if task.attempt:
            self._journal.end(task.attempt, outcome.model_dump_json())
        self.news.put(outcome)

    def _tell(
        self,
        kind: Literal["started", "loaded", "progress", "ended", "waiting"],
        task: _Task,
        child: Child | None = None,
        detail: str = "",
        progress: Progress | None = None,
    ) -> None:
        progress = progress or (child.progress if child is not None else None)
        self.news.put(
            Event(
                kind,
                self._batch,
                task.job.model,
                pid=child.pid if child is not None else None,
                done=progress.done if progress is not None else 0,
                total=progress.total if progress is not None else 0,
                batch_size=progress.batch_size if progress is not None else task.batch_size,
                detail=detail,
            )
        )


def _drop_pages(folder: Path) -> None:
    """Have the kernel give back the memory in which it keeps the folder's files; mapped pages stay.

    A cgroup is charged for what it has read, and what was read twice does not count as available any more.
    """
    for path in folder.glob("*.*") if hasattr(os, "posix_fadvise") else ():
        with suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _available() -> int:
    return effective_memory().available_bytes


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
