"""The catalogue of models: its types, and `models.json` as text."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from pressoir.config import Config
from pressoir.errors import RegistryError
from pressoir.extensions.task_name import TaskName
from pressoir.system import reader

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

FILE = "models.json"
SCHEMA_FILE = "models.schema.json"
_ADVICE = "fix it, or move it away to start a new one"
_MOST_PROBLEMS = 50  # that one message lists
Reference = Annotated[str, Field(min_length=1)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
_ID = r"^[a-z0-9][a-z0-9._-]{0,62}$"
Id = Annotated[str, Field(pattern=_ID)]


class Urls(Config):
    """Locations of the model files, tried in this order."""

    base: Reference
    """`hub:org/name@revision`, `package:module`, `store:stage/key`, a folder, or the URL of a sharded
    model."""
    mirrors: tuple[Reference, ...] = ()
    """Alternative locations of the same model."""
    shards: tuple[FileName, ...] = ()
    """File names of the shards, in order of execution; empty if the model is not sharded."""


class Entry(Config):
    """A registered model."""

    id: Id
    """Id of the model; identical to its key in the file."""
    name: str
    """Human-readable name."""
    type: TaskName
    """Task of the model."""
    size_mb: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Size of the files on disk, MB = 10^6 bytes."""
    urls: Urls
    """Where to find the model files."""
    digest: Sha256 | None = None
    """SHA-256 of all files, as in the artifact store; for hub and HTTP models, of weights, graphs,
    configuration and tokenizer."""
    weights_sha256: Sha256 | None = None
    """SHA-256 of `model.safetensors`, verified before the model is used."""
    revision: str | None = None
    """Commit on the Hugging Face Hub."""
    license: Annotated[str, Field(validation_alias=AliasChoices("license", "licence"))]
    """License of the model, an SPDX identifier."""  # files of version 0.1.0 have it as `licence`
    metrics: dict[str, FiniteFloat] = Field(default={})
    """Benchmark results; fractions are 0–1, units are part of the names."""
    quantization: str | None = None
    """Quantisation scheme of the weights, such as `int8` or `q4`; null for floating point."""
    lineage: dict[str, Sha256] = Field(default={})
    """Digests of the artifacts that the model was built from, by stage, in order of execution."""
    created_at: str | None = None
    """UTC time of registration, ISO 8601."""


class ServingEntry(Config):
    """A deployed serving configuration."""

    id: Id
    """Id of the configuration; identical to its key in the file."""
    config: dict[str, Any]
    """The serving configuration, with the location and digest of the files of each tier."""
    digests: dict[Id, Sha256]
    """SHA-256 of the model files of each tier at deployment."""
    artifacts: dict[Id, Sha256] = Field(default={})
    """Artifact digests of the tiers whose files are in the store; `gc` does not delete them."""
    created_at: str | None = None
    """UTC time of registration, ISO 8601."""


class Catalogue(Config):
    """Content of a registry file."""

    model_config = ConfigDict(title="Pressoir model registry")

    schema_file: Annotated[str, Field(alias="$schema")] = f"./{SCHEMA_FILE}"
    """JSON Schema of this file, for editors."""
    version: Literal[1] = 1
    """Version of the file format."""
    models: dict[Id, Entry] = Field(default={}, json_schema_extra={"additionalProperties": False})
    """Models by id."""
    serving: dict[Id, ServingEntry] = Field(default={}, json_schema_extra={"additionalProperties": False})
    """Deployed serving configurations by id."""

    @model_validator(mode="after")
    def _ids_agree(self) -> Catalogue:
        for section in ("models", "serving"):
            for key, entry in getattr(self, section).items():
                if entry.id != key:
                    raise ValueError(f"{section}.{key} has the id {entry.id!r}; they must be the same")
        return self


def shipped_file() -> Path:
    """The catalogue that comes with Pressoir."""
    return Path(__file__).parents[1] / FILE


def read(path: Path) -> Catalogue:
    """Read a registry file.

    Raises:
        RegistryError: it is not JSON (the message names the line), or a field is wrong (it names the field).
    """
    return _validated(reader.read_json(path, RegistryError, _ADVICE, finite=False), path)


def parse(text: str, path: Path) -> Catalogue:
    """The catalogue of a file's text; raises as `read`."""
    return _validated(reader.parse_json(text, str(path), RegistryError, _ADVICE, finite=False), path)


def _validated(raw: Any, path: Path) -> Catalogue:
    try:
        return Catalogue.model_validate(raw)
    except ValidationError as error:
        problems = [
            f"  {reader.shown('.'.join(map(str, problem['loc'])))[1:-1] or '(file)'}: {problem['msg']}"
            for problem in error.errors(include_url=False)[:_MOST_PROBLEMS]
        ]
        raise RegistryError("\n".join([f"{path} is not a valid registry:", *problems])) from None


def check_id(id: str) -> None:
    """Refuse what cannot be an id.

    Raises:
        RegistryError: it says which characters may be used.
    """
    if not re.fullmatch(_ID, id):
        raise RegistryError(
            f"{id!r} is not a valid id; use up to 63 lower-case letters, digits, '.', '_' and '-', "
            "starting with a letter or digit"
        )


def nearest(id: str, known: Iterable[str]) -> str | None:
    """The known id that `id` is most likely a slip of, if any."""
    return next(iter(difflib.get_close_matches(id.lower(), known, n=1)), None)


def hint(id: str, known: Collection[str]) -> str:
    """What an error about an unknown id goes on with: the nearest one, or those that are known."""
    if near := nearest(id, known):
        return f"did you mean {near!r}?"
    if not known:
        return "no models are registered yet; see `pressoir registry add`"
    return f"registered: {', '.join(sorted(known)[:10])}{', …' if len(known) > 10 else ''}"


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
