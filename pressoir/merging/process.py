"""mergekit in a process of its own, so that its memory goes back when it ends."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from pressoir.errors import MergeError
from pressoir.formats.tensor_bytes import INDEX, WEIGHTS, write_safetensors
from pressoir.merging.checkpoint import Checkpoint
from pressoir.merging.configuration import CONFIG, architecture
from pressoir.merging.preflight import MergePlan
from pressoir.reporting import Reporter
from pressoir.system.runtime import child_environment

ARCHITECTURE = "architecture.json"
_PROGRESS = re.compile(r"Executing graph:.*?(\d+)/(\d+) \[")
_BAR = re.compile(r"\d+%\|")
_STDERR_LINES, _STDERR_COLUMNS = 12, 500


def prepare(plan: MergePlan, configuration: str, folder: Path) -> None:
    """Make `folder` one that mergekit can run in: the configuration, the architecture, a link to each model.

    A model that does not fit the base is written out anew, as one that does: the tensors that fit are its
    own, the others the base's.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(configuration, encoding="utf-8")
    (folder / ARCHITECTURE).write_text(json.dumps(architecture(plan), indent=2) + "\n", encoding="utf-8")
    for model in plan.models:
        view = folder / model.name
        view.mkdir()
        misfit = plan.misfits(model)
        for path in sorted(model.folder.iterdir()):
            if path.suffix in (".json", ".txt", ".model") and path.name != INDEX:
                owner = plan.base if misfit and path.name == "config.json" else model
                (view / path.name).symlink_to((owner.folder / path.name).resolve())
        if misfit:
            own = plan.names[model.name]
            fitting = {n: model.tensors[own[n]] if n in own else t for n, t in plan.base.tensors.items()}
            write_safetensors(view / WEIGHTS, [replace(t, name=name) for name, t in fitting.items()])
        else:
            _link_weights(model, view)


def run_mergekit(folder: Path, out: Path, *, seed: int, reporter: Reporter) -> None:
    """Merge as the prepared `folder` says, into `out`.

    One thread, so that sums, and with them the result, do not depend on how many there are.

    Raises:
        MergeError: mergekit failed, was killed, or did not merge a tensor that fits; its last lines are in
            the message.
    """
    # mergekit keeps models in sets, whose order Python otherwise draws anew for every process.
    environment = {**child_environment(threads=1), "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "pressoir.merging.child", str(folder.absolute()), str(out.absolute())]
    child = subprocess.Popen(
        [*command, str(seed)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    last: deque[str] = deque(maxlen=_STDERR_LINES)
    skipped = []
    try:
        assert child.stderr is not None
        for line in _lines(child.stderr):
            if match := _PROGRESS.search(line):
                reporter.progress(int(match[1]), int(match[2]), "merge")
            elif line.strip() and not _BAR.search(line):
                last.append(line[:_STDERR_COLUMNS])
            if "due to size mismatch" in line or "ubmatrix of" in line:
                skipped.append(line)
        code = child.wait()
    finally:
        child.kill()
        child.communicate()
    if code < 0:
        raise MergeError(
            f"mergekit was killed by signal {-code}" + ("; possibly out of memory" if code == -9 else "")
        )
    if code or skipped:
        details = "\n".join(skipped or last)
        raise MergeError(f"mergekit failed (exit code {code}):\n{details}")


def _link_weights(model: Checkpoint, view: Path) -> None:
    """Links to the model's files, and an index that names its weights alone, not its buffers."""
    for file in {tensor.file for tensor in model.tensors.values() if tensor.file}:
        (view / file.name).symlink_to(file.resolve())
    index = {"weight_map": {n: t.file.name for n, t in model.tensors.items() if t.file}}
    (view / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines as they come; a progress bar ends its lines with a carriage return."""
    rest = b""
    while chunk := stream.read1(1 << 16):  # type: ignore[attr-defined]
        *whole, rest = re.split(rb"[\r\n]", rest + chunk)
        yield from (line.decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")
