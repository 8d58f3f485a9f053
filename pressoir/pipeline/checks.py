"""What is checked before any work: the store, the registry, the data, and the room that a run needs."""

from __future__ import annotations

from pressoir.pipeline.keys import stage_key
from pressoir.recipe.recipe import Recipe
from pressoir.sources import resolve
from pressoir.sources.resolve import Source
from pressoir.store.store import Store


def base_reference(recipe: Recipe) -> str:
    """The model that a run begins with; of a merge the first parent."""
    if recipe.merge:
        return recipe.merge.models[0]
    return (recipe.teacher and recipe.teacher.checkpoint) or recipe.model


def check_inputs(recipe: Recipe, store: Store) -> int:
    """Check the store, the registry and the data; return the number of training sentences (LMs: 0).

    Raises:
        StoreError: nothing could be stored. RegistryError: `models.json` is not valid. DataError: a file is
        missing or has a malformed row. SourceError: a hub data set or a parent cannot be loaded.
        MergeError: the models cannot be merged; every finding is listed.
    """
    from pressoir.data import sentences as data
    from pressoir.registry.registry import Registry

    store.check_writable()
    Registry(store.home).models()
    if recipe.merge is not None:
        from pressoir.merging.preflight import preflight

        models = {f"parent_{i}": model for i, model in enumerate(recipe.merge.models)}
        if recipe.merge.base is not None:
            models["base"] = recipe.merge.base
        folders = {name: resolve.resolve(model, store).folder for name, model in models.items()}
        preflight(recipe.merge, folders, store.root)
    if recipe.teacher is None:
        from pressoir.data import running_text

        running_text.source_digest(recipe.text)
        return 0
    prepared = store.find(stage_key("data", recipe.data, {}, recipe.seed))
    if prepared is not None:
        return int(prepared.metrics["train_rows"])
    return len(data.load(recipe.data, recipe.seed)[0]["train"])


def check_space(recipe: Recipe, store: Store, base: Source, sentences: int) -> None:
    """Check that the store has room for a run that starts from nothing.

    Raises:
        StoreError: it has not; the message says how much is needed.
    """
    from pressoir.pipeline.estimates import estimate_disk_bytes

    store.check_writable(estimate_disk_bytes(recipe, base.folder, sentences))
