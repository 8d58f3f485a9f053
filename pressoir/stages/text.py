"""Gather the running text of a language-model run into one folder.

**What.** The calibration text and each evaluation text are read, checked and copied, with the window that
they are to be cut into.

**Why.** Every later stage then sees the same bytes, under one digest, wherever the files came from.

**Cost.** One copy of the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pressoir.data import running_text
from pressoir.recipe.sections import TextConfig
from pressoir.stage import LoggedDataset, Stage, StageContext, StageKeyParts


def run(inputs: Mapping[str, Path], config: TextConfig, context: StageContext) -> dict[str, float]:
    """Write the text folder; return its characters by name.

    Raises:
        DataError: a file is missing, empty or not UTF-8.
    """
    sizes = running_text.save(config, context.out_dir)
    context.reporter.message(", ".join(f"{name}: {size:,} characters" for name, size in sizes.items()))
    return {f"{name}_characters": float(size) for name, size in sizes.items()}


def key(config: TextConfig) -> StageKeyParts:
    """Of files which are named; and the digest of what they hold."""
    values = config.model_dump(mode="json")
    values["calibration"] = config.calibration is not None
    values["evaluation"] = sorted(config.evaluation)
    return StageKeyParts(values, {"source": running_text.source_digest(config)})


def dataset(folder: Path, config: TextConfig) -> LoggedDataset:
    """The calibration text, and each evaluation text by its name."""
    files = {path.stem: path for path in (folder / "evaluation").glob("*.txt")}
    files["calibration"] = folder / "calibration.txt"
    return LoggedDataset("text", files, {"text": "string"})


STAGE = Stage(
    name="text",
    version=1,
    kind="text",
    config=TextConfig,
    run=run,
    key=key,
    dataset=dataset,
    memory=lambda _, size: 0,
)
