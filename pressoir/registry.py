"""The model registry: which models are known by name, where they are, and what they were measured to do.

Two files make it: the catalogue that ships with Pressoir, and `$PRESSOIR_HOME/models.json`, in which runs
register their results and whose entries win. Only the second is ever written: under a lock, as a whole.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock
from pydantic import ConfigDict, Field, ValidationError, model_validator

from pressoir.artifact import default_home, disk_errors, write_text_atomic
from pressoir.config import Config
from pressoir.errors import RegistryError
from pressoir.sections import Criterion

FILE = "models.json"
SCHEMA_FILE = "models.schema.json"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Task = Literal[
    "text-classification", "causal-lm", "translation", "automatic-speech-recognition", "feature-extraction"
]


class Urls(Config):
    """References that `pressoir.sources` resolves, tried in this order."""

    base: str
    """Where the model is: `hub:org/name@revision`, `package:module`, `store:stage/key`, or a local folder."""
    mirrors: tuple[str, ...] = ()
    """Where else the same model is."""
    shards: tuple[str, ...] = ()
    """File names of its shards, in the order of execution."""


class Entry(Config):
    """One model."""

    id: Id
    """Name it is known by; the same as its key in the file."""
    name: str
    """Name for people."""
    type: Task
    """What it does."""
    size_mb: Annotated[float, Field(ge=0)]
    """Size of its files on disk, MB = 10^6 bytes."""
    urls: Urls
    """Where its files are."""
    digest: Sha256 | None = None
    """SHA-256 over all its files, as the artifact store computes it."""
    weights_sha256: Sha256 | None = None
    """SHA-256 of `model.safetensors`; checked before the model is used."""
    revision: str | None = None
    """Commit on the hub."""
    licence: str
    """SPDX identifier."""
    metrics: dict[str, float] = Field(default={})
    """What it was measured to do; fractions 0–1, units in the names."""
    quantization: str | None = None
    """Scheme of its weights, such as `int8`; null for floating point."""
    lineage: dict[str, Sha256] = Field(default={})
    """Digest of each stage's artifact on the way to it, in the order they ran."""
    created_at: str | None = None
    """UTC time of registration, ISO 8601."""


class Catalogue(Config):
    """A registry file."""

    model_config = ConfigDict(title="Pressoir model registry")

    schema_file: Annotated[str, Field(alias="$schema")] = f"./{SCHEMA_FILE}"
    """The JSON Schema of this file, for editors."""
    version: Literal[1] = 1
    """Version of the format."""
    models: dict[Id, Entry] = Field(default={})
    """The models by id."""

    @model_validator(mode="after")
    def _ids_agree(self) -> Catalogue:
        for key, entry in self.models.items():
            if entry.id != key:
                raise ValueError(f"models.{key} has the id {entry.id!r}; make them the same")
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
        near = difflib.get_close_matches(id, models, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(models))}"
        raise RegistryError(f"the registry has no model {id!r}; {hint}")

    def add(self, entry: Entry) -> None:
        """Register `entry` in `home`'s file, in the place of one with the same id.

        Raises:
            RegistryError: the file that stands there is not valid; it is left as it is.
            StoreError: the file cannot be written.
        """
        with disk_errors(self.file):
            (self.home / "locks").mkdir(parents=True, exist_ok=True)
            with FileLock(self.home / "locks" / f"{FILE}.lock"):
                own = self._own()
                models = {**own.models, entry.id: entry}
                write_text_atomic(self.home / SCHEMA_FILE, schema())
                write_text_atomic(self.file, dump(own.model_copy(update={"models": models})))

    def references(self) -> set[str]:
        """Digests that must stay in the store: of registered models, and of all they were made from."""
        own = self._own().models.values()
        return {digest for entry in own for digest in (entry.digest, *entry.lineage.values()) if digest}

    def _own(self) -> Catalogue:
        return read(self.file) if self.file.exists() else Catalogue()


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
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RegistryError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); mend it, or move it away to start "
            "a new one"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RegistryError(f"{path} cannot be read: {error}") from error
    try:
        return Catalogue.model_validate(raw)
    except ValidationError as error:
        problems = [
            f"  {'.'.join(map(str, problem['loc'])) or '(file)'}: {problem['msg']}"
            for problem in error.errors(include_url=False)
        ]
        raise RegistryError("\n".join([f"{path} is not a valid registry:", *problems])) from None


def dump(catalogue: Catalogue) -> str:
    """The text of a registry file."""
    return json.dumps(catalogue.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False) + "\n"


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
    """Whether `candidate` takes over from `holder`, and why; both are figures of a benchmark's last row."""
    metric, least = criterion.metric, criterion.min_accuracy_delta
    delta, value = candidate["accuracy_delta"], candidate[metric]
    if delta < least:
        return False, f"accuracy changed by {delta:+.4f}, and less than {least:+.4f} is never promoted"
    if holder is None:
        return True, f"nobody holds it, and accuracy changed by {delta:+.4f}"
    if metric not in holder:
        return True, f"the holder has no {metric} to compare with"
    if value > holder[metric]:
        return True, f"{metric} {value:.4g} is more than {holder[metric]:.4g}"
    return False, f"{metric} {value:.4g} is not more than {holder[metric]:.4g}"
