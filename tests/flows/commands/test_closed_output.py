"""A real command whose standard output nobody reads any more, as in `pressoir store ls | head -0`."""

import os
import subprocess
import sys

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
