"""Files and folders that survive a crash: digests, atomic writes, copies that share blocks where they can."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pressoir.errors import StoreError
from pressoir.system.reader import named

MANIFEST = "artifact.json"
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2(2)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of one file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(
    folder: Path, files: list[Path] | None = None, known: Mapping[Path, str] | None = None
) -> tuple[str, int]:
    """Digest and size in bytes of `folder`: SHA-256 over the name, length and content of each file.

    `artifact.json` is left out, so that the digest does not depend on itself. `files` restricts it to those;
    `known` are SHA-256 of files that were hashed before.
    """
    total, digest, known = 0, hashlib.sha256(), known or {}
    for path in sorted(files if files is not None else files_of(folder)):
        name, size = path.relative_to(folder).as_posix(), path.stat().st_size
        sha256 = known.get(path) or file_sha256(path)
        digest.update(f"{len(name)}:{name}:{size}:{sha256}\n".encode())
        total += size
    return digest.hexdigest(), total


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a full disk, or one that cannot be written, into a `StoreError` that says what to do."""
    try:
        yield
    except Exception as error:
        if _is_disk_full(error):
            raise StoreError(
                f"no space left on the device of {where}; free some space (`pressoir store gc`) and run "
                "again: completed steps are kept"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StoreError(
                f"{error.filename or where}: {error.strerror or error}; use a writable folder"
            ) from error
        raise


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless they are there.

    Raises:
        StoreError: the system cannot make it there: the message says why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        if _is_disk_full(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise StoreError(
            f"the folder {named(path)} cannot be made: {reason}; use a writable folder"
        ) from error


def write_text_atomic(path: Path, text: str) -> None:
    """Write a whole file or nothing: a temporary sibling is flushed to the disk, then renamed over `path`."""
    make_folder(path.parent)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        draft.write_text(text, encoding="utf-8")
        flush(draft)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    flush(path.parent)


def copy_folder(source: Path, target: Path) -> None:
    """Copy an artifact's folder without its manifest, atomically; files share blocks where they can."""
    with disk_errors(target):
        draft = target.parent / f".{target.name}-{uuid.uuid4().hex[:8]}"
        make_folder(draft)
        try:
            for path in files_of(source):
                copy = draft / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                _reflink(path, copy)
            replace_folder(draft, target)
        except BaseException:
            remove(draft)
            raise


def replace_folder(draft: Path, target: Path) -> None:
    """Put a finished draft in the place of `target`, which may exist; nobody sees a mixture of both."""
    old = swap_folder(draft, target)
    if old is not None:
        remove(old)


def swap_folder(draft: Path, target: Path) -> Path | None:
    """As `replace_folder`; where `target` existed, returns where its previous content now is, beside it."""
    if not target.exists():
        draft.rename(target)
        return None
    if _exchange(draft, target):
        return draft
    old = target.parent / f".{target.name}-old-{uuid.uuid4().hex[:8]}"
    target.rename(old)
    try:
        draft.rename(target)
    except BaseException:
        old.rename(target)
        raise
    return old


def _exchange(first: Path, second: Path) -> bool:
    """Let two folders change places in one step, where the system and the file system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = (os.fsencode(first.absolute()), os.fsencode(second.absolute()))
    return rename is not None and rename(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0


def files_of(folder: Path) -> list[Path]:
    """Every file below `folder` but its own manifest, sorted."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)


def remove(path: Path) -> None:
    """Delete a folder, as far as it can be."""
    shutil.rmtree(path, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reflink(source: Path, target: Path) -> None:
    """Copy a file, sharing its blocks where the file system can (FICLONE), else byte by byte."""
    try:
        import fcntl

        with source.open("rb") as reader, target.open("wb") as writer:
            fcntl.ioctl(writer.fileno(), 0x40049409, reader.fileno())
    except (ImportError, OSError):
        shutil.copyfile(source, target)


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk; native writers hide ENOSPC in their message."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
