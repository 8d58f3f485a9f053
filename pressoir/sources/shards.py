"""Where the files of a sharded model come from: a folder of this machine, or a server.

Nothing is used before its SHA-256 is the manifest's. What comes from a server lies below
`$PRESSOIR_HOME/downloads/`: a shard is written to a `.part` file that outlives a broken connection, a cancel
and a crash, and the next attempt asks for the rest of it alone (HTTP range requests, RFC 9110, section 14).
"""

from __future__ import annotations

import hashlib
import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from threading import Event

from filelock import FileLock

from pressoir.errors import ShardError
from pressoir.formats.sharding import (
    MANIFEST,
    FileRecord,
    LoadingCancelledError,
    ShardManifest,
    ShardRecord,
    altered,
    fault_of,
    parse_manifest,
    read_manifest,
)
from pressoir.formats.tensor_bytes import CHUNK_BYTES
from pressoir.sources.http_ranges import Server
from pressoir.store.store import default_home
from pressoir.system.files import disk_errors, make_folder

MAX_MANIFEST_BYTES = 64_000_000
_NO_LIMIT_S = 1e9
Tell = Callable[[int], None]
"""Called with the number of bytes that were just checked or fetched; less than 0 where some are given up."""


class Source(ABC):
    """A sharded model's files, verified and mapped into memory one after the other."""

    folder: Path
    """Where configuration and tokenizer are, on this machine."""
    manifest: ShardManifest

    def __init__(self) -> None:
        self._cancelled = Event()

    @abstractmethod
    def shard(self, record: ShardRecord, tell: Tell) -> mmap.mmap:
        """The whole file, verified. Its pages are private: nothing written to them reaches the file.

        Raises:
            ShardError: it is missing, truncated or altered; or loading was cancelled.
            SourceError: a server does not give it.
        """

    def cancel(self) -> None:
        """Let `shard`, which another thread may be in, raise `LoadingCancelledError` soon."""
        self._cancelled.set()

    def close(self, complete: bool) -> None:  # noqa: B027 -- a folder has nothing to close
        """No shard will be asked for any more; `complete` if all of them were given."""

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise LoadingCancelledError(f"loading {self.folder} was cancelled")

    def _mapped(self, path: Path, record: FileRecord) -> mmap.mmap:
        if faults := fault_of(path, record, content=False):
            raise ShardError(faults[0])
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def _hashed(self, mapped: mmap.mmap, tell: Tell) -> str:
        """SHA-256 of a mapped file; the disk is asked to read ahead of it."""
        if hasattr(mmap, "MADV_WILLNEED"):
            mapped.madvise(mmap.MADV_WILLNEED)
        digest = hashlib.sha256()
        with memoryview(mapped) as view:
            for start in range(0, len(mapped), CHUNK_BYTES):
                self._check_cancelled()
                piece = view[start : start + CHUNK_BYTES]
                digest.update(piece)
                tell(len(piece))
                piece.release()
        return digest.hexdigest()


