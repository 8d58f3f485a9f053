"""Whether the disk and the memory of this machine are enough for a merge."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from pressoir.merging.checkpoint import Checkpoint
from pressoir.system.memory import effective_memory

SHARD_BYTES = 1_000_000_000
"""mergekit collects this much of the result before it writes a file."""
PROCESS_BYTES = 700_000_000  # interpreter, torch, transformers and mergekit, before any model
_ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def result_bytes(base: Checkpoint, out_dtype: str, layers: int) -> int:
    """Bytes of the result's weights, where it has `layers` layers."""
    elements = sum(tensor.elements for tensor in base.tensors.values())
    return int(elements * _ELEMENT_BYTES[out_dtype] * max(layers, 1) / max(base.layers, 1))


def merge_peak_bytes(base: Checkpoint, models: int, result: int) -> int:
    """Upper estimate of the memory that mergekit's process takes at once.

    It holds one tensor of every model in float32, their stack, and the temporaries of the method; and one
    file of the result, twice while it is written.
    """
    largest = max(tensor.elements for tensor in base.tensors.values())
    return PROCESS_BYTES + 2 * min(result, SHARD_BYTES) + 4 * largest * (3 * models + 4)


def problems(base: Checkpoint, models: int, result: int, copies: int, output: Path) -> Iterator[str]:
    """What is too little; `copies` are bytes of models that are written out anew to make them fit."""
    folder = next(parent for parent in (output.absolute(), *output.absolute().parents) if parent.exists())
    free, needed = shutil.disk_usage(folder).free, int(1.05 * result) + copies
    if free < needed:
        yield f"disk: the merge writes {_gb(needed)}, but {folder} has {_gb(free)} free; free some space"
    available, peak = effective_memory().available_bytes, merge_peak_bytes(base, models, result)
    if available < peak:
        yield (
            f"memory: mergekit may need up to {_gb(peak)}, but {_gb(available)} is available; stop other "
            "programs"
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
