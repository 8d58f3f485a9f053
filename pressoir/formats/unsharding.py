"""Undo sharding: one `model.safetensors`, or one graph with one file of external data, bit for bit."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from pressoir.errors import ShardError
from pressoir.formats import onnx_weights
from pressoir.formats.folder import GRAPH
from pressoir.formats.sharding import INFO, MANIFEST, ShardManifest, verify
from pressoir.formats.tensor_bytes import ALIGNMENT, INDEX, WEIGHTS, TensorBytes, write_safetensors
from pressoir.reporting import Reporter

MARK = "unsharded.json"
EXTERNAL_DATA = f"{GRAPH}.data"
# Larger weights stay beside the graph: protobuf ends at 2 GB, and a graph is in memory as a whole.
MAX_EMBEDDED_BYTES = 100_000_000


def unshard(folder: Path, out: Path, reporter: Reporter) -> dict[str, float]:
    """Write the model in the sharded `folder` into the empty folder `out`, in one piece.

    What was stored once because it is tied is there twice again. `unsharded.json` says which manifest it was
    made from.

    Raises:
        ShardError: the folder is not sharded, or not intact.
    """
    if not (folder / MANIFEST).is_file():
        raise ShardError(f"{folder} has no {MANIFEST}; it is not a sharded model")
    manifest = verify(folder)
    left_out = {MANIFEST, INFO, INDEX, GRAPH, *(record.file for record in manifest.shards)}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in left_out and not path.name.startswith("."):
            shutil.copyfile(path, out / path.name)
    if manifest.kind == "onnx":
        _unshard_graph(folder, out)
    else:
        _unshard_checkpoint(folder, manifest, out, reporter)
    source = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    mark = {"made_from_manifest_sha256": source, "shards": len(manifest.shards)}
    (out / MARK).write_text(json.dumps(mark, indent=2) + "\n", encoding="utf-8")
    return {"shards": float(len(manifest.shards)), "total_mb": manifest.total_bytes / 1e6}


def _unshard_checkpoint(folder: Path, manifest: ShardManifest, out: Path, reporter: Reporter) -> None:
    tensors = {
        tensor.name: TensorBytes(
            tensor.name, tensor.dtype, tuple(tensor.shape), tensor.bytes, folder / record.file, tensor.offset
        )
        for record in manifest.shards
        for tensor in record.tensors
    }
    for copy, stored in manifest.tied.items():
        own = tensors[stored]
        tensors[copy] = TensorBytes(copy, own.dtype, own.shape, own.length, own.file, own.offset)
    total, done = sum(tensor.length for tensor in tensors.values()), 0

    def tell(written: int) -> None:
        nonlocal done
        done += written
        reporter.progress(min(done, total) // 1_000_000, total // 1_000_000, "MB written")

    write_safetensors(out / WEIGHTS, list(tensors.values()), tell)


def _unshard_graph(folder: Path, out: Path) -> None:
    import onnx

    model = onnx_weights.load(folder / GRAPH)
    weights = onnx_weights.external_weights(model, folder)
    small = sum(weight.tensor.length for weight in weights) <= MAX_EMBEDDED_BYTES
    # all or none: a graph with some of its weights beside it helps nobody
    if not (small and all(map(onnx_weights.can_embed, weights))):
        with (out / EXTERNAL_DATA).open("wb") as file:
            for weight in weights:
                file.write(bytes(-file.tell() % ALIGNMENT))
                weight.point(EXTERNAL_DATA, file.tell())
                file.writelines(weight.tensor.chunks())
    else:
        for weight in weights:
            onnx_weights.embed(weight)
    onnx.save(model, out / GRAPH)
