"""The model registry: which models are known by name, where they are, and what they were measured to do.

Two files make it: the catalogue that ships with Pressoir, and `$PRESSOIR_HOME/models.json`, in which runs
register their results and whose entries win. Only the second is ever written: under a lock, as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from filelock import FileLock

from pressoir.errors import RegistryError
from pressoir.registry.catalogue import (
    FILE,
    SCHEMA_FILE,
    Catalogue,
    Entry,
    ServingEntry,
    dump,
    hint,
    nearest,
    parse,
    read,
    schema,
    shipped_file,
)
from pressoir.store.store import Store, default_home
from pressoir.system.files import disk_errors, make_folder, write_text_atomic

Result = TypeVar("Result")


class Registry:
    """The shipped catalogue overlaid by `home`'s own file; safe for several processes at once."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = (home or default_home()).absolute()
        self.file = self.home / FILE

    def models(self) -> dict[str, Entry]:
        """Every known model by id; those registered in `home` win.

        Raises:
            RegistryError: a file is not valid; the message names the line or the field.
        """
        return {**read(shipped_file()).models, **self._own().models}

    def get(self, id: str) -> Entry:
        """The entry of `id`.

        Raises:
            RegistryError: there is none; the nearest id is suggested.
        """
        models = self.models()
        if id in models:
            return models[id]
        raise RegistryError(f"the registry has no model {id!r}; {hint(id, models)}")

    def add(self, entry: Entry) -> None:
        """Register `entry` in `home`'s file, in the place of one with the same id.

        Raises:
            RegistryError: the file that stands there is not valid; it is left as it is.
            StoreError: the file cannot be written.
        """
        self.put(entry.id, lambda old: entry)

    def put(self, id: str, make: Callable[[Entry | None], Entry]) -> Entry:
        """Register, and return, what `make` gives for `home`'s entry of `id`, or for None where it has none.

        Nobody else writes between the look and the entry. Raises what `add` raises, and what `make` does.
        """

        def put(models: dict[str, Entry]) -> Entry:
            models[id] = make(models.get(id))
            return models[id]

        return self._change("models", put)

    def remove(self, id: str) -> Entry:
        """Forget the entry that was registered under `id`, and return it; its files stay.

        Raises:
            RegistryError: there is none, or it is of the shipped catalogue.
            StoreError: the file cannot be written.
        """

        def remove(models: dict[str, Entry]) -> Entry:
            if id in models:
                return models.pop(id)
            if id in read(shipped_file()).models:
                raise RegistryError(f"{id!r} ships with Pressoir and cannot be removed")
            raise RegistryError(f"no entry {id!r} to remove; {hint(id, models)}")

        return self._change("models", remove)

    def forget(self, gone: Callable[[Entry], bool], *, dry_run: bool = False) -> list[Entry]:
        """Drop, and return, those of `home`'s entries that are `gone`; with `dry_run` only return them.

        Raises:
            RegistryError, StoreError: as `add`.
        """
        if dry_run:
            return [entry for entry in self.own().values() if gone(entry)]

        def forget(models: dict[str, Entry]) -> list[Entry]:
            return [models.pop(entry.id) for entry in list(models.values()) if gone(entry)]

        return self._change("models", forget)

    def serving(self, id: str) -> ServingEntry:
        """The serving configuration that was deployed as `id`.

        Raises:
            RegistryError: there is none; the nearest id is suggested.
        """
        known = self._own().serving
        if id in known:
            return known[id]
        near = nearest(id, known)
        hint = f"did you mean {near!r}? " if near else ""
        deployed = ", ".join(sorted(known)) or "none yet (see `pressoir deploy`)"
        raise RegistryError(f"no deployed configuration {id!r}; {hint}deployed: {deployed}")

    def deploy(self, entry: ServingEntry) -> None:
        """Register a serving configuration in `home`'s file, in the place of one with the same id.

        Raises:
            RegistryError, StoreError: as `add`.
        """

        def put(serving: dict[str, ServingEntry]) -> None:
            serving[entry.id] = entry

        self._change("serving", put)

    def undeploy(self, id: str) -> None:
        """Take the serving configuration `id` out of `home`'s file; of one that is not there nothing is said.

        Raises:
            RegistryError, StoreError: as `add`.
        """

        def drop(serving: dict[str, ServingEntry]) -> None:
            serving.pop(id, None)

        self._change("serving", drop)

    def content(self) -> str | None:
        """The text of `home`'s own file; None where there is none.

        Raises:
            RegistryError: the file is not valid.
        """
        self._own()
        with disk_errors(self.file):
            # Not read_text, which would mend line ends: what is written back later must be the same bytes.
            return self.file.read_bytes().decode("utf-8") if self.file.exists() else None

    def undo_deploy(self, id: str, before: str | None) -> None:
        """Make the serving configuration `id` what it was in `before`, an earlier `content`.

        The file is restored to the byte; changes that another process made in between are preserved.

        Raises:
            RegistryError, StoreError: as `add`.
        """
        old = Catalogue() if before is None else parse(before, self.file)

        def put_back(serving: dict[str, ServingEntry]) -> None:
            serving.pop(id, None)
            if id in old.serving:
                serving[id] = old.serving[id]

        with self._locked():
            if self.content() == before:
                return
            self._edit("serving", put_back)
            if self._own() != old:
                return
            if before is not None:
                write_text_atomic(self.file, before)
            else:
                self.file.unlink()
                (self.home / SCHEMA_FILE).unlink(missing_ok=True)

    def own(self) -> dict[str, Entry]:
        """The entries of `home`'s own file, by id.

        Raises:
            RegistryError: the file is not valid.
        """
        return self._own().models

    def references(self, without: Collection[str] = ()) -> set[str]:
        """Digests that must stay in the store: of what is deployed, and of registered models (but these) and
        what they came from."""
        own = self._own()
        models = [entry for entry in own.models.values() if entry.id not in without]
        digests = {digest for entry in models for digest in (entry.digest, *entry.lineage.values()) if digest}
        return digests.union(*(entry.artifacts.values() for entry in own.serving.values()))

    def _own(self) -> Catalogue:
        with disk_errors(self.file):
            return read(self.file) if self.file.exists() else Catalogue()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else changes `home`'s file inside this block."""
        Store(self.home).check_writable()
        with disk_errors(self.file):
            make_folder(self.home / "locks")
            with FileLock(self.home / "locks" / f"{FILE}.lock"):
                yield

    def _change(
        self, section: Literal["models", "serving"], edit: Callable[[dict[str, Any]], Result]
    ) -> Result:
        """Let `edit` change a section of `home`'s file, exclusively."""
        with self._locked():
            return self._edit(section, edit)

    def _edit(self, section: str, edit: Callable[[dict[str, Any]], Result]) -> Result:
        """Replace the whole file if `edit` changes something; the caller holds the lock."""
        own = self._own()
        entries = dict(getattr(own, section))
        result = edit(entries)
        if entries != getattr(own, section):
            for name in (FILE, SCHEMA_FILE):
                for leftover in self.home.glob(f".{name}.*"):  # of a writer that was killed
                    leftover.unlink()
            write_text_atomic(self.home / SCHEMA_FILE, schema())
            write_text_atomic(self.file, dump(own.model_copy(update={section: entries})))
        return result
