"""One child as its parent sees it: started, listened to, measured, ended, and why it ended.

How a process ended follows from its last message, else from its exit status. SIGKILL alone does not say who
sent it: that it was the kernel for want of memory shows in the cgroup's count of such kills (`oom_kill` in
`memory.events`, or `memory.oom_control` in version 1), or without one in the machine's (`/proc/vmstat`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pressoir.evaluation.jobs import End, Job, Loaded, Progress, parse
from pressoir.evaluation.records import Verdict
from pressoir.system.allowance import tells_of_memory
from pressoir.system.cgroups import ROOT, Files, hierarchies
from pressoir.system.memory import pss_bytes
from pressoir.system.runtime import child_environment

WEIGH_S = 0.25
"""Time between two looks at a child's memory: reading it takes the kernel milliseconds a gigabyte."""
_EXIT_S = 10.0  # that a child gets to end by itself once it has said its last
_LOG_BYTES, _LOG_LINES, _COLUMNS = 8192, 12, 300


class Ended(NamedTuple):
    """How an attempt ended."""

    verdict: Verdict
    detail: str
    of_memory: bool
    """Whether less to do at once, or more room, may cure it."""
    by_kernel: bool = False


class Child:
    """A running attempt. The file of the job is written, and the log stands, beside it."""

    def __init__(self, job: Job, folder: Path, command: Sequence[str], timeout_s: float) -> None:
        self.job, self._timeout_s = job, timeout_s
        path = folder / f"{job.model}-{job.attempt}.json"
        path.write_text(job.model_dump_json(indent=2) + "\n", encoding="utf-8")
        self._log = path.with_suffix(".log")
        self._oom_kills = oom_kills()
        self._rest, self._killed, self._weighed = b"", "", 0.0
        self.pss = self.peak = 0
        self.loaded: Loaded | None = None
        self.progress: Progress | None = None
        self._done_before = 0
        self.largest = 0
        """Most samples that it let through the model together, or tried to."""
        self.end: End | None = None
        self._end_at = 0.0
        self.started = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, str(path)],
                stdin=subprocess.PIPE,  # never written to; that it closes tells the child that we ended
                stdout=subprocess.PIPE,
                stderr=log,
                env={**child_environment(job.threads), "HF_HUB_OFFLINE": "1"},
                process_group=0,  # Ctrl-C in a terminal is ours to handle
            )
        assert self._process.stdout is not None
        self.stdout = self._process.stdout.fileno()
        os.set_blocking(self.stdout, False)
        self.silent = False
        """Whether it has closed its standard output, as a process does that ends."""

    @property
    def pid(self) -> int:
        """Its process id, its own until `close`."""
        return self._process.pid

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started

    @property
    def finished(self) -> int:
        """Samples that this attempt got done."""
        return self.progress.done - self._done_before if self.progress is not None else 0

    def read(self) -> list[Loaded | Progress | End]:
        """The messages that came since, which are also kept."""
        content, found = self._rest, list[Loaded | Progress | End]()
        with suppress(BlockingIOError):
            while chunk := os.read(self.stdout, 1 << 16):
                content += chunk
            self.silent = True
        *lines, self._rest = content.split(b"\n")
        for line in lines:
            if (message := parse(line)) is None:
                continue
            found.append(message)
            if isinstance(message, Loaded):
                self.loaded = message
            elif isinstance(message, Progress):
                if self.progress is None:
                    self._done_before = message.done
                self.progress = message
                self.largest = max(self.largest, message.batch_size)
            else:
                self.end, self._end_at = message, time.monotonic()
        return found

    def watch(self) -> None:
        """Kill it if it takes more than its allowance, or longer than it may."""
        now = time.monotonic()
        if self.end is not None and now - self._end_at > _EXIT_S:
            self.kill("end")
        elif self.end is None and self.seconds > self._timeout_s:
            self.kill("timeout")
        if now - self._weighed < WEIGH_S:
            return
        self._weighed = now
        self.pss = pss_bytes(self.pid, children=False)
        self.peak = max(self.peak, self.pss)
        if self.end is None and self.job.allowance_bytes and self.pss > self.job.allowance_bytes:
            self.kill("memory")

    def has_ended(self) -> bool:
        """Whether it has; what it said last may still have to be read."""
        return self._process.poll() is not None

    def kill(self, reason: str = "stop") -> None:
        """End it at once."""
        self._killed = self._killed or reason
        self._process.kill()

    def close(self) -> None:
        """Wait for its end and close the pipes."""
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def cause(self) -> Ended:
        """How it ended; ask once, after it has."""
        status = self._process.returncode
        if self.end is not None:
            return Ended(self.end.verdict, self.end.detail, self.end.verdict == "skipped_oom")
        if self._killed == "timeout":
            return Ended("timeout", f"stopped after {self._timeout_s:.0f} s, {self._where()}", False)
        if self._killed == "memory":
            return Ended(
                "killed_oom",
                f"stopped {self._where()}: it used {self.pss / 1e9:.2f} GB of the "
                f"{self.job.allowance_bytes / 1e9:.2f} GB allowed",
                True,
            )
        last = self._last_lines()
        if status == -signal.SIGKILL and oom_kills() > self._oom_kills:
            detail = (
                f"killed by the kernel because it ran out of memory, {self._where()}, at "
                f"{self.peak / 1e9:.2f} GB"
            )
            return Ended("killed_oom", detail, True, by_kernel=True)
        if tells_of_memory(last) and status != -signal.SIGKILL:
            return Ended("killed_oom", f"ended {self._where()}, out of memory:\n{last}", True)
        if status < 0:
            suffix = f":\n{last}" if last and status != -signal.SIGKILL else ""
            return Ended("killed_signal", f"killed by {_name(-status)}, {self._where()}{suffix}", False)
        return Ended("exception", f"ended with exit code {status}, {self._where()}:\n{last}", False)

    def _where(self) -> str:
        if self.progress is None:
            return "before reading the data"
        if self.loaded is None:
            return "while loading the model"
        return (
            f"after {self.progress.done} of {self.progress.total} samples, at batch size "
            f"{self.progress.batch_size}"
        )

    def _last_lines(self) -> str:
        with self._log.open("rb") as log:
            log.seek(max(self._log.stat().st_size - _LOG_BYTES, 0))
            lines = log.read().decode(errors="replace").rstrip().splitlines()
        return "\n".join(line[:_COLUMNS] for line in lines[-_LOG_LINES:])


def oom_kills(root: Path = ROOT) -> int:
    """How many processes of this process's cgroup (without one: of the machine) the kernel killed so far."""
    files = Files(root)
    for hierarchy in hierarchies("memory", files):
        for name in ("memory.events", "memory.oom_control"):
            kills = files.table(hierarchy.folders[0] / name).get("oom_kill")
            if kills is not None:
                return kills
    return files.table(root / "proc" / "vmstat").get("oom_kill", 0)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
