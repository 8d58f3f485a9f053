"""What is checked before any work: store, registry, data, architectures, and the room that a run needs."""

from __future__ import annotations

from collections.abc import Sequence

from pressoir.data import sentences
from pressoir.data.texts import takes_pairs
from pressoir.errors import DataError
from pressoir.formats.folder import read_json
from pressoir.formats.labels import check_single_label, labels_of, match
from pressoir.merging.preflight import preflight
from pressoir.pipeline.architecture_checks import check_architectures
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
    """Check the store, the registry, the data, and that each step works with the architectures of the models;
    return the number of training sentences (LMs: 0).

    Raises:
        StoreError: nothing could be stored. RegistryError: `models.json` is not valid. DataError: a file is
        missing or has a malformed row, or a finished checkpoint has other labels. SourceError: a hub data
        set or a parent cannot be loaded, or a finished checkpoint does not choose one label of several.
        MergeError: the models cannot be merged; every finding is listed. RecipeError: a step does not work
        with a model's architecture.
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
    check_architectures(recipe, base_reference(recipe), sources)
    stored = store.find(sources.key("data", recipe.data, {}, recipe.seed))
    if stored is not None:
        facts = sentences.info(store.path(stored))
        count, labels, ordered = facts["train_rows"], facts["labels"], facts.get(sentences.ORDERED, False)
    else:
        corpus = sources.prepare("data", recipe.data, recipe.seed)
        count, labels, ordered = len(corpus.splits["train"]), corpus.labels, corpus.ordered
    if recipe.merge is None and recipe.teacher.checkpoint is not None:
        checkpoint = sources.model(recipe.teacher.checkpoint)
        _check_labels(checkpoint, labels, ordered)
        if recipe.data.text_pair_column is None and takes_pairs(read_json(checkpoint.folder / "config.json")):
            raise DataError(
                f"teacher.checkpoint {checkpoint.reference!r} was trained on pairs of texts; set "
                "data.text_pair_column, or use another checkpoint"
            )
    return int(count)


def _check_labels(checkpoint: Source, labels: Sequence[str], ordered: bool) -> None:
    """Check that a finished checkpoint is a classifier for the labels of the data."""
    config = read_json(checkpoint.folder / "config.json")
    check_single_label(config, checkpoint.reference)
    try:
        match(labels_of(config), labels, ordered)
    except DataError as error:
        raise DataError(f"teacher.checkpoint {checkpoint.reference!r}: {error}") from error


def check_space(recipe: Recipe, sources: Sources, base: Source, rows: int) -> None:
    """Check that the store has room for a run that starts from nothing.

    Raises:
        StoreError: it has not; the message says how much is needed.
    """
    sources.store.check_writable(estimate_disk_bytes(recipe, base.folder, rows))
