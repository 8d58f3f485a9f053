"""The model registry: which models are known by name, where they are, and what they were measured to do.

Two files make it: the catalogue that ships with Pressoir, and `$PRESSOIR_HOME/models.json`, in which runs
register their results and whose entries win. Only the second is ever written: under a lock, as a whole.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from filelock import FileLock
from pydantic import ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from pressoir.config import Config
from pressoir.errors import RegistryError
from pressoir.recipe.sections import Criterion
from pressoir.store.store import Store, default_home
from pressoir.system.files import disk_errors, write_text_atomic

FILE = "models.json"
SCHEMA_FILE = "models.schema.json"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Reference = Annotated[str, Field(min_length=1)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
_ID = r"^[a-z0-9][a-z0-9._-]{0,62}$"
Id = Annotated[str, Field(pattern=_ID)]
Result = TypeVar("Result")
Task = Literal[
    "text-classification", "causal-lm", "translation", "automatic-speech-recognition", "feature-extraction"
]


class Urls(Config):
    """References that `pressoir.sources` resolves, tried in this order."""

    base: Reference
    """`hub:org/name@revision`, `package:module`, `store:stage/key`, a folder, or the URL of a sharded one."""
    mirrors: tuple[Reference, ...] = ()
    """Where else the same model is."""
    shards: tuple[FileName, ...] = ()
    """File names of its shards, in the order of execution; none where it is not sharded."""


class Entry(Config):
    """One model."""

    id: Id
    """Name it is known by; the same as its key in the file."""
    name: str
    """Name for people."""
    type: Task
    """What it does."""
    size_mb: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Size of its files on disk, MB = 10^6 bytes."""
    urls: Urls
    """Where its files are."""
    digest: Sha256 | None = None
    """SHA-256 over all its files, as the artifact store has it; of a hub or HTTP model, those fetched."""
    weights_sha256: Sha256 | None = None
    """SHA-256 of `model.safetensors`; checked before the model is used."""
    revision: str | None = None
    """Commit on the hub."""
    licence: str
    """SPDX identifier."""
    metrics: dict[str, FiniteFloat] = Field(default={})
    """What it was measured to do; fractions 0–1, units in the names."""
    quantization: str | None = None
    """Scheme of its weights, such as `int8` or `q4`; null for floating point."""
    lineage: dict[str, Sha256] = Field(default={})
    """Digest of each stage's artifact on the way to it, in the order they ran."""
    created_at: str | None = None
    """UTC time of registration, ISO 8601."""


class ServingEntry(Config):
    """One deployed serving configuration."""

    id: Id
    """Name it is served by; the same as its key in the file."""
    config: dict[str, Any]
    """The configuration, each tier with the place and the digest of its files."""
    digests: dict[Id, Sha256]
    """SHA-256 over the files of each tier's model, as they were checked when it was deployed."""
    artifacts: dict[Id, Sha256] = Field(default={})
    """Digest of the artifact of each tier whose files are in the store, where `gc` keeps them."""
    created_at: str | None = None
    """UTC time of registration, ISO 8601."""


class Catalogue(Config):
    """A registry file."""

    model_config = ConfigDict(title="Pressoir model registry")

    schema_file: Annotated[str, Field(alias="$schema")] = f"./{SCHEMA_FILE}"
    """The JSON Schema of this file, for editors."""
    version: Literal[1] = 1
    """Version of the format."""
    models: dict[Id, Entry] = Field(default={}, json_schema_extra={"additionalProperties": False})
    """The models by id."""
    serving: dict[Id, ServingEntry] = Field(default={}, json_schema_extra={"additionalProperties": False})
    """What is deployed, by id."""

    @model_validator(mode="after")
    def _ids_agree(self) -> Catalogue:
        for section in ("models", "serving"):
            for key, entry in getattr(self, section).items():
                if entry.id != key:
                    raise ValueError(f"{section}.{key} has the id {entry.id!r}; make them the same")
        return self


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
        raise RegistryError(f"the registry has no model {id!r}; {_hint(id, models)}")

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
            raise RegistryError(f"nobody registered {id!r}; {_hint(id, models)}")

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
        deployed = ", ".join(sorted(known)) or "none yet: see `pressoir deploy`"
        raise RegistryError(f"nothing was deployed as {id!r}; {hint}Deployed are: {deployed}")

    def deploy(self, entry: ServingEntry) -> None:
        """Register a serving configuration in `home`'s file, in the place of one with the same id.

        Raises:
            RegistryError, StoreError: as `add`.
        """

        def put(serving: dict[str, ServingEntry]) -> None:
            serving[entry.id] = entry

        self._change("serving", put)

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

        The file is then what it was to the byte, unless somebody else changed it meanwhile, who keeps that.

        Raises:
            RegistryError, StoreError: as `add`.
        """
        old = Catalogue() if before is None else _parse(before, self.file)

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
            (self.home / "locks").mkdir(parents=True, exist_ok=True)
            with FileLock(self.home / "locks" / f"{FILE}.lock"):
                yield

    def _change(
        self, section: Literal["models", "serving"], edit: Callable[[dict[str, Any]], Result]
    ) -> Result:
        """Let `edit`, and nobody else meanwhile, change a section of `home`'s file."""
        with self._locked():
            return self._edit(section, edit)

    def _edit(self, section: str, edit: Callable[[dict[str, Any]], Result]) -> Result:
        """Replace the file whole, where `edit` changes something; hold the lock meanwhile."""
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


