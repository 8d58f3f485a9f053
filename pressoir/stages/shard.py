"""Split the graph's weights into safetensors shards that are the ONNX graph's own external data.

**What.** The initializers' bytes move out of `model.onnx` into `shard_00.safetensors`,
`shard_01.safetensors`, …, in the order in which the graph first uses them. An ONNX `external_data` entry is a
file, an offset and a length; here the offset points past the safetensors header. One set of bytes thus serves
ONNX Runtime and every safetensors reader.

**Why.** Files of a size that a host, a CDN or a flash partition takes; a download that resumes shard by
shard; a model whose first layers are there before its last; a SHA-256 a shard, checked before anything is
opened.

**Cost.** One copy of the weights on the disk, no computation, no byte changed.

**Sources.** ONNX external data, https://onnx.ai/onnx/repo-docs/ExternalData.html; safetensors,
https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pressoir import artifact
from pressoir.errors import ShardError
from pressoir.inference.engines import GRAPH
from pressoir.sections import ShardConfig
from pressoir.stages import StageContext

if TYPE_CHECKING:
    import onnx

NAME = "shard"
VERSION = 1
KIND = "onnx"

MANIFEST = "shard_manifest.json"
INFO = "SHARDING_INFO.md"
FORMAT_VERSION = 1
DEFAULT_SHARDS = 2
SHARD_NAME = re.compile(r"shard_[0-9]+\.safetensors")
# Smaller tensors, and whole numbers (shapes, axes), stay in the graph: shape inference must see them.
MIN_ELEMENTS = 16
# Names of the element types that leave the graph: ONNX's and safetensors'.
DTYPES = {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16", "INT8": "I8", "UINT8": "U8"}

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


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


class ShardRecord(_Record):
    """One shard file."""

    file: str
    sha256: Sha256
    bytes: Count
    """Length of the whole file."""
    tensors: list[TensorRecord]
    """In execution order."""


class ShardManifest(_Record):
    """The content of `shard_manifest.json`."""

    format_version: int
    graph: str
    graph_sha256: Sha256
    shards: list[ShardRecord]
    """In execution order."""
    total_bytes: Count
    """Sum of the shards' lengths."""


@dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def cost(self) -> int:
        """Bytes that it adds to a shard at most: its data and its entry in the header."""
        return len(self.data) + len(json.dumps(self.name)) + len(str(self.shape)) + 80


# Length of the header's size and of its metadata, at most.
_HEADER_BYTES = 64


