"""Data: read, check, de-duplicate, split and sub-sample the sentences, once.

Every later stage reads this artifact, so that teacher, student and benchmark see the same splits, and its
digest is the fingerprint of the data that goes into their keys. Costs seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pressoir.data import sentences
from pressoir.recipe.sections import DataConfig
from pressoir.stage import StageContext

NAME, VERSION, KIND = "data", 1, "dataset"


def run(inputs: Mapping[str, Path], config: DataConfig, context: StageContext) -> dict[str, float]:
    """Write the three splits, and the unlabelled sentences where a file of them is given; return their sizes
    and the number of copies dropped from each.

    Raises:
        DataError: a row is malformed, a split is too small, or the unlabelled text is missing or not UTF-8.
        SourceError: the hub data set cannot be loaded.
    """
    splits, dropped = sentences.load(config, context.seed)
    for name, count in dropped.items():
        if count:
            context.reporter.message(
                f"data: {count} {name.replace('_', ' ')} (duplicates, or also in another split)"
            )
    return sentences.save(splits, dropped, context.out_dir, config.max_tokens)
