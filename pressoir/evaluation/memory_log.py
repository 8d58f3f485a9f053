"""What memory a run took, second by second: written as it happens, so that a run that is killed keeps it.

`memory_samples.jsonl` in the run's folder gets one line a sample, and one where a session (a process that
runs or resumes the evaluation) or a batch begins or ends. It is only ever appended to: a line that a kill cut
short is passed over, and a resumed run adds a session. `stats` reads it back as the content of
`memory_stats.json`.

A sample takes a few milliseconds and about half a kilobyte. A peak between two samples is not seen; each
child's own peak is measured by itself (`Outcome.measured_peak_bytes`).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from pressoir.config import Config
from pressoir.errors import PressoirError
from pressoir.system.files import disk_errors, make_folder
from pressoir.system.memory import effective_memory
from pressoir.system.monitor import Monitor, MonitorSample

SAMPLES = "memory_samples.jsonl"
GB = 10**9
_STEP_S = 1.0  # between two sessions: what lies between them is left out


class Entry(Config):
    """One sample."""

    t_s: float
    """Seconds of running since the first session began; the time between sessions does not count."""
    recorded_at: str
    """UTC, ISO 8601."""
    ram_percent: float
    """Used part of the effective limit, by everybody in it."""
    ram_used_gb: float
    swap_gb: float
    gpu_used_gb: tuple[float, ...] = ()
    """By GPU, by all processes."""
    children: dict[str, int] = {}  # noqa: RUF012 — pydantic copies defaults
    """Bytes (PSS) of each child, by label."""
    alerts: tuple[str, ...] = ()

    @property
    def children_bytes(self) -> int:
        """Of all children together."""
        return sum(self.children.values())


class Session(Config):
    """A process that ran the evaluation, or a part of it."""

    recorded_at: str
    start_s: float
    end_s: float
    """Its last sample."""
    finished: bool
    """False where it was killed, or still runs."""
    interval_s: float
    alert_percent: float
    limit_gb: float
    """The effective limit: the tightest cgroup's, or the machine's RAM."""
    limit_source: str
    """The file that sets it, or `machine`."""


class BatchSpan(Config):
    """When a batch ran."""

    name: str
    start_s: float
    end_s: float


class Alert(Config):
    """A time in which memory was above the alert's percentage."""

    start_s: float
    end_s: float
    ram_percent: float
    """The highest."""
    text: str
    """What the sample with the highest said."""


class Peaks(Config):
    """The largest of all samples."""

    ram_percent: float = 0.0
    ram_used_gb: float = 0.0
    swap_gb: float = 0.0
    gpu_used_gb: tuple[float, ...] = ()
    children_bytes: int = 0
    """PSS of all children at one moment."""
    by_child: dict[str, int] = {}  # noqa: RUF012
    """PSS of each, bytes."""


class MemoryStats(Config):
    """The content of `memory_stats.json`."""

    sessions: tuple[Session, ...] = ()
    batches: tuple[BatchSpan, ...] = ()
    peaks: Peaks = Peaks()
    alerts: tuple[Alert, ...] = ()
    samples: tuple[Entry, ...] = ()

    def children_peak_bytes(self, batch: str) -> int:
        """Largest PSS of all children together while a batch ran; 0 where there is no sample of it."""
        spans = [(span.start_s, span.end_s) for span in self.batches if span.name == batch]
        return max(
            (
                sample.children_bytes
                for sample in self.samples
                if any(start < sample.t_s <= end for start, end in spans)
            ),
            default=0,
        )


class MemoryLog:
    """A block whose memory is written down, at every interval, into the folder of a run.

    ::

        with MemoryLog(folder) as log:
            log.batch("batch-1")
            log.watch(child.pid, "model-a")

    `alert_percent` is of the effective limit. All methods may be called from any thread. A sample that cannot
    be taken or written is missed; the first failure is logged.

    Raises:
        StoreError: on entering: the folder is full, or cannot be written.
    """

    def __init__(self, folder: Path, interval_s: float = 1.0, alert_percent: float = 85.0) -> None:
        self._path = folder / SAMPLES
        self._interval_s, self._alert_percent = interval_s, alert_percent
        self._monitor = Monitor(interval_s, alert_percent, on_sample=self._on_sample)
        self._lock = threading.Lock()
        self._file: int | None = None
        self._torn = False

    def watch(self, pid: int, label: str) -> None:
        """Also write down a child's memory, with its descendants; passed over if it has ended."""
        with suppress(PressoirError):
            self._monitor.watch(pid, label)

    def unwatch(self, pid: int) -> None:
        """Leave that child out from now on."""
        self._monitor.unwatch(pid)

    def batch(self, name: str) -> None:
        """A batch begins, and ends the one before.

        Raises:
            StoreError: the disk is full.
        """
        with disk_errors(self._path):
            self._write({"kind": "batch", "recorded_at": _now(), "name": name})

    def __enter__(self) -> MemoryLog:
        memory = effective_memory()
        with disk_errors(self._path):
            make_folder(self._path.parent)
            self._torn = _is_torn(self._path)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            self._write(
                {
                    "kind": "session",
                    "recorded_at": _now(),
                    "interval_s": self._interval_s,
                    "alert_percent": self._alert_percent,
                    "limit_gb": _gb(memory.effective_bytes),
                    "limit_source": memory.limit_source,
                }
            )
        self._monitor.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._monitor.__exit__(kind, error, trace)
        with suppress(OSError):  # the run's own end matters more
            self._write({"kind": "end", "recorded_at": _now()})
        with self._lock:
            if self._file is not None:
                os.close(self._file)
            self._file = None

    def _on_sample(self, sample: MonitorSample) -> None:
        self._monitor.samples.clear()  # they are in the file: a run may take days
        self._write(
            {
                "kind": "sample",
                "recorded_at": sample.recorded_at,
                "ram_percent": sample.ram_percent,
                "ram_used_gb": _gb(sample.ram_used_bytes),
                "swap_gb": _gb(sample.swap_used_bytes),
                "gpu_used_gb": [_gb(gpu.used_bytes) for gpu in sample.gpus],
                "children": {child.label: child.bytes for child in sample.watched},
                "alerts": list(sample.alerts),
            }
        )

    def _write(self, line: dict[str, Any]) -> None:
        content = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            if self._file is None:
                return
            if self._torn:
                content = b"\n" + content
            self._torn = True
            if os.write(self._file, content) == len(content):
                self._torn = False


