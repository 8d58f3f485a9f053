"""The monitor: what a sample says, which processes it follows, and that it never disturbs what it watches."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections import namedtuple

import psutil
import pytest

from pressoir.errors import PressoirError
from pressoir.system import monitor as module
from pressoir.system.memory import GpuMemory
from pressoir.system.monitor import Monitor, Sampler, Summary, level

GB = 10**9


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A fake machine of 16 GB whose cgroup allows 4 GB; call it with the bytes used there."""
    monkeypatch.setattr(module, "gpu_memory", lambda: ())
    group = tmp_path / "sys/fs/cgroup/app"
    for folder in (group, tmp_path / "proc/self", tmp_path / "proc/pressure"):
        folder.mkdir(parents=True)
    kib = 16 * GB // 1024
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {kib} kB\nMemAvailable: {kib} kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/app\n")
    (tmp_path / "proc/self/mountinfo").write_text("42 32 0:36 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (group / "memory.max").write_text(f"{4 * GB}\n")

    def use(used, **files):
        (group / "memory.current").write_text(f"{used}\n")
        for name, text in files.items():
            (group / name.replace("_", ".")).write_text(text)
        return tmp_path

    return use


@pytest.fixture
def start():
    """Starts a Python program that prints a line when it is ready and ends when its input does."""
    children = []

    def run(program):
        child = subprocess.Popen(
            [sys.executable, "-c", f"{program}\nprint('ready', flush=True)\ninput()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        children.append(child)
        assert child.stdout.readline() == b"ready\n"
        return child

    yield run
    for child in children:
        end(child)


def end(child):
    child.stdin.close()
    child.stdout.close()
    child.wait()


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(0, "OPTIMAL"), (49.9, "OPTIMAL"), (50, "MODERATE"), (70, "MODERATE"), (70.1, "HIGH"), (100, "HIGH")],
)
def test_levels(percent, expected):
    assert level(percent) == expected


def test_ram_is_of_the_effective_limit_not_of_the_machine(container):
    sample = Sampler(root=container(3 * GB)).sample()
    assert (sample.ram_percent, sample.level) == (75.0, "HIGH")
    assert (sample.ram_used_bytes, sample.ram_available_bytes) == (3 * GB, GB)
    assert (sample.ram_limit_bytes, sample.ram_limit_source) == (4 * GB, "/sys/fs/cgroup/app/memory.max")


def test_an_alert_is_above_the_threshold_and_names_the_limit(container):
    sampler = Sampler(75, root=container(3 * GB))
    assert sampler.sample().alerts == ()
    container(3 * GB + GB // 10)
    (alert,) = sampler.sample().alerts
    assert alert == "RAM 77.5 % of 4.0 GB (/sys/fs/cgroup/app/memory.max) is above 75 %"


def test_a_gpu_has_alerts_too(container, monkeypatch):
    monkeypatch.setattr(module, "gpu_memory", lambda: (GpuMemory("T4", 16 * GB, 15 * GB, 3.0),))
    sample = Sampler(root=container(0)).sample()
    assert sample.gpus[0].name == "T4"
    assert sample.alerts == ("GPU 0 memory 93.8 % of 16.0 GB is above 85 %",)


def test_pressure_is_the_worse_of_machine_and_cgroup(container):
    root = container(0)
    assert Sampler(root=root).sample().pressure_percent is None
    line = "some avg10={} avg60=0.00 avg300=0.00 total=0\n"
    (root / "proc/pressure/memory").write_text(line.format("1.00"))
    container(0, memory_pressure=line.format("7.50"))
    assert Sampler(root=root).sample().pressure_percent == 7.5


def test_a_sample_is_json(container):
    sampler = Sampler(root=container(GB), pids=[os.getpid()])
    read = json.loads(json.dumps(sampler.sample().to_dict()))
    assert read["ram_percent"] == 25.0
    assert read["watched"][0]["processes"][0]["pid"] == os.getpid()


class TestCpu:
    Times = namedtuple("Times", "user system idle iowait guest guest_nice")

    def test_it_is_a_share_of_the_cgroups_quota(self, container, monkeypatch):
        monkeypatch.setattr(module, "_affinity", lambda pid: {0, 1, 2, 3})
        now = [100.0]
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
        root = container(0, cpu_max="200000 100000\n", cpu_stat="usage_usec 1000000\n")
        sampler = Sampler(root=root)
        now[0] += 1
        container(0, cpu_stat="usage_usec 2500000\n")
        sample = sampler.sample()
        assert (sample.cpus, sample.cpu_percent) == (2.0, 75.0)

    def test_without_a_quota_it_is_a_share_of_the_cpus_of_the_affinity(self, container, monkeypatch):
        monkeypatch.setattr(module, "_affinity", lambda pid: {1})
        idle, busy = self.Times(0, 0, 10, 5, 0, 0), self.Times(9, 0, 0, 0, 0, 0)
        at = [[idle, idle, busy]]
        monkeypatch.setattr(psutil, "cpu_times", lambda percpu: at[-1])
        sampler = Sampler(root=container(0))
        at.append([busy, self.Times(user=1, system=1, idle=11, iowait=6, guest=1, guest_nice=0), busy])
        sample = sampler.sample()
        assert (sample.cpus, sample.cpu_percent) == (1.0, 50.0)  # guest time is in user time

    def test_a_moment_too_short_to_tell_is_none_and_counts_with_the_next(self, container, monkeypatch):
        monkeypatch.setattr(module, "_affinity", lambda pid: {0})
        at = [self.Times(0, 0, 0, 0, 0, 0)]
        monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [at[-1]])
        sampler = Sampler(root=container(0))
        at.append(self.Times(0.05, 0, 0, 0, 0, 0))
        assert sampler.sample().cpu_percent is None
        at.append(self.Times(0.05, 0, 0.05, 0, 0, 0))
        assert sampler.sample().cpu_percent == 50.0


class TestTemperature:
    Entry = namedtuple("Entry", "label current high critical")

    def test_it_is_the_hottest_of_the_cpus_sensors(self, container, monkeypatch):
        found = {
            "nvme": [self.Entry("", 90.0, None, None)],
            "coretemp": [self.Entry("0", 51.0, None, None), self.Entry("1", 54.0, None, None)],
        }
        monkeypatch.setattr(psutil, "sensors_temperatures", lambda: found, raising=False)
        assert Sampler(root=container(0)).sample().temperature_c == 54.0
        del found["coretemp"]
        assert Sampler(root=container(0)).sample().temperature_c is None

    def test_a_system_without_sensors_tells_none(self, container, monkeypatch):
        monkeypatch.delattr(psutil, "sensors_temperatures", raising=False)
        assert Sampler(root=container(0)).sample().temperature_c is None


@pytest.mark.process
class TestWatched:
    def test_a_process_counts_with_its_children(self, start):
        child = start(
            "import subprocess, sys\n"
            "held = b'x' * 20_000_000\n"
            "inner = \"held = b'x' * 30_000_000; print('up', flush=True); input()\"\n"
            "inner = subprocess.Popen([sys.executable, '-c', inner], stdout=subprocess.PIPE)\n"
            "inner.stdout.readline()"
        )
        sampler = Sampler()
        sampler.watch(child.pid, "model-a")
        (watched,) = sampler.sample().watched
        assert (watched.pid, watched.label) == (child.pid, "model-a")
        assert len(watched.processes) == 2
        assert 50_000_000 < watched.bytes < 150_000_000
        assert watched.bytes == sum(one.bytes for one in watched.processes)

    def test_one_that_ends_is_no_longer_there_also_as_a_zombie(self, start):
        child = start("")
        sampler = Sampler(pids=[child.pid])
        assert sampler.watched[child.pid].endswith(f"({child.pid})")
        assert len(sampler.sample().watched) == 1
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, but not yet waited for
        assert sampler.sample().watched == ()
        assert sampler.watched == {}

    def test_one_that_does_not_exist_or_has_ended_cannot_be_watched(self, start):
        child = start("")
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        for pid in (child.pid, 2**22 + 1, -1):
            with pytest.raises(PressoirError, match=f"no process {pid}"):
                Sampler(pids=[pid])

    def test_one_can_be_let_go(self, start):
        sampler = Sampler(pids=[start("").pid])
        sampler.unwatch(next(iter(sampler.watched)))
        assert sampler.sample().watched == ()


class TestMonitor:
    def test_the_block_is_sampled_from_its_start_to_its_end(self):
        sampled = threading.Semaphore(0)
        monitor = Monitor(interval_s=0.01, on_sample=lambda sample: sampled.release())
        with monitor:
            assert monitor.samples  # the first is there at once
            for _ in range(5):
                assert sampled.acquire(timeout=60)
        assert len(monitor.samples) >= 6
        assert "pressoir-monitor" not in {thread.name for thread in threading.enumerate()}
        times = [sample.elapsed_s for sample in monitor.samples]
        assert times == sorted(times)
        assert monitor.summary.samples == len(monitor.samples)

    @pytest.mark.process
    def test_a_child_started_in_the_block_is_watched_from_then_on(self, start):
        with Monitor(interval_s=60) as monitor:
            child = start("held = b'x' * 20_000_000")
            monitor.watch(child.pid, "child")
        assert [len(sample.watched) for sample in monitor.samples] == [0, 1]
        assert monitor.summary.peak("watched_bytes/child") > 20_000_000

    def test_what_is_watched_does_not_fail_with_its_watcher(self, caplog):
        def fail(sample):
            raise OSError("disk full")

        with Monitor(interval_s=60, on_sample=fail) as monitor:
            work = "done"
        assert work == "done"
        assert monitor.missed == 2
        assert caplog.text.count("missed a sample") == 1

    def test_an_error_in_the_block_ends_it_and_is_raised(self):
        with pytest.raises(ValueError, match="in the block"), Monitor(interval_s=60) as monitor:
            raise ValueError("in the block")
        assert len(monitor.samples) == 2


def test_the_summary_has_mean_and_peak_of_what_was_there(container):
    sampler = Sampler(50, root=container(GB))
    first = dataclasses.replace(sampler.sample(), cpu_percent=None)
    container(3 * GB)
    second = dataclasses.replace(sampler.sample(), cpu_percent=40.0, elapsed_s=9.5)
    summary = Summary()
    for sample in (first, second):
        summary.add(sample)
    assert (summary.samples, summary.alerts, summary.duration_s) == (2, 1, 9.5)
    assert (summary.mean("ram_percent"), summary.peak("ram_percent")) == (50.0, 75.0)
    assert (summary.mean("cpu_percent"), summary.peak("cpu_percent")) == (40.0, 40.0)
    assert "temperature_c" not in summary.figures()
    assert summary.to_dict()["figures"]["ram_used_bytes"] == {"mean": 2 * GB, "peak": 3 * GB}
