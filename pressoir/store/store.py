"""What a stage hands to the next, and the content-addressed store it lies in.

`Artifact` is a small frozen value. Its folder is `store/<stage>/<key>/` under `PRESSOIR_HOME`; the key is a
SHA-256 over everything that decides the result, so an unchanged step is found again instead of repeated.
Publishing is atomic: a stage writes into a folder of its own beside the target, which is flushed to the disk,
gets its `artifact.json` last, and is renamed into place. A process killed at any point leaves nothing a later
run could take for finished work.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from pressoir.errors import StoreError
from pressoir.store.artifact import Artifact, StageKey, digest_of, read_artifact
from pressoir.system.files import (
    MANIFEST,
    copy_folder,
    disk_errors,
    files_of,
    flush,
    folder_digest,
    make_folder,
    remove,
    replace_folder,
)
from pressoir.system.locks import patient


class Store:
    """A folder of finished artifacts, safe for several processes at once."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = (home or default_home()).absolute()
        self.root = self.home / "store"

    def path(self, artifact: Artifact) -> Path:
        """Where the artifact's files are."""
        return self.root / artifact.stage / artifact.key

    def find(self, key: StageKey) -> Artifact | None:
        """The finished artifact of `key`, or None; nothing is hashed."""
        return self._read(self.root / key.stage / key.hash())

    def verify(self, artifact: Artifact) -> bool:
        """Whether the files still have the digest they were published with."""
        try:
            return folder_digest(self.path(artifact))[0] == artifact.digest
        except OSError:
            return False

    def build(
        self,
        key: StageKey,
        make: Callable[[Path, Path], Mapping[str, float]],
        *,
        refresh: bool = False,
        tell: Callable[[str], None] = lambda text: None,
        machine: Mapping[str, str] | None = None,
    ) -> tuple[Artifact, bool]:
        """Return the artifact of `key` and whether it was already there.

        Only one process builds a key; others wait for it and reuse its result. `make(out_dir, work_dir)`
        writes the files into `out_dir` and returns metrics; `work_dir` outlives a crash and holds checkpoints
        to resume from. With `refresh` it is made anew; the old one stays until then. The manifest notes
        `machine`.

        Raises:
            StoreError: the store is read-only or full. Whatever else `make` raises passes through; either way
                nothing is published.
        """
        name = key.hash()
        target, work = self.root / key.stage / name, self.home / "work" / name
        with disk_errors(self.home), self._lock(name, tell):
            for leftover in target.parent.glob(f".{name}-*"):
                remove(leftover)
            found = None if refresh else self._read(target)
            if found is not None and self.verify(found):
                os.utime(target / MANIFEST)  # the time of last use, for gc
                remove(work)  # of a process that was killed after it had published
                return found, True
            if refresh:
                remove(work)
            elif target.exists():
                tell(f"{key.stage}: the stored artifact {name[:12]} is damaged; rebuilding it")
                remove(target)
            make_folder(target.parent)
            make_folder(work)
            draft = target.parent / f".{name}-{uuid.uuid4().hex[:8]}"
            draft.mkdir()
            try:
                metrics = dict(make(draft, work))
                artifact = self._publish(draft, target, key, name, metrics, machine or {})
            except BaseException as error:
                if isinstance(error, Exception) and not draft.is_dir() and not target.is_dir():
                    raise StoreError(
                        f"{self.home} was renamed, moved or emptied while {key.stage} was being built; set "
                        "PRESSOIR_HOME to its current location and run again: completed steps are kept"
                    ) from error
                remove(draft)
                raise
            remove(work)
            return artifact, False

    def artifacts(self) -> Iterator[Artifact]:
        """Every finished artifact, oldest use first."""
        for manifest in sorted(self.root.glob(f"*/[0-9a-f]*/{MANIFEST}"), key=_mtime):
            if (artifact := self._read(manifest.parent)) is not None:
                yield artifact

    def collect(
        self,
        referenced: set[str],
        older_than_days: float,
        dry_run: bool = False,
        live_since: float | None = None,
    ) -> list[tuple[str, int]]:
        """Remove what nothing refers to and nobody used for a while; return (name, bytes) of each.

        Kept are artifacts whose digest is in `referenced`, all their ancestors, those used within the time or
        since `live_since` (when the oldest run in progress began), and those being built now. Abandoned
        drafts, checkpoints and folders without a manifest of the same age go too.
        """
        artifacts = list(self.artifacts())
        parents: dict[str, set[str]] = {}  # two keys may have given the same bytes, from different inputs
        for artifact in artifacts:
            parents.setdefault(artifact.digest, set()).update(artifact.parents.values())
        keep, todo = set[str](), list(referenced)
        while todo:
            digest = todo.pop()
            if digest not in keep:
                keep.add(digest)
                todo.extend(parents.get(digest, ()))
        limit = min(time.time() - older_than_days * 86400, live_since or math.inf)
        victims = [self.path(artifact) for artifact in artifacts if artifact.digest not in keep]
        victims += self.root.glob("*/.*-*")
        victims += [folder for folder in self.root.glob("*/[0-9a-f]*") if not (folder / MANIFEST).exists()]
        victims += (self.home / "work").glob("*")
        removed = []
        for folder in victims:
            if not _unused_since(limit, folder):
                continue
            name = folder.name.removeprefix(".").partition("-")[0]
            try:
                with FileLock(self._lock_path(name), timeout=0):
                    if not _unused_since(limit, folder):  # somebody came between
                        continue
                    size = sum(path.stat().st_size for path in files_of(folder))
                    if not dry_run:
                        remove(folder)
                    removed.append((folder.relative_to(self.home).as_posix(), size))
            except Timeout:
                continue  # somebody is building it
        return removed

    def copy(self, artifact: Artifact, target: Path) -> None:
        """Copy the artifact's files (without its manifest) to a folder, atomically; reflinks where possible.

        Raises:
            StoreError: the store lacks the artifact, or the target cannot be written.
        """
        if not self.path(artifact).is_dir():
            raise StoreError(
                f"the store {self.root} does not hold {artifact.stage}/{artifact.key}; run its recipe again"
            )
        copy_folder(self.path(artifact), target)

    def check_writable(self, needed_bytes: int = 0) -> None:
        """Fail early where nothing could be stored.

        Raises:
            StoreError: the folder cannot be written, or has less than `needed_bytes` free.
        """
        existing = self.home
        while not os.path.lexists(existing):  # False, too, below a folder that must not be entered
            existing = existing.parent
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise StoreError(
                f"PRESSOIR_HOME {self.home} is not writable; set PRESSOIR_HOME to a writable folder"
            )
        free = shutil.disk_usage(existing).free
        if free < needed_bytes:
            raise StoreError(
                f"PRESSOIR_HOME {self.home} has {free / 1e6:.0f} MB free, but this run needs about "
                f"{needed_bytes / 1e6:.0f} MB; free some space (`pressoir store gc`) or set PRESSOIR_HOME "
                "to a folder on another disk"
            )

    def _publish(
        self,
        draft: Path,
        target: Path,
        key: StageKey,
        name: str,
        metrics: dict[str, float],
        machine: Mapping[str, str],
    ) -> Artifact:
        digest, size = folder_digest(draft)
        artifact = Artifact(
            kind=key.kind,
            stage=key.stage,
            key=name,
            digest=digest,
            size_bytes=size,
            parents=key.inputs,
            config_digest=digest_of(key.config),
            metrics=metrics,
            environment={"python": platform.python_version(), **key.environment, **machine},
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        files = files_of(draft)
        for path in (*files, *{path.parent for path in files}):
            flush(path)
        (draft / MANIFEST).write_text(artifact.model_dump_json(indent=2) + "\n", encoding="utf-8")
        flush(draft / MANIFEST)
        flush(draft)
        replace_folder(draft, target)
        flush(target.parent)
        return artifact

    def _read(self, folder: Path) -> Artifact | None:
        try:
            artifact = read_artifact(folder)
        except StoreError:
            return None
        matches = artifact.key == folder.name and artifact.stage == folder.parent.name
        return artifact if matches else None

    def _lock_path(self, name: str) -> Path:
        folder = self.home / "locks"
        make_folder(folder)
        return folder / f"{name}.lock"

    def _lock(self, name: str, tell: Callable[[str], None]) -> AbstractContextManager[None]:
        return patient(
            self._lock_path(name),
            lambda: "another process is building this step; waiting for its result",
            tell,
        )


def default_home() -> Path:
    """`$PRESSOIR_HOME`, or `.pressoir/` in the working directory."""
    return Path(os.environ.get("PRESSOIR_HOME") or ".pressoir").expanduser()


def _mtime(path: Path) -> float:
    """When `path` was last changed; 0 where another process has just removed it, or a link leads nowhere."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _unused_since(limit: float, folder: Path) -> bool:
    return folder.is_dir() and (_mtime(folder / MANIFEST) or _mtime(folder)) <= limit
