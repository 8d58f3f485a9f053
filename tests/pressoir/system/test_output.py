"""A folder of results that is replaced: killed anywhere, it holds the previous results or the new ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from pressoir.system import files
from pressoir.system.output import replaced

OURS = ("model", "recipe.yaml")


def fill(target, value):
    with replaced(target, OURS) as draft:
        (draft / "model").mkdir()
        (draft / "model" / "weights").write_text(value)
        (draft / "recipe.yaml").write_text(value)


def content(target):
    return {(target / name).read_text() for name in ("model/weights", "recipe.yaml")}


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def swaps(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    return request.param


def test_results_are_made_and_replaced_and_the_users_own_files_stay(tmp_path, swaps):
    target = tmp_path / "out" / "demo"
    fill(target, "first")
    (target / "notes.txt").write_text("mine")
    fill(target, "second")
    assert content(target) == {"second"}
    assert (target / "notes.txt").read_text() == "mine"
    assert [path.name for path in target.parent.iterdir()] == ["demo"]


def test_the_system_exchanges_two_folders_in_one_step(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert files._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").exists()


def test_an_error_leaves_the_previous_results(tmp_path):
    fill(tmp_path / "demo", "first")

    def breaks_off():
        with replaced(tmp_path / "demo", OURS) as draft:
            (draft / "recipe.yaml").write_text("second")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks_off()
    assert content(tmp_path / "demo") == {"first"}
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


PROGRAM = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_output import fill
from pressoir.system import files
left = int(sys.argv[2])

def dies(event, arguments):  # before every call that changes a folder
    global left
    if event in ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "ctypes.call_function"):
        left -= 1
        if left < 0:
            os._exit(9)

if sys.argv[4] == "two renames":
    files._exchange = lambda one, other: False
sys.addaudithook(dies)
fill(Path(sys.argv[1]), "second")
"""


@pytest.mark.process
@pytest.mark.parametrize("how", ["exchange", "two renames"])
def test_killed_before_any_change_of_a_folder_nothing_is_lost(tmp_path, how):
    died = 0
    for step in range(40):
        target = tmp_path / str(step) / "demo"
        fill(target, "first")
        (target / "notes.txt").write_text("mine")
        arguments = [str(target), str(step), str(Path(__file__).parent), how]
        code = subprocess.run([sys.executable, "-c", PROGRAM, *arguments]).returncode
        if code == 0:
            break
        assert code == 9
        died += 1
        if how == "exchange":
            assert content(target) in ({"first"}, {"second"}), step
        fill(target, "third")
        assert content(target) == {"third"}
        assert (target / "notes.txt").read_text() == "mine", step
        assert [path.name for path in target.parent.iterdir()] == ["demo"]
    assert code == 0
    assert died >= 5
