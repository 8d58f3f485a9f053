"""The README keeps its promises: its commands exist, its links resolve, its reference is the types'."""

import re
import shlex
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("name", ["recipe", "evaluation", "serving", "search"])
def test_references_are_generated_from_the_types(name):
    from pressoir.reference import reference

    page = "README.md" if name == "recipe" else f"docs/{name}.md"
    text = (ROOT / page).read_text(encoding="utf-8")
    found = text.split(f"<!-- {name} reference -->\n")[1].split(f"<!-- end of {name} reference -->")[0]
    assert found.strip() == reference(name).strip(), (
        f"run `pressoir reference {name}` and put it between the markers of {page}"
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_and_pictures_exist(document):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_parse(document):
    from pressoir.flows.cli import main

    for line in re.findall(r"^\s*(pressoir [^#\n|]+)", document.read_text(encoding="utf-8"), flags=re.M):
        words = shlex.split(line)[1:]
        command, rest = main, words
        while isinstance(command, click.Group):
            name, *rest = rest
            assert name in command.commands, line
            command = command.commands[name]
        command.make_context(command.name, list(rest))  # raises on an unknown option or a missing argument


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    assert targets == {
        "help",
        "demo",
        "serve",
        "check",
        "test",
        "fuzz",
        "openapi",
        "kills",
        "lint",
        "docs",
        "ui",
        "clean",
    }
    assert set(re.findall(r"`make ([a-z]+)`", README)) <= targets


def test_the_changelog_names_this_version():
    from pressoir import __version__

    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_import_is_declared_and_every_dependency_is_imported():
    import ast
    import sys
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        re.split(r"[\[<>=;]", text)[0].strip().replace("-", "_").lower()
        for text in project["dependencies"] + project["optional-dependencies"]["dask"]
    }
    names = {"pyyaml": "yaml", "scikit_learn": "sklearn"}
    declared = {names.get(name, name) for name in declared}
    imported = set()
    for folder in ("pressoir", "tasks", "flows"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    imported.add(node.module.split(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - {"pressoir", "tasks", "flows"}
    through = {"httptools", "sqlalchemy"}  # imported by uvicorn's faster protocol; by Prefect and MLflow
    assert third_party | through == declared
