"""One run in MLflow, and how to write to it.

Everything goes through `MlflowClient` with explicit run ids: MLflow's active run is thread-local, and its
tracking URI the whole process's. Big model files are not copied; `artifact.json` says where they are.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from pydantic import BaseModel

from pressoir.benchmark.reports import AnyBenchmark
from pressoir.recipe.recipe import Recipe
from pressoir.stage import LoggedDataset
from pressoir.store.artifact import Artifact
from pressoir.system.files import MANIFEST

MLFLOW_PORT = 5000
"""Where `pressoir ui` serves MLflow when nothing else is said."""
_USER = re.compile(r"//[^/\s]*@")
_SECRET = re.compile(r"([?&;](?:password|pwd|token)=)[^&;\s]*", re.IGNORECASE)
_DATASET_CONTEXT = "mlflow.data.context"
# MLflow tells of each table it makes and each model it checks; what a person should read, the reporter says.
logging.getLogger("mlflow").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Run:
    """One run in MLflow, and how to write to it."""

    uri: str
    experiment_id: str
    run_id: str
    ui_port: int = MLFLOW_PORT
    """Where `pressoir ui` serves a store without a server."""

    @property
    def client(self) -> mlflow.MlflowClient:
        """A client of the store that holds the run."""
        return mlflow.MlflowClient(self.uri, self.uri)

    @property
    def shown_uri(self) -> str:
        """The address of the store, without a password."""
        return without_password(self.uri)

    @property
    def page(self) -> str:
        """Address of the run's page, once MLflow's server runs (`pressoir ui` for the local store)."""
        local = f"http://127.0.0.1:{self.ui_port}"
        server = re.sub(_USER, "//", self.uri) if self.uri.startswith("http") else local
        return f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    def log(
        self,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, Any] | None = None,
        step: int = 0,
    ) -> None:
        """Log parameters (nested ones with dotted names), metrics at `step`, tags."""
        now = int(time.time() * 1000)
        self.client.log_batch(
            self.run_id,
            metrics=[Metric(name, value, now, step) for name, value in (metrics or {}).items()],
            params=[Param(name, str(value)) for name, value in flatten(params or {}).items()],
            tags=[RunTag(name, str(value)) for name, value in (tags or {}).items()],
        )

    def log_series(self, metrics: list[Metric]) -> None:
        """Log metrics that have steps and times of their own."""
        for start in range(0, len(metrics), 1000):  # MLflow's limit
            self.client.log_batch(self.run_id, metrics=metrics[start : start + 1000])

    def log_folder(self, folder: Path) -> None:
        """Log what a person reads of an artifact: its manifest, its pictures, its text."""
        for path in sorted([folder / MANIFEST, *folder.glob("*.png"), *folder.glob("*.md")]):
            self.client.log_artifact(self.run_id, str(path))

    def log_dataset(self, artifact: Artifact, dataset: LoggedDataset) -> None:
        """Log what each of the files holds as the run's input.

        Each carries the digest of the whole data artifact.
        """
        columns = [{"type": kind, "name": column} for column, kind in dataset.columns.items()]
        schema = {"mlflow_colspec": columns}
        inputs = [
            DatasetInput(
                Dataset(
                    name=f"{dataset.name}-{use}",
                    digest=artifact.digest[:36],  # MLflow's limit
                    source_type="local",
                    source=json.dumps({"uri": path.as_uri()}),
                    schema=json.dumps(schema),
                    profile=json.dumps(
                        {
                            f"num_{unit}": int(artifact.metrics[f"{use}_{unit}"])
                            for unit in ("rows", "characters")
                            if f"{use}_{unit}" in artifact.metrics
                        }
                    ),
                ),
                [InputTag(_DATASET_CONTEXT, use)],
            )
            for use, path in dataset.files.items()
        ]
        self.client.log_inputs(self.run_id, inputs)

    def log_comparison(self, benchmark: AnyBenchmark, folder: Path) -> None:
        """Log the comparison of all artifacts: table, text, pictures, and the last row as metrics."""
        rows = [flatten(row.model_dump(mode="json")) for row in benchmark.rows]
        table = {name: [row[name] for row in rows] for name in rows[0]}
        self.client.log_table(self.run_id, table, "comparison.json")
        for path in (*folder.glob("*.md"), *folder.glob("*.png"), *folder.glob("benchmark.json")):
            self.client.log_artifact(self.run_id, str(path))
        self.log(metrics={name: v for name, v in rows[-1].items() if isinstance(v, int | float)})

    @contextmanager
    def nested(self, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
        """A run below this one; it ends as FINISHED, FAILED (with the error as tag) or KILLED."""
        with running(self.uri, self.experiment_id, name, {MLFLOW_PARENT_RUN_ID: self.run_id, **tags}) as run:
            yield run


def without_password(text: str) -> str:
    """A text in which addresses have neither user names nor passwords, as it may be shown."""
    return re.sub(_SECRET, r"\1***", re.sub(_USER, "//***@", text))


def log_recipe(run: Run, recipe: Recipe) -> None:
    """Log a recipe: whole as a file, and what is chosen by it as parameters."""
    run.client.log_text(run.run_id, recipe.to_yaml(), "recipe.yaml")
    chosen = recipe.model_dump(mode="json", include={"name", "task", "model", "seed", "threads", "refresh"})
    learnt = ("teacher", "augment", "vocabulary", "distill", "prune")
    stages = ("merge", *learnt, "quantize", "shard", "registry", *recipe.outside_sections())
    run.log(params={**chosen, "stages": {name: getattr(recipe, name) is not None for name in stages}})


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json")
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


@contextmanager
def running(
    uri: str, experiment_id: str, name: str, tags: Mapping[str, str], ui_port: int = MLFLOW_PORT
) -> Iterator[Run]:
    """A run of an experiment; it ends as FINISHED, FAILED (with the error as tag) or KILLED."""
    client = mlflow.MlflowClient(uri, uri)
    # Not `mlflow.start_run`, which would also look for a Git repository around the working directory.
    created = client.create_run(experiment_id, tags=dict(tags), run_name=name)
    run = Run(uri, experiment_id, created.info.run_id, ui_port)
    try:
        yield run
    except Exception as error:
        run.log(tags={"error": f"{type(error).__name__}: {error}"[:5000]})
        client.set_terminated(run.run_id, "FAILED")
        raise
    except BaseException:  # Ctrl-C, or Prefect cancels
        client.set_terminated(run.run_id, "KILLED")
        raise
    client.set_terminated(run.run_id, "FINISHED")