def run(inputs: Mapping[str, Path], config: ShardConfig, context: StageContext) -> dict[str, float]:
    """Shard the exported folder `inputs["model"]`; all its other files are copied.

    Raises:
        ShardError: there is no graph, or it has fewer tensors than `config.shards`.
    """
    import onnx
    from safetensors import serialize

    source, out = inputs["model"], context.out_dir
    if not (source / GRAPH).exists():
        raise ShardError(f"{source} has no {GRAPH}; shard takes what export makes")
    model = onnx.load(source / GRAPH)
    external = {tensor.name: tensor for tensor in _in_execution_order(model) if _leaves(tensor)}
    tensors = [_bytes_of(tensor) for tensor in external.values()]
    records = []
    for index, group in enumerate(partition(tensors, config)):
        path = out / f"shard_{index:02d}.safetensors"
        entries = {t.name: {"dtype": _long_name(t.dtype), "shape": t.shape, "data": t.data} for t in group}
        path.write_bytes(serialize(entries, {"format": "pt"}))
        starts = _data_offsets(path)
        for tensor in group:
            _point(external[tensor.name], path.name, starts[tensor.name], len(tensor.data))
        records.append(
            ShardRecord(
                file=path.name,
                sha256=artifact.file_sha256(path),
                bytes=path.stat().st_size,
                tensors=[
                    TensorRecord(
                        name=t.name,
                        dtype=t.dtype,
                        shape=list(t.shape),
                        offset=starts[t.name],
                        bytes=len(t.data),
                    )
                    for t in group
                ],
            )
        )
        context.reporter.message(f"{path.name}: {len(group)} tensors, {records[-1].bytes / 1e6:.2f} MB")
    onnx.save(model, out / GRAPH)
    manifest = ShardManifest(
        format_version=FORMAT_VERSION,
        graph=GRAPH,
        graph_sha256=artifact.file_sha256(out / GRAPH),
        shards=records,
        total_bytes=sum(record.bytes for record in records),
    )
    (out / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (out / INFO).write_text(_describe(manifest), encoding="utf-8")
    made_here = {GRAPH, MANIFEST, INFO, artifact.MANIFEST}
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in made_here and not SHARD_NAME.fullmatch(path.name):
            shutil.copyfile(path, out / path.name)
    verify(out)
    return {
        "shards": float(len(records)),
        "total_mb": manifest.total_bytes / 1e6,
        "largest_shard_mb": max(record.bytes for record in records) / 1e6,
    }


def verify(folder: Path) -> ShardManifest:
    """Check every shard of a folder, and its graph, against the manifest; return the manifest.

    Raises:
        ShardError: the manifest is damaged or names an unsafe file, or a file is missing, truncated or
        altered.
    """
    advice = "fetch it again, or run the shard stage again"
    path = folder / MANIFEST
    try:
        manifest = ShardManifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ShardError(f"{path} cannot be read ({error}); {advice}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ShardError(f"{path} is not a shard manifest: {place}: {first['msg']}; {advice}") from error
    if manifest.format_version != FORMAT_VERSION:
        raise ShardError(
            f"{path} has format_version {manifest.format_version}, but this version of Pressoir knows "
            f"{FORMAT_VERSION}; "
            "use the version that wrote it, or run the shard stage again"
        )
    names = [record.file for record in manifest.shards]
    for name in names:
        if not SHARD_NAME.fullmatch(name):
            raise ShardError(
                f"{path} names {name!r}, which is not of the form shard_00.safetensors; {advice}"
            )
    if manifest.graph != GRAPH or len(set(names)) != len(names):
        raise ShardError(f"{path} must name the graph {GRAPH!r} and each shard once; {advice}")
    if manifest.total_bytes != sum(record.bytes for record in manifest.shards):
        raise ShardError(f"{path}: total_bytes is not the sum of the shards' bytes; {advice}")
    unlisted = sorted(
        p.name for p in folder.iterdir() if SHARD_NAME.fullmatch(p.name) and p.name not in names
    )
    if unlisted:
        raise ShardError(
            f"{folder / unlisted[0]} is not in {MANIFEST}; remove it, or run the shard stage again"
        )
    for record in manifest.shards:
        file = folder / record.file
        if file.is_symlink() or not file.is_file():
            raise ShardError(f"{file} is missing, or not a plain file; {advice}")
        size = file.stat().st_size
        if size != record.bytes:
            fault = "truncated" if size < record.bytes else "longer than it should be"
            raise ShardError(f"{file} is {fault}: {size} bytes instead of {record.bytes}; {advice}")
        if artifact.file_sha256(file) != record.sha256:
            raise ShardError(f"{file} was altered: its SHA-256 is not the one in {MANIFEST}; {advice}")
    graph = folder / GRAPH
    if graph.is_symlink() or not graph.is_file() or artifact.file_sha256(graph) != manifest.graph_sha256:
        raise ShardError(
            f"{graph} is missing or was altered: its SHA-256 is not the one in {MANIFEST}; {advice}"
        )
    return manifest


def partition(tensors: Sequence[_Tensor], config: ShardConfig) -> list[list[_Tensor]]:
    """Cut a list of tensors into runs: a number of them as even as can be, or none larger than the limit.

    Raises:
        ShardError: there are fewer tensors than shards asked for.
    """
    if not tensors:
        raise ShardError("the graph has no weights to put into shards")
    if config.max_shard_size_mb is not None:
        return _fill(tensors, int(config.max_shard_size_mb * 1e6) - _HEADER_BYTES)
    count = config.shards or min(DEFAULT_SHARDS, len(tensors))
    if count > len(tensors):
        raise ShardError(
            f"shard.shards is {count}, but the graph has {len(tensors)} tensors; give {len(tensors)} at most"
        )
    return _even(tensors, count)


def _even(tensors: Sequence[_Tensor], count: int) -> list[list[_Tensor]]:
    """Cut into `count` runs with the smallest sum of squared sizes (dynamic programming)."""
    ends = np.concatenate([[0.0], np.cumsum([t.cost for t in tensors], dtype=np.float64)])
    squares = (ends[None, :] - ends[:, None]) ** 2  # (start, stop)
    squares[np.tril_indices(len(ends))] = np.inf  # a run holds at least one tensor
    best, choices = squares[0], []
    for _ in range(count - 1):
        totals = best[:, None] + squares
        choices.append(totals.argmin(axis=0))
        best = totals.min(axis=0)
    cuts = [len(tensors)]
    for choice in reversed(choices):
        cuts.append(int(choice[cuts[-1]]))
    return [list(tensors[start:stop]) for start, stop in itertools.pairwise([0, *reversed(cuts)])]


def _fill(tensors: Sequence[_Tensor], limit: int) -> list[list[_Tensor]]:
    """Put tensors into one shard after the other; a tensor above the limit gets its own."""
    groups: list[list[_Tensor]] = []
    used = 0
    for tensor in tensors:
        if groups and used + tensor.cost <= limit:
            groups[-1].append(tensor)
            used += tensor.cost
        else:
            groups.append([tensor])
            used = tensor.cost
    return groups


def _in_execution_order(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Initializers by the first node that reads them (ONNX keeps nodes in topological order)."""
    first: dict[str, int] = {}
    for position, node in enumerate(model.graph.node):
        for name in node.input:
            first.setdefault(name, position)
    return sorted(model.graph.initializer, key=lambda tensor: first.get(tensor.name, len(model.graph.node)))


def _leaves(tensor: onnx.TensorProto) -> bool:
    import math

    from onnx import TensorProto

    return TensorProto.DataType.Name(tensor.data_type) in DTYPES and math.prod(tensor.dims) >= MIN_ELEMENTS


def _bytes_of(tensor: onnx.TensorProto) -> _Tensor:
    from onnx import TensorProto, numpy_helper

    data = tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
    return _Tensor(tensor.name, DTYPES[TensorProto.DataType.Name(tensor.data_type)], tuple(tensor.dims), data)


def _long_name(dtype: str) -> str:
    """What safetensors' writer calls an element type that its files name F32, I8, …"""
    return {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "U8": "uint8"}[dtype]


def _data_offsets(path: Path) -> dict[str, int]:
    """Offset of each tensor's first byte from the start of a safetensors file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: 8 + length + entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _point(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Let an initializer's bytes be those of a file."""
    from onnx import TensorProto

    for field in ("raw_data", "float_data", "int32_data", "external_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def _describe(manifest: ShardManifest) -> str:
    rows = "\n".join(
        f"| `{record.file}` | {record.bytes / 1e6:.2f} | {len(record.tensors)} | `{record.tensors[0].name}` "
        "| "
        f"`{record.sha256[:16]}…` |"
        for record in manifest.shards
    )
    return f"""# A sharded ONNX model

`{manifest.graph}` is the graph; its weights lie in {len(manifest.shards)} safetensors files
({manifest.total_bytes / 1e6:.2f} MB), in the order in which the graph first uses them. They are the graph's
external data and ordinary safetensors files at once: the same bytes, not two copies. `{MANIFEST}` has the
SHA-256 of each.

| shard | MB | tensors | first tensor | SHA-256 |
|---|---:|---:|---|---|
{rows}

Keep all files in one folder, and do not replace them by links: ONNX Runtime refuses linked external data.

## Open it in ONNX Runtime

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{manifest.graph}")
feed = {{value.name: np.ones((1, 4), dtype=np.int64) for value in session.get_inputs()}}  # (batch, seq)
print(session.run(["logits"], feed)[0])
```

## Open a shard in safetensors

```python
from safetensors import safe_open

with safe_open("{manifest.shards[0].file}", framework="np") as shard:
    for name in shard.keys():
        print(name, shard.get_slice(name).get_dtype(), shard.get_slice(name).get_shape())
```

## Check the files

```python
import hashlib
import json
from pathlib import Path

for record in json.loads(Path("{MANIFEST}").read_text())["shards"]:
    with Path(record["file"]).open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == record["sha256"], record["file"]
print("all shards are intact")
```
"""
