"""The log of the memory: what it keeps of a run that is killed, resumed, or out of disk."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
from fake_results import GB, LINES, batch_line, end_line, sample_line, session_line, write_log

from pressoir.errors import StoreError
from pressoir.evaluation import memory_log
from pressoir.evaluation.memory_log import MemoryLog, MemoryStats, stats


@pytest.fixture
def child():
    """A process that waits until it is ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def kinds(folder):
    return [json.loads(line)["kind"] for line in (folder / memory_log.SAMPLES).read_text().splitlines()]


class TestLogging:
    """With real processes."""

    @pytest.mark.process
    def test_a_block_leaves_samples_of_the_machine_and_of_its_children(self, tmp_path, child):
        with MemoryLog(tmp_path, interval_s=0.01) as log:
            log.batch("one")
            log.watch(child.pid, "model-a")
            until(lambda: stats(tmp_path).peaks.by_child.get("model-a"))
            log.unwatch(child.pid)
            log.batch("two")
        found = stats(tmp_path)
        assert [span.name for span in found.batches] == ["one", "two"]
        assert found.batches[0].end_s == found.batches[1].start_s
        assert found.peaks.by_child["model-a"] == found.peaks.children_bytes > 10**5
        assert 0 < found.peaks.ram_percent <= 100
        assert found.peaks.ram_used_gb > 0
        assert found.samples[-1].children == {}
        (session,) = found.sessions
        assert session.finished
        assert session.end_s >= found.samples[-1].t_s
        assert session.limit_gb > 0
        assert kinds(tmp_path)[0], kinds(tmp_path)[-1] == ("session", "end")

    @pytest.mark.process
    def test_children_that_end_while_they_are_watched_disturb_nobody(self, tmp_path, child):
        with MemoryLog(tmp_path, interval_s=0.01) as log:
            log.watch(child.pid, "model-a")
            until(lambda: stats(tmp_path).peaks.by_child)
            child.communicate(b"\n")
            log.watch(child.pid, "model-a")  # too late: it has ended
            log.unwatch(child.pid)
            log.unwatch(child.pid)
            before = len(stats(tmp_path).samples)
            until(lambda: len(stats(tmp_path).samples) > before)
        assert stats(tmp_path).sessions[0].finished

    def test_alerts_are_above_the_percentage_asked_for(self, tmp_path):
        with MemoryLog(tmp_path, interval_s=10, alert_percent=0.001):
            pass
        found = stats(tmp_path)
        assert len(found.alerts) == 1
        assert "above 0.001 %" in found.alerts[0].text
        assert found.sessions[0].alert_percent == 0.001

    @pytest.mark.process
    def test_a_killed_process_leaves_what_it_had(self, tmp_path):
        program = """
import sys, time
from pathlib import Path
from pressoir.evaluation.memory_log import MemoryLog
with MemoryLog(Path(sys.argv[1]), interval_s=0.01) as log:
    log.batch("one")
    time.sleep(60)
"""
        process = subprocess.Popen([sys.executable, "-c", program, tmp_path])
        until(lambda: len(stats(tmp_path).samples) > 3 and stats(tmp_path).batches)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        killed = stats(tmp_path)
        assert not killed.sessions[0].finished
        assert [span.name for span in killed.batches] == ["one"]
        with MemoryLog(tmp_path, interval_s=10):
            pass
        resumed = stats(tmp_path)
        assert [session.finished for session in resumed.sessions] == [False, True]
        assert resumed.samples[: len(killed.samples)] == killed.samples
        assert len(resumed.samples) == len(killed.samples) + 2

    def test_samples_do_not_pile_up_in_memory(self, tmp_path):
        with MemoryLog(tmp_path, interval_s=0.01) as log:
            until(lambda: len(stats(tmp_path).samples) > 3)
            assert len(log._monitor.samples) <= 1

    def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(StoreError, match="no space left"), MemoryLog(tmp_path):
            pytest.fail("the block must not run")

    def test_a_disk_that_fills_up_costs_samples_but_not_the_run(self, tmp_path, monkeypatch, caplog):
        write = os.write
        with caplog.at_level(logging.WARNING, "pressoir"), MemoryLog(tmp_path, interval_s=0.01) as log:
            monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:20]))  # cut short
            until(lambda: not (tmp_path / memory_log.SAMPLES).read_bytes().endswith(b"\n"))
            monkeypatch.setattr(os, "write", refuse)
            until(lambda: log._monitor.missed > 1)
            with pytest.raises(StoreError, match="no space left"):
                log.batch("one")
            monkeypatch.setattr(os, "write", write)
            before = len(stats(tmp_path).samples)
            until(lambda: len(stats(tmp_path).samples) > before)
        assert stats(tmp_path).sessions[0].finished
        assert sum("missed a sample" in record.message for record in caplog.records) == 1


