"""How much memory there really is: the machine's, or what its cgroups leave of it.

What can still be taken is the least of

- what the machine has available (`MemAvailable`, which is what psutil gives), and
- for the process's cgroup and every ancestor: limit − usage + inactive_file.

A cgroup's usage counts the files it has read; the kernel drops those that nobody used lately
(`inactive_file`, of the descendants too: `total_inactive_file` in version 1) before it kills anybody. The
active ones stay counted, to be on the safe side.

`memory.high` (version 2) counts as a limit too. Above it nobody is killed, but the kernel makes every
allocation wait until something was reclaimed, and a run that needs the memory stands still.
`memory.soft_limit_in_bytes` (version 1) does not count: it only decides who gives way when the whole machine
is short.

A process's memory is its proportional set size (PSS): pages that several processes share are divided among
them, so that the sum over processes is what they really take together. Resident size (RSS) counts shared
pages in each; it stands in where the kernel does not report the PSS, which is then noted.

Bytes are bytes; nothing here loads a model or a heavy library. Sources: see `pressoir.system.cgroups`;
Linux kernel documentation, accounting/psi.rst, filesystems/proc.rst (smaps_rollup).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pressoir.system.cgroups import ROOT, Files, hierarchies

MACHINE = "machine"
"""What `limit_source` says where no cgroup is tighter than the machine's own memory."""
_NVIDIA_SMI_S = 10.0


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a process: what its machine has, and what its cgroups allow."""

    total_bytes: int
    """RAM of the machine."""
    available_bytes: int
    """What can still be taken before something is killed, throttled or swapped; never negative."""
    available_source: str
    """The file whose limit leaves no more than that, or `machine`."""
    limit_bytes: int | None
    """The tightest cgroup limit below the machine's RAM; None where there is none."""
    limit_source: str
    """The file that sets it, or `machine`."""
    swap_total_bytes: int
    """Swap that may be used."""
    swap_free_bytes: int
    """What is left of it."""
    cgroups: tuple[str, ...]
    """Cgroup folders that were looked into, the process's own first."""
    notes: tuple[str, ...]
    """What could not be read, and what was assumed instead."""

    @property
    def effective_bytes(self) -> int:
        """What there is in all: the limit, or the machine's RAM."""
        return self.total_bytes if self.limit_bytes is None else self.limit_bytes

    @property
    def used_bytes(self) -> int:
        """What of that can not be taken any more."""
        return max(self.effective_bytes - self.available_bytes, 0)

    @property
    def used_percent(self) -> float:
        """Used fraction of the effective limit, 0–100."""
        return 100 * self.used_bytes / max(self.effective_bytes, 1)


