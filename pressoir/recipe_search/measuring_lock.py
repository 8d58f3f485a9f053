"""Measure while nobody else computes: trials on one machine take turns where a time is taken.

Any number of trials build at once; one that measures waits until the stages that run have ended, and no other
begins until it is done. The kernel frees the locks of a process that is killed. They hold on one machine,
which is where processes disturb each other.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pressoir.system.files import make_folder


class MeasurementLock:
    """Two lock files in a folder: a gate that all go through, and the room behind it."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._gate, self._room = folder / "search-gate.lock", folder / "search-room.lock"

    @contextmanager
    def building(self) -> Iterator[None]:
        """A block that others may be in at the same time, but in which nobody measures."""
        with self._gate.open("a") as gate, self._room.open("a") as room:
            # Held by a process that waits to measure, so that none overtakes it.
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_SH)
            fcntl.flock(gate, fcntl.LOCK_UN)
            yield

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """A block that nobody else is in."""
        with self._gate.open("a") as gate, self._room.open("a") as room:
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX)
            yield
