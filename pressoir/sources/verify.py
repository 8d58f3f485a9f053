"""Whether registered models still are what was registered: every file is hashed again.

A model that only the hub, a server or a package that is not installed has is not fetched, unless asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pressoir.config import Config
from pressoir.errors import PressoirError, RegistryError, ShardError, SourceError, UnreachableError
from pressoir.formats import sharding
from pressoir.formats.folder import check_model_folder
from pressoir.registry.catalogue import Entry
from pressoir.registry.registry import Registry
from pressoir.sources import resolve
from pressoir.sources.describe import check_graphs, content
from pressoir.store.store import Store
from pressoir.system.files import file_sha256


class EntryFinding(Config):
    """What became of one registered model."""

    id: str
    """Of its entry."""
    state: Literal["ok", "damaged", "unreachable"]
    """`unreachable`: its files are not on this machine, which is no fault of theirs."""
    what: str
    """What is wrong, and what was not checked; empty where all is well."""


def verify(registry: Registry, ids: Sequence[str] = (), *, fetch: bool = False) -> Iterator[EntryFinding]:
    """Hash the models of `ids` (by default all) and compare them with their entries, one after the other.

    With `fetch`, what is not on this machine is fetched first.

    Raises:
        RegistryError: an id is unknown (raised before any work), or the registry is not valid.
    """
    models = registry.models()
    unknown = []
    for id in ids:
        if id not in models:
            try:
                registry.get(id)
            except RegistryError as error:
                unknown.append(str(error))
    if unknown:
        raise RegistryError("\n".join(unknown))
    store = Store(registry.home)
    return (check(models[id], store, fetch=fetch) for id in dict.fromkeys(ids or models))


def check(entry: Entry, store: Store, *, fetch: bool = False) -> EntryFinding:
    """Hash one model; see `verify`."""
    urls = (entry.urls.base, *entry.urls.mirrors)
    try:
        url, folder = resolve.locate_entry(entry, store, fetch=fetch)
    except UnreachableError as error:
        return EntryFinding(id=entry.id, state="unreachable", what=str(error))
    except SourceError as error:
        if not all(resolve.is_local(url) for url in urls):
            return EntryFinding(id=entry.id, state="unreachable", what=str(error))
        return EntryFinding(id=entry.id, state="damaged", what=f"its files are missing: {error}")
    except PressoirError as error:
        return EntryFinding(id=entry.id, state="damaged", what=str(error))
    try:
        problems = _problems(entry, url, folder)
    except OSError as error:
        problems = [f"{error.filename or folder} cannot be read: {error.strerror or error}"]
    if problems:
        return EntryFinding(id=entry.id, state="damaged", what="\n".join(problems))
    notes = [] if url == entry.urls.base else [f"found at {url}; its digest is that of {entry.urls.base}"]
    if entry.digest is None and entry.weights_sha256 is None:
        notes.append("cannot be verified: its entry has no digest")
    return EntryFinding(id=entry.id, state="ok", what="\n".join(notes))


def is_gone(entry: Entry, store: Store) -> bool:
    """Whether none of an entry's references leads anywhere any more, and none is on another machine."""
    if not all(resolve.is_local(url) for url in (entry.urls.base, *entry.urls.mirrors)):
        return False
    try:
        resolve.locate_entry(entry, store, fetch=False)
    except SourceError:
        return True
    return False


def _problems(entry: Entry, url: str, folder: Path) -> list[str]:
    problems = []
    try:
        check_model_folder(folder, entry.id)
        check_graphs(folder, entry.id)
    except SourceError as error:
        problems.append(str(error))
    problems += _shard_problems(entry, folder)
    if entry.weights_sha256 is not None:
        weights = folder / "model.safetensors"
        found = file_sha256(weights) if weights.is_file() else "none (file missing)"
        if found != entry.weights_sha256:
            problems.append(f"{weights} has SHA-256 {found}, but was registered with {entry.weights_sha256}")
    # What is wrong with one file is wrong with the digest of all: said once, of the file.
    if not problems and entry.digest is not None and url == entry.urls.base:
        found = content(url, folder)[0]
        if found != entry.digest:
            problems.append(
                f"{folder} has digest {found}, but was registered with {entry.digest}: a file was changed, "
                "added or removed"
            )
    return problems


def _shard_problems(entry: Entry, folder: Path) -> list[str]:
    manifest = folder / sharding.MANIFEST
    if not manifest.is_file():
        return [f"{manifest} is missing, but the entry has shards"] if entry.urls.shards else []
    try:
        names = tuple(record.file for record in sharding.verify(folder).shards)
    except ShardError as error:
        return [str(error)]
    if names != entry.urls.shards:
        return [f"{manifest} names {len(names)} shards that differ from `urls.shards` of the entry"]
    return []
