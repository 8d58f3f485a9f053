"""The batch-evaluation flow: many models, one machine, never more memory than there is.

`batch_evaluation("evaluation-demo")` runs it in plain Python; `prefect.yaml` deploys it. What a
run has done stands in its folder; `resume` goes on there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from pydantic import BeforeValidator

from pressoir.evaluation import run
from pressoir.evaluation.config import EvaluationConfig, load
from pressoir.evaluation.memory_log import MemoryLog
from pressoir.evaluation.run import EvaluationResult
from pressoir.flows.extras import needs_dask
from pressoir.flows.linked import linked_run
from pressoir.store.store import Store
from pressoir.system.machine import alone
from pressoir.tasks import evaluation as steps
from pressoir.tasks.progress import say

if TYPE_CHECKING:
    from pressoir.flows.dask_cluster import Cluster


@flow(name="batch-evaluation", flow_run_name="{config.name}", validate_parameters=True)
def batch_evaluation(
    config: Annotated[EvaluationConfig, BeforeValidator(load)],
    resume: str | None = None,
    batches: tuple[str, ...] = (),
) -> EvaluationResult:
    """Evaluate all models of `config`, in batches that fit the available memory.

    `resume` is the name or folder of a previous run to resume; `batches` selects the batches to run. A model
    that fails does not end the run: its outcome says why.
    """
    from prefect.runtime import flow_run

    store = Store()
    earlier = run.find(resume, config.results) if resume is not None else None
    with (
        alone(f"evaluate {config.name}", say),
        linked_run(config.name, "flows.batch_evaluation.batch_evaluation", store) as parent,
    ):
        with _cluster(config) as cluster:
            seen = cluster.survey if cluster is not None else None
            folder, prepared = steps.prepare(config, store.home, batches, earlier, seen)
            parent.log(params={**run.conditions(prepared), "folder": folder}, tags={"results": folder})
            parent.log_files([folder / run.CONFIG, folder / run.PLAN])
            outcomes = dict(prepared.refused)
            with MemoryLog(folder, alert_percent=100 * config.memory.alert) as log:
                if cluster is not None:
                    prepared, found = cluster.evaluate(prepared, log)
                    outcomes |= found
                else:
                    # Without a batch there may still be models that never fit, which are to be reported.
                    for name in [batch.name for batch in prepared.plan.batches] or [""]:
                        outcomes |= {
                            outcome.model: outcome for outcome in steps.evaluate_batch(prepared, name, log)
                        }
        written = steps.write_report(prepared, folder, outcomes, parent)
        create_markdown_artifact((folder / "report.md").read_text(encoding="utf-8"), key="evaluation-report")
        rows = [(row.result.id, row.result.verdict, row.figures()) for row in written.rows]
        table = [{"run": name, "verdict": verdict, **metrics} for name, verdict, metrics in rows]
        create_table_artifact(table, key="evaluation")
    return EvaluationResult(
        folder=folder.absolute(),
        rows=written.rows,
        prefect_run_id=str(flow_run.id),
        mlflow_run_id=parent.run_id,
        tracking_uri=parent.shown_uri,
    )


@contextmanager
def _cluster(config: EvaluationConfig) -> Iterator[Cluster | None]:
    """The Dask cluster that the configuration asks for; without one, no Dask is imported."""
    if config.dask is None:
        yield None
        return
    with needs_dask():
        from pressoir.flows import dask_cluster
    with dask_cluster.opened(config, config.dask) as cluster:
        yield cluster
