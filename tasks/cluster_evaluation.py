"""One run of a batch evaluation as a task on a Dask worker.

The worker tells what happens under a topic of the cluster's event log, so that the flow shows it as it
happens. A run whose flow has gone is ended, so that it does not stand in a resumed one's way.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from distributed import get_worker

from pressoir.errors import PressoirError
from pressoir.evaluation import cluster
from pressoir.evaluation.records import RunOutcome
from pressoir.evaluation.supervisor import Event
from pressoir.system.runtime import available_cpus
from pressoir.tasks.stage import stage_task


@stage_task(name="evaluate-on-worker", task_run_name="evaluate-{given.job.model}")
def evaluate_on_worker(given: cluster.Assignment, topic: str) -> RunOutcome:
    """Evaluate one run in a child of this worker, within the memory that it asked the cluster for."""
    worker = get_worker()
    key = worker.get_current_task()
    threads = max(1, (given.limits.threads or available_cpus()) // worker.state.nthreads)
    given = given.model_copy(update={"limits": given.limits.model_copy(update={"threads": threads})})

    def tell(event: Event) -> None:
        known = worker.state.tasks.get(key)
        if known is None or known.state == "cancelled":
            raise PressoirError(f"{event.model}: no longer awaited")
        if event.kind == "started":
            event = replace(event, detail=f"on worker {worker.address}")
        worker.log_event(topic, {"event": asdict(event)})

    return cluster.evaluate(given, tell)
