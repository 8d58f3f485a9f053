"""Vocabulary: keep the word pieces that the training text uses, and those that any other text is spelt with.

**What.** The rows of the token embedding that no sentence of the training split (and of the unlabelled text)
looks up are left out, and their pieces leave the tokenizer. Text that `augment` made is not counted. Special
tokens and single characters (`a`, `##a`) stay, so that any text can still be split. `positions` also cuts the
table of positions to the tokens that a sentence may have. Pieces keep their order, ids are dense again, rows
are copied bit for bit: text whose pieces all stay gets the same logits. The tokenizer is a usual fast one
that transformers loads.

**Why.** In a small encoder most weights are token embeddings: 11.7 of the 22.7 million of a 6-layer MiniLM.
Those of words that never come up cost disk and memory and give nothing.

**Cost.** Seconds. The model is no faster: a look-up takes as long in a small table. Words that training never
showed are split into more, shorter pieces, for which the model was not trained; `vocabulary.json` says how
much of the validation text that is. With `min_count` above 1 this also meets rare words of the training text,
which later stages then learn from in their new form.

**Source.** A. Ushio et al. 2023, "An Efficient Multilingual Language Model Compression through Vocabulary
Trimming" (arXiv:2305.15020), there for languages. Why the split stays the same:
`pressoir.pruning.vocabulary`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pressoir.recipe.sections import VocabularyConfig
from pressoir.stage import Stage, StageContext
from pressoir.training.memory import classification_bytes


def run(inputs: Mapping[str, Path], config: VocabularyConfig, context: StageContext) -> dict[str, float]:
    """Write the model and its tokenizer with fewer pieces; see `pressoir.pruning.embeddings.trim`."""
    from pressoir.pruning import embeddings

    return embeddings.trim(inputs, config, context)


STAGE = Stage(
    name="vocabulary",
    version=1,
    kind="model",
    config=VocabularyConfig,
    run=run,
    searchable=True,
    memory=classification_bytes,
)
