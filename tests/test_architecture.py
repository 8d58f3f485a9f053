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


# The rooms of `pressoir/` from the ground up: each imports only from those above it in this list.
ROOMS = """
errors reporting: what everybody names
system: the machine: cgroups, memory, runtime settings, files; text that others wrote
config metrics: the configurations' base types, and the figures
extensions: what other packages can add to, and the loader of those lists
stage: what a stage is, and what it is given
plots: how every picture looks, and pages that are one file
store: artifacts, and the folders that hold them
recipe: the recipe and its sections
formats: what lies in a model folder, read without loading a model
registry: the catalogue, the locked file, promotion
models: transformers modules: loading, layouts, simulated int8
sources: where models come from
data: sentences, running text, tables
inference: one adapter a task, two engines
benchmark: models side by side
quantization training pruning merging export: the techniques
evaluation: many models on one machine
serving: tiers over shared models
pipeline: from a recipe to its steps; what a model is, and which stages take it
publishing: the model card, the page of a run, and the upload to the hub
stages: one file a stage
recipe_search: from a budget to a recipe
declarations reference aliases: what is named by entry points, the documentation of all types, former names
"""
ORDER = [room for line in ROOMS.strip().splitlines() for room in line.partition(":")[0].split()]
PUBLIC_FACE = "pressoir"  # its lazy names lead up to the flows: the only exception
MOST_LOOSE_FILES = 8


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path): path
    for package in ("pressoir", "tasks", "flows")
    for path in (ROOT / package).rglob("*.py")
    if not any(parent.is_symlink() for parent in path.parents)
}


def canonical(name):
    """`pressoir.tasks` and `pressoir.flows` are the top-level folders, seen through the package."""
    for folder in ("tasks", "flows"):
        if name == f"pressoir.{folder}" or name.startswith(f"pressoir.{folder}."):
            return name.removeprefix("pressoir.")
    return name


def imports_of(module, path):
    """Every module of ours that a file imports, anywhere in it: in functions, for types, by `importlib`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {canonical(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names = {canonical(f"{node.module}.{alias.name}") for alias in node.names}
            found |= {name if name in FILES else canonical(node.module) for name in names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # What `importlib` is given, and declarations' dotted paths: `pressoir.x.y`, `pressoir.x:name`.
            path, _, attribute = node.value.partition(":")
            if (path.count(".") > 1 or attribute.isidentifier()) and not command(module, node.value):
                found.add(canonical(path))
        elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
            # f"pressoir.stages.{name}" may be any file of that folder.
            folder = canonical(str(node.values[0].value).rstrip("."))
            found |= {name for name in FILES if folder and name.rpartition(".")[0] == folder}
    return {name for name in found if name in FILES and name != module}


def command(module, text):
    """Whether a dotted string is what follows `-m` on a child's command line: a program, not an import."""
    source = FILES[module].read_text(encoding="utf-8")
    return f'"-m", "{text}"' in source or f'prog="{text}"' in source


IMPORTS = {module: imports_of(module, path) for module, path in FILES.items()}
BELOW_THE_FACE = {m: names - {PUBLIC_FACE} for m, names in IMPORTS.items() if m != PUBLIC_FACE}


def circles(graph):
    """Groups of nodes of which each reaches the others."""

    def reached(node):
        seen, queue = set(), [node]
        while queue:
            for following in graph.get(queue.pop(), ()):
                if following not in seen:
                    seen.add(following)
                    queue.append(following)
        return seen

    reach = {node: reached(node) for node in graph}
    return {frozenset(o for o in reach[n] if n in reach.get(o, ())) for n in graph if n in reach[n]}


