"""Runs of a batch evaluation on a Dask cluster; imported only where the configuration asks for one.

Memory is a resource of the cluster: each worker offers so much of `MEMORY`, each task asks for its part, and
Dask gives a worker no task that does not fit beside those that it runs
(https://distributed.dask.org/en/stable/resources.html). Dask only adds up; that a task keeps to its part is
what its supervisor on the worker sees to.
"""

from __future__ import annotations

import logging
import queue
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import dask
import psutil
from prefect import Task
from prefect.client.orchestration import get_client
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture

from pressoir.errors import RecipeError
from pressoir.evaluation import cluster, run, supervisor
from pressoir.evaluation.cluster import Assignment, Offer
from pressoir.evaluation.config import DaskConfig, EvaluationConfig
from pressoir.evaluation.guards import ended_by_sigterm, exclusive
from pressoir.evaluation.journal import Journal
from pressoir.evaluation.memory_log import MemoryLog
from pressoir.evaluation.planner import GB
from pressoir.evaluation.records import RunOutcome
from pressoir.evaluation.run import Prepared, Survey
from pressoir.evaluation.supervisor import Event
from pressoir.system.files import disk_errors
from pressoir.tasks.cluster_evaluation import evaluate_on_worker
from pressoir.tasks.evaluation_progress import shown

MEMORY = "MEMORY"
"""The resource, in bytes."""
_WAIT_S = 60.0
"""For a first worker, and for one that is large enough where those that were have gone."""
_LOOK_S = 5.0


@contextmanager
def running(config: DaskConfig, worker_bytes: int, at_once: int) -> Iterator[DaskTaskRunner]:
    """A task runner on the cluster of `config`.

    Where it starts workers itself, each offers `worker_bytes` of memory and runs up to `at_once` tasks.

    Raises:
        RecipeError: the cluster does not answer, or has no worker that offers memory.
    """
    if config.address is not None:
        options: dict[str, Any] = {"address": config.address}
    else:
        local = {
            "n_workers": config.workers,
            "threads_per_worker": at_once,
            "processes": True,
            "resources": {MEMORY: worker_bytes},
            "memory_limit": None,  # Dask's own weighs the worker alone, not the children, which have another
            "dashboard_address": "127.0.0.1:0",
        }
        options = {"cluster_class": "distributed.LocalCluster", "cluster_kwargs": local}
    where = config.address or "on this machine"
    with _quiet(), DaskTaskRunner(**options) as runner:
        try:
            runner.client.wait_for_workers(1, timeout=_WAIT_S)
        except (OSError, TimeoutError) as error:
            raise RecipeError(
                f"dask.address: no worker of the cluster {where} answered within {_WAIT_S:.0f} s ({error}); "
                "start the scheduler (dask scheduler) and workers "
                '(dask worker ADDRESS --resources "MEMORY=8e9")'
            ) from error
        if not offers(runner):
            raise RecipeError(
                f"dask.address: no worker of the cluster {where} declares the resource MEMORY; start "
                f'workers with: dask worker {config.address} --resources "MEMORY=8e9"'
            )
        _check_prefect_is_reached(runner)
        yield runner


def offers(runner: DaskTaskRunner) -> Mapping[str, int]:
    """Memory that each worker offers, by its address; those that offer none are left out."""
    workers = runner.client.scheduler_info(n_workers=-1)["workers"]
    found = {address: int(worker["resources"].get(MEMORY, 0)) for address, worker in workers.items()}
    return {address: size for address, size in found.items() if size > 0}


def offer(runner: DaskTaskRunner) -> Offer:
    """What all of them offer."""
    found = offers(runner).values()
    return Offer(max(found, default=0), sum(found))


def submit(
    runner: DaskTaskRunner, task: Task[Any, Any], memory_bytes: int, **parameters: Any
) -> PrefectDaskFuture[Any]:
    """Run a task on a worker that has so much memory left, once there is one."""
    # The worker gets our settings. Without the address of the server that this process started for itself,
    # it would start one too.
    with (
        temporary_settings({PREFECT_API_URL: _prefect_url()}),
        dask.annotate(resources={MEMORY: memory_bytes}),
    ):
        return runner.submit(task, parameters)


def _prefect_url() -> str:
    """Where this process speaks to Prefect."""
    with get_client(sync_client=True) as client:
        return str(client.api_url)


