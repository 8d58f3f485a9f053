"""Tensors as ranges of bytes in files, so that weights are moved without being loaded.

A safetensors file is a length, a JSON header, and the tensors' bytes without gaps. Whoever only moves
tensors from one file to another needs the header and a buffer of a megabyte, whatever the model's size.

Source: https://huggingface.co/docs/safetensors/index#format.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pressoir.errors import SourceError
from pressoir.system import reader

CHUNK_BYTES = 1 << 20
ALIGNMENT = 64  # bytes: as wide as the widest vector load
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_ADVICE = "download it again"


@dataclass(frozen=True)
class TensorBytes:
    """One tensor, where it lies."""

    name: str
    dtype: str
    """As safetensors names it: F32, I8, …"""
    shape: tuple[int, ...]
    length: int
    """Bytes."""
    file: Path | None = None
    """The file that holds them; None where `data` does."""
    offset: int = 0
    """Of the first byte, from the start of the file."""
    data: bytes = b""

    @property
    def elements(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)

    @property
    def item_bytes(self) -> int:
        """Bytes an element takes, at least 1."""
        return max(1, self.length // max(1, self.elements))

    @property
    def cost(self) -> int:
        """Bytes that it adds to a file at most: its data and its entry in the header."""
        return self.length + len(json.dumps(self.name)) + len(str(self.shape)) + 80

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, a megabyte at a time.

        Raises:
            SourceError: the file ends before the tensor does.
        """
        if self.file is None:
            yield self.data
            return
        with self.file.open("rb") as file:
            file.seek(self.offset)
            left = self.length
            while left:
                chunk = file.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise SourceError(f"{self.file} ends before its tensor {self.name!r}; download it again")
                left -= len(chunk)
                yield chunk


def check_file(path: Path) -> None:
    """Check, from its header alone, that a safetensors file is whole: no gaps, and its end is the file's.

    Raises:
        SourceError: it is not, or is no regular file.
    """
    if not reader.is_file(path):
        raise SourceError(f"{path} is missing, or not a regular file; {_ADVICE}")
    try:
        with safe_open(path, "np"):
            pass
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path} is not a complete safetensors file ({error}); {_ADVICE}") from error


def read_header(path: Path) -> list[TensorBytes]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises:
        SourceError: it is not a whole safetensors file, or its header is not JSON within the limits of
            `pressoir.system.reader`.
    """
    check_file(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, reader.JSON_BYTES + 1))
    if len(text) > reader.JSON_BYTES:
        raise SourceError(f"{path} has a header of {length} bytes, more than {reader.JSON_BYTES}; {_ADVICE}")
    header, start = reader.parse_json(text, f"{path}, its header", SourceError, _ADVICE), 8 + length
    tensors = [
        TensorBytes(
            name,
            entry["dtype"],
            tuple(entry["shape"]),
            entry["data_offsets"][1] - entry["data_offsets"][0],
            path,
            start + entry["data_offsets"][0],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    return sorted(tensors, key=lambda tensor: tensor.offset)


def read_index(index: Path) -> dict[str, Path]:
    """The file of each tensor, by its name, as a `model.safetensors.index.json` has it; they need not exist.

    Raises:
        SourceError: it is not such an index, or names a file outside its folder.
    """
    content = reader.read_json(index, SourceError, _ADVICE)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise SourceError(f"{index} is not a weight index: no `weight_map` of tensors to files; {_ADVICE}")
    files = {
        name: reader.file_in(index.parent, name, str(index), SourceError, _ADVICE)
        for name in set(weight_map.values())
    }
    return {tensor: files[name] for tensor, name in weight_map.items()}


def checkpoint_tensors(folder: Path) -> list[TensorBytes]:
    """The tensors of a checkpoint: one `model.safetensors`, or the files that its index names.

    Raises:
        SourceError: there is none, a file is broken, or the index and the files disagree.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() and not index.is_file():
        return read_header(folder / WEIGHTS)
    if not index.is_file():
        raise SourceError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}; specify a folder with safetensors weights"
        )
    files, found = read_index(index), {}
    for path in sorted(set(files.values())):
        for tensor in read_header(path):
            if files.get(tensor.name) == path:
                found[tensor.name] = tensor
    if missing := sorted(files.keys() - found):
        raise SourceError(
            f"{index} places {reader.shown(missing[0])} in {files[missing[0]].name}, which does not contain "
            "it; download both again"
        )
    return list(found.values())


def same_bytes(first: TensorBytes, second: TensorBytes) -> bool:
    """Whether two tensors are of one type and shape and bit-identical."""
    if (first.dtype, first.shape, first.length) != (second.dtype, second.shape, second.length):
        return False
    return all(a == b for a, b in zip(first.chunks(), second.chunks(), strict=True))


def write_safetensors(
    path: Path, tensors: Sequence[TensorBytes], tell: Callable[[int], None] = lambda written: None
) -> tuple[str, dict[str, int]]:
    """Write a safetensors file by copying ranges; return its SHA-256 and each tensor's offset in it.

    Tensors whose length is a multiple of 64 bytes come first, then wider element types before narrower, each
    in the order given: the format allows no gaps, and so the first begin at multiples of 64, as vector
    instructions like it, and the others are at least aligned to their elements. `tell` is called with the
    length of each piece written.
    """
    ordered = sorted(tensors, key=lambda tensor: (tensor.length % ALIGNMENT != 0, -tensor.item_bytes))
    ends = list(itertools.accumulate((tensor.length for tensor in ordered), initial=0))
    entries = {
        tensor.name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        for tensor, (start, end) in zip(ordered, itertools.pairwise(ends), strict=True)
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in itertools.chain(
            [len(header).to_bytes(8, "little"), header], *(tensor.chunks() for tensor in ordered)
        ):
            file.write(piece)
            digest.update(piece)
            tell(len(piece))
    base = 8 + len(header)
    return digest.hexdigest(), {t.name: base + start for t, start in zip(ordered, ends, strict=False)}
