"""Stay within an allowance: a limit that makes allocations fail, and the batch size that fits below it.

**Why.** Without a limit a process that takes too much is killed by the kernel, and nobody can answer. With
one, the allocation itself fails (`MemoryError`, or a library's own error), the batch is given up, and a
smaller one is tried.

**What.** `RLIMIT_DATA` counts private writable memory, taken or merely promised (`VmData`; setrlimit(2)). It
is set after loading, to what is promised then plus what the allowance leaves: allowance − RSS − weights
that are mapped from the model's files, but not read yet (they will become resident without any allocation).
So the limit is a little stricter than the allowance, which is in PSS, never laxer: when a sibling ends, the
pages that it shared become wholly ours. What escapes the limit (files' pages, shared memory) the supervisor's
watchdog sees.

**Cost.** Nothing while all goes well. After a failure large blocks are mapped one by one, which is slower.
ONNX Runtime's arena keeps what it took after a failure, so that the size that is found may be smaller than
one from a fresh start.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

Sample = TypeVar("Sample")

# NumPy and Python raise MemoryError. The others, in this order: torch, ONNX Runtime, C++, CUDA, oneDNN (whose
# message says no more; it was measured to come under a limit), and the thread pool of GCC's OpenMP.
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|failed to allocate memory|bad[_ ]alloc|out of memory"
    r"|could not create a (primitive|memory)|thread creation failed|can't start new thread",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is an allocation that failed."""
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        if isinstance(error, Exception) and tells_of_memory(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def tells_of_memory(text: str) -> bool:
    """Whether a library's message, or the last lines of a log, are about an allocation that failed."""
    return _OUT_OF_MEMORY.search(text) is not None


@contextmanager
def data_limit(allowance_bytes: int, folder: Path) -> Iterator[None]:
    """A block in which this process cannot allocate more than its allowance leaves; 0 is no limit.

    `folder` has the model's files. Where the system has no such limit, there is none.
    """
    promised, resident = _status_bytes("VmData"), _status_bytes("VmRSS")
    if allowance_bytes == 0 or promised is None or resident is None:
        yield
        return
    import resource

    room = max(allowance_bytes - resident - _unread_bytes(folder), 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([promised + room, *known]), hard))
    try:
        yield
    finally:  # what tells of a failure needs memory, too
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def peak_resident_bytes() -> int | None:
    """Largest resident memory of this process so far; None where the system does not tell."""
    return _status_bytes("VmHWM")


class BatchSize:
    """How many samples go together: halved when memory does not suffice, then once tried a little larger.

    A size means so many samples of the longest length. Where `most` allows, batches of shorter samples hold
    more, up to the same sum of lengths (tokens, windows of audio).
    """

    def __init__(self, size: int, longest: int, most: int | None = None) -> None:
        self._most = max(size, most or size)
        self._budget = size * max(longest, 1)
        self._worked = 0  # the largest batch since the last failure, in units of length
        self._failed: int | None = None
        self._bisected = False

    def take(self, waiting: Sequence[Sample], lengths: Sequence[int]) -> Sequence[Sample]:
        """The first of `waiting`, which are sorted by their `lengths`, longest first."""
        return waiting[: max(1, min(self._most, self._budget // max(lengths[0], 1)))]

    def worked(self, count: int, length: int) -> None:
        """A batch of `count` samples, none longer than `length`, went well."""
        self._worked = max(self._worked, count * max(length, 1))
        if self._failed is not None and not self._bisected:
            self._bisected = True
            self._budget = max(self._worked, (self._worked + self._failed) // 2)

    def failed(self, count: int, length: int) -> bool:
        """There was no memory for that batch; False if there can be no smaller one."""
        length = max(length, 1)
        self._failed = count * length
        # Back to what worked; should that not work any more (memory is in pieces), to half of it.
        known = self._worked if self._worked < self._failed else 0
        self._worked = 0
        self._budget = max(known, count // 2 * length)
        return count > 1


def _status_bytes(field: str) -> int | None:
    """A field of `/proc/self/status`."""
    with suppress(OSError):
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        if match := re.search(rf"^{field}:\s+(\d+) kB$", text, flags=re.M):
            return int(match[1]) * 1024
    return None


def _unread_bytes(folder: Path) -> int:
    """Bytes of the folder's files that are mapped into this process, but not resident yet."""
    files = {str(path.resolve()) for path in folder.iterdir()} if folder.is_dir() else set()
    unread, ours = 0, False
    with suppress(OSError):
        for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if "-" in fields[0]:  # 7f0c…-7f0d… r--p 00000000 08:01 1234 /path
                ours = len(fields) == 6 and fields[5] in files
            elif ours and fields[0] in ("Size:", "Rss:"):
                unread += int(fields[1]) * (1024 if fields[0] == "Size:" else -1024)
    return unread
