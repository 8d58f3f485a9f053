"""A folder of results that changes as a whole: a reader sees the previous results or the new ones."""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pressoir.system.files import disk_errors, flush, make_folder, remove, swap_folder


@contextmanager
def replaced(target: Path, ours: Collection[str]) -> Iterator[Path]:
    """A draft for the block to fill, which then takes the place of `target`.

    What else the user keeps in `target`, by other names than `ours`, stays there. A process that is killed at
    any point leaves whole results in `target`; what it leaves beside it is put right by the next one.

    Raises:
        StoreError: the folder cannot be written, or the disk is full; `target` is as it was.
    """
    with disk_errors(target):
        make_folder(target.parent)
        _put_right(target, ours)
        draft = target.parent / f".{target.name}-new-{uuid.uuid4().hex[:8]}"
        draft.mkdir()
        try:
            yield draft
            flush(draft)
            swap_folder(draft, target)
        except BaseException:
            remove(draft)
            raise
        flush(target.parent)
        _put_right(target, ours)


def _put_right(target: Path, ours: Collection[str]) -> None:
    """Finish what a swap has left: the user's own files go to `target`, previous results and drafts away."""
    for kind in ("old", "new"):
        for left in target.parent.glob(f".{target.name}-{kind}-*"):
            if kind == "old" and not target.exists():  # killed between two renames
                left.rename(target)
                continue
            for path in left.iterdir():
                if path.name not in ours and not os.path.lexists(target / path.name):
                    path.rename(target / path.name)
            remove(left)
