"""What surrounds a run: one at a time in its folder, and an orderly end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pressoir.errors import StoreError

LOCK = "run.lock"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """A block that no other process is in with the same run folder; the kernel frees it if we are killed.

    Raises:
        StoreError: another process is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(
            f"another process is using {folder} (it holds {folder / LOCK}); wait until it ends, or start a "
            "new run"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """A block in which SIGTERM raises SystemExit, unless somebody already handles it."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
