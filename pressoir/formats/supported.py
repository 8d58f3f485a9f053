"""Whether Pressoir runs a model, decided from its configuration alone: before any work, in one sentence.

A task is known by the end of a class's name (`ForConditionalGeneration`), which other kinds of model have,
too; its declaration lists the types that it runs. Everything that opens a model of such a task asks here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pressoir.errors import ExtensionError, SourceError
from pressoir.extensions import architecture, loader
from pressoir.extensions.task import task
from pressoir.formats.folder import model_type_of, read_json, tasks_of
from pressoir.formats.sentence_modules import read_modules

if TYPE_CHECKING:
    from pressoir.extensions.task_name import TaskName

# Parts of a configuration that say what a model takes or returns besides text.
_PARTS = {
    "images": ("vision_config", "vision_tower_config", "image_size"),
    "sound": ("audio_config", "audio_encoder", "num_mel_bins", "sampling_rate"),
}


def unsupported(folder: Path, wanted: TaskName | None = None) -> str | None:
    """Why a model cannot be run for a task, or at all, and what to do; None where it can.

    A model that is supported for another task than the `wanted` one is not checked further.

    Raises:
        SourceError: `config.json` is missing or broken.
    """
    config = read_json(folder / "config.json")
    try:
        names = tasks_of(folder)
    except (SourceError, ExtensionError) as error:
        return str(error)
    name = wanted if wanted in names else names[0]
    declared, kind = task(name), config.get("model_type")
    if not declared.model_types or kind in declared.model_types:
        return None
    if kind in loader.names(architecture.GROUP):  # another package answers for it
        return None
    takes = [what for what, fields in _PARTS.items() if any(field in config for field in fields)]
    about = f", which works with {' and '.join(takes)}," if takes else ""
    return (
        f"{config['architectures'][0]} (model type {kind!r}){about} is not supported; for {name}, use a "
        f"model of type {_listed(declared.model_types)}"
    )


def check_supported(folder: Path, wanted: TaskName | None = None) -> None:
    """Refuse a model that Pressoir does not run; `unsupported` says why.

    Raises:
        SourceError: it is not supported, or `config.json` is missing or broken.
    """
    if (reason := unsupported(folder, wanted)) is not None:
        raise SourceError(f"{folder}: {reason}")


def check_exportable(folder: Path) -> None:
    """Refuse a model whose task is not exported, that is run in PyTorch alone, or not at all, and a sentence
    encoder with a module that is not supported.

    Raises:
        SourceError: it cannot be exported, or `config.json` is missing or broken.
    """
    check_supported(folder)
    declared, config = task(tasks_of(folder)[0]), read_json(folder / "config.json")
    if declared.kind == "sentence encoder":
        read_modules(folder)
    if declared.export is None:
        raise SourceError(f"exporting models for {declared.name} is not supported")
    if (kind := config.get("model_type")) not in declared.pytorch_only:
        return
    others = tuple(
        model_type for model_type in declared.model_types if model_type not in declared.pytorch_only
    )
    raise SourceError(
        f"{folder}: a model of type {kind!r} is not exported: it runs in PyTorch only, by transformers' own "
        f"`generate`. Exported are the types {', '.join(others)}"
    )


def served_tasks(folder: Path) -> list[TaskName]:
    """What a model can be served for, the first by default.

    Raises:
        SourceError: nothing; it says why.
    """
    check_supported(folder)
    kind, names = model_type_of(folder), tasks_of(folder)
    served = [name for name in names if kind not in task(name).evaluated_only]
    if not served:
        raise SourceError(
            f"{folder}: a model of type {kind!r} is not served for {' or '.join(names)}; it can be evaluated"
        )
    return served


def decoding_note(folder: Path) -> str | None:
    """What a reader of a CTC model's scores should know: it has a language model, which is not used."""
    if not (folder / "alphabet.json").exists() and not (folder / "language_model").is_dir():
        return None
    return "decoded greedily, without its n-gram language model (language_model/, which needs kenlm)"


def _listed(kinds: tuple[str, ...]) -> str:
    return ", ".join(kinds[:-1]) + f" or {kinds[-1]}" if len(kinds) > 1 else kinds[0]
