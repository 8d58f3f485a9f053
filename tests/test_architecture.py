"""The walls of the house: flows → tasks → pressoir, never back; and `import pressoir` is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "pressoir": {"prefect", "mlflow", "tasks", "flows"},
    "tasks": {"flows"},
}


def imported_packages(path):
    """Top-level names of everything `path` imports, anywhere in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_nothing_imports_upwards(package):
    found = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / package).rglob("*.py")
        for name in imported_packages(path) & FORBIDDEN[package]
    }
    assert not found


@pytest.mark.parametrize("package", ["flows", "tasks"])
def test_pydantic_classes_live_in_pressoir_alone(package):
    bases = {"BaseModel", "Config", "BaseSettings"}
    found = {
        f"{path.name}: {node.name}"
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and {getattr(b, "id", getattr(b, "attr", "")) for b in node.bases} & bases
    }
    assert not found


def test_no_flow_file_is_named_like_an_installed_package():
    import importlib.metadata

    installed = set(importlib.metadata.packages_distributions()) - {"flows", "tasks", "pressoir"}
    for package in ("flows", "tasks"):
        modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
        assert not modules & {"evaluate", "datasets", "onnx"}
        assert not {module for module in modules & installed if package == "flows"}


@pytest.mark.parametrize(
    "modules",
    [
        "pressoir",
        "pressoir.errors, pressoir.recipe.recipe, pressoir.store.store, pressoir.registry.registry, "
        "pressoir.pipeline.plan",
    ],
)
def test_importing_the_library_loads_no_heavy_package(modules):
    program = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "transformers", "onnxruntime", "prefect", "mlflow"} & set(loaded)


def test_telemetry_is_off_unless_the_user_says_otherwise():
    program = "import os, tasks; print(os.environ['MLFLOW_DISABLE_TELEMETRY'], os.environ['DO_NOT_TRACK'])"
    clean = {"PATH": "/usr/bin:/bin"}
    for environment, expected in (
        (clean, "true true"),
        ({**clean, "MLFLOW_DISABLE_TELEMETRY": "false", "DO_NOT_TRACK": "0"}, "false 0"),
    ):
        answer = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stdout.strip() == expected
