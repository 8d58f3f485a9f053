"""Watch a machine while it works: CPU, RAM, swap, GPUs, temperature, and the memory of chosen processes.

Percentages are of what there really is: RAM of the effective limit (the tightest cgroup's, see
`pressoir.system.memory`), CPU of the cgroup's quota where there is one. A percentage of the host's would
stay low until the container is killed.

A `Sampler` takes one sample when asked; a `Monitor` is a block with a thread that asks at every interval::

    with Monitor(interval_s=2, threshold_percent=85) as monitor:
        monitor.watch(child.pid, "model-a")
        ...
    monitor.samples, monitor.summary

A sample takes milliseconds (walking the page tables of watched processes takes the longest part) and about a
kilobyte.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import psutil

from pressoir.errors import PressoirError
from pressoir.system.cgroups import ROOT, CpuLimit, cpu_limit, cpu_seconds
from pressoir.system.memory import (
    GpuMemory,
    ProcessMemory,
    effective_memory,
    gpu_memory,
    memory_pressure,
    process_tree,
)

Level = Literal["OPTIMAL", "MODERATE", "HIGH"]
MODERATE_FROM, HIGH_ABOVE = 50.0, 70.0
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "acpitz")
"""psutil's names of the sensors that sit in or next to a CPU, the most exact first."""

_SHORTEST_S = 0.1
"""The kernel counts CPU time in ticks of 10 ms or less; a share of a shorter time would be noise."""

log = logging.getLogger("pressoir")


def level(percent: float) -> Level:
    """OPTIMAL below 50 %, MODERATE from 50 to 70 %, HIGH above."""
    if percent > HIGH_ABOVE:
        return "HIGH"
    return "MODERATE" if percent >= MODERATE_FROM else "OPTIMAL"


@dataclass(frozen=True, slots=True)
class Watched:
    """A watched process with its descendants."""

    pid: int
    label: str
    bytes: int
    """Sum over the tree: PSS, or RSS where a process's `measure` says so."""
    processes: tuple[ProcessMemory, ...]
    """The process itself first."""


