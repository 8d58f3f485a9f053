"""Prune: remove weights that matter least, then recover under the teacher.

`unstructured` sets the smallest weights of each matrix to zero (magnitude pruning). The matrices stay dense,
so dense runtimes compute every zero: the file compresses better, but nothing gets faster. It is here as the
classic reference.

`structured` removes whole attention heads and feed-forward neurons PHYSICALLY: the matrices are smaller, the
file is smaller, and every runtime is faster. Importance is the first-order Taylor expansion of the loss,
|activation × gradient| summed over a head or neuron, or the mean absolute activation (no backward pass).
Costs one pass over the calibration sentences, plus recovery epochs. How much goes is given
(`head_sparsity`, `ffn_sparsity`), or found: the least that brings the model to a `target`, see
`pressoir.pruning.target`.

With `rounds` it is gradual: measuring importance, removing a fraction and recovering are repeated. After
round k of n, the cumulative fraction removed is 1 − (1 − k/n)³ of the total: much in the first rounds, little
in the last. Each round has `epochs // rounds` epochs (the last also has the remaining ones) and its own
learning-rate warm-up and decay. A killed run resumes in the round it was in.

The recovery learns from the teacher's logits, as CoFi's does while it prunes, and from its hidden states
after every layer, TinyBERT's loss; see `training.DistillationLoss`. CoFi's learned masks, and its choice of
which layers are matched, are not used.

With `allocation: uniform` every layer keeps the same number of heads and neurons, and plain `from_pretrained`
reloads the result (heads through the config's `pruned_heads`). With `global` the layers differ: heads still
reload, but different feed-forward widths need `pressoir.models.loading.load_classifier`, which reads
`intermediate_sizes` in the config.

Sources: S. Han et al. 2015 (arXiv:1506.02626), magnitude; P. Molchanov et al. 2019 (arXiv:1906.10771), Taylor
importance; P. Michel et al. 2019, "Are Sixteen Heads Really Better than One?" (arXiv:1905.10650), heads; M.
Zhu & S. Gupta 2017 (arXiv:1710.01878), the cubic schedule; M. Xia et al. 2022, "Structured Pruning Learns
Compact and Accurate Models" (CoFi, arXiv:2204.00408), and X. Jiao et al. 2020, "TinyBERT" (arXiv:1909.10351),
recovery.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pressoir.data import sentences
from pressoir.recipe.sections import ExportConfig, PruneConfig, QuantizeConfig
from pressoir.reporting import Silent
from pressoir.stage import Stage, StageContext, StageKeyParts
from pressoir.training import precision
from pressoir.training.memory import training_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LATENCY_SAMPLES = 200  # validation sentences that the median is over


def run(inputs: Mapping[str, Path], config: PruneConfig, context: StageContext) -> dict[str, float]:
    """Prune the model, recover and write it; see `pressoir.pruning.rounds.prune`."""
    from pressoir.pruning import rounds

    return rounds.prune(inputs, config, context, int8_cost)


def int8_cost(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    config: PruneConfig,
    context: StageContext,
) -> Mapping[str, float]:
    """Size (MB) and measured latency (ms, median) of the int8 ONNX graph that `model` becomes.

    It is quantised and exported as a recipe does it by default, with the table of word pieces that
    `quantization_aware` names, on a few sentences of the data `folder`, and thrown away. Timed are validation
    sentences, one at a time.
    """
    from pressoir.benchmark.cost import CostConditions, cost
    from pressoir.export import classifier
    from pressoir.models import loading
    from pressoir.quantization import int8_scheme

    words: Literal["q4", "int8"] = "q4" if config.quantization_aware == "int8_q4" else "int8"
    with tempfile.TemporaryDirectory(dir=context.work_dir) as name:
        scratch = Path(name)
        source, packed, graph, work, few = (
            scratch / folder_name for folder_name in ("model", "int8", "graph", "work", "few")
        )
        for empty in (packed, graph, work):
            empty.mkdir()
        loading.save_model(model, source)
        loading.save_tokenizer(tokenizer, source)
        sentences.excerpt(folder, few)
        int8_scheme.run(
            {"model": source, "data": few},
            QuantizeConfig(embeddings=words, max_accuracy_drop=None),
            StageContext(packed, work, Silent(), context.seed, context.threads),
        )
        classifier.run(
            {"model": packed, "data": few},
            ExportConfig(min_label_agreement=0.0),  # nothing has recovered yet
            StageContext(graph, work, Silent(), context.seed, context.threads),
        )
        conditions = CostConditions(threads=context.threads, batch_size=1, samples=LATENCY_SAMPLES)
        return cost(graph, folder, conditions).model_dump()


def key(config: PruneConfig) -> StageKeyParts:
    """The whole configuration, with the precision of this machine."""
    return StageKeyParts(precision.key_values(config))


STAGE = Stage(
    name="prune",
    version=2,
    kind="model",
    config=PruneConfig,
    run=run,
    key=key,
    measures=lambda config: config.target is not None and config.target.latency_ms is not None,
    searchable=True,
    memory=training_bytes,
)