def refuse(*_, **__):
    raise OSError(28, "No space left on device")


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited a minute in vain"
        time.sleep(0.005)


class TestReading:
    """Of files as they may lie there."""

    def test_no_file_is_no_memory(self, tmp_path):
        assert stats(tmp_path) == MemoryStats()

    def test_samples_batches_alerts_and_peaks(self, tmp_path):
        found = write_log(tmp_path)
        assert [one.t_s for one in found.samples] == [1, 2, 3, 5]
        assert [(span.name, span.start_s, span.end_s) for span in found.batches] == [
            ("large", 0.5, 4),
            ("batch-1", 4, 6),
        ]
        assert [(a.start_s, a.end_s, a.ram_percent, a.text) for a in found.alerts] == [
            (2, 3, 95.0, "RAM 95.0 %")
        ]
        assert found.peaks.children_bytes == 1.6 * GB
        assert found.peaks.by_child == {"teacher": 1.1 * GB, "student": 0.5 * GB, "minilm": 0.9 * GB}
        assert (found.peaks.ram_percent, found.peaks.ram_used_gb) == (95.0, 3.8)
        assert found.children_peak_bytes("batch-1") == 0.9 * GB
        assert found.children_peak_bytes("another") == 0

    def test_alerts_that_are_apart_are_two(self, tmp_path):
        lines = [session_line(0), *(sample_line(i, ram_percent=p) for i, p in enumerate([90, 50, 91, 86], 1))]
        assert [(a.start_s, a.end_s, a.ram_percent) for a in write_log(tmp_path, lines).alerts] == [
            (1, 1, 90),
            (3, 4, 91),
        ]

    def test_gpus_have_their_peaks(self, tmp_path):
        lines = [
            session_line(0),
            *(sample_line(i, gpu_used_gb=g) for i, g in enumerate([[1, 5], [], [2, 3]])),
        ]
        assert write_log(tmp_path, lines).peaks.gpu_used_gb == (2, 5)

    @pytest.mark.parametrize("cut", range(1, 120, 7))
    def test_a_line_that_a_kill_cut_short_is_passed_over(self, tmp_path, cut):
        whole = write_log(tmp_path, LINES[:5])
        path = tmp_path / memory_log.SAMPLES
        path.write_bytes(path.read_bytes() + json.dumps(LINES[6]).encode()[:cut])
        assert stats(tmp_path) == whole
        with MemoryLog(tmp_path, interval_s=10):
            pass
        resumed = stats(tmp_path)
        assert resumed.samples[:3] == whole.samples
        assert len(resumed.samples) == 5
        assert len(resumed.sessions) == 2

    def test_the_time_between_sessions_does_not_count(self, tmp_path):
        lines = [
            *(session_line(0), batch_line(0, "one"), sample_line(10)),
            *(session_line(5000), batch_line(5000, "one"), sample_line(5002), end_line(5003)),
        ]
        found = write_log(tmp_path, lines)
        assert [one.t_s for one in found.samples] == [10, 13]
        assert [(s.start_s, s.end_s, s.finished) for s in found.sessions] == [(0, 10, False), (11, 14, True)]
        assert [(span.start_s, span.end_s) for span in found.batches] == [(0, 10), (11, 14)]

    def test_a_clock_that_is_set_back_does_not_turn_time_around(self, tmp_path):
        found = write_log(tmp_path, [session_line(0), sample_line(5), sample_line(-3000), sample_line(7)])
        assert [one.t_s for one in found.samples] == [5, 5, 7]

    def test_a_file_of_something_else_is_no_memory(self, tmp_path):
        (tmp_path / memory_log.SAMPLES).write_bytes(b'\xff\xfe\n[1]\n3\nnull\n{"kind": "sample"}\n')
        assert stats(tmp_path) == MemoryStats()