def _check_prefect_is_reached(runner: DaskTaskRunner) -> None:
    url = _prefect_url()
    if urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
        return
    here = {entry.address for found in psutil.net_if_addrs().values() for entry in found}
    away = {
        worker["host"] for worker in runner.client.scheduler_info(n_workers=-1)["workers"].values()
    } - here
    if away:
        raise RecipeError(
            f"dask.address: workers on other machines ({', '.join(sorted(away)[:5])}) cannot reach Prefect "
            f"at {url}; start a server that they can reach (prefect server start --host 0.0.0.0) and set "
            "PREFECT_API_URL to its address"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """A block in which Dask tells no more than warnings: else a line for every connection."""
    log = logging.getLogger("distributed")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def opened(config: EvaluationConfig, dask_config: DaskConfig) -> Iterator[Cluster]:
    """The cluster for an evaluation.

    Raises:
        RecipeError: see `running`.
    """
    seen, here = run.survey(config), dask_config.address is None
    at_once = max(1, seen.max_parallel // dask_config.workers)
    with running(dask_config, cluster.worker_bytes(seen, dask_config), at_once) as runner:
        limits = supervisor.SupervisorLimits(
            reserve_bytes=seen.reserve_bytes if here else round((config.memory.reserve_gb or 0) * GB),
            threads=max(1, seen.threads // dask_config.workers) if here else config.threads,
            timeout_s=config.timeout_s,
        )
        offered = offer(runner)
        get_run_logger().info(
            "%d workers offer %s of memory for models, the largest %s",
            len(offers(runner)),
            _gb(offered.total_bytes),
            _gb(offered.largest_bytes),
        )
        yield Cluster(runner, cluster.seen_by_workers(seen, config, offered), limits, here)


@dataclass(frozen=True)
class Cluster:
    """The workers that an evaluation runs on."""

    runner: DaskTaskRunner
    survey: Survey
    """To plan with: what one worker has."""
    limits: supervisor.SupervisorLimits
    """Of a worker; its threads are shared by the runs that it can take at once."""
    here: bool
    """Whether its workers are on this machine, so that their children can be weighed from here."""

    def evaluate(self, prepared: Prepared, log: MemoryLog) -> tuple[Prepared, dict[str, RunOutcome]]:
        """Run all models that have not ended well before; the plan as it was carried out, and their outcomes.

        A run that the cluster fails to carry out has an outcome too, and the others go on.

        Raises:
            StoreError: another process evaluates into the same folder, or it cannot be written.
        """
        jobs, estimates = prepared.jobs, prepared.estimates
        if not jobs:
            return prepared, {}
        plan = cluster.place(prepared.plan, jobs, estimates, offer(self.runner))
        folder = next(iter(jobs.values())).journal.parent
        outcomes: dict[str, RunOutcome] = {}
        with (
            exclusive(folder),
            ended_by_sigterm(),
            disk_errors(folder),
            closing(Journal(folder / run.JOURNAL)) as journal,
            shown(log) as show,
        ):
            for name, job in jobs.items():
                if (before := supervisor.ended_well(journal, job)) is not None:
                    outcomes[name] = before
            for skipped in plan.skipped:
                given = Assignment.of(jobs[skipped.model], estimates[skipped.model], 1, self.limits)
                largest = f"the largest worker offers {_gb(skipped.budget_bytes)}"
                detail = f"a single sample needs {_gb(skipped.peak_bytes)}, {largest}"
                outcomes.setdefault(skipped.model, given.failed("skipped_memory", detail))
            waiting = []
            for placement in (placed for batch in plan.batches for placed in batch.placements):
                if (name := placement.model) not in outcomes:
                    cluster.hand_over(jobs[name], journal)
                    size = placement.batch_size
                    waiting.append(Assignment.of(jobs[name], estimates[name], size, self.limits))
            for outcome in self._run(waiting, show):
                cluster.collect(jobs[outcome.model], journal)
                outcomes[outcome.model] = outcome
        return replace(prepared, plan=plan), outcomes

    def _run(self, waiting: Sequence[Assignment], show: Callable[[Event], None]) -> Iterator[RunOutcome]:
        """Each run's outcome, as it ends."""
        news: queue.SimpleQueue[Event | Assignment] = queue.SimpleQueue()
        pending: dict[str, tuple[Assignment, PrefectDaskFuture[RunOutcome]]] = {}
        topic, enough_at = f"pressoir-{uuid.uuid4()}", time.monotonic()

        def hear(message: tuple[float, dict[str, Any]]) -> None:
            event = Event(**message[1]["event"])
            news.put(event if self.here else replace(event, pid=None))

        def start(given: Assignment) -> None:
            future = submit(self.runner, evaluate_on_worker, given.memory_bytes, given=given, topic=topic)
            pending[given.job.model] = given, future
            future.wrapped_future.add_done_callback(lambda _: news.put(given))

        self.runner.client.subscribe_topic(topic, hear)
        for given in waiting:
            start(given)
        while pending:
            try:
                item = news.get(timeout=_LOOK_S)
            except queue.Empty:
                largest = offer(self.runner).largest_bytes
                if any(given.memory_bytes <= largest for given, _ in pending.values()):
                    enough_at = time.monotonic()
                elif time.monotonic() - enough_at > _WAIT_S:
                    for given, future in pending.values():
                        future.wrapped_future.cancel()
                        yield given.failed(
                            "skipped_memory", f"no remaining worker offers {_gb(given.memory_bytes)}"
                        )
                    return
                continue
            if isinstance(item, Event):
                if item.kind != "batch":
                    show(item)
                continue
            given, future = pending.pop(item.job.model)
            try:
                outcome = future.result()
            except Exception as error:  # its worker died again and again, or its journal is of no use
                outcome = given.failed("exception", f"{type(error).__name__}: {error}")
            more = cluster.whole_worker(given, outcome, offer(self.runner))
            if more is None:
                yield outcome
            else:
                get_run_logger().info("%s: %s, retrying with a whole worker", given.job.model, outcome.detail)
                start(more)


def _gb(size: int) -> str:
    return f"{size / GB:.2f} GB"
