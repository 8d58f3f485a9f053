"""One run in MLflow, and how to write to it.

Everything goes through `MlflowClient` with explicit run ids: MLflow's active run is thread-local, and its
tracking URI the whole process's. Big model files are not copied; `artifact.json` says where they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import mlflow
from mlflow.entities import Metric
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_RUN_NOTE
from pydantic import BaseModel

from pressoir.benchmark.reports import AnyBenchmark
from pressoir.recipe.recipe import Recipe
from pressoir.registry.version import VersionRequest
from pressoir.stage import LoggedDataset
from pressoir.store.artifact import Artifact
from pressoir.system.addresses import without_password
from pressoir.system.files import MANIFEST
from pressoir.tasks.tracking.database import MLFLOW_PORT, server_page
from pressoir.tasks.tracking.journal import WAITS, Journal, now_ms
from pressoir.tasks.tracking.model_version import Registered

_DATASET_CONTEXT = "mlflow.data.context"
_TABLE = "comparison.json"


@dataclass(frozen=True)
class Run:
    """One run in MLflow, and how to write to it."""

    journal: Journal
    id: str
    """Our id of it, which it has even while MLflow has none."""
    ui_port: int = MLFLOW_PORT
    """Where `pressoir ui` serves a store without a server."""

    @property
    def run_id(self) -> str:
        """MLflow's id; ours, while MLflow has none."""
        return self.journal.known.get(self.id, self.id)

    @property
    def client(self) -> mlflow.MlflowClient:
        """A client of the store that holds the run."""
        return self.journal.client

    @property
    def shown_uri(self) -> str:
        """The address of the store, without a password."""
        return without_password(self.journal.uri)

    @property
    def page(self) -> str:
        """Address of the run's page, once MLflow's server runs (`pressoir ui` for the local store)."""
        server = server_page(self.journal.uri, self.ui_port)
        return f"{server}/#/experiments/{self.journal.experiment_id}/runs/{self.run_id}"

    def log(
        self,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, Any] | None = None,
        step: int = 0,
    ) -> None:
        """Log parameters (nested ones with dotted names), metrics at `step`, tags."""
        now = now_ms()
        measured = [(name, float(value), now, step) for name, value in (metrics or {}).items()]
        named = [(name, without_password(f"{value}")) for name, value in flatten(params or {}).items()]
        tagged = [(name, without_password(f"{value}")) for name, value in (tags or {}).items()]
        self.journal.write("log", self.id, {"metrics": measured, "params": named[:100], "tags": tagged})
        for start in range(100, len(named), 100):  # MLflow's limit
            self.journal.write("log", self.id, {"params": named[start : start + 100]})

    def log_series(self, metrics: list[Metric]) -> None:
        """Log metrics that have steps and times of their own."""
        series = [(metric.key, float(metric.value), metric.timestamp, metric.step) for metric in metrics]
        for start in range(0, len(series), 1000):  # MLflow's limit
            self.journal.write("log", self.id, {"metrics": series[start : start + 1000]})

    def log_files(self, paths: Iterable[Path], folder: str | None = None) -> None:
        """Log files as artifacts of the run, in a `folder` among them."""
        self.journal.write("files", self.id, files=[(path, folder) for path in paths])

    def log_text(self, text: str, name: str) -> None:
        """Log a text as an artifact of the run, `folder/file`."""
        folder, _, file = name.rpartition("/")
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / file
            path.write_text(text, encoding="utf-8")
            self.log_files([path], folder or None)

    def log_folder(self, folder: Path) -> None:
        """Log what a person reads of an artifact: its manifest, its pictures, its text."""
        self.log_files(sorted([folder / MANIFEST, *folder.glob("*.png"), *folder.glob("*.md")]))

    def log_dataset(self, artifact: Artifact, dataset: LoggedDataset) -> None:
        """Log what each of the files holds as the run's input.

        Each carries the digest of the whole data artifact.
        """
        columns = [{"type": kind, "name": column} for column, kind in dataset.columns.items()]
        inputs = [
            {
                "dataset": {
                    "name": f"{dataset.name}-{use}",
                    "digest": artifact.digest[:36],  # MLflow's limit
                    "source_type": "local",
                    "source": json.dumps({"uri": path.as_uri()}),
                    "schema": json.dumps({"mlflow_colspec": columns}),
                    "profile": json.dumps(
                        {
                            f"num_{unit}": int(artifact.metrics[f"{use}_{unit}"])
                            for unit in ("rows", "characters")
                            if f"{use}_{unit}" in artifact.metrics
                        }
                    ),
                },
                "tags": [(_DATASET_CONTEXT, use)],
            }
            for use, path in dataset.files.items()
        ]
        self.journal.write("inputs", self.id, {"inputs": inputs})

    def log_comparison(self, benchmark: AnyBenchmark, folder: Path) -> None:
        """Log the comparison of all artifacts: table, text, pictures, and the last row as metrics.

        The text is the run's description, too.
        """
        rows = [flatten(row.model_dump(mode="json")) for row in benchmark.rows]
        columns = list(rows[0])
        table = {"columns": columns, "data": [[row[name] for name in columns] for row in rows]}
        self.log_text(json.dumps(table), _TABLE)
        self.log_files([*folder.glob("*.md"), *folder.glob("*.png"), *folder.glob("benchmark.json")])
        shown = [{"path": _TABLE, "type": "table"}]
        self.log(
            metrics={name: v for name, v in rows[-1].items() if isinstance(v, int | float)},
            tags={
                MLFLOW_LOGGED_ARTIFACTS: json.dumps(shown),
                MLFLOW_RUN_NOTE: (folder / "comparison.md").read_text(encoding="utf-8"),
            },
        )

    def log_version(self, request: VersionRequest) -> Registered | None:
        """Register a model version; None while it waits for MLflow."""
        made = self.journal.write("version", self.id, request.model_dump(mode="json"))
        return None if made is WAITS else cast("Registered", made)

    def end(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self.journal.write("end", self.id, {"status": status, "time": now_ms()})

    @contextmanager
    def nested(self, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
        """A run below this one; it ends as FINISHED, FAILED (with the error as tag) or KILLED."""
        with running(self.journal, name, tags, self.id) as run:
            yield run


def log_recipe(run: Run, recipe: Recipe) -> None:
    """Log a recipe: as a file, and every field as a parameter (`distill.student.layers`).

    A section that is left out is one parameter, None.
    """
    run.log_text(without_password(recipe.to_yaml()), "recipe.yaml")
    run.log(params=recipe.model_dump(mode="json"))


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
    journal: Journal,
    name: str,
    tags: Mapping[str, str],
    parent: str | None = None,
    ui_port: int = MLFLOW_PORT,
) -> Iterator[Run]:
    """A run of an experiment; it ends as FINISHED, FAILED (with the error as tag) or KILLED."""
    run = Run(journal, journal.create(name, tags, parent), ui_port)
    try:
        yield run
    except Exception as error:
        run.log(tags={"error": f"{type(error).__name__}: {error}"[:5000]})
        run.end("FAILED")
        raise
    except BaseException:  # Ctrl-C, or Prefect cancels
        run.end("KILLED")
        raise
    run.end("FINISHED")
