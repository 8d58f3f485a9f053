"""Serving configurations and MLflow: which model a `models:/` name means, and deployments as versions.

A deployed configuration is a version of the registered model `serving-NAME`: its source is the resolved
configuration in the run that deployed it, its tags say which tier serves which digest, and the alias says
which version is served. Deploying an earlier configuration again gives the alias back to its version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from pressoir.errors import RegistryError
from pressoir.registry.catalogue import nearest
from pressoir.serving.config import EXTERNAL, ServingConfig
from pressoir.serving.deployment import fingerprint
from pressoir.store.artifact import Artifact
from pressoir.store.store import Store
from pressoir.system.addresses import without_password
from pressoir.system.files import MANIFEST
from pressoir.tasks.tracking.database import (
    database_lock,
    prepare_database,
    tracking_uri,
)
from pressoir.tasks.tracking.run import Run

ALIAS, PREFIX = "champion", "serving-"
FOLDER = "serving"
"""Where the resolved configuration lies among a run's artifacts."""
_KIND = "pressoir.kind"
_REFERENCE = re.compile(rf"{EXTERNAL}(?P<name>[^@/:]+)(@(?P<alias>[^@/]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Before:
    """What MLflow had of a registered model."""

    exists: bool
    holder: str | None
    """The version with the alias."""


def model_name(config: ServingConfig) -> str:
    """The registered model of a configuration; not its bare name, which often is a model's."""
    return f"{PREFIX}{config.name}"


def reference_of(uri: str, store: Store) -> str:
    """What `models:/name@alias` or `models:/name/version` means, as `store:stage/key`.

    Raises:
        RegistryError: MLflow has no such model, version or alias, or it is not one that a recipe registered.
    """
    asked = _REFERENCE.fullmatch(uri)
    if asked is None:
        raise RegistryError(
            f"{uri!r} specifies no version; expected models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    where, default = tracking_uri(store.home)
    if default:
        with database_lock(store.home):
            prepare_database(where)
    with _mlflow_errors(where):
        version = _version(mlflow.MlflowClient(where, where), asked)
    location, digest = version.tags.get("store"), version.tags.get("digest")
    if location is None or digest is None:
        raise RegistryError(
            f"{uri} was not registered by Pressoir, so the location of its files is unknown; specify its "
            "folder instead"
        )
    manifest = store.root / location.removeprefix("store:") / MANIFEST
    try:
        found = Artifact.model_validate_json(manifest.read_text(encoding="utf-8")).digest
    except (OSError, ValueError) as error:
        raise RegistryError(
            f"{uri} is {location}, which is not in the store {store.root}; set PRESSOIR_HOME to the one it "
            "was registered in, or run its recipe again"
        ) from error
    if found != digest:
        raise RegistryError(
            f"{uri} has the digest {digest}, but {location} has {found}; run its recipe again"
        )
    return location


def look(name: str, run: Run) -> Before:
    """What MLflow has of the registered model `name`.

    Raises:
        RegistryError: it is a model, and no serving configuration.
    """
    with _mlflow_errors(run.journal.uri):
        model = _model(run.client, name)
    if model is None:
        return Before(False, None)
    if model.tags.get(_KIND) != FOLDER:
        raise RegistryError(
            f"MLflow already has a model {name!r} that is not a serving configuration; choose another `name`"
        )
    return Before(True, _holder(model))


def register(config: ServingConfig, latencies_ms: dict[str, float], run: Run, store: Store) -> str:
    """Give the alias to the version of `config`, made where there is none; return the version."""
    name, client, known = model_name(config), run.client, fingerprint(config)
    if run.journal.send_waiting():  # its files among them
        raise RegistryError(f"MLflow at {run.shown_uri} does not answer; deploy again when it does")
    with _mlflow_errors(run.journal.uri), database_lock(store.home):
        if _model(client, name) is None:
            client.create_registered_model(name, tags={_KIND: FOLDER})
        found = [
            version
            for version in client.search_model_versions(f"name='{name}'")
            if version.tags.get("config") == known
        ]
        if not found:
            source = f"{client.get_run(run.run_id).info.artifact_uri}/{FOLDER}"
            tags = {
                _KIND: FOLDER,
                "config": known,
                "tiers": ", ".join(config.tiers),
                **{f"tier.{tier}.model": settings.model for tier, settings in config.tiers.items()},
                **{f"tier.{tier}.digest": str(settings.digest) for tier, settings in config.tiers.items()},
                **{f"tier.{tier}.smoke_ms": f"{value:.2f}" for tier, value in latencies_ms.items()},
            }
            found = [client.create_model_version(name, source, run.run_id, tags)]
        version = str(found[0].version)
        client.set_registered_model_alias(name, ALIAS, version)
    return version


def undo(name: str, before: Before, run: Run, store: Store) -> None:
    """Give the alias back to who had it, and remove what `run` made."""
    client = run.client
    with _mlflow_errors(run.journal.uri), database_lock(store.home):
        model = _model(client, name)
        if model is None:
            return
        versions = client.search_model_versions(f"name='{name}'")
        ours = {str(version.version) for version in versions if version.run_id == run.run_id}
        if before.holder is not None:
            client.set_registered_model_alias(name, ALIAS, before.holder)
        elif _holder(model) is not None:
            client.delete_registered_model_alias(name, ALIAS)
        for version in ours:
            client.delete_model_version(name, version)
        if not before.exists and len(ours) == len(versions):
            client.delete_registered_model(name)


def retire(name: str, store: Store) -> str | None:
    """Take the alias from the version of the deployed configuration `name`; return that version, if any.

    Raises:
        RegistryError: MLflow does not answer.
    """
    where, default = tracking_uri(store.home)
    with _mlflow_errors(where), database_lock(store.home):
        if default:
            prepare_database(where)
        client = mlflow.MlflowClient(where, where)
        model = _model(client, f"{PREFIX}{name}")
        holder = None if model is None else _holder(model)
        if holder is not None:
            client.delete_registered_model_alias(f"{PREFIX}{name}", ALIAS)
    return holder


def _version(client: Any, asked: re.Match[str]) -> ModelVersion:
    name, alias, number = asked["name"], asked["alias"], asked["version"]
    model = _model(client, name)
    if model is None:
        known = [registered.name for registered in client.search_registered_models()]
        near = nearest(name, known)
        hint = f"did you mean {near!r}?" if near else f"available: {', '.join(sorted(known)) or 'none'}"
        raise RegistryError(f"MLflow has no registered model {name!r}; {hint}")
    if alias is not None and alias not in model.aliases:
        aliases = ", ".join(sorted(model.aliases)) or "none"
        raise RegistryError(f"MLflow's model {name!r} has no alias {alias!r}; available: {aliases}")
    try:
        version: ModelVersion = client.get_model_version(name, str(number or model.aliases[alias]))
    except MlflowException as error:
        raise RegistryError(f"MLflow's model {name!r} has no version {number}") from error
    return version


def _model(client: Any, name: str) -> RegisteredModel | None:
    try:
        found: RegisteredModel = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return found


def _holder(model: RegisteredModel) -> str | None:
    holder = model.aliases.get(ALIAS)
    return None if holder is None else str(holder)


@contextmanager
def _mlflow_errors(uri: str) -> Iterator[None]:
    """Raise MLflow's errors as a RegistryError that names the server."""
    try:
        yield
    except MlflowException as error:
        # Not `from error`, whose text has the address.
        raise RegistryError(without_password(f"MLflow at {uri} failed: {error}")) from None
