"""The processes that a process starts, directly or not, end with it, however it ends.

Some are not ours to write: mergekit, Prefect's temporary server. So all carry a mark in their environment,
and a small guardian beside the process waits at a pipe. When the pipe closes without a word, the process was
killed, and the guardian kills what carries the mark. (`runtime.end_with_parent` needs no guardian, but code
of ours in the child.) Linux only: elsewhere there is no /proc to look in.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

_PREFIX = "PRESSOIR_FAMILY_"
_PROC = Path("/proc")
_guardian: subprocess.Popen[bytes] | None = None
_mark: str | None = None


def guard() -> None:
    """Have the processes that this one starts from now on end with it; once a process is enough."""
    global _guardian, _mark
    if _guardian is not None or not _PROC.is_dir():
        return
    _mark = f"{_PREFIX}{uuid.uuid4().hex}"
    _guardian = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, _mark],  # in milliseconds, without site packages
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    os.environ[_mark] = "1"
    atexit.register(_dismiss)


def end_family() -> None:
    """Kill the processes that carry this one's mark."""
    if _mark is not None:
        _kill(_mark)


def _kill(mark: str) -> None:
    for environment in _PROC.glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{mark}=1".encode() in environment.read_bytes():
                os.kill(int(environment.parent.name), signal.SIGKILL)


def _dismiss() -> None:
    """Tell the guardian that this process ends by itself."""
    assert _guardian is not None
    assert _guardian.stdin is not None
    with suppress(OSError):
        _guardian.stdin.write(b"x")
        _guardian.stdin.close()
    _guardian.wait()


if __name__ == "__main__" and not sys.stdin.buffer.read(1):
    for _ in range(3):  # one may be starting another meanwhile
        _kill(sys.argv[1])
