"""What a process started ends with it when it is killed, and not when it ends by itself."""

import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest

PARENT = """
import subprocess, sys
from pressoir.system.family import guard
guard(); guard()
child = subprocess.Popen(
    [sys.executable, "-c", "import subprocess, sys, time; "
     "print(subprocess.Popen(['sleep', '1000']).pid, flush=True); time.sleep(1000)"],
    start_new_session=True,
)
print(child.pid, flush=True)
sys.stdin.readline()
"""

pytestmark = pytest.mark.process


@pytest.fixture
def family():
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        below = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
        yield parent, below
        parent.kill()
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def alive(processes):
    gone, _ = psutil.wait_procs(processes, timeout=1)
    return [each for each in processes if each not in gone and each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_children_and_theirs_end_with_a_process_that_is_killed(family, number):
    parent, below = family
    guardian = [each for each in psutil.Process(parent.pid).children() if each not in below]
    assert len(guardian) == 1, "one guardian, however often it is asked for"
    assert alive(below) == below
    os.kill(parent.pid, number)
    parent.wait()
    for _ in range(30):
        if not (left := alive([*below, *guardian])):
            return
    raise AssertionError(left)


def test_a_process_that_ends_by_itself_leaves_what_it_meant_to_leave(family):
    parent, below = family
    (guardian,) = [each for each in psutil.Process(parent.pid).children() if each not in below]
    parent.stdin.close()  # not communicate(): its output stays open in what it left
    assert parent.wait() == 0
    assert alive([guardian]) == []
    assert alive(below) == below