def shipped_file() -> Path:
    """The catalogue that comes with Pressoir: inside an installed package, else at the repository's root."""
    package = Path(__file__).parent
    return next(path for path in (package / FILE, package.parent / FILE) if path.exists())


def read(path: Path) -> Catalogue:
    """Read a registry file.

    Raises:
        RegistryError: it is not JSON (the message names the line), or a field is wrong (it names the field).
    """
    try:
        return _parse(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise RegistryError(f"{path} cannot be read: {error}") from error


def _parse(text: str, path: Path) -> Catalogue:
    """The catalogue of a file's text; raises as `read`."""
    try:
        raw: Any = json.loads(text, object_pairs_hook=_unique)
    except _DuplicateError as error:
        raise RegistryError(f"{path}: the key {error} is given twice; keep one") from error
    except json.JSONDecodeError as error:
        raise RegistryError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); mend it, or move it away to start "
            "a new one"
        ) from error
    try:
        return Catalogue.model_validate(raw)
    except ValidationError as error:
        problems = [
            f"  {'.'.join(map(str, problem['loc'])) or '(file)'}: {problem['msg']}"
            for problem in error.errors(include_url=False)
        ]
        raise RegistryError("\n".join([f"{path} is not a valid registry:", *problems])) from None


class _DuplicateError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, unless a key is given twice: the first would be lost with the next write."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _DuplicateError(json.dumps(key))
        result[key] = value
    return result


def check_id(id: str) -> None:
    """Refuse what cannot be an id.

    Raises:
        RegistryError: it says which characters may be used.
    """
    if not re.fullmatch(_ID, id):
        raise RegistryError(
            f"{id!r} cannot be an id; use up to 63 lower-case letters, digits, '.', '_' and '-', and begin "
            "with a letter or digit"
        )


def nearest(id: str, known: Iterable[str]) -> str | None:
    """The known id that `id` is most likely a slip of, if any."""
    return next(iter(difflib.get_close_matches(id.lower(), known, n=1)), None)


def _hint(id: str, known: Collection[str]) -> str:
    if near := nearest(id, known):
        return f"did you mean {near!r}?"
    if not known:
        return "nothing is registered yet: see `pressoir registry add`"
    return f"known are: {', '.join(sorted(known)[:10])}{', …' if len(known) > 10 else ''}"


def dump(catalogue: Catalogue) -> str:
    """The text of a registry file."""
    content = catalogue.model_dump(mode="json", by_alias=True)
    if not catalogue.serving:
        del content["serving"]
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def schema() -> str:
    """The text of `models.schema.json`, generated from the types above."""
    generated = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Catalogue.model_json_schema(by_alias=True),
    }
    return json.dumps(generated, indent=2, ensure_ascii=False) + "\n"


def promotion(
    candidate: Mapping[str, float], holder: Mapping[str, float] | None, criterion: Criterion
) -> tuple[bool, str]:
    """Whether `candidate` takes over from `holder`, and why; both are figures of a benchmark's last row.

    A classifier has an `accuracy_delta`, a language model a `perplexity_increase`: fractions, against the
    first row.

    Raises:
        RegistryError: the candidate lacks `criterion.metric`, or both of those.
    """
    metric = criterion.metric
    if metric not in candidate:
        raise RegistryError(
            f"registry.criterion.metric is {metric!r}, but this model was measured in "
            f"{', '.join(sorted(candidate))}; choose one of its figures"
        )
    keeps, change = _quality(candidate, criterion)
    if not keeps:
        return False, change
    if holder is None:
        return True, f"nobody holds it, and {change}"
    if metric not in holder:
        return True, f"the holder has no {metric} to compare with"
    value, held = candidate[metric], holder[metric]
    less_is_better = metric == "perplexity"
    better = value < held if less_is_better else value > held
    word = "less" if less_is_better else "more"
    return better, f"{metric} {value:.4g} is {'' if better else 'not '}{word} than {held:.4g}"


def _quality(candidate: Mapping[str, float], criterion: Criterion) -> tuple[bool, str]:
    """Whether the candidate lost no more quality than the criterion allows, and what became of it."""
    if "accuracy_delta" in candidate:
        delta, least = candidate["accuracy_delta"], criterion.min_accuracy_delta
        change = f"accuracy changed by {delta:+.4f}"
        keeps = delta >= least
        return keeps, change if keeps else f"{change}, and less than {least:+.4f} is never promoted"
    if "perplexity_increase" in candidate:
        increase, most = candidate["perplexity_increase"], criterion.max_perplexity_increase
        change = f"perplexity changed by {100 * increase:+.1f} %"
        keeps = increase <= most
        return keeps, change if keeps else f"{change}, and more than {100 * most:+.1f} % is never promoted"
    raise RegistryError(
        "a model is promoted by its accuracy_delta or its perplexity_increase, but this one has "
        f"{', '.join(sorted(candidate))} alone"
    )
