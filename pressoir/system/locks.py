"""Locks between processes: a process that finds one taken reports why, and waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def patient(path: Path, waiting: Callable[[], str], tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock `path` for the block; where another process has it, tell what `waiting` says, and wait.

    The system lets go of a lock however a process ends.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(waiting())
        lock.acquire(poll_interval=0.5)
    try:
        yield
    finally:
        lock.release()
