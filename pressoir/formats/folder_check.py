"""Whether a model folder is complete, as far as its contents show.

A sharded folder and an artifact of the store have checksums, and every byte is compared with them. Any other
folder can only be checked for structure: headers, lengths, and whether its files fit each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pressoir.errors import PressoirError, ShardError, SourceError
from pressoir.formats import onnx_weights, sharding
from pressoir.formats.folder import QUANTIZATION, read_json
from pressoir.formats.tensor_bytes import INDEX, checkpoint_tensors, read_header
from pressoir.store.artifact import read_artifact
from pressoir.system import files
from pressoir.system.reader import is_folder


@dataclass(frozen=True)
class FolderFinding:
    """What one folder was checked for, and what is wrong with it."""

    folder: Path
    checked: str
    faults: tuple[str, ...]


def check(folder: Path) -> list[FolderFinding]:
    """Check a model folder, or those right below it where it is none itself.

    Raises:
        ShardError: there is nothing to check.
    """
    if not is_folder(folder):
        raise ShardError(f"{folder} is not a folder; specify the folder of a model")
    folders = [folder] if _is_model(folder) else sorted(path for path in folder.iterdir() if _is_model(path))
    if not folders:
        raise ShardError(
            f"{folder} contains no model: no {sharding.MANIFEST}, {files.MANIFEST}, *.safetensors or *.onnx"
        )
    return [finding for path in folders for finding in _check(path)]


def _is_model(folder: Path) -> bool:
    names = (sharding.MANIFEST, files.MANIFEST, INDEX, "*.safetensors", "*.onnx")
    return folder.is_dir() and any(path.is_file() for name in names for path in folder.glob(name))


def _check(folder: Path) -> Iterator[FolderFinding]:
    known = False
    if (folder / sharding.MANIFEST).exists():
        known = True
        yield _finding(folder, f"SHA-256 of every file in {sharding.MANIFEST}", sharding.verify)
    if (folder / files.MANIFEST).exists():
        known = True
        yield _finding(folder, f"digest in {files.MANIFEST}", _check_digest)
    if not known:
        yield _finding(folder, "headers and lengths only (no checksums available)", _check_structure)


def _finding(folder: Path, checked: str, work: Callable[[Path], object]) -> FolderFinding:
    try:
        work(folder)
    except PressoirError as error:
        return FolderFinding(folder, checked, tuple(str(error).splitlines()))
    return FolderFinding(folder, checked, ())


def _check_digest(folder: Path) -> None:
    expected, found = read_artifact(folder).digest, files.folder_digest(folder)[0]
    if found != expected:
        raise SourceError(
            f"{folder} has digest {found}, but {files.MANIFEST} says {expected}: a file was modified"
        )


def _check_structure(folder: Path) -> None:
    weights = sorted(folder.glob("*.safetensors"))
    if weights or (folder / INDEX).exists():
        names = {tensor.name for path in weights for tensor in read_header(path)}
        if (folder / "model.safetensors").exists() or (folder / INDEX).exists():
            checkpoint_tensors(folder)
        if (folder / QUANTIZATION).exists():
            _check_quantized(folder, names)
    for graph in sorted(folder.glob("*.onnx")):
        _check_graph(graph)


def _check_quantized(folder: Path, names: set[str]) -> None:
    path = folder / QUANTIZATION
    description = read_json(path)
    if description.get("format_version") == 2:
        from pressoir.formats.packed_checkpoint import open_packed

        open_packed(folder)
        return
    layers = description.get("layers")
    if not isinstance(layers, dict):
        raise SourceError(f"{path} has no `layers`; quantise the model again")
    for layer in layers:
        for name in (f"{layer}.weight", f"{layer}.weight_scale"):
            if name not in names:
                raise SourceError(f"{path} describes {layer}, but the weights have no {name}")


def _check_graph(path: Path) -> None:
    onnx_weights.check_places(onnx_weights.load(path), path.parent)
