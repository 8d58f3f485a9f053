"""The result as a version of a registered model in MLflow, and which version carries the alias."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlflow
import pandas as pd
from mlflow.entities import LoggedModelStatus, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema

import pressoir
from pressoir.benchmark.reports import AnyRow
from pressoir.data.texts import PAIR
from pressoir.extensions.loader import DISTRIBUTION
from pressoir.inference.predictor import open_predictor
from pressoir.recipe.sections import RegistryConfig
from pressoir.registry.promotion import promotion
from pressoir.registry.version import VersionRequest
from pressoir.store.artifact import Artifact
from pressoir.store.store import Store
from pressoir.system.runtime import available_cpus
from pressoir.tasks.tracking.database import database_lock

CODE = Path(__file__).with_name("pyfunc_model.py")
# Figures of a row that decide who carries the alias.
_MEASURED = ("accuracy", "accuracy_delta", "perplexity", "perplexity_increase", "speedup", "compression")
_EXAMPLE = "A warm and charming film."


def version_request(
    name: str, config: RegistryConfig, artifact: Artifact, report: Artifact, row: AnyRow, store: Store
) -> VersionRequest:
    """The request for `artifact`, measured as `row` of `report`."""
    predictor = open_predictor(store.path(artifact), available_cpus())
    return VersionRequest(
        name=name,
        config=config,
        measured={key: float(getattr(row, key)) for key in _MEASURED if key in type(row).model_fields},
        report=report.digest,
        home=store.home,
        stage=artifact.stage,
        key=artifact.key,
        digest=artifact.digest,
        columns=dict(predictor.columns),
        pairs=predictor.pairs,
    )


class Registered(NamedTuple):
    """How a version was registered."""

    version: str
    promoted: bool
    """Whether it carries the alias."""
    why: str


def send_version(request: VersionRequest, uri: str, experiment_id: str, run_id: str) -> Registered:
    """Register a version, which belongs to the run `run_id`.

    The same artifact with the same measurements is registered once: its version is found again.
    """
    name, alias, measured = request.name, request.config.alias, request.measured
    client = mlflow.MlflowClient(uri, uri)
    with database_lock(request.home):
        version = _find(client, request) or _create(client, request, uri, experiment_id, run_id)
        holder = _holder(client, name, alias)
        if holder is not None and holder.version == version.version:
            promoted, why = True, f"version {version.version} already has the alias {alias!r}"
        else:
            known = None if holder is None else {k: float(v) for k, v in holder.tags.items() if k in measured}
            promoted, why = promotion(measured, known, request.config.criterion)
            against = "" if holder is None else f" (against version {holder.version})"
            verb = "takes" if promoted else "does not take"
            why = f"version {version.version} {verb} {alias!r}{against}: {why}"
            for key, value in {**measured, "promoted": str(promoted).lower(), "decision": why}.items():
                client.set_model_version_tag(name, version.version, key, str(value))
            if promoted:
                client.set_registered_model_alias(name, alias, version.version)
    decision = {
        "registered_model": name,
        "registered_version": version.version,
        "promoted": promoted,
        "decision": why,
    }
    client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in decision.items()])
    return Registered(str(version.version), promoted, why)


def _create(client: Any, request: VersionRequest, uri: str, experiment_id: str, run_id: str) -> ModelVersion:
    with _global_tracking_uri(uri):
        model_id = _logged(client, request, experiment_id, run_id)
        # Inside the block too: the registry looks the logged model up at the process's tracking URI.
        if not client.search_registered_models(f"name='{request.name}'"):
            client.create_registered_model(request.name)
        location = f"store:{request.stage}/{request.key}"
        tags = {"digest": request.digest, "report": request.report, "store": location}
        version: ModelVersion = client.create_model_version(
            request.name, f"models:/{model_id}", run_id, tags, model_id=model_id
        )
        return version


def _logged(client: Any, request: VersionRequest, experiment_id: str, run_id: str) -> str:
    """Log the model, unless it was logged before its version could be made; return its id."""
    tags = {"digest": request.digest, "report": request.report}
    for begun in client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"):
        if tags.items() <= begun.tags.items():
            if begun.status == LoggedModelStatus.READY:
                return str(begun.model_id)
            client.delete_logged_model(begun.model_id)
    inputs = ["text", *([PAIR] if request.pairs else [])]
    # Left to itself, MLflow would put it into the process's experiment instead of the run's.
    model = client.create_logged_model(experiment_id, "model", source_run_id=run_id, tags=tags)
    Model.log(
        artifact_path=None,
        model_id=model.model_id,
        name="model",
        flavor=mlflow.pyfunc,
        run_id=run_id,
        python_model=str(CODE),
        loader_module=None,
        data_path=None,
        code_paths=None,
        artifacts=None,
        conda_env=None,
        model_config=request.model_dump(mode="json", include={"home", "stage", "key", "digest"}),
        pip_requirements=[f"{DISTRIBUTION}=={pressoir.__version__}", f"mlflow=={mlflow.__version__}"],
        signature=ModelSignature(
            inputs=Schema([ColSpec(DataType.string, name) for name in inputs]),
            outputs=Schema([ColSpec(DataType[kind], name) for name, kind in request.columns.items()]),
        ),
        input_example=pd.DataFrame({name: [_EXAMPLE] for name in inputs}),
    )
    return str(model.model_id)


def _find(client: Any, request: VersionRequest) -> ModelVersion | None:
    version: ModelVersion
    for version in client.search_model_versions(f"name='{request.name}'"):
        if (version.tags.get("digest"), version.tags.get("report")) == (request.digest, request.report):
            return version
    return None


def _holder(client: Any, name: str, alias: str) -> ModelVersion | None:
    try:
        version: ModelVersion = client.get_model_version_by_alias(name, alias)
    except MlflowException:
        return None
    return version


@contextmanager
def _global_tracking_uri(uri: str) -> Iterator[None]:
    """Logging a model knows only the process's tracking URI, which MLflow also writes to the environment."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # MLflow warns of its own type hints and its use of pandas
            yield
    finally:
        mlflow.set_tracking_uri(cast("str", before))  # None, which its type leaves out, takes it back
