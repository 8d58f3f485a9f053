"""A serving configuration as something that is deployed: checked to the last byte, registered, found by name.

A configuration is *resolved* when each tier has the place and the digest of its files
(`pressoir.serving.config.resolve`). That says which bytes are there; `check` says whether they are the ones
that were registered, or that a stage made. What passed is kept whole in the registry's `serving` section,
from which a server takes it by name: it then looks nothing up, and refuses other bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from pressoir.config import Config
from pressoir.errors import PressoirError, RegistryError, StoreError
from pressoir.registry.catalogue import Entry, ServingEntry
from pressoir.registry.registry import Registry
from pressoir.serving.config import ServingConfig, TierConfig
from pressoir.sources import resolve, verify
from pressoir.store.artifact import Artifact, digest_of, read_artifact
from pressoir.store.store import Store
from pressoir.system.files import MANIFEST, disk_errors, make_folder
from pressoir.system.locks import patient


class DeploymentError(PressoirError):
    """A configuration that cannot be deployed as it stands, or a server that does not take it."""


class DeployResult(Config):
    """What a deployment did."""

    name: str
    """Of the configuration: `pressoir serve NAME`."""
    config: ServingConfig
    """As it is served: resolved."""
    registered_model: str
    """In MLflow."""
    version: str
    alias: str
    earlier_version: str | None
    """The version that had the alias before."""
    latencies_ms: dict[str, float]
    """Of the smoke request of each tier, after one to warm up."""
    server: str | None
    """Address of the server that was switched, if any."""
    prefect_run_id: str
    mlflow_run_id: str
    tracking_uri: str


def check(config: ServingConfig, store: Store) -> dict[str, str]:
    """Hash the models of a resolved configuration, and compare them with what they were registered as.

    Returns the digest of the artifact behind each tier whose files are in the store.

    Raises:
        DeploymentError: files are not what was registered or made; all tiers that are wrong are listed.
    """
    models = Registry(store.home).models()
    artifacts, problems = dict[str, str](), list[str]()
    seen: dict[str, Artifact | DeploymentError | None] = {}
    for name, tier in config.tiers.items():
        if tier.model not in seen:
            try:
                seen[tier.model] = _checked(tier, models, store)
            except DeploymentError as error:
                seen[tier.model] = error
        found = seen[tier.model]
        if isinstance(found, DeploymentError):
            problems.append(f"  tiers.{name}.model: {found}")
        elif found is not None:
            artifacts[name] = found.digest
    if problems:
        raise DeploymentError(
            "\n".join([f"{config.name} has models that differ from the registered ones:", *problems])
        )
    return artifacts


def entry(config: ServingConfig, artifacts: dict[str, str]) -> ServingEntry:
    """What the registry keeps of a resolved configuration whose artifacts `check` returned."""
    return ServingEntry(
        id=config.name,
        config=config.model_dump(mode="json"),  # defaults too, which another version may change
        digests={name: tier.digest for name, tier in config.tiers.items() if tier.digest is not None},
        artifacts=artifacts,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def deployed(name: str, registry: Registry) -> ServingConfig:
    """The resolved configuration that was deployed as `name`.

    Raises:
        RegistryError: there is none, or it was written by another version of Pressoir.
    """
    found = registry.serving(name)
    try:
        return ServingConfig.model_validate({**found.config, "name": found.id})
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors(include_url=False))
        raise RegistryError(
            f"{registry.file}: serving.{name}.config is not valid ({fields}); deploy it again"
        ) from None


def fingerprint(config: ServingConfig) -> str:
    """SHA-256 over everything that a configuration says: two that are equal serve the same."""
    return digest_of(config.model_dump(mode="json"))


def _checked(tier: TierConfig, models: dict[str, Entry], store: Store) -> Artifact | None:
    """The artifact that a tier's files are, where they are one; raises DeploymentError."""
    entry = models.get(tier.model) if resolve.folder_of(tier.model) is None else None
    if entry is not None:
        finding = verify.check(entry, store, fetch=False)
        if finding.state != "ok":
            raise DeploymentError(f"{tier.model} is {finding.state}: {finding.what}")
    source = tier.source or ""
    if not source.startswith("store:"):
        return None
    folder = store.root / source.removeprefix("store:")
    artifact = _artifact(folder)
    if entry is None and not store.verify(artifact):
        raise DeploymentError(f"{folder} was modified after its stage created it; run its recipe again")
    return artifact


def _artifact(folder: Path) -> Artifact:
    try:
        return read_artifact(folder)
    except StoreError as error:
        raise DeploymentError(f"{folder} has no readable {MANIFEST}; run its recipe again") from error


def register(entry: ServingEntry, registry: Registry) -> None:
    """Add a configuration to the registry, unless it is there and differs only in its time."""
    try:
        old = registry.serving(entry.id)
    except RegistryError:
        old = None
    if old is None or old.model_copy(update={"created_at": entry.created_at}) != entry:
        registry.deploy(entry)


@contextmanager
def one_at_a_time(store: Store, say: Callable[[str], None]) -> Iterator[None]:
    """One deployment in a home at a time: a second waits for the first, and says so.

    Raises:
        StoreError: the home cannot be written.
    """
    store.check_writable()
    with ExitStack() as held:
        with disk_errors(store.home):
            make_folder(store.home / "locks")
            held.enter_context(
                patient(
                    store.home / "locks" / "deploy.lock",
                    lambda: "another deployment is in progress; waiting until it ends",
                    say,
                )
            )
        yield
