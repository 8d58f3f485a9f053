"""int8 for sentence encoders; the most sensitive layers stay in float32, so that the correlation holds.

The layers are quantised as those of classifiers, see `pressoir.quantization.int8_scheme`; what is held is
Spearman's correlation of cosines with the scores of pairs, and what ranks the layers is how far each one
alone turns the embeddings (1 − mean cosine).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressoir.data import similarity
from pressoir.data.similarity import Pair
from pressoir.formats.folder import check_not_quantized
from pressoir.formats.sentence_modules import write_modules
from pressoir.metrics import cosines, spearman
from pressoir.models import loading
from pressoir.models.sentence_embedder import load_embedder, load_embedder_tokenizer
from pressoir.quantization.int8 import quantizable, word_table
from pressoir.quantization.int8_scheme import SENSITIVITY_SAMPLES, Scorer, pack, write_weights
from pressoir.recipe.sections import QuantizeConfig
from pressoir.stage import StageContext


def run(inputs: Mapping[str, Path], config: QuantizeConfig, context: StageContext) -> dict[str, float]:
    """Quantise the sentence encoder `inputs["model"]`; validate on the pairs of `inputs["data"]`.

    Raises:
        SourceError: the model does not load, or a weight is not finite. QuantizationError: it is quantised
        already.
    """
    source, out, tell = inputs["model"], context.out_dir, context.reporter.message
    check_not_quantized(source)
    model: Any = load_embedder(source)  # has of transformers' models what is needed
    tokenizer = load_embedder_tokenizer(source)
    pairs = similarity.load_pairs(inputs["data"])
    texts = list(dict.fromkeys(text for pair in pairs for text in pair[:2]))
    reference = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    kinds = dict(quantizable(model))
    packed, excluded = pack(reference, kinds, word_table(model), config)
    scorer = Scorer(model, reference, packed, kinds, tokenizer, outputs=model.dimensions)
    float_vectors = scorer.float_logits(texts)
    float_score = _correlation(float_vectors, texts, pairs)
    vectors = scorer.logits(texts, set(packed))
    score = before = _correlation(vectors, texts, pairs)
    sensitivity, limit = dict[str, float](), config.max_accuracy_drop
    if limit is not None and float_score - score > limit + 1e-9:
        tell(
            f"int8 loses {float_score - score:.4f} of Spearman's correlation, more than the {limit:g} "
            f"allowed; ranking {len(packed)} layers by sensitivity"
        )
        some = texts[:SENSITIVITY_SAMPLES]
        for done, name in enumerate(packed, start=1):
            sensitivity[name] = 1 - float(
                cosines(float_vectors[: len(some)], scorer.logits(some, {name})).mean()
            )
            context.reporter.progress(done, len(packed), "layers ranked")
        for name in sorted(sensitivity, key=lambda layer: (-sensitivity[layer], layer)):
            del packed[name]
            excluded[name] = (
                f"most sensitive of the remaining layers: mean cosine {1 - sensitivity[name]:.5f}"
            )
            vectors = scorer.logits(texts, set(packed))
            score = _correlation(vectors, texts, pairs)
            tell(f"{name} stays in float32: int8 correlation is now {score:.4f}")
            if float_score - score <= limit + 1e-9:
                break

    shutil.copyfile(source / "config.json", out / "config.json")
    write_modules(model.described(), int(model.config.hidden_size), out)
    loading.save_tokenizer(loading.load_tokenizer(source), out)
    alike = float(cosines(float_vectors, vectors).mean())
    facts = {
        "pairs": len(pairs),
        "float_spearman": float_score,
        "spearman_before_exclusions": before,
        "spearman": score,
        "mean_cosine": alike,
        "max_accuracy_drop": limit,
    }
    reasons = {"excluded": excluded}
    summary, figures = write_weights(out, config, reference, packed, kinds, reasons, facts, sensitivity)
    tell(
        f"{summary}; Spearman's correlation on {len(pairs)} pairs {float_score:.4f} → {score:.4f}, "
        f"mean cosine {alike:.5f}"
    )
    return {
        "validation_spearman": score,
        "validation_spearman_drop": float_score - score,
        "mean_cosine": alike,
        **figures,
    }


def _correlation(vectors: NDArray[np.float32], texts: list[str], pairs: list[Pair]) -> float:
    """Spearman's of the cosine of each pair with its score."""
    place = {text: index for index, text in enumerate(texts)}
    first = vectors[[place[pair.first] for pair in pairs]]
    second = vectors[[place[pair.second] for pair in pairs]]
    return spearman(cosines(first, second), [pair.score for pair in pairs])
