"""Sharded folders: how weights are cut, what their manifest says, and whether they still are what it says.

A sharded folder holds safetensors files in the order in which a forward pass needs them, and
`shard_manifest.json` with the SHA-256 of every file that a program reads. The shards are those of a
checkpoint, or the external data of an ONNX graph. `pressoir.stages.shard` makes such a folder,
`pressoir.formats.unsharding` undoes it, `pressoir.inference.progressive.loader` runs a model while its shards
still arrive.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pressoir.errors import ShardError
from pressoir.formats.folder import GRAPH, SHARD_MANIFEST
from pressoir.formats.tensor_bytes import read_header
from pressoir.system.files import file_sha256
from pressoir.system.reader import parse_json, read_bytes

MANIFEST = SHARD_MANIFEST
INFO = "SHARDING_INFO.md"
FORMAT_VERSION = 2
SHARD_NAME = re.compile(r"shard_[0-9]{2,5}\.safetensors", re.ASCII)
FILE_NAME = re.compile(r"(?!\.)[\w.+-]{1,128}", re.ASCII)
ADVICE = "download it again, or run `pressoir shard` again"
# A safetensors file's header without its entries, at most: its length, metadata, and padding.
HEADER_BYTES = 128

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Kind = Literal["checkpoint", "onnx"]


class LoadingCancelledError(ShardError):
    """Somebody cancelled the loading of a sharded model."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TensorRecord(_Record):
    """One tensor of a shard."""

    name: str
    dtype: str
    """As safetensors names it: F32, I8, …"""
    shape: list[Count]
    offset: Count
    """Of its first byte from the start of the file."""
    bytes: Count


class FileRecord(_Record):
    """A file that belongs to the model: graph, configuration, tokenizer."""

    file: str
    sha256: Sha256
    bytes: Count
    """Length of the whole file."""


class ShardRecord(FileRecord):
    """One shard file."""

    order: Count
    """Its place in the order of execution, from 0."""
    role: str
    """What its tensors are for: `embeddings, layers 0–3`, `layers 4–7, head`, or `graph order`."""
    tensors: Annotated[list[TensorRecord], Field(min_length=1)]
    """In execution order."""


class ShardManifest(_Record):
    """The content of `shard_manifest.json`."""

    format_version: int
    kind: Kind
    """Whose weights they are: a PyTorch checkpoint's, or an ONNX graph's."""
    shards: Annotated[list[ShardRecord], Field(min_length=1)]
    """In execution order."""
    total_bytes: Count
    """Sum of the shards' lengths."""
    tied: dict[str, str]
    """Tensors of the source that are stored once: name of the copy left out, and of the tensor it equals."""
    files: list[FileRecord]
    """Every other file that a program reads."""


def parse_manifest(content: bytes, where: str) -> ShardManifest:
    """Read a manifest and check that it is sound; no other file is read.

    Raises:
        ShardError: it is not a manifest of this version, contradicts itself, or names an unsafe file.
    """
    raw = parse_json(content, where, ShardError, ADVICE)
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise ShardError(
            f"{where} has format_version {version}, but this version of Pressoir supports "
            f"{FORMAT_VERSION}; use the version that wrote it, or run `pressoir shard` again"
        )
    try:
        manifest = ShardManifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field_path = ".".join(str(key) for key in first["loc"]) or "the file"
        raise ShardError(
            f"{where} is not a shard manifest: {field_path}: {first['msg']}; {ADVICE}"
        ) from error
    for record in manifest.shards:
        if not SHARD_NAME.fullmatch(record.file):
            raise ShardError(
                f"{where} names {record.file!r}, which is not of the form shard_00.safetensors; {ADVICE}"
            )
        if any(tensor.offset + tensor.bytes > record.bytes for tensor in record.tensors):
            raise ShardError(f"{where}: {record.file} has a tensor that ends after the file; {ADVICE}")
    for other in manifest.files:
        if not FILE_NAME.fullmatch(other.file) or SHARD_NAME.fullmatch(other.file) or other.file == MANIFEST:
            raise ShardError(
                f"{where} names {other.file!r}, which is not allowed in a model folder; {ADVICE}"
            )
    names = [record.file for record in [*manifest.shards, *manifest.files]]
    tensors = [tensor.name for record in manifest.shards for tensor in record.tensors]
    if len(set(names)) != len(names) or len(set(tensors)) != len(tensors):
        raise ShardError(f"{where} must list each file and each tensor once; {ADVICE}")
    if [record.order for record in manifest.shards] != list(range(len(manifest.shards))):
        raise ShardError(f"{where}: the shards are not in their declared order; {ADVICE}")
    if not set(manifest.tied.values()) <= set(tensors) or set(manifest.tied) & set(tensors):
        raise ShardError(
            f"{where}: `tied` must map tensors that no shard contains to tensors that a shard contains; "
            f"{ADVICE}"
        )
    if manifest.kind == "onnx" and GRAPH not in names:
        raise ShardError(f"{where} must name the graph {GRAPH!r}; {ADVICE}")
    if manifest.total_bytes != sum(record.bytes for record in manifest.shards):
        raise ShardError(f"{where}: total_bytes is not the sum of the shards' bytes; {ADVICE}")
    return manifest


