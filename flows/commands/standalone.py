"""One stage on the command line, without a flow: work in a draft, then put it in `--output`'s place, whole.

A killed or failed command leaves `--output` as it was; the next one removes what it left behind.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pressoir.errors import StoreError
from pressoir.reporting import Reporter
from pressoir.stage import StageContext
from pressoir.system.files import disk_errors, make_folder, replace_folder
from pressoir.system.reader import exists, is_folder
from pressoir.system.runtime import available_cpus, use_threads


@contextmanager
def stage_output(
    output: Path, made_with: str, reporter: Reporter, *, seed: int = 42, threads: int | None = None
) -> Iterator[StageContext]:
    """A stage context whose `out_dir` becomes `output` when the block ends without an error.

    `made_with` is a file that every such result holds: a folder that is neither empty nor has it is somebody
    else's, and is never replaced.

    Raises:
        StoreError: `output` is such a folder, or cannot be written, or the disk is full.
    """
    check_replaceable(output, made_with)
    parent = output.absolute().parent
    with disk_errors(output), _only_writer(output.absolute()):
        make_folder(parent)
        for leftover in parent.glob(f".{output.name}-draft-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        draft = parent / f".{output.name}-draft-{uuid.uuid4().hex[:8]}"
        make_folder(draft)
        try:
            threads = threads or available_cpus()
            use_threads(threads)
            with tempfile.TemporaryDirectory(prefix=f".{output.name}-draft-", dir=parent) as work:
                yield StageContext(draft, Path(work), reporter, seed, threads)
            replace_folder(draft, output.absolute())
        finally:
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _only_writer(output: Path) -> Iterator[None]:
    name = hashlib.sha256(str(output).encode()).hexdigest()[:32]
    lock = FileLock(Path(tempfile.gettempdir()) / f"pressoir-{os.getuid()}-{name}.lock")
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout as error:
        raise StoreError(
            f"another command is writing to {output}; wait for it or choose another folder"
        ) from error


def check_replaceable(output: Path, made_with: str) -> None:
    """Refuse to replace what Pressoir did not make.

    Raises:
        StoreError: `output` is a file, or a folder with other content.
    """
    if exists(output) and not is_folder(output):
        raise StoreError(f"--output {output} is a file; choose a folder")
    if is_folder(output) and any(output.iterdir()) and not (output / made_with).exists():
        raise StoreError(
            f"--output {output} is not empty and was not created by this command; choose a new folder"
        )