class FolderSource(Source):
    """A sharded folder of this machine; it is not changed.

    Raises:
        ShardError: it has no sound manifest, or a file besides the shards is damaged.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        if not (folder / MANIFEST).is_file():
            raise ShardError(
                f"{folder} has no {MANIFEST}; `pressoir shard` creates a sharded folder from a model"
            )
        self.manifest = read_manifest(folder)
        for record in self.manifest.files:
            if faults := fault_of(folder / record.file, record):
                raise ShardError(faults[0])

    def shard(self, record: ShardRecord, tell: Tell) -> mmap.mmap:
        """See `Source.shard`."""
        self._check_cancelled()
        path = self.folder / record.file
        mapped = self._mapped(path, record)
        if self._hashed(mapped, tell) != record.sha256:
            raise ShardError(altered(path))
        return mapped


class HttpSource(Source):
    """A sharded folder on a server, fetched into `folder`, in which an earlier attempt may have left files.

    Raises:
        ShardError: the server's manifest is not sound, or a file besides the shards is not as it says.
        SourceError: the server has no such file. UnreachableError: it does not answer.
    """

    def __init__(self, url: str, folder: Path, lock: FileLock | None = None) -> None:
        super().__init__()
        self.folder, self._lock = folder, lock
        self._server = Server(url, self._cancelled)
        text = self._server.read(MANIFEST, MAX_MANIFEST_BYTES)
        self.manifest = parse_manifest(text, self._server.shown(MANIFEST))
        with disk_errors(folder):
            make_folder(folder)
            (folder / MANIFEST).write_bytes(text)
            for record in self.manifest.files:
                if fault_of(folder / record.file, record):
                    self._fetch(record, lambda count: None)

    def shard(self, record: ShardRecord, tell: Tell) -> mmap.mmap:
        """See `Source.shard`."""
        path = self.folder / record.file
        with disk_errors(self.folder):
            if path.is_file():  # of an earlier attempt
                if not fault_of(path, record, content=False):
                    mapped = self._mapped(path, record)
                    if self._hashed(mapped, tell) == record.sha256:
                        return mapped
                    tell(-record.bytes)
                path.unlink()
            self._fetch(record, tell)
            return self._mapped(path, record)

    def cancel(self) -> None:
        """See `Source.cancel`; a read that waits for the server ends at once."""
        super().cancel()
        self._server.interrupt()

    def close(self, complete: bool) -> None:
        """Put a complete folder where `open_source` looks for it, and let others in."""
        if self._lock is None:
            return
        if complete:
            final = self.folder.with_suffix("")
            self.folder.rename(final)
            self.folder = final
        self._lock.release()

    def _fetch(self, record: FileRecord, tell: Tell) -> None:
        """Fetch a file, going on from what an earlier attempt left of it, and put it in place if it is right.

        A part that turns out to be of another file is fetched once more, from its start.
        """
        path = self.folder / record.file
        part = path.with_name(f"{path.name}.part")
        resumed = part.is_file() and part.stat().st_size > 0
        sha256 = self._server.fetch(record.file, part, record.bytes, tell)
        if sha256 != record.sha256 and resumed:
            part.unlink()
            tell(-record.bytes)
            sha256 = self._server.fetch(record.file, part, record.bytes, tell)
        if sha256 != record.sha256:
            part.unlink()
            raise ShardError(altered(self._server.shown(record.file)))
        part.replace(path)


def is_url(place: object) -> bool:
    """Whether a model's place is a server's."""
    return isinstance(place, str) and place.startswith(("http://", "https://"))


def download_folder(url: str, home: Path) -> Path:
    """Where the model of a URL lies once it was fetched whole."""
    return home / "downloads" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:32]


def open_source(place: Path | str, home: Path | None = None) -> Source:
    """A folder, or a URL; what was fetched whole before is not fetched again.

    Several processes may ask for one URL: the first fetches, the others wait for it.

    Raises:
        ShardError, SourceError: see `FolderSource` and `HttpSource`.
        StoreError: PRESSOIR_HOME cannot be written.
    """
    if not isinstance(place, str) or not is_url(place):
        return FolderSource(Path(place).absolute())
    home = (home or default_home()).absolute()
    final = download_folder(place, home)
    if final.is_dir():
        return FolderSource(final)
    with disk_errors(home):
        make_folder(home / "locks")
    # taken here, released where loading ends: another thread
    lock = FileLock(home / "locks" / f"{final.name}.lock", thread_local=False)
    # Without a limit, filelock would take a second load by one thread for a deadlock.
    lock.acquire(timeout=_NO_LIMIT_S)
    try:
        if final.is_dir():
            lock.release()
            return FolderSource(final)
        return HttpSource(place, final.with_suffix(".partial"), lock)
    except BaseException:
        lock.release(force=True)
        raise


def fetch(url: str, folder: Path) -> Path:
    """Fetch a whole sharded model into `folder`, going on from what is there; return `folder`.

    Raises:
        ShardError, SourceError: see `HttpSource`.
    """
    source = HttpSource(url, folder)
    for record in source.manifest.shards:
        source.shard(record, lambda count: None).close()
    return folder