@dataclass(frozen=True, slots=True)
class Pressure:
    """Pressure stall information: the fraction of the time in which tasks waited for memory, in percent."""

    source: str
    some_avg10: float
    """At least one task waited, last 10 s."""
    some_avg60: float
    full_avg10: float
    """Every task waited at once, last 10 s."""
    full_avg60: float


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """One process's memory."""

    pid: int
    name: str
    bytes: int
    measure: Literal["pss", "rss"]
    """`rss` where the PSS may not be read (another user's process) or the system has none."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """One GPU."""

    name: str
    total_bytes: int
    used_bytes: int
    """By all processes."""
    busy_percent: float | None
    """Fraction of the time in which a kernel ran, in percent; None where it is not reported."""


@dataclass(frozen=True)
class _Bound:
    """One limit, and what it leaves."""

    limit: int
    available: int
    source: str


def effective_memory(root: Path = ROOT, pid: int | str = "self") -> Memory:
    """The memory that process `pid` can use, by the files under `root`."""
    files = Files(root)
    total, available, swap_total, swap_free = _machine(files)
    bounds, cgroups = [_Bound(total, available, MACHINE)], []
    for hierarchy in hierarchies("memory", files, pid):
        for folder in hierarchy.folders:
            cgroups.append(files.shown(folder))
            bounds += _bounds(files, folder, hierarchy.version)
            allowed, used = _swap(files, folder, hierarchy.version)
            if allowed is not None:
                swap_total = min(swap_total, allowed)
                swap_free = max(min(swap_free, allowed - used), 0)
        if hierarchy.version == 1:
            bounds += _hidden_bound(files, hierarchy.folders[-1])
    limit = min(bounds, key=lambda bound: bound.limit)
    least = min(bounds, key=lambda bound: bound.available)
    if least.source.endswith("memory.high"):
        files.note(
            f"{least.source} is a soft limit: above it, the kernel throttles processes instead of killing "
            "them"
        )
    return Memory(
        total_bytes=total,
        available_bytes=least.available,
        available_source=least.source,
        limit_bytes=None if limit.source == MACHINE else limit.limit,
        limit_source=limit.source,
        swap_total_bytes=swap_total,
        swap_free_bytes=swap_free,
        cgroups=tuple(cgroups),
        notes=tuple(files.notes),
    )


def memory_pressure(root: Path = ROOT, pid: int | str = "self") -> tuple[Pressure, ...]:
    """Memory pressure of the machine, then of the process's own cgroup, where the kernel keeps it.

    Two entries at most; none where the kernel was built or started without it (`psi=0`).
    """
    files = Files(root)
    sources = [root / "proc" / "pressure" / "memory"]
    for hierarchy in hierarchies("memory", files, pid):
        if hierarchy.version == 2:
            sources.append(hierarchy.folders[0] / "memory.pressure")
    return tuple(found for source in sources if (found := _pressure(files, source)) is not None)


def process_tree(pid: int, root: Path = ROOT) -> tuple[ProcessMemory, ...]:
    """Memory of a process and of all its descendants, the process itself first; empty once it has ended.

    A descendant whose parent ended before it belongs to init and is not found.
    """
    if not (root / "proc" / "stat").exists():
        return _tree_by_psutil(pid)
    files, stats = Files(root), {}
    for folder in (root / "proc").iterdir():
        if folder.name.isdigit() and (stat := _stat(files, folder)) is not None:
            stats[int(folder.name)] = stat
    children: dict[int, list[int]] = {}
    for child, (_, parent) in sorted(stats.items()):
        children.setdefault(parent, []).append(child)
    found, waiting = [], [pid] if pid in stats else []
    while waiting:
        current = waiting.pop(0)
        if (memory := _process(files, current, stats[current][0])) is not None:
            found.append(memory)
        waiting += children.get(current, [])
    return tuple(found) if found and found[0].pid == pid else ()


def pss_bytes(pid: int, root: Path = ROOT, *, children: bool = True) -> int:
    """Proportional set size of a process, with descendants unless `children` is false; 0 once it has ended.

    `process_tree` says which parts of it had to be counted by RSS.
    """
    if not children and (root / "proc" / "stat").exists():
        memory = _process(Files(root), pid, "")
        return memory.bytes if memory is not None else 0
    tree = process_tree(pid, root)
    return sum(process.bytes for process in (tree if children else tree[:1]))


def gpu_memory() -> tuple[GpuMemory, ...]:
    """The GPUs: from torch if this process already uses one through it, else from `nvidia-smi` if installed.

    A torch that has not touched the GPU is left alone: asking it would itself take GPU memory.
    """
    torch: Any = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and cuda.is_initialized():
        found = []
        for index in range(cuda.device_count()):
            free, total = cuda.mem_get_info(index)
            found.append(GpuMemory(cuda.get_device_name(index), total, total - free, None))
        return tuple(found)
    program = shutil.which("nvidia-smi")
    return _nvidia_smi(program) if program else ()


def _machine(files: Files) -> tuple[int, int, int, int]:
    """RAM in all, RAM available, swap in all, swap free."""
    kernel = files.table(files.root / "proc" / "meminfo")
    if {"MemTotal", "MemAvailable"} <= kernel.keys():
        total = kernel["MemTotal"]
        # In an LXC container the total may be less than what is available on the host.
        available = min(kernel["MemAvailable"], total)
        return total, available, kernel.get("SwapTotal", 0), kernel.get("SwapFree", 0)
    import psutil

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return memory.total, memory.available, swap.total, swap.free


def _bounds(files: Files, folder: Path, version: int) -> list[_Bound]:
    """What the limits of one cgroup leave."""
    pairs = [("memory.max", "memory.current"), ("memory.high", "memory.current")]
    if version == 1:
        # memsw limits memory and swap together: swapping does not make room under it
        pairs = [
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"),
        ]
    bounds = []
    for limit_name, usage_name in pairs:
        if (limit := files.bytes_limit(folder / limit_name)) is not None:
            bounds.append(_bound(files, folder, version, limit, usage_name, files.shown(folder / limit_name)))
    return bounds


def _bound(files: Files, folder: Path, version: int, limit: int, usage_name: str, source: str) -> _Bound:
    usage = files.bytes_limit(folder / usage_name)
    if usage is None:
        files.note(f"{files.shown(folder / usage_name)} reports no usage; the whole limit is taken as free")
    stat = files.table(folder / "memory.stat")
    reclaimable = stat.get("inactive_file", 0)
    if version == 1:
        reclaimable = stat.get("total_inactive_file", reclaimable)
    free = limit - (usage or 0) + reclaimable
    return _Bound(limit, max(min(free, limit), 0), source)


def _hidden_bound(files: Files, folder: Path) -> list[_Bound]:
    """Version 1: a limit above the mount's root, which only `hierarchical_memory_limit` tells."""
    source = folder / "memory.stat"
    hidden = files.table(source).get("hierarchical_memory_limit")
    own = files.bytes_limit(folder / "memory.limit_in_bytes")
    machine = files.table(files.root / "proc" / "meminfo").get("MemTotal", hidden)
    if hidden is None or machine is None or hidden >= (machine if own is None else min(own, machine)):
        return []
    files.note(
        f"{files.shown(source)}: a parent cgroup that is not mounted limits memory to {hidden} bytes; "
        "usage by its other members is not visible here"
    )
    shown = f"{files.shown(source)} (hierarchical_memory_limit)"
    return [_bound(files, folder, 1, hidden, "memory.usage_in_bytes", shown)]


