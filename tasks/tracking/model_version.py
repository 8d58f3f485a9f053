"""The result as a version of a registered model in MLflow, and which version carries the alias."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema

import pressoir
from pressoir.benchmark.reports import AnyRow
from pressoir.extensions.loader import DISTRIBUTION
from pressoir.inference.predictor import open_predictor
from pressoir.recipe.sections import RegistryConfig
from pressoir.registry.promotion import promotion
from pressoir.store.artifact import Artifact
from pressoir.store.store import Store
from pressoir.system.runtime import available_cpus
from pressoir.tasks.tracking.experiment import database_lock
from pressoir.tasks.tracking.run import Run

CODE = Path(__file__).with_name("pyfunc_model.py")
# Figures of a row that decide who carries the alias.
_MEASURED = ("accuracy", "accuracy_delta", "perplexity", "perplexity_increase", "speedup", "compression")
_EXAMPLE = "A warm and charming film."


def log_version(
    name: str,
    config: RegistryConfig,
    artifact: Artifact,
    report: Artifact,
    row: AnyRow,
    store: Store,
    run: Run,
) -> tuple[str, bool, str]:
    """Register `artifact` as a version of `name`; return the version, whether it carries the alias, and why.

    The same artifact with the same measurements is registered once: its version is found again.
    """
    client = run.client
    measured = {key: float(getattr(row, key)) for key in _MEASURED if key in type(row).model_fields}
    with database_lock(store.home):
        version = _find(client, name, artifact, report) or _create(name, artifact, report, store, run)
        holder = _holder(client, name, config.alias)
        if holder is not None and holder.version == version.version:
            promoted, why = True, f"version {version.version} already has the alias {config.alias!r}"
        else:
            known = None if holder is None else {k: float(v) for k, v in holder.tags.items() if k in measured}
            promoted, why = promotion(measured, known, config.criterion)
            against = "" if holder is None else f" (against version {holder.version})"
            verb = "takes" if promoted else "does not take"
            why = f"version {version.version} {verb} {config.alias!r}{against}: {why}"
            for key, value in {**measured, "promoted": str(promoted).lower(), "decision": why}.items():
                client.set_model_version_tag(name, version.version, key, str(value))
            if promoted:
                client.set_registered_model_alias(name, config.alias, version.version)
    decision = {
        "registered_model": name,
        "registered_version": version.version,
        "promoted": promoted,
        "decision": why,
    }
    run.log(tags=decision)
    return str(version.version), promoted, why


def _create(name: str, artifact: Artifact, report: Artifact, store: Store, run: Run) -> ModelVersion:
    columns = open_predictor(store.path(artifact), available_cpus()).columns
    where = {"home": str(store.home), "stage": artifact.stage, "key": artifact.key, "digest": artifact.digest}
    with _global_tracking_uri(run.uri):
        # Left to itself, MLflow would put it into the process's experiment instead of the run's.
        model = run.client.create_logged_model(run.experiment_id, "model", source_run_id=run.run_id)
        logged = Model.log(
            artifact_path=None,
            model_id=model.model_id,
            name="model",
            flavor=mlflow.pyfunc,
            run_id=run.run_id,
            python_model=str(CODE),
            loader_module=None,
            data_path=None,
            code_paths=None,
            artifacts=None,
            conda_env=None,
            model_config=where,
            pip_requirements=[f"{DISTRIBUTION}=={pressoir.__version__}", f"mlflow=={mlflow.__version__}"],
            signature=ModelSignature(
                inputs=Schema([ColSpec(DataType.string, "text")]),
                outputs=Schema([ColSpec(DataType[kind], name) for name, kind in columns.items()]),
            ),
            input_example=pd.DataFrame({"text": [_EXAMPLE]}),
        )
        # Inside the block too: the registry looks the logged model up at the process's tracking URI.
        if not run.client.search_registered_models(f"name='{name}'"):
            run.client.create_registered_model(name)
        place = f"store:{artifact.stage}/{artifact.key}"
        tags = {"digest": artifact.digest, "report": report.digest, "store": place}
        return run.client.create_model_version(
            name, logged.model_uri, run.run_id, tags, model_id=logged.model_id
        )


def _find(client: Any, name: str, artifact: Artifact, report: Artifact) -> ModelVersion | None:
    version: ModelVersion
    for version in client.search_model_versions(f"name='{name}'"):
        if version.tags.get("digest") == artifact.digest and version.tags.get("report") == report.digest:
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
