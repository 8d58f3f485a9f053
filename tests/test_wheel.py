"""What is installed: one top-level name, the command line, and the examples."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import pressoir

ROOT = Path(__file__).parents[1]
CONFIGS = {path.stem for path in (ROOT / "configs").glob("*.yaml")}


def build(source, out, target):
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    builder = {"wheel": WheelBuilder, "sdist": SdistBuilder}[target](str(source))
    (path,) = builder.build(directory=str(out), versions=["standard"])
    return Path(path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


def contents(wheel):
    with zipfile.ZipFile(wheel) as file:
        return {entry.filename: entry.CRC for entry in file.infolist()}


def test_a_wheel_installs_no_other_name_than_pressoir(wheel):
    names = contents(wheel)
    folder = f"pressoir_ml-{pressoir.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"pressoir", folder}
    assert {"pressoir/flows/compress.py", "pressoir/tasks/stage.py", "pressoir/models.json"} <= names.keys()
    assert {f"pressoir/configs/{name}.yaml" for name in CONFIGS} <= names.keys()


@pytest.mark.process
def test_every_file_of_the_package_is_in_the_wheel(wheel):
    tracked = subprocess.run(
        ["git", "ls-files", "pressoir", "flows", "tasks"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    here = [path for path in tracked if not (ROOT / path).is_symlink()] or pytest.skip("not a checkout")
    expected = {path if path.startswith("pressoir/") else f"pressoir/{path}" for path in here}
    assert expected <= contents(wheel).keys()


def test_a_source_distribution_makes_the_same_wheel(wheel, tmp_path):
    with tarfile.open(build(ROOT, tmp_path, "sdist")) as file:
        file.extractall(tmp_path, filter="data")
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert contents(build(folder, tmp_path / "out", "wheel")) == contents(wheel)


def clean():
    """The environment variables without those that lead to another Pressoir or another home."""
    ours = ("PYTHON", "PRESSOIR", "MLFLOW")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A virtual environment with the wheel; what it depends on is that of the running interpreter."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index"]
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True, env=clean())
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # A line of this file is a folder to search; the .pth files in that folder, such as that of an editable
    # install, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def run(environment, tmp_path):
    """Run a program of that environment in an empty folder."""

    def run(program, *words):
        command = [str(environment / "bin" / program), *words]
        return subprocess.run(
            command, cwd=tmp_path, env=clean() | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
        )

    return run


@pytest.mark.slow
def test_what_is_installed_is_what_runs(run, environment):
    code = "import pressoir, pressoir.flows.cli as c, sys; print(pressoir.__file__, c.__file__, *sys.path)"
    done = run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    first, second, *searched = done.stdout.split()
    assert Path(first).is_relative_to(environment)
    assert Path(second).is_relative_to(environment)
    assert str(ROOT) not in searched
    for name in ("flows", "tasks"):
        assert f"No module named '{name}'" in run("python", "-c", f"import {name}").stderr


@pytest.mark.slow
def test_an_example_is_planned_in_an_empty_folder(run):
    assert run("pressoir", "--version").stdout == f"pressoir, version {pressoir.__version__}\n"
    done = run("pressoir", "compress", "demo", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout
    assert "nothing was run" in done.stdout


@pytest.mark.slow
def test_an_example_names_its_files_wherever_it_is_run(run):
    code = (
        "from pressoir import Recipe, SearchConfig\n"
        "assert SearchConfig.load('search-demo').recipe == Recipe.load('demo')"
    )
    done = run("python", "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_unknown_example_is_an_error_that_lists_them(run):
    done = run("pressoir", "evaluate", "nothing")
    assert done.returncode == 2
    assert "the name of an example: evaluation-demo, evaluation-french-asr, evaluation-mixed" in done.stderr