def _swap(files: Files, folder: Path, version: int) -> tuple[int | None, int]:
    """Swap that a cgroup allows (None: all there is), and what it uses of it."""
    if version == 2:
        used = files.bytes_limit(folder / "memory.swap.current")
        return files.bytes_limit(folder / "memory.swap.max"), used or 0
    both = files.bytes_limit(folder / "memory.memsw.limit_in_bytes")
    memory = files.bytes_limit(folder / "memory.limit_in_bytes")
    if both is None or memory is None:
        return None, 0
    stat = files.table(folder / "memory.stat")
    return max(both - memory, 0), stat.get("total_swap", stat.get("swap", 0))


def _pressure(files: Files, source: Path) -> Pressure | None:
    averages = {
        (kind, window): float(value)
        for kind, rest in re.findall(r"^(some|full) (.*)$", files.text(source) or "", flags=re.M)
        for window, value in re.findall(r"avg(\d+)=([\d.]+)", rest)
    }
    if ("some", "10") not in averages:
        return None
    keys = (("some", "10"), ("some", "60"), ("full", "10"), ("full", "60"))
    return Pressure(files.shown(source), *(averages.get(key, 0.0) for key in keys))


def _stat(files: Files, folder: Path) -> tuple[str, int] | None:
    """Name and parent of a process; None once it is gone."""
    # The name is in parentheses and may itself hold parentheses and spaces.
    before, closing, after = (files.text(folder / "stat") or "").rpartition(")")
    fields = after.split()
    if not closing or len(fields) < 2:
        return None
    name = before.partition("(")[2]
    return "".join(letter if letter.isprintable() else "?" for letter in name), int(fields[1])


def _process(files: Files, pid: int, name: str) -> ProcessMemory | None:
    folder = files.root / "proc" / str(pid)
    if (pss := files.table(folder / "smaps_rollup").get("Pss")) is not None:
        return ProcessMemory(pid, name, pss, "pss")
    # A kernel thread has no resident size, nor has a process that has ended and that nobody has waited for.
    resident = files.table(folder / "status").get("VmRSS")
    return ProcessMemory(pid, name, resident, "rss") if resident is not None else None


def _tree_by_psutil(pid: int) -> tuple[ProcessMemory, ...]:
    """Where there is no /proc (macOS)."""
    import psutil

    found = []
    try:
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            found.append(ProcessMemory(member.pid, member.name(), member.memory_info().rss, "rss"))
    except psutil.Error:
        return tuple(found)
    return tuple(found)


def _nvidia_smi(program: str) -> tuple[GpuMemory, ...]:
    fields = "memory.total,memory.used,utilization.gpu,name"
    try:
        answer = subprocess.run(
            [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_S,
            check=True,
            env={**os.environ, "LC_ALL": "C"},
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = []
    for line in answer.splitlines():
        total, used, busy, name = ([field.strip() for field in line.split(",", 3)] + [""] * 4)[:4]
        if total.isdigit() and used.isdigit():  # `[N/A]` on GPUs that share the machine's RAM
            percent = float(busy) if busy.isdigit() else None
            found.append(GpuMemory(name, int(total) << 20, int(used) << 20, percent))
    return tuple(found)


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, MB."""
    if (value := _status("VmHWM")) is not None:
        return value
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def rss_mb() -> float:
    """Resident memory of this process now, MB."""
    if (value := _status("VmRSS")) is not None:
        return value
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e6


def _status(field: str) -> float | None:
    """A field of `/proc/self/status` in MB; None where the system has none."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6  # the kernel's "kB" are KiB
    return None
