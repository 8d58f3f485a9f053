"""One run at a time on a machine: two would disturb each other's measurements, and share its memory."""

from __future__ import annotations

import getpass
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pressoir.system.locks import patient

SIDE_BY_SIDE = "PRESSOIR_SIDE_BY_SIDE"
"""Variable of the environment: `1` lets runs be side by side."""


@contextmanager
def alone(what: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Wait for the runs of this user on this machine to end, saying so; others then wait for the block."""
    if os.environ.get(SIDE_BY_SIDE) == "1":
        yield
        return
    path = Path(tempfile.gettempdir(), f"pressoir-{getpass.getuser()}.lock")
    note = path.with_suffix(".json")
    with patient(path, partial(_waiting, note), tell):
        note.write_text(json.dumps({"pid": os.getpid(), "what": what}), encoding="utf-8")
        yield


def _waiting(note: Path) -> str:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        holder = f"{found['what']} (process {found['pid']})"
    except (OSError, ValueError, LookupError, TypeError):
        holder = "another run"
    return f"waiting for {holder} to end on this machine; {SIDE_BY_SIDE}=1 runs beside it"
