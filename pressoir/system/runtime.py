"""CPU settings, in one place: how many threads, how a model is held, and how its memory is given back.

What each setting buys is measured by `benchmarks/cpu_settings.py`.

- **Threads.** Thread limits must be in the environment before the numeric libraries load: `child_environment`
  is what every child process starts with, `limit_threads` what a program calls before its imports,
  `use_threads` what sets torch once it is there. The default is `available_cpus`: libraries count the host's
  CPUs, a container may use fewer.
- **Waiting.** OpenMP's threads spin while they wait for each other: for long they take the CPU from the very
  thread they wait for as soon as another program wants it, not at all they fall asleep between two operators.
  `spin_briefly` is in between; processes side by side do not spin.
- **Inference.** `inference_mode` keeps no graph for a backward pass.
- **Loading.** `LOW_MEMORY_LOADING` are the options of `from_pretrained` that never hold the weights twice.
- **Keeping.** `freed_blocks_kept` while a model trains: each step takes the memory that the last one freed.
- **Giving back.** `release_memory` between two models in one process. What a process does not give back,
  its end does: batch evaluation runs one process a model.

Nothing heavy is imported here, so that it can be imported first.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import platform
import select
import signal
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from pressoir.system.cgroups import cpu_limit

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_CPU_FEATURES = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16"),
    *("amx_int8", "amx_bf16", "asimddp", "i8mm"),
)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_BFLOAT16_FEATURES = ("avx512_bf16", "amx_bf16", "bf16")  # the last is ARM's

BRIEF_SPINNING: Mapping[str, str] = {"GOMP_SPINCOUNT": "100000"}
"""Variable that has GNU OpenMP's threads spin a third as long as they do by themselves."""
LOW_MEMORY_LOADING: Mapping[str, Any] = {"use_safetensors": True}
"""Options of `from_pretrained`. The architecture is built without memory and its weights are mapped from the
safetensors file, so they are not copied and count as pages of the file. Pickled weights would be read whole
into memory. A `dtype` other than the file's makes a copy of each weight."""

log = logging.getLogger("pressoir")


def available_cpus() -> int:
    """CPUs this process may use, at least 1: its affinity, and the CPU quota of its cgroups rounded down."""
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    if (limit := cpu_limit()) is not None:
        cpus = min(cpus, int(limit.cpus))
    return max(cpus, 1)


def thread_environment(threads: int, *, side_by_side: bool = False) -> dict[str, str]:
    """The variables that limit the numeric libraries of a process to `threads` CPU threads.

    `side_by_side`: other processes want the same CPUs. OpenMP's threads then sleep while they wait for each
    other.
    """
    limits = {**dict.fromkeys(_THREAD_VARIABLES, str(threads)), "TOKENIZERS_PARALLELISM": "false"}
    return {**limits, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"} if side_by_side else limits


def spin_briefly() -> None:
    """Set `BRIEF_SPINNING` for this process and its children, unless the user has said how to wait.

    Call it before torch is imported. `benchmarks/cpu_settings.py` measures it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in BRIEF_SPINNING.items():
            os.environ.setdefault(name, value)


def child_environment(threads: int, *, side_by_side: bool = False) -> dict[str, str]:
    """The environment of a child process that is to use `threads` CPU threads, see `thread_environment`."""
    return {**os.environ, **thread_environment(threads, side_by_side=side_by_side)}


def limit_threads(threads: int | None = None) -> int:
    """Limit this process to `threads` CPU threads (default: the available CPUs); return how many.

    Call it before numpy, torch and the like are imported. Torch is set even if it was imported before; of
    the others that are too late for it, the log tells.
    """
    threads = threads or available_cpus()
    os.environ.update(thread_environment(threads))
    if late := sorted({"numpy", "numexpr"} & sys.modules.keys()):
        log.warning("%s imported before its thread limit was set", ", ".join(late))
    if "torch" in sys.modules:
        use_threads(threads)
    return threads


def hide_scikit_learn() -> None:
    """Keep transformers from importing scikit-learn, which takes pandas along: 110 MB and a second.

    It does so wherever that is installed, for generation that is assisted by a smaller model, which nothing
    here uses. For processes that run one model; before they import transformers.
    """
    sys.modules.setdefault("sklearn", cast(ModuleType, None))


def use_threads(threads: int) -> None:
    """Limit torch and the tokenizers of this process to `threads` CPU threads."""
    import torch

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        # One model runs one operator at a time. Torch allows this once, before the first parallel work.
        with suppress(RuntimeError):
            torch.set_num_interop_threads(1)


def inference_mode() -> AbstractContextManager[Any]:
    """A block in which torch keeps nothing for a backward pass, and no version counters either."""
    import torch

    return torch.inference_mode()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread: at batch 1 more gain little, and cost much where cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def release_memory() -> None:
    """Give back what a dropped model held: cycles, the C library's free blocks, torch's GPU cache.

    Drop every reference to the model first. The GPU is touched only if torch already uses it.
    """
    gc.collect()
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        cuda.empty_cache()
    with suppress(AttributeError, OSError):  # glibc's own; musl and macOS have none
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def freed_blocks_kept() -> Iterator[None]:
    """A block in which the C library keeps freed memory for reuse, which a training takes again each step.

    Otherwise it gives large blocks back to the system, and clears their pages anew each time.
    """
    _mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    _mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:  # where glibc's own adjustment ends
        _mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        _mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        release_memory()


def map_large_blocks() -> None:
    """From now on, have the C library map every block of 1 MB or more, and give it back when it is freed.

    Otherwise it comes to keep blocks of up to 32 MB for reuse, which is faster, but leaves memory in pieces:
    after a batch that was too large, even smaller ones would find no room.
    """
    _mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _mallopt(name: int, value: int) -> None:
    with suppress(AttributeError, OSError):  # glibc's own; musl and macOS have none
        ctypes.CDLL(None).mallopt(name, value)


def describe_machine(threads: int) -> dict[str, str]:
    """CPU model, vector features that matter for int8 and bf16, and thread count, for the benchmark."""
    model, flags = _cpu()
    features = " ".join(feature for feature in _CPU_FEATURES if feature in flags) or "none known"
    return {
        "cpu": model,
        "cpu_features": features,
        "cpus": str(available_cpus()),
        "threads": str(threads),
        "system": platform.platform(),
    }


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 numbers by itself."""
    return not _cpu()[1].isdisjoint(_BFLOAT16_FEATURES)


def _cpu() -> tuple[str, set[str]]:
    """The CPU's model and its flags."""
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
    return model, flags


def machine_of(threads: int) -> dict[str, str]:
    """What of the machine decides how fast a program is, and how its sums are rounded."""
    found = describe_machine(threads)
    return {name: found[name] for name in ("cpu", "cpu_features", "threads")}


def end_with_parent() -> None:
    """Have the kernel end this process as soon as the pipe that is its standard input closes.

    The pipe's other end closes when the parent ends, however it does. The kernel then sends SIGIO, whose
    default is to end the process, in the midst of native code too, where a thread of Python's that watches
    the pipe would wait. (`PR_SET_PDEATHSIG` fires when the parent's *thread* ends that started this process.)
    """
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return
    import fcntl

    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    pipe = select.poll()
    pipe.register(0, 0)
    if pipe.poll(0):  # it closed before we asked to be told
        os._exit(1)
