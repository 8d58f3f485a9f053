"""A queue on the disk: what cannot be sent now, in order, with copies of the files that belong to it.

An entry is a folder, written beside its place and renamed into it: it is there whole, or not at all.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from pressoir.config import Config
from pressoir.system.files import disk_errors, flush, write_text_atomic

_ENTRY = "entry.json"


class Entry(Config):
    """One thing to send."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    kind: str
    run: str
    """The run that it belongs to."""
    data: dict[str, Any] = Field(default_factory=dict)
    """JSON."""
    files: tuple[tuple[Path, str | None], ...] = ()
    """Files of it, and the folder among the run's artifacts where each belongs."""


class Outbox:
    """The entries that wait in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def waiting(self) -> list[Path]:
        """The entries, in order; `read` and `drop` take them."""
        return sorted(path.parent for path in self.folder.glob(f"[0-9]*/{_ENTRY}"))

    def put(self, entry: Entry) -> None:
        """Put an entry, with copies of its files, behind the others.

        Raises:
            StoreError: the disk is full.
        """
        numbers = [int(path.name) for path in self.folder.glob("[0-9]*")]
        folder = self.folder / f"{max(numbers, default=0) + 1:08d}"
        draft = self.folder / f".{folder.name}"
        with disk_errors(self.folder):
            shutil.rmtree(draft, ignore_errors=True)
            files = []
            for number, (path, where) in enumerate(entry.files):
                name = Path(str(number), path.name)  # a receiver takes the name from the file
                (draft / name).parent.mkdir(parents=True)
                shutil.copyfile(path, draft / name)
                files.append((folder / name, where))
            kept = entry.model_copy(update={"files": tuple(files)})
            write_text_atomic(draft / _ENTRY, kept.model_dump_json())
            draft.rename(folder)
            flush(self.folder)

    def read(self, place: Path) -> Entry:
        """One of those that wait."""
        return Entry.model_validate_json((place / _ENTRY).read_text(encoding="utf-8"))

    def drop(self, place: Path) -> None:
        """Take one out."""
        (place / _ENTRY).unlink()  # first: what is left of the folder is no entry
        shutil.rmtree(place, ignore_errors=True)
