"""What is checked before any work: the store, the registry, the data, and the room that a run needs."""

from __future__ import annotations

from pressoir.merging.preflight import preflight
from pressoir.pipeline.estimates import estimate_disk_bytes
from pressoir.pipeline.sources import Sources
from pressoir.recipe.recipe import Recipe
from pressoir.registry.registry import Registry
from pressoir.sources.resolve import Source


def base_reference(recipe: Recipe) -> str:
    """The model that a run begins with; of a merge the first parent."""
    if recipe.merge:
        return recipe.merge.models[0]
    return (recipe.teacher and recipe.teacher.checkpoint) or recipe.model


def check_inputs(recipe: Recipe, sources: Sources) -> int:
    """Check the store, the registry and the data; return the number of training sentences (LMs: 0).

    Raises:
        StoreError: nothing could be stored. RegistryError: `models.json` is not valid. DataError: a file is
        missing or has a malformed row. SourceError: a hub data set or a parent cannot be loaded.
        MergeError: the models cannot be merged; every finding is listed.
    """
    store = sources.store
    store.check_writable()
    Registry(store.home).models()
    if recipe.merge is not None:
        models = {f"parent_{i}": model for i, model in enumerate(recipe.merge.models)}
        if recipe.merge.base is not None:
            models["base"] = recipe.merge.base
        folders = {name: sources.model(model).folder for name, model in models.items()}
        preflight(recipe.merge, folders, store.root)
    if recipe.teacher is None:
        sources.key("text", recipe.text, {}, recipe.seed)
        return 0
    stored = store.find(sources.key("data", recipe.data, {}, recipe.seed))
    if stored is not None:
        return int(stored.metrics["train_rows"])
    splits, _ = sources.prepare("data", recipe.data, recipe.seed)
    return len(splits["train"])


def check_space(recipe: Recipe, sources: Sources, base: Source, sentences: int) -> None:
    """Check that the store has room for a run that starts from nothing.

    Raises:
        StoreError: it has not; the message says how much is needed.
    """
    sources.store.check_writable(estimate_disk_bytes(recipe, base.folder, sentences))
