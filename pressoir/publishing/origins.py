"""Which models a compressed one was made from, as the hub knows them, and their licenses."""

from __future__ import annotations

from pressoir.errors import PressoirError
from pressoir.pipeline.checks import base_reference
from pressoir.recipe.recipe import Recipe
from pressoir.registry.catalogue import Entry
from pressoir.registry.registry import Registry
from pressoir.sources import resolve
from pressoir.sources.describe import NO_LICENSE, SPDX, license_of
from pressoir.store.store import Store

# Licenses that are not SPDX's, but have an identifier on the hub.
_OF_THE_HUB = frozenset(
    """
    afl-3.0 apple-amlr apple-ascl bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m cc
    creativeml-openrail-m deepfloyd-if-license gemma gfdl gpl intel-research lgpl lgpl-lr llama2 llama3
    llama3.1 llama3.2 llama3.3 llama4 ncsa openrail openrail++ osl-3.0 wtfpl 
    """.split()
)


def references(recipe: Recipe) -> list[str]:
    """The models whose weights, or whose answers, the result is made of, as the recipe names them."""
    found = [base_reference(recipe)]
    if recipe.merge:
        found = [*([recipe.merge.base] if recipe.merge.base else []), *recipe.merge.models]
    if recipe.distill and recipe.distill.student.model:
        found.append(recipe.distill.student.model)
    return list(dict.fromkeys(found))


def shown(reference: str) -> str:
    """The reference without the path of a local folder: for files that leave this machine."""
    folder = resolve.folder_of(reference)
    return reference if folder is None else folder.name


def hub_id(reference: str, store: Store) -> str | None:
    """`org/name` of the hub, where the model that `reference` names is there; None of any other."""
    if resolve.folder_of(reference) is not None:
        return None
    entry = _entry(reference, store)
    for url in (entry.urls.base, *entry.urls.mirrors) if entry else (reference,):
        name = url.removeprefix("hub:").partition("@")[0]
        if url.startswith("hub:") or (entry is None and ":" not in url):
            return name
    return None


def license_name(reference: str, store: Store) -> str | None:
    """A model's license: what the catalogue says, else its card on this machine; None if neither does."""
    entry = None if resolve.folder_of(reference) is not None else _entry(reference, store)
    if entry is not None and entry.license != NO_LICENSE:
        return entry.license
    try:
        found = license_of(resolve.locate(reference, store, fetch=False))
    except PressoirError:  # the card is written after the run, which does not fail for want of a license
        return None
    return None if found == NO_LICENSE else found


def card_license(names: list[str | None]) -> dict[str, str]:
    """The fields of a card's metadata for the licenses of all origins: none unless all have the same."""
    name = names[0] if names and len(set(names)) == 1 else None
    if name is None or " AND " in name:
        return {}
    if name.lower() in SPDX or name.lower() in _OF_THE_HUB:
        return {"license": name.lower()}
    return {"license": "other", "license_name": name}


def _entry(reference: str, store: Store) -> Entry | None:
    """The catalogue's entry of an id, or of the model that has this reference among its locations."""
    try:
        models = Registry(store.home).models()
    except PressoirError:
        return None
    for entry in models.values():
        if reference in (entry.id, entry.urls.base, *entry.urls.mirrors):
            return entry
    return None
