"""CPU settings: the CPUs there really are, limits set before the libraries load, memory given back."""

import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import psutil
import pytest

from pressoir.system import runtime
from pressoir.system.cgroups import CpuLimit


@pytest.fixture
def quota(monkeypatch):
    """Sets the affinity's number of CPUs and the quota of the cgroups."""

    def set_to(cpus, limit):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
        found = None if limit is None else CpuLimit(limit, Path("/a"), "/a/cpu.max")
        monkeypatch.setattr(runtime, "cpu_limit", lambda: found)

    return set_to


@pytest.mark.parametrize(
    ("affinity", "limit", "expected"),
    [(8, None, 8), (8, 2.0, 2), (8, 2.9, 2), (8, 0.4, 1), (2, 16.0, 2), (1, None, 1)],
)
def test_available_cpus_are_the_affinity_and_the_quota_rounded_down(quota, affinity, limit, expected):
    quota(affinity, limit)
    assert runtime.available_cpus() == expected


def run(program, **environment):
    """What a fresh Python prints, as JSON."""
    clean = {name: value for name, value in os.environ.items() if "THREADS" not in name}
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout)


@pytest.mark.process
def test_the_module_itself_loads_no_numeric_library():
    loaded = run("import json, sys, pressoir.system.runtime; print(json.dumps(sorted(sys.modules)))")
    assert not {"numpy", "torch", "transformers", "onnxruntime", "numexpr", "tokenizers"} & set(loaded)


@pytest.mark.process
def test_limits_set_first_reach_every_library():
    found = run(
        "import json, os\n"
        "from pressoir.system.runtime import limit_threads\n"
        "told = limit_threads(1)\n"
        "import torch\n"
        "names = ['OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'NUMEXPR_NUM_THREADS']\n"
        "from pressoir.system.runtime import use_threads\n"
        "use_threads(told); use_threads(told)\n"
        "torch.ones(4) @ torch.ones(4)\n"
        "use_threads(told)\n"
        "print(json.dumps([told, [os.environ[n] for n in names], os.environ['TOKENIZERS_PARALLELISM'],\n"
        "                  torch.get_num_threads(), torch.get_num_interop_threads()]))"
    )
    assert found == [1, ["1"] * 4, "false", 1, 1]


@pytest.mark.process
def test_limits_set_late_still_reach_torch_and_the_log_tells_of_numpy():
    found = run(
        "import json, logging, sys, torch, numpy\n"
        "torch.set_num_interop_threads(3)  # can be set only once\n"
        "told = []\n"
        "handler = logging.Handler(); handler.emit = lambda record: told.append(record.getMessage())\n"
        "logging.getLogger('pressoir').addHandler(handler)\n"
        "from pressoir.system.runtime import limit_threads\n"
        "limit_threads(3)\n"
        "print(json.dumps([torch.get_num_threads(), told]))"
    )
    threads, told = found
    assert threads == 3
    assert any("numpy" in message for message in told)


def test_the_default_is_the_cpus_there_really_are(quota, monkeypatch):
    quota(8, 3.5)
    environment = {}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(runtime, "use_threads", lambda threads: None)
    assert runtime.limit_threads() == 3
    assert environment["OMP_NUM_THREADS"] == "3"