def room(module):
    """The folder of a file below `pressoir/`, or the file itself in its root; `tasks`; `flows`."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "pressoir" and rest else first


def upward():
    ranks = {name: rank for rank, name in enumerate([*ORDER, "tasks", "flows"])}
    return sorted(
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        if module != PUBLIC_FACE
        for name in names - {PUBLIC_FACE}
        if ranks[room(name)] > ranks[room(module)]
    )


def test_no_files_import_each_other_in_a_circle():
    assert not circles(BELOW_THE_FACE)


def test_no_folders_import_each_other_in_a_circle():
    """In every folder, among its files and subfolders, each subfolder standing for all that is in it."""
    folders = {".".join(m.split(".")[:depth]) for m in FILES for depth in range(m.count(".") + 1)}
    for folder in folders:
        inside = f"{folder}." if folder else ""

        def child(module, inside=inside):
            return inside + module[len(inside) :].partition(".")[0]

        graph = {}
        for module, names in IMPORTS.items():
            if module.startswith(inside) and module != PUBLIC_FACE:
                others = {child(name) for name in names if name.startswith(inside) and name != PUBLIC_FACE}
                graph.setdefault(child(module), set()).update(others - {child(module)})
        assert not circles(graph), folder


def test_each_room_imports_only_from_the_rooms_above_it_in_the_list():
    assert {room(module) for module in FILES} - {"pressoir", "tasks", "flows"} == set(ORDER)
    assert not upward()


def test_the_root_of_the_library_holds_few_loose_files():
    assert len(list((ROOT / "pressoir").glob("*.py"))) <= MOST_LOOSE_FILES


# Libraries that take long to import, or much memory.
HEAVY = set(
    """torch transformers onnxruntime onnx optimum prefect mlflow datasets matplotlib pandas pyarrow sklearn
    optuna mergekit fastapi starlette uvicorn jinja2 sacrebleu jiwer soundfile soxr tokenizers numpy
    huggingface_hub safetensors dask distributed prefect_dask httpx prometheus_client rich yaml pydantic
    filelock psutil http ssl llguidance""".split()
)


def imports_by_time(module):
    """Ours imported with the file, other packages imported with it, and statements inside its functions."""
    eager, packages, lazy = set(), set(), []

    def visit(node, inside):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = "" if isinstance(node, ast.Import) else canonical(node.module)
            names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
            names = {canonical(n) if canonical(n) in FILES or not base else base for n in names}
            if inside:
                lazy.append((node.lineno, names))
            else:
                eager.update(names & set(FILES))
                packages.update(name.partition(".")[0] for name in names - set(FILES))
        for child in ast.iter_child_nodes(node):
            visit(child, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    visit(ast.parse(FILES[module].read_text(encoding="utf-8")), False)
    return eager, packages, lazy


def test_imports_inside_functions_keep_a_heavy_library_out_of_a_light_path():
    times = {module: imports_by_time(module) for module in FILES}

    def heavy(module):
        seen, queue = set(), [module]
        while queue:
            name = queue.pop()
            if name in times and name not in seen:
                seen.add(name)
                queue += [*times[name][0], name.rpartition(".")[0]]
        return set().union(*(times[name][1] for name in seen)) & HEAVY

    loads = {module: heavy(module) for module in FILES}
    useless = [
        f"{module}:{line} imports {', '.join(names)}"
        for module, (_, _, lazy) in times.items()
        for line, names in lazy
        if names & set(FILES) and not set().union(*(loads[n] for n in names & set(FILES))) - loads[module]
    ]
    assert not useless


def test_every_folder_says_what_it_is_for():
    """Two or three sentences: what the room is for, what enters, what leaves."""
    for module, path in FILES.items():
        if path.name == "__init__.py":
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            assert len(text.split()) >= 15, module


def imported_packages(path):
    """Top-level names of everything `path` imports, anywhere in the file; `tasks` is `pressoir.tasks` too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {canonical(name).partition(".")[0] for name in names}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_nothing_imports_upwards(package):
    found = {
        f"{path.relative_to(ROOT)} imports {name}"
        for module, path in FILES.items()
        if module.partition(".")[0] == package and module != PUBLIC_FACE
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


@pytest.mark.process
@pytest.mark.parametrize(
    "modules",
    [
        "pressoir",
        "pressoir.errors, pressoir.recipe.recipe, pressoir.store.store, pressoir.registry.registry, "
        "pressoir.pipeline.plan",
        "pressoir.flows.cli",
    ],
)
def test_importing_the_library_loads_no_heavy_package(modules):
    program = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"numpy", "torch", "transformers", "onnxruntime", "prefect", "mlflow"} & set(loaded)


@pytest.mark.process
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


def print_rooms():
    between = [(room(m), room(n)) for m, names in IMPORTS.items() for n in names if room(m) != room(n)]
    loose = sorted(path.name for path in (ROOT / "pressoir").glob("*.py"))
    print(f"\n{ROOMS}flows → tasks → pressoir: {len(FILES)} files in {len(set(map(room, FILES)))} rooms")
    print(f"imports between rooms: {len(between)}, of {len(set(between))} pairs; upward: {len(upward())}")
    print(f"circles of files: {len(circles(BELOW_THE_FACE))}; loose files: {', '.join(loose)}")


if __name__ == "__main__":
    print_rooms()
