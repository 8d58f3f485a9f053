"""Augment: more sentences for the student to learn from, labelled by the teacher.

A student learns the teacher's function, and a small labelled set shows little of it. The teacher can be asked
about any sentence: altered copies of the training sentences (some words replaced,
`pressoir.training.augmentation`), parts of them (runs of words), and, where the recipe names them, sentences
that nobody labelled. All get the teacher's most likely label; `teacher_outputs` then computes its soft labels
for them, as for all rows. Validation and test stay as they are, byte for byte, and no sentence of theirs
comes in. It costs one pass of the teacher over train and all that is new, and of the masked language model
one a replaced word; training takes longer as the text grows.

Sources: X. Jiao et al. 2020, "TinyBERT" (arXiv:1909.10351), section 3.2 and appendix A, for the copies;
I. Turc et al. 2019, "Well-Read Students Learn Better" (arXiv:1908.08962), for unlabelled text; R. Socher et
al. 2013, "Recursive Deep Models for Semantic Compositionality" (EMNLP), for what labelled phrases teach.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pressoir.recipe.sections import AugmentConfig
from pressoir.stage import Stage, StageContext
from pressoir.training.memory import classification_bytes


def run(inputs: Mapping[str, Path], config: AugmentConfig, context: StageContext) -> dict[str, float]:
    """Write a data folder with more to learn from; see `pressoir.training.augmented_data.extend`."""
    from pressoir.training import augmented_data

    return augmented_data.extend(inputs, config, context)


STAGE = Stage(
    name="augment",
    version=2,
    kind="dataset",
    config=AugmentConfig,
    run=run,
    searchable=True,
    memory=classification_bytes,
)
