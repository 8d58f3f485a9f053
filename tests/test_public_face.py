"""`from pressoir import …`: what it offers, whatever lies beside the script that says so."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pressoir

ROOT = Path(__file__).parents[1]
FACE = ROOT / "pressoir" / "__init__.py"


@pytest.mark.parametrize("name", pressoir.__all__)
def test_every_public_name_is_there(name):
    assert callable(getattr(pressoir, name))
    assert name in dir(pressoir)


def test_type_checkers_see_the_names_that_are_there():
    (block,) = [node for node in ast.parse(FACE.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: (node.module, alias.name) for node in block.body for alias in node.names
    }
    assert sorted(seen) == sorted(pressoir.__all__)
    for name, (module, there) in seen.items():
        assert getattr(importlib.import_module(module), there) is getattr(pressoir, name)


def test_no_public_name_is_that_of_a_room():
    """Else importing the room would put it in the place of the public name."""
    rooms = {path.stem for path in (ROOT / "pressoir").iterdir()}
    assert len(rooms) > 20
    assert not rooms & set(pressoir.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'pressoir' has no attribute 'squeeze'"):
        _ = pressoir.squeeze
    with pytest.raises(ImportError, match="cannot import name 'squeeze'"):
        from pressoir import squeeze  # noqa: F401


@pytest.mark.process
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", ["files", "folders"])
def test_it_works_beside_the_users_own_tasks_and_flows(order, kind, tmp_path):
    for name in ("tasks", "flows"):
        path = tmp_path / f"{name}.py" if kind == "files" else tmp_path / name / "__init__.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"MINE = 'my {name}'\n")
    lines = ["import tasks, flows", "from pressoir import Recipe, compress"]
    script = tmp_path / "script.py"
    script.write_text(
        "\n".join(lines if order == "before" else lines[::-1])
        + "\nfrom pressoir.tasks.stage import RunContext\n"
        + "print(tasks.MINE, flows.MINE, compress.name, RunContext.__module__, sep='|')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "my tasks|my flows|compress|pressoir.tasks.stage"
