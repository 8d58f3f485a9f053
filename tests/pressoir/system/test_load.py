"""The load of other programs, seen on real ones."""

import subprocess
import sys
import time

import psutil
import pytest

from pressoir.system.load import FreeCpus

pytestmark = pytest.mark.process


def burn(seconds):
    """Keep a CPU busy."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_other_programs_count_and_this_one_does_not():
    without, began = FreeCpus(), time.monotonic()
    burn(1)
    before, own = without.mean(), 1 / (time.monotonic() - began)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as hog:
        hog_time = psutil.Process(hog.pid).cpu_times
        free, began, taken = FreeCpus(), time.monotonic(), sum(hog_time()[:2])
        burn(1)
        hog_share = (sum(hog_time()[:2]) - taken) / (time.monotonic() - began)
        found = free.mean()
        hog.kill()
    # Other tests may run beside this one, but nobody has what this process has.
    assert before >= own - 0.1
    assert found <= psutil.cpu_count() - hog_share + 0.1
