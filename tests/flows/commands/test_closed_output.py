"""A real command whose standard output nobody reads any more (`pressoir store ls | head -0`), or is full."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process


@pytest.mark.parametrize("arguments", [("--help",), ("reference", "recipe"), ("store", "ls")], ids=" ".join)
def test_a_closed_standard_output_ends_a_command_silently_with_the_exit_code_of_sigpipe(arguments, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "pressoir.flows", *arguments],
        env={**os.environ, "PRESSOIR_HOME": str(tmp_path)},
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=120,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.parametrize(
    "arguments", [("--version",), ("reference", "recipe"), ("store", "ls")], ids=" ".join
)
def test_a_full_standard_output_is_one_line(arguments, tmp_path):
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "pressoir.flows", *arguments],
            env={**os.environ, "PRESSOIR_HOME": str(tmp_path)},
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=120,
        )
    assert ended.returncode == 2
    assert ended.stderr == b"error: standard output cannot be written: No space left on device\n"
