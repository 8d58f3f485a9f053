"""Modules with two names: one module, with the specification and the name of where it is."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.process
@pytest.mark.parametrize(
    ("second", "own"),
    [
        ("flows", "pressoir.flows"),
        ("flows.recipes", "pressoir.flows.recipes"),
        ("flows.commands", "pressoir.flows.commands"),
        ("flows.commands.terminal", "pressoir.flows.commands.terminal"),
        ("tasks", "pressoir.tasks"),
        ("tasks.stage", "pressoir.tasks.stage"),
        ("pressoir.artifact", "pressoir.store.store"),
        ("pressoir.runtime", "pressoir.system.runtime"),
    ],
)
@pytest.mark.parametrize("first", [0, 1], ids=["second name first", "own name first"])
def test_a_module_is_one_under_both_its_names(second, own, first):
    """In a process of its own, where nothing is imported yet, and every warning is an error."""
    names = [second, own] if first == 0 else [own, second]
    program = f"""
import importlib, sys
a, b = map(importlib.import_module, {names})
assert a is b is sys.modules[{second!r}] is sys.modules[{own!r}]
assert a.__name__ == a.__spec__.name == {own!r}, a.__spec__
import {second}, {own}
assert {second} is {own} is a
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-W", "error::RuntimeWarning", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_flow_is_found_by_prefects_entry_point_as_by_the_package():
    from prefect.flows import load_flow_from_entrypoint

    from pressoir import compress

    assert load_flow_from_entrypoint("flows.compress.compress") is compress


@pytest.mark.process
def test_python_m_runs_a_module_by_its_second_name():
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "flows.cli", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "pressoir, version" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["flows.none", "tasks.none.such", "pressoir.artifacts"])
def test_a_module_that_is_not_there_is_not_found(name):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
