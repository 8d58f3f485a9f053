"""How busy a machine is with other programs, while something on it is timed."""

from __future__ import annotations

import time

import psutil


class FreeCpus:
    """CPUs of the machine that other programs leave free from now on.

    Other virtual machines on the same hardware count where the system reports them (steal time). The
    counters are those of the whole machine, also inside a container; they tick a hundred times a second.
    """

    def __init__(self) -> None:
        self._began, self._used = time.monotonic(), _used_by_others()

    def mean(self) -> float:
        """Mean number of CPUs, since this was made; what this process uses of them counts as free."""
        passed = max(time.monotonic() - self._began, 1e-3)
        used = max(0.0, (_used_by_others() - self._used) / passed)
        return max(0.0, (psutil.cpu_count() or 1) - used)


def _used_by_others() -> float:
    """Seconds of CPU time of the whole machine, without this process and its children."""
    everybody, own = psutil.cpu_times(), psutil.Process().cpu_times()
    busy = sum(
        getattr(everybody, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal")
    )
    children = own.children_user + own.children_system if hasattr(own, "children_user") else 0.0
    return float(busy - own.user - own.system - children)
