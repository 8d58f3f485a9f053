"""A model as an entry of the registry, read from its files: what it is, how big, where from, its license.

What the user specifies wins over what the files say; an entry that is made anew for the same files keeps
what was specified before.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, FiniteFloat

from pressoir.config import Config
from pressoir.errors import RegistryError, ShardError, SourceError, StoreError
from pressoir.extensions.task_name import TaskName
from pressoir.formats import onnx_weights, sharding
from pressoir.formats.folder import CARD, check_model_folder, model_files, read_json, task_of
from pressoir.registry.catalogue import Entry, Urls, check_id
from pressoir.registry.registry import Registry
from pressoir.sources import resolve
from pressoir.store.artifact import Artifact, read_artifact
from pressoir.store.store import Store
from pressoir.system import reader
from pressoir.system.files import disk_errors, file_sha256, folder_digest

NO_LICENSE = "NOASSERTION"
# Model cards write identifiers in lower case; these are they as SPDX does.
SPDX = {
    id.lower(): id
    for id in """
    Apache-2.0 MIT BSD-2-Clause BSD-3-Clause BSD-3-Clause-Clear ISC Zlib Unlicense GPL-2.0 GPL-3.0 LGPL-2.1
    LGPL-3.0 AGPL-3.0 MPL-2.0 EPL-2.0 EUPL-1.1 BSL-1.0 CC0-1.0 CC-BY-3.0 CC-BY-4.0 CC-BY-SA-3.0 CC-BY-SA-4.0
    CC-BY-NC-4.0 CC-BY-NC-SA-4.0 CC-BY-NC-ND-4.0 CC-BY-ND-4.0 Artistic-2.0 AFL-3.0 MS-PL ODbL-1.0 PDDL-1.0
    """.split()
}


class Details(Config):
    """What the owner of a model says of it; what is left out comes from its files, or an older entry."""

    name: str | None = None
    type: TaskName | None = None
    license: str | None = None
    quantization: str | None = None
    metrics: dict[str, FiniteFloat] = Field(default={})
    mirrors: tuple[str, ...] = ()


def register(
    registry: Registry, id: str, reference: str, details: Details, *, force: bool = False
) -> tuple[Entry, Entry | None]:
    """Register the model that `reference` leads to; return its entry, and the one whose place it took.

    An entry of the same digest is updated: what `details` leaves out stays. With `force` an entry of another
    digest is replaced.

    Raises:
        RegistryError: `id` cannot be one, or is registered for other files, or the registry is not valid.
        SourceError: `reference` leads to no whole, safe model. ShardError: one of its shards is damaged.
        StoreError: the registry cannot be written.
    """
    check_id(id)
    new = describe(id, reference, details, Store(registry.home))
    replaced: list[Entry] = []

    def make(old: Entry | None) -> Entry:
        if old is None:
            return new
        if old.digest != new.digest and not force:
            raise RegistryError(
                f"{id!r} is already registered with different files ({old.urls.base}, digest {old.digest}; "
                f"these have {new.digest}); choose another id, or use --force"
            )
        replaced.append(old)
        if old.digest != new.digest:
            return new
        return _kept(old, new, details).model_copy(update={"created_at": old.created_at or new.created_at})

    return registry.put(id, make), next(iter(replaced), None)


def describe(id: str, reference: str, details: Details, store: Store) -> Entry:
    """The entry of the model that `reference` leads to; nothing is registered.

    Raises:
        SourceError: it leads to no whole, safe model, or a mirror can be no reference. ShardError: a shard is
        damaged. RegistryError: it is an artifact of the store that was altered, or does not say its type.
    """
    models = Registry(store.home).models()
    known = None if resolve.folder_of(reference) else models.get(reference)
    if known is None:
        url, folder = reference, resolve.locate(reference, store)
    else:
        url, folder = resolve.locate_entry(known, store)
    check_model_folder(folder, reference)
    check_graphs(folder, reference)
    base, revision = _reference(url, folder, store)
    with disk_errors(folder):
        digest, size = content(base, folder)
        weights = folder / "model.safetensors"
        weights_sha256 = file_sha256(weights) if weights.is_file() else None
    if known and known.weights_sha256 not in (None, weights_sha256):
        raise SourceError(
            f"model {reference!r}: {weights} does not match the SHA-256 in the registry; download it again"
        )
    entry = Entry(
        id=id,
        name=details.name or id,
        type=details.type or _task(folder),
        size_mb=size / 1e6,
        urls=Urls(base=base, mirrors=tuple(map(_stable, details.mirrors)), shards=_shards(folder)),
        digest=digest,
        weights_sha256=weights_sha256,
        revision=revision,
        license=details.license or license_of(folder),
        metrics=details.metrics,
        quantization=details.quantization or _quantization(folder),
        lineage=_lineage(folder, base, digest, store),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if known is None:
        return entry
    others = tuple(other for other in (known.urls.base, *known.urls.mirrors) if other != url)
    urls = known.urls.model_copy(update={"mirrors": others})
    return _kept(known.model_copy(update={"urls": urls}), entry, details)


def content(base: str, folder: Path) -> tuple[str, int]:
    """Digest and size in bytes of the model in `folder`; of a fetched one what is fetched counts, no more."""
    return folder_digest(folder, model_files(folder) if base.startswith(resolve.FETCHED) else None)


def check_graphs(folder: Path, reference: str) -> None:
    """Check that every ONNX graph of `folder` can be read and has the files that its weights lie in.

    Raises:
        SourceError: it says which graph or file is broken, missing or outside the folder.
    """
    for path in sorted(folder.glob("*.onnx")):
        try:
            onnx_weights.check_places(onnx_weights.load(path), folder)
        except ShardError as error:
            raise SourceError(f"model {reference!r}: {error}") from error


def _kept(old: Entry, new: Entry, details: Details) -> Entry:
    """`new`, with what `old` was said to be and is not said anew."""
    kept = {"name": old.name, "type": old.type, "quantization": old.quantization or new.quantization}
    if old.license != NO_LICENSE:
        kept["license"] = old.license
    kept = {field: value for field, value in kept.items() if getattr(details, field) is None}
    mirrors = new.urls.mirrors or old.urls.mirrors
    return new.model_copy(
        update={
            **kept,
            "urls": new.urls.model_copy(update={"mirrors": mirrors}),
            "revision": new.revision or old.revision,
            "metrics": {**old.metrics, **new.metrics},
            "lineage": new.lineage or old.lineage,
        }
    )


def _reference(url: str, folder: Path, store: Store) -> tuple[str, str | None]:
    """How the registry refers to `folder`, to which `url` led, and its commit where it is the hub's."""
    if resolve.folder_of(url) is not None:
        real, root = folder.resolve(), store.root.resolve()
        if real.parent.parent == root:
            return f"store:{real.relative_to(root).as_posix()}", None
        return str(real), None
    if url.startswith(("package:", "store:", "https://", "http://")):
        return url, None
    name, _, revision = url.removeprefix("hub:").partition("@")
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
    pinned = commit or revision
    return f"hub:{name}@{pinned}" if pinned else f"hub:{name}", commit


