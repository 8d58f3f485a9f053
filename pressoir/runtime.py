"""CPU settings, in one place: how many threads, and how the libraries are told.

Thread limits must be in the environment before the numeric libraries load; `child_environment` is what every
child process starts with, `use_threads` what this process does once torch is there.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_CPU_FEATURES = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16"),
    *("amx_int8", "amx_bf16", "asimddp", "i8mm"),
)


def available_cpus() -> int:
    """CPUs this process may use (its affinity), at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def child_environment(threads: int) -> dict[str, str]:
    """The environment of a child process that is to use `threads` CPU threads."""
    limits = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    return {**os.environ, **limits, "TOKENIZERS_PARALLELISM": "false"}


def use_threads(threads: int) -> None:
    """Limit torch and the tokenizers of this process to `threads` CPU threads."""
    import torch

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(threads)


def describe_machine(threads: int) -> dict[str, str]:
    """CPU model, vector features that matter for int8 and bf16, and thread count, for the benchmark."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    features = " ".join(feature for feature in _CPU_FEATURES if feature in flags) or "none known"
    return {
        "cpu": model,
        "cpu_features": features,
        "cpus": str(available_cpus()),
        "threads": str(threads),
        "system": platform.platform(),
    }
