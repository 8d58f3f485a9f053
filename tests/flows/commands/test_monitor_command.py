"""`pressoir monitor`: lines and views, the log, and every way in which it ends."""

import io
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from rich.console import Console

from pressoir.flows.cli import _Group
from pressoir.flows.commands import monitor
from pressoir.system import monitor as monitoring


def run(*words):
    group = _Group("pressoir")
    group.add_command(monitor.monitor)
    return CliRunner().invoke(group, ["monitor", "--interval", "0.1", *map(str, words)])


@pytest.fixture
def child():
    """A process that ends when its input does."""
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    yield process
    process.stdin.close()
    process.wait()


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 100 × 30; its value is called for what was written."""
    written = io.StringIO()
    monkeypatch.setattr(
        monitor,
        "console",
        Console(file=written, force_terminal=True, width=100, height=30, _environ={"TERM": "xterm"}),
    )
    return lambda: re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue())


def test_outside_of_a_terminal_each_sample_is_a_line_and_a_summary_follows():
    result = run("--count", 3)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    for line in lines[:3]:
        assert re.match(
            r"\d\d:\d\d:\d\d  CPU \S+( %)?  RAM \d+\.\d % of \d+\.\d GB (OPTIMAL|MODERATE|HIGH)", line
        )
    assert re.search(r"RAM % +\d+\.\d +\d+\.\d", result.stdout)
    assert re.match(r"3 samples in \d+ s, 0 above 85 %", lines[-1])


def test_the_log_has_one_object_a_sample_and_is_appended_to(tmp_path):
    log = tmp_path / "monitor.jsonl"
    run("--count", 2, "--log", log)
    run("--count", 1, "--log", log)
    samples = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(samples) == 3
    assert all(0 < sample["ram_percent"] <= 100 for sample in samples)
    assert samples[0]["recorded_at"] < samples[1]["recorded_at"] < samples[2]["recorded_at"]


def test_a_line_that_a_kill_cut_off_does_not_spoil_the_next(tmp_path):
    log = tmp_path / "monitor.jsonl"
    log.write_text('{"a": 1}\n{"cut o')
    run("--count", 1, "--log", log)
    first, cut, last = log.read_text().splitlines()
    assert (first, cut) == ('{"a": 1}', '{"cut o')
    assert "ram_percent" in json.loads(last)


def test_each_sample_is_in_the_log_before_the_next_is_taken(tmp_path, monkeypatch):
    log, seen = tmp_path / "monitor.jsonl", []
    take = monitoring.Sampler.sample

    def sample(self):
        seen.append(len(log.read_text().splitlines()))
        return take(self)

    monkeypatch.setattr(monitoring.Sampler, "sample", sample)
    run("--count", 3, "--log", log)
    assert seen == [0, 1, 2]


def test_an_alert_is_in_its_line_and_counted():
    result = run("--count", 1, "--threshold", 0.001)
    assert "ALERT RAM" in result.stdout.splitlines()[0]
    assert "1 sample in 0 s, 1 above 0.001 %" in result.stdout


class TestMistakes:
    def test_a_process_that_does_not_exist(self, tmp_path):
        result = run("--pid", 2**22 + 1, "--log", tmp_path / "log")
        assert result.exit_code == 2
        assert f"there is no process {2**22 + 1}" in result.stderr
        assert not (tmp_path / "log").exists()

    def test_a_log_that_cannot_be_written(self, tmp_path):
        result = run("--log", tmp_path / "missing" / "log")
        assert result.exit_code == 2
        assert "missing/log" in result.stderr.replace("\n", "")

    def test_a_log_that_becomes_full(self):
        result = run("--log", "/dev/full")
        assert result.exit_code == 2
        assert "No space left" in result.stderr

    @pytest.mark.parametrize(
        "words", [("--threshold", 0), ("--threshold", 101), ("--interval", 0), ("--pid", 0), ("--count", 0)]
    )
    def test_values_out_of_range(self, words):
        result = run(*words)
        assert result.exit_code == 2
        assert words[0] in result.stderr


def test_it_shows_the_memory_of_a_process_and_its_children():
    result = run("--count", 1, "--pid", os.getpid())
    assert re.search(rf"\({os.getpid()}\) PSS [\d,.]+ MB", result.stdout.splitlines()[0])


@pytest.mark.process
def test_it_ends_with_the_process_it_watches(child, monkeypatch):
    take, samples = monitoring.Sampler.sample, []

    def sample(self):
        if len(samples) == 2:
            child.stdin.close()
            child.wait()
        samples.append(take(self))
        return samples[-1]

    monkeypatch.setattr(monitoring.Sampler, "sample", sample)
    result = run("--pid", child.pid)
    assert result.exit_code == 0, result.output
    assert f"({child.pid}) has ended" in result.stdout
    assert "2 samples" in result.stdout


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_summary(number, tmp_path):
    program = "from pressoir.flows.commands.monitor import monitor; monitor()"
    log = tmp_path / "log"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--interval", "0.1", "--log", str(log)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = process.stdout.readline()
    process.send_signal(number)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "RAM" in first
    assert re.search(r"\d+ samples? in \d+ s, 0 above 85 %", rest)
    assert all(json.loads(line) for line in log.read_text().splitlines())


class TestLiveView:
    def test_it_shows_every_figure_and_the_processes(self, terminal):
        run("--count", 2, "--pid", os.getpid())
        text = terminal()
        for part in (
            "CPU",
            "RAM",
            "swap",
            "limit:",
            "OPTIMAL",
            "every 0.1 s, alert above 85 %",
            "PID",
            "sum",
        ):
            assert part in text, part
        assert str(os.getpid()) in text
        assert "2 samples" in text

    def test_an_alert_stays_above_the_view_and_is_told_once(self, terminal):
        run("--count", 3, "--threshold", 0.001)
        lines = [line for line in terminal().splitlines() if "above 0.001 %" in line and "│" not in line]
        told = [line for line in lines if re.search(r"\d\d:\d\d:\d\d RAM", line)]
        assert len(told) == 1

    def test_gpu_and_temperature_are_shown_where_there_are_any(self, terminal, monkeypatch):
        from pressoir.system.memory import GpuMemory

        gpu = GpuMemory("NVIDIA [H100]", 80 * 10**9, 60 * 10**9, 45.0)
        monkeypatch.setattr(monitoring, "gpu_memory", lambda: (gpu,))
        monkeypatch.setattr(monitoring, "_temperature", lambda: 54.3)
        run("--count", 1)
        assert "54 °C" in terminal()
        assert re.search(r"GPU 0 .* 75\.0 % .*HIGH .*60\.0 GB of 80\.0 GB, 45 % busy", terminal())

    def test_more_processes_than_fit_are_counted(self, terminal, monkeypatch):
        from pressoir.system.memory import ProcessMemory

        tree = tuple(ProcessMemory(pid, f"worker-{pid}", pid * 10**6, "rss") for pid in range(100, 160))
        monkeypatch.setattr(monitoring, "process_tree", lambda pid: tree)
        run("--count", 1, "--pid", os.getpid())
        text = terminal()
        assert "worker-159" in text  # the largest
        assert "worker-100" not in text
        assert "60 processes, 40 not shown" in text
        assert "(RSS)" in text

    def test_a_name_cannot_style_the_view(self, terminal, monkeypatch):
        from pressoir.system.memory import ProcessMemory

        tree = (ProcessMemory(os.getpid(), "[red]x[/red]", 10**6, "pss"),)
        monkeypatch.setattr(monitoring, "process_tree", lambda pid: tree)
        run("--count", 1, "--pid", os.getpid())
        assert "[red]x[/red]" in terminal()
