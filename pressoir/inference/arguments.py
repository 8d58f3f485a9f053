"""What people pass to an adapter: a folder by its name, one text instead of a list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pressoir.errors import SourceError
from pressoir.system.runtime import available_cpus

T = TypeVar("T")


def opened(folder: Path | str, threads: int | None) -> tuple[Path, int]:
    """The folder, and the number of threads: by default the CPUs that the process may use.

    Raises:
        SourceError: there is no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise SourceError(f"{path} is not a folder; specify a model folder, such as out/demo/model")
    return path, threads or available_cpus()


def listed(texts: Sequence[T] | str) -> Sequence[T | str]:
    """`texts`, or the list of one text: a string is a sequence of its characters, which nobody means."""
    return [texts] if isinstance(texts, str) else texts
