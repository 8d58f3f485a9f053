"""One command, one folder: published whole or not at all."""

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from pressoir.errors import StoreError
from pressoir.flows.commands.standalone import stage_output
from pressoir.reporting import LogReporter


def write(output, content="new"):
    with stage_output(output, "mark.json", LogReporter(), threads=1) as context:
        (context.out_dir / "mark.json").write_text(content, encoding="utf-8")


def test_a_result_appears_whole_and_replaces_an_older_one(tmp_path):
    write(tmp_path / "deep" / "out", "old")
    (tmp_path / "deep" / "out" / "stale").touch()
    write(tmp_path / "deep" / "out")
    assert [path.name for path in (tmp_path / "deep" / "out").iterdir()] == ["mark.json"]
    assert (tmp_path / "deep" / "out" / "mark.json").read_text() == "new"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_a_failure_leaves_the_old_result_and_no_draft(tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(TypeError):
        write(tmp_path / "out", content=object())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "mark.json").read_text() == "old"


def test_what_pressoir_did_not_make_is_never_replaced(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").touch()
    with pytest.raises(StoreError, match="is a file"):
        write(tmp_path / "file")
    with pytest.raises(StoreError, match="not created by this command"):
        write(tmp_path / "folder")
    assert (tmp_path / "folder" / "thesis.tex").exists()


def test_two_commands_do_not_write_to_one_folder(tmp_path):
    with stage_output(tmp_path / "out", "mark.json", LogReporter(), threads=1) as context:
        (context.out_dir / "mark.json").touch()
        other = multiprocessing.get_context("spawn").Process(target=write, args=(tmp_path / "out",))
        other.start()
        other.join()
        assert other.exitcode == 1
        assert context.out_dir.exists()


@pytest.mark.process
def test_what_a_killed_command_left_is_removed_by_the_next(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from pressoir.flows.commands.standalone import stage_output\n"
        "from pressoir.reporting import LogReporter\n"
        "with stage_output(Path(sys.argv[1]), 'mark.json', LogReporter(), threads=1):\n"
        "    print('in', flush=True); time.sleep(99)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"in\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir())
    write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