def stats(folder: Path) -> MemoryStats:
    """What was written down in a run's folder, over all its sessions; empty where nothing was.

    Raises:
        StoreError: the file cannot be read.
    """
    path = folder / SAMPLES
    reader = _Reader()
    with disk_errors(path), suppress(FileNotFoundError), path.open("rb") as file:
        for raw in file:
            with suppress(ValueError, LookupError, TypeError):  # a line that a kill cut short
                reader.take(dict(json.loads(raw)))
    return reader.stats()


class _Reader:
    """Puts the lines of all sessions on one axis of time."""

    def __init__(self) -> None:
        self._sessions: list[Session] = []
        self._batches: list[BatchSpan] = []
        self._entries: list[Entry] = []
        self._batch: tuple[str, float] | None = None
        self._start = datetime.min.replace(tzinfo=UTC)
        self._last_s = 0.0

    def take(self, line: dict[str, Any]) -> None:
        kind, recorded_at = line.pop("kind"), line["recorded_at"]
        moment = datetime.fromisoformat(recorded_at)
        if kind == "session":
            self._end_batch()
            start = self._last_s + _STEP_S if self._sessions else 0.0
            self._sessions.append(Session(**line, start_s=start, end_s=start, finished=False))
            self._start, self._last_s = moment, start
            return
        own = self._sessions[-1]
        # a clock that was set back must not turn time around
        t_s = max(round(own.start_s + (moment - self._start).total_seconds(), 3), self._last_s)
        if kind == "sample":
            self._entries.append(Entry(t_s=t_s, **line))
        self._last_s = t_s
        self._sessions[-1] = own.model_copy(update={"end_s": t_s, "finished": kind == "end"})
        if kind in ("batch", "end"):
            self._end_batch()
        if kind == "batch":
            self._batch = line["name"], t_s

    def _end_batch(self) -> None:
        if self._batch is not None:
            name, start = self._batch
            self._batches.append(BatchSpan(name=name, start_s=start, end_s=self._last_s))
        self._batch = None

    def stats(self) -> MemoryStats:
        self._end_batch()
        entries = self._entries
        by_child: dict[str, int] = {}
        for entry in entries:
            for label, size in entry.children.items():
                by_child[label] = max(size, by_child.get(label, 0))
        gpus = max((len(entry.gpu_used_gb) for entry in entries), default=0)
        peaks = Peaks(
            ram_percent=_largest(entry.ram_percent for entry in entries),
            ram_used_gb=_largest(entry.ram_used_gb for entry in entries),
            swap_gb=_largest(entry.swap_gb for entry in entries),
            gpu_used_gb=tuple(
                _largest(entry.gpu_used_gb[gpu] for entry in entries if gpu < len(entry.gpu_used_gb))
                for gpu in range(gpus)
            ),
            children_bytes=max((entry.children_bytes for entry in entries), default=0),
            by_child=by_child,
        )
        return MemoryStats(
            sessions=tuple(self._sessions),
            batches=tuple(self._batches),
            peaks=peaks,
            alerts=tuple(_alerts(entries)),
            samples=tuple(entries),
        )


def _alerts(entries: Iterable[Entry]) -> list[Alert]:
    """Times in which every sample was above the alert's percentage."""
    found: list[Alert] = []
    above = False
    for entry in entries:
        if entry.alerts:
            new = Alert(
                start_s=entry.t_s, end_s=entry.t_s, ram_percent=entry.ram_percent, text=entry.alerts[0]
            )
            if above:
                before = found.pop()
                highest = max(before, new, key=lambda alert: alert.ram_percent)
                new = highest.model_copy(update={"start_s": before.start_s, "end_s": entry.t_s})
            found.append(new)
        above = bool(entry.alerts)
    return found


def _largest(values: Iterable[float]) -> float:
    return max(values, default=0.0)


def _is_torn(path: Path) -> bool:
    """Whether the file ends within a line."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    return False


def _gb(size: int) -> float:
    return round(size / GB, 4)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