def test_a_childs_environment_is_ours_with_the_limits(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("KEPT", "yes")
    environment = runtime.child_environment(2)
    assert (environment["OMP_NUM_THREADS"], environment["MKL_NUM_THREADS"]) == ("2", "2")
    assert (environment["KEPT"], environment["TOKENIZERS_PARALLELISM"]) == ("yes", "false")
    assert os.environ["OMP_NUM_THREADS"] == "64"


def test_children_side_by_side_do_not_spin_while_they_wait(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert "OMP_WAIT_POLICY" not in runtime.child_environment(2)
    environment = runtime.child_environment(2, side_by_side=True)
    assert (environment["OMP_WAIT_POLICY"], environment["GOMP_SPINCOUNT"]) == ("PASSIVE", "0")


@pytest.mark.process
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "100000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, None)],
)
def test_flows_let_threads_spin_briefly_unless_the_user_has_said_how(given, spins):
    program = (
        "import os, sys; import pressoir.flows\n"
        "assert 'torch' not in sys.modules, 'too late'\n"
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    out = subprocess.run([sys.executable, "-c", program], env=kept | given, capture_output=True, text=True)
    assert out.stdout.strip() == str(spins), out.stderr


@pytest.mark.process
def test_a_process_that_runs_one_model_does_not_import_scikit_learn(tiny_classifier):
    """transformers does wherever it is installed, as it is here."""
    command = ["pressoir.benchmark.probe", tiny_classifier, "--runtime=pytorch", "--threads=1", "--text=good"]
    child = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in child.stderr.splitlines() if "|" in line}
    assert "transformers.generation.candidate_generator" in imported
    assert not {"sklearn", "pandas"} & imported


def test_inference_mode_keeps_no_graph():
    import torch

    weight = torch.ones(2, requires_grad=True)
    with runtime.inference_mode():
        assert (weight * 2).is_inference()
    assert (weight * 2).requires_grad


def test_a_model_is_loaded_without_being_copied(tiny_classifier):
    """Its weights are pages of the file, so they take no memory of the process's own."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny_classifier, **runtime.LOW_MEMORY_LOADING)
    start = model.bert.embeddings.word_embeddings.weight.data_ptr()
    mapped = [
        line.split()
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("model.safetensors")
    ]
    assert any(int(low, 16) <= start < int(high, 16) for low, high in (row[0].split("-") for row in mapped))


class TestReleaseMemory:
    def test_cycles_are_collected(self):
        class Model:
            pass

        model = Model()
        model.itself, gone = model, weakref.ref(model)
        gc.disable()
        try:
            del model
            assert gone() is not None
            runtime.release_memory()
            assert gone() is None
        finally:
            gc.enable()

    def test_what_the_c_library_keeps_is_given_back(self):
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        blocks = []
        for _ in range(2000):
            blocks.append(libc.malloc(60_000))
            ctypes.memset(blocks[-1], 1, 60_000)
        for block in blocks[:-1]:  # the last one lies above the others, and keeps them from being returned
            libc.free(block)
        held = psutil.Process().memory_info().rss
        runtime.release_memory()
        if platform.libc_ver()[0] == "glibc":
            assert held - psutil.Process().memory_info().rss > 60_000_000
        libc.free(blocks[-1])

    @pytest.mark.process
    def test_freed_blocks_are_kept_for_a_while(self):
        """In a process of its own: what others have mapped above the heap keeps it from growing."""
        code = """
            import ctypes, resource
            from pressoir.system import runtime

            libc, size = ctypes.CDLL(None), 100_000_000
            libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

            def faults(rounds):
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                for _ in range(rounds):
                    block = libc.malloc(ctypes.c_size_t(size))
                    ctypes.memset(block, 1, size)
                    libc.free(block)
                return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

            def held():
                return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

            outside = faults(4)
            with runtime.freed_blocks_kept():
                first, inside, before = faults(1), faults(3), held()
            print(outside / first, inside / first, (before - held()) / size)
        """
        if platform.libc_ver()[0] != "glibc":
            return
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
        )
        outside, inside, given_back = map(float, run.stdout.split())
        assert outside > 2, "each round has its pages cleared anew"
        assert inside < 0.1
        assert given_back > 0.9

    @pytest.mark.parametrize("uses_gpu", [True, False])
    def test_the_gpus_cache_is_emptied_only_where_torch_uses_a_gpu(self, monkeypatch, uses_gpu):
        emptied = []

        class Torch:
            class cuda:  # noqa: N801
                is_initialized = staticmethod(lambda: uses_gpu)
                empty_cache = staticmethod(lambda: emptied.append(True))

        monkeypatch.setitem(sys.modules, "torch", Torch)
        runtime.release_memory()
        assert emptied == [True] * uses_gpu

    def test_a_c_library_without_trim_is_fine(self, monkeypatch):
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
        runtime.release_memory()
