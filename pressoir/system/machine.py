"""One run at a time on a machine: two would disturb each other's measurements, and share its memory."""

from __future__ import annotations

import getpass
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

SIDE_BY_SIDE = "PRESSOIR_SIDE_BY_SIDE"
"""Variable of the environment: `1` lets runs be side by side."""


@contextmanager
def alone(what: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Wait for the runs of this user on this machine to end, saying so; others then wait for the block.

    The system lets go of the lock however a process ends.
    """
    if os.environ.get(SIDE_BY_SIDE) == "1":
        yield
        return
    lock = FileLock(Path(tempfile.gettempdir(), f"pressoir-{getpass.getuser()}.lock"))
    note = Path(lock.lock_file).with_suffix(".json")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"waiting for {_holder(note)} to end on this machine; {SIDE_BY_SIDE}=1 runs beside it")
        lock.acquire(poll_interval=0.5)
    try:
        note.write_text(json.dumps({"pid": os.getpid(), "what": what}), encoding="utf-8")
        yield
    finally:
        lock.release()


def _holder(note: Path) -> str:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        return f"{found['what']} (process {found['pid']})"
    except (OSError, ValueError, LookupError, TypeError):
        return "another run"
