"""Runs of several processes on one machine: one after another, also after one was killed."""

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import sys, time
from pressoir.system.machine import alone
with alone(sys.argv[1], lambda text: print(text, flush=True)):
    print("runs", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def start(tmp_path):
    running = []

    def start(name, **more):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path), "PRESSOIR_SIDE_BY_SIDE": "", **more},
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.process
def test_a_run_waits_for_the_one_before_it_and_says_for_which(start):
    first = start("compress demo")
    assert first.stdout.readline() == "runs\n"
    second = start("evaluate demo")
    said = second.stdout.readline()
    assert said.startswith(f"waiting for compress demo (process {first.pid}) to end on this machine")
    beside = start("search demo", PRESSOIR_SIDE_BY_SIDE="1")
    assert beside.stdout.readline() == "runs\n"
    first.stdin.write("\n")
    first.stdin.flush()
    assert second.stdout.readline() == "runs\n"


@pytest.mark.process
def test_a_run_that_was_killed_keeps_nobody_waiting(start):
    first = start("compress demo")
    assert first.stdout.readline() == "runs\n"
    second = start("evaluate demo")
    assert "waiting for compress demo" in second.stdout.readline()
    first.send_signal(signal.SIGKILL)
    assert second.stdout.readline() == "runs\n"
    third = start("search demo")
    assert f"waiting for evaluate demo (process {second.pid})" in third.stdout.readline()