def _stable(reference: str) -> str:
    """A reference that means the same from every working directory."""
    resolve.check_reference(reference)
    folder = resolve.folder_of(reference)
    return reference if folder is None else str(folder.resolve())


def _shards(folder: Path) -> tuple[str, ...]:
    if not (folder / sharding.MANIFEST).is_file():
        return ()
    return tuple(record.file for record in sharding.verify(folder).shards)


def _task(folder: Path) -> TaskName:
    try:
        return task_of(folder)
    except SourceError as error:
        raise RegistryError(f"{error}, or specify the type at registration") from error


def _quantization(folder: Path) -> str | None:
    path = folder / "quantization.json"
    return str(read_json(path).get("scheme") or "") or None if path.is_file() else None


def license_of(folder: Path) -> str:
    """What the model card's front matter says, in SPDX's spelling where that is known."""
    try:
        text = reader.read_text(folder / CARD, SourceError, "").removeprefix("\ufeff")
        matter = re.match(r"---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", text.replace("\r\n", "\n"), re.DOTALL)
        front = reader.parse_yaml(matter[1], CARD, SourceError) if matter else None
    except SourceError:
        return NO_LICENSE
    card = front if isinstance(front, dict) else {}
    said = card.get("license")
    if said == "other":
        said = card.get("license_name")
    names = [str(name) for name in (said if isinstance(said, list) else [said]) if name and name != "unknown"]
    return " AND ".join(SPDX.get(name.lower(), name) for name in names) or NO_LICENSE


def _lineage(folder: Path, base: str, digest: str, store: Store) -> dict[str, str]:
    """Digest of each stage's artifact on the way to a folder that a stage made; of any other folder, none.

    Raises:
        RegistryError: the store's artifact is not what its stage made any more.
    """
    try:
        made = read_artifact(folder)
    except StoreError:
        return {}
    if made.digest != digest:
        if base.startswith("store:"):
            raise RegistryError(f"{folder} was modified after it was created; run its recipe again")
        return {}  # somebody's own work on it, with no stage to name
    known = {artifact.digest: artifact for artifact in store.artifacts()}
    lineage: dict[str, str] = {}
    _add_ancestors(lineage, made, known, {digest})
    lineage.setdefault(made.stage, digest)
    return lineage


def _add_ancestors(
    lineage: dict[str, str], child: Artifact, known: dict[str, Artifact], seen: set[str]
) -> None:
    """Put in each ancestor before its children: by its stage, or as `stage.input` of who took it."""
    for name, digest in child.parents.items():
        if digest in seen:  # also by a stage that changed nothing
            continue
        seen.add(digest)
        parent = known.get(digest)
        if parent is not None:
            _add_ancestors(lineage, parent, known, seen)
        by_stage = parent is not None and parent.stage not in lineage
        lineage[parent.stage if parent and by_stage else f"{child.stage}.{name}"] = digest