def kind_of(folder: Path) -> Kind:
    """What of a folder is sharded: its graph, or else its checkpoint.

    Raises:
        ShardError: it has neither.
    """
    if (folder / GRAPH).is_file():
        return "onnx"
    if any(folder.glob("*.safetensors")):
        return "checkpoint"
    below = sorted(
        path.parent.name for name in (GRAPH, "model.safetensors") for path in folder.glob(f"*/{name}")
    )
    hint = f"; specify one of its folders: {', '.join(below)}" if below else ""
    if any(folder.glob("*.onnx")):
        hint = "; sharding models with several graphs, such as encoder-decoders, is not supported"
    raise ShardError(f"{folder} has neither {GRAPH} nor safetensors weights{hint}")


def read_manifest(folder: Path) -> ShardManifest:
    """The manifest of a sharded folder; no other file is read.

    Raises:
        ShardError: it cannot be read; see `parse_manifest`.
    """
    path = folder / MANIFEST
    return parse_manifest(read_bytes(path, ShardError, ADVICE), str(path))


def verify(folder: Path) -> ShardManifest:
    """Check every file of a sharded folder against its manifest; return the manifest.

    Raises:
        ShardError: the manifest is damaged or names an unsafe file, or files are missing, truncated or
            altered; all are named.
    """
    manifest = read_manifest(folder)
    names = {record.file for record in manifest.shards}
    faults = [
        f"{path} is not in {MANIFEST}; remove it, or run `pressoir shard` again"
        for path in sorted(folder.iterdir())
        if SHARD_NAME.fullmatch(path.name) and path.name not in names
    ]
    # ONNX Runtime refuses linked external data; a hub's cache links every file of a checkpoint.
    links = manifest.kind == "checkpoint"
    for record in [*manifest.shards, *manifest.files]:
        faults += fault_of(folder / record.file, record, links=links)
    if not faults:
        faults = [fault for record in manifest.shards for fault in _header_faults(folder, record)]
    if faults:
        raise ShardError("\n".join(faults))
    return manifest


def fault_of(path: Path, record: FileRecord, *, links: bool = True, content: bool = True) -> list[str]:
    """What is wrong with a file that should be as `record` says: nothing, or one sentence.

    Without `content` it is not read; without `links` it must not be a symbolic link.
    """
    if not path.is_file() or (path.is_symlink() and not links):
        return [f"{path} is missing or not a regular file; {ADVICE}"]
    size = path.stat().st_size
    if size != record.bytes:
        fault = "truncated" if size < record.bytes else "longer than it should be"
        return [f"{path} is {fault}: {size} bytes instead of {record.bytes}; {ADVICE}"]
    if content and file_sha256(path) != record.sha256:
        return [altered(path)]
    return []


def _header_faults(folder: Path, record: ShardRecord) -> list[str]:
    """Where the manifest says otherwise than a shard's own header, and so would swap weights."""
    stored = {t.name: (t.dtype, list(t.shape), t.offset, t.length) for t in read_header(folder / record.file)}
    listed = {t.name: (t.dtype, t.shape, t.offset, t.bytes) for t in record.tensors}
    odd = sorted(name for name in stored.keys() | listed.keys() if stored.get(name) != listed.get(name))
    if not odd:
        return []
    return [
        f"{folder / MANIFEST} and the header of {record.file} differ in {len(odd)} tensors, the first is "
        f"{odd[0]!r} (type, shape, offset, bytes): {listed.get(odd[0], 'none')} and "
        f"{stored.get(odd[0], 'none')}; {ADVICE}"
    ]


def altered(path: Path | str) -> str:
    """The sentence for a file of the right length and the wrong content."""
    return f"{path} was modified: its SHA-256 differs from the one in {MANIFEST}; {ADVICE}"