@dataclass(frozen=True, slots=True)
class MonitorSample:
    """The state of the machine at one moment."""

    recorded_at: str
    """UTC, ISO 8601."""
    elapsed_s: float
    """Since the sampler was made."""
    cpu_percent: float | None
    """Since the sample before; 100 is all of `cpus`. None where less than 0.1 s has passed."""
    cpus: float
    """The cgroup's quota, or else the CPUs of the affinity."""
    ram_percent: float
    """Of `ram_limit_bytes`."""
    ram_used_bytes: int
    ram_available_bytes: int
    ram_limit_bytes: int
    """The tightest limit, or the machine's RAM."""
    ram_limit_source: str
    """The file that sets it, or `machine`."""
    level: Level
    """Of `ram_percent`."""
    swap_percent: float
    swap_used_bytes: int
    swap_total_bytes: int
    pressure_percent: float | None
    """Time in which some task waited for memory, last 10 s: the worse of the machine's and the cgroup's."""
    temperature_c: float | None
    """The hottest CPU sensor; None where the machine tells none."""
    gpus: tuple[GpuMemory, ...]
    watched: tuple[Watched, ...]
    """Processes that have ended are not in it."""
    alerts: tuple[str, ...]
    """What was above the threshold."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)


class Summary:
    """Mean and peak of a series of samples, kept without the samples."""

    def __init__(self) -> None:
        self.samples = self.alerts = 0
        self.duration_s = 0.0
        self._figures: dict[str, tuple[int, float, float]] = {}  # count, sum, peak

    def add(self, sample: MonitorSample) -> None:
        """Take one more sample."""
        self.samples += 1
        self.alerts += bool(sample.alerts)
        self.duration_s = sample.elapsed_s
        if sample.cpu_percent is not None:
            self._add("cpu_percent", sample.cpu_percent)
        self._add("ram_percent", sample.ram_percent)
        self._add("ram_used_bytes", sample.ram_used_bytes)
        self._add("swap_used_bytes", sample.swap_used_bytes)
        if sample.temperature_c is not None:
            self._add("temperature_c", sample.temperature_c)
        for index, gpu in enumerate(sample.gpus):
            self._add(f"gpu_{index}_used_bytes", gpu.used_bytes)
        for watched in sample.watched:
            self._add(f"watched_bytes/{watched.label}", watched.bytes)

    def mean(self, figure: str) -> float:
        """Mean over the samples that have it."""
        count, total, _ = self._figures[figure]
        return total / count

    def peak(self, figure: str) -> float:
        """Largest value."""
        return self._figures[figure][2]

    def figures(self) -> tuple[str, ...]:
        """What was measured: `cpu_percent`, `ram_percent`, `ram_used_bytes`, …, `watched_bytes/<label>`."""
        return tuple(self._figures)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        statistics = {name: {"mean": self.mean(name), "peak": self.peak(name)} for name in self._figures}
        return {
            "samples": self.samples,
            "alerts": self.alerts,
            "duration_s": self.duration_s,
            "figures": statistics,
        }

    def _add(self, figure: str, value: float) -> None:
        count, total, peak = self._figures.get(figure, (0, 0.0, value))
        self._figures[figure] = (count + 1, total + value, max(peak, value))


class Sampler:
    """Takes samples when asked; not from two threads at once.

    RAM and CPU limits are those of process `limits_of`, by default this one: to watch a container from
    outside, name a process in it.
    """

    def __init__(
        self,
        threshold_percent: float = 85.0,
        pids: Iterable[int] = (),
        limits_of: int | str = "self",
        root: Path = ROOT,
    ) -> None:
        self.threshold_percent = threshold_percent
        self._limits_of, self._root = limits_of, root
        self._watched: dict[int, tuple[str, psutil.Process]] = {}
        self._start = time.monotonic()
        self._cpu = _CpuMeter(cpu_limit(root, limits_of), limits_of)
        self._has_gpu = bool(gpu_memory())
        for pid in pids:
            self.watch(pid)

    def watch(self, pid: int, label: str | None = None) -> None:
        """Also sample a process and its descendants, until it ends; by default labelled `name (pid)`.

        Raises:
            PressoirError: there is no such process, or it has already ended.
        """
        try:
            process = psutil.Process(pid)
            if not _runs(process):
                raise psutil.NoSuchProcess(pid)
            label = label or f"{process.name()} ({pid})"
        except (psutil.Error, ValueError, OverflowError) as error:
            raise PressoirError(f"there is no process {pid}; `ps` lists running processes") from error
        self._watched[pid] = (label, process)

    def unwatch(self, pid: int) -> None:
        """Sample that process no more."""
        self._watched.pop(pid, None)

    @property
    def watched(self) -> dict[int, str]:
        """Labels of the processes that are watched and had not ended when last sampled, by their ids."""
        return {pid: label for pid, (label, _) in self._watched.items()}

    def sample(self) -> MonitorSample:
        """One sample, now."""
        memory = effective_memory(self._root, self._limits_of)
        pressure = [found.some_avg10 for found in memory_pressure(self._root, self._limits_of)]
        gpus = gpu_memory() if self._has_gpu else ()
        swap_used = memory.swap_total_bytes - memory.swap_free_bytes
        alerts = []
        if memory.used_percent > self.threshold_percent:
            alerts.append(
                f"RAM {memory.used_percent:.1f} % of {memory.effective_bytes / 1e9:.1f} GB "
                f"({memory.limit_source}) is above {self.threshold_percent:g} %"
            )
        for index, gpu in enumerate(gpus):
            percent = 100 * gpu.used_bytes / max(gpu.total_bytes, 1)
            if percent > self.threshold_percent:
                alerts.append(
                    f"GPU {index} memory {percent:.1f} % of {gpu.total_bytes / 1e9:.1f} GB "
                    f"is above {self.threshold_percent:g} %"
                )
        return MonitorSample(
            recorded_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            elapsed_s=round(time.monotonic() - self._start, 3),
            cpu_percent=self._cpu.percent(),
            cpus=self._cpu.cpus,
            ram_percent=round(memory.used_percent, 2),
            ram_used_bytes=memory.used_bytes,
            ram_available_bytes=memory.available_bytes,
            ram_limit_bytes=memory.effective_bytes,
            ram_limit_source=memory.limit_source,
            level=level(memory.used_percent),
            swap_percent=round(100 * swap_used / max(memory.swap_total_bytes, 1), 2),
            swap_used_bytes=swap_used,
            swap_total_bytes=memory.swap_total_bytes,
            pressure_percent=max(pressure, default=None),
            temperature_c=_temperature(),
            gpus=gpus,
            watched=self._sample_watched(),
            alerts=tuple(alerts),
        )

    def _sample_watched(self) -> tuple[Watched, ...]:
        found = []
        for pid, (label, process) in list(self._watched.items()):
            tree = process_tree(pid) if _runs(process) else ()
            if not tree:
                self._watched.pop(pid, None)
                continue
            found.append(Watched(pid, label, sum(member.bytes for member in tree), tree))
        return tuple(found)


class Monitor:
    """A block in which a background thread takes a sample at every interval.

    The first sample is taken on entering, the last on leaving. `on_sample` is called with each, in the thread
    that took it. What is watched never fails because of who watches: a sample that cannot be taken is missed,
    and the log tells of the first.
    """

    def __init__(
        self,
        interval_s: float = 2.0,
        threshold_percent: float = 85.0,
        pids: Iterable[int] = (),
        on_sample: Callable[[MonitorSample], None] | None = None,
    ) -> None:
        self.interval_s = interval_s
        self.samples: list[MonitorSample] = []
        self.summary = Summary()
        self.missed = 0
        self._sampler = Sampler(threshold_percent, pids)
        self._on_sample = on_sample
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pressoir-monitor", daemon=True)

    def watch(self, pid: int, label: str | None = None) -> None:
        """See `Sampler.watch`; at any time, also before the block."""
        self._sampler.watch(pid, label)

    def unwatch(self, pid: int) -> None:
        """Sample that process no more."""
        self._sampler.unwatch(pid)

    def __enter__(self) -> Monitor:
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._take()

    def _run(self) -> None:
        while not self._ended.wait(self.interval_s):
            self._take()

    def _take(self) -> None:
        try:
            sample = self._sampler.sample()
            self.samples.append(sample)
            self.summary.add(sample)
            if self._on_sample is not None:
                self._on_sample(sample)
        except Exception:
            self.missed += 1
            if self.missed == 1:
                log.warning("the monitor missed a sample", exc_info=True)


class _CpuMeter:
    """CPU use since it was last asked: of the cgroup's quota where there is one, else of the affinity."""

    def __init__(self, limit: CpuLimit | None, limits_of: int | str) -> None:
        self._allowed = _affinity(limits_of)
        self.cpus, self._folder = float(len(self._allowed)), None
        if limit is not None and limit.cpus <= self.cpus and cpu_seconds(limit.folder) is not None:
            self.cpus, self._folder = limit.cpus, limit.folder
        self._before = self._read()

    def percent(self) -> float | None:
        now = self._read()
        busy, whole = now[0] - self._before[0], now[1] - self._before[1]
        if whole < _SHORTEST_S * self.cpus:
            return None
        self._before = now
        return round(min(max(100 * busy / whole, 0.0), 100.0), 2)

    def _read(self) -> tuple[float, float]:
        """CPU seconds used, and CPU seconds that there were to use."""
        if self._folder is not None and (used := cpu_seconds(self._folder)) is not None:
            return used, self.cpus * time.monotonic()
        busy = whole = 0.0
        for cpu, times in enumerate(psutil.cpu_times(percpu=True)):
            if cpu in self._allowed:
                guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # in user and nice
                whole += sum(times) - guests
                busy += sum(times) - guests - times.idle - getattr(times, "iowait", 0.0)
        return busy, whole


def _affinity(pid: int | str) -> set[int]:
    """CPUs that a process may run on; all where the system does not tell."""
    everything = set(range(psutil.cpu_count() or 1))
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is None:
        return everything
    try:
        return set(affinity(0 if pid == "self" else int(pid))) & everything or everything
    except OSError:
        return everything


def _runs(process: psutil.Process) -> bool:
    """Whether it is still the same process, and not a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _temperature() -> float | None:
    read = getattr(psutil, "sensors_temperatures", None)  # Linux and FreeBSD
    sensors = read() if read is not None else {}
    for name in _CPU_SENSORS:
        if found := [entry.current for entry in sensors.get(name, ()) if entry.current]:
            return float(max(found))
    return None
