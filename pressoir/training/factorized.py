"""A student with narrow embeddings: a BERT becomes an ELECTRA, whose embeddings have a width of their own.

A table of V word pieces × H hidden units becomes V × E and one projection E × H. The narrow tables are the
wide ones on their E principal directions. Normalisation comes between tables and projection, so the
projection is fitted: it is the one with which a sample of tokens at random positions comes nearest to the
wide, normalised embeddings (least squares).

Sources: Z. Lan et al. 2020, "ALBERT" (arXiv:1909.11942) for factorised embeddings; K. Clark et al. 2020,
"ELECTRA" (arXiv:2003.10555), whose encoder is BERT's behind such embeddings.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import BertModel, ElectraConfig, PreTrainedModel
from transformers.models.bert.modeling_bert import BertEmbeddings

from pressoir.errors import RecipeError
from pressoir.models import loading

SAMPLE = 65_536
"""Tokens that the projection is fitted on, at most."""
TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")


def with_embedding_size(model: PreTrainedModel, size: int, seed: int) -> PreTrainedModel:
    """An ELECTRA classifier with `model`'s layers and classes, and embeddings of `size` units.

    `model` is a BERT classifier. Its pooler becomes the dense part of ELECTRA's head, where GELU follows
    instead of tanh.

    Raises:
        RecipeError: it is not a BERT, or not wider than `size`.
    """
    config, bert = model.config, model.base_model
    if not isinstance(bert, BertModel):
        raise RecipeError(
            f"distill.student.embedding_size: not supported for a {config.model_type} model; supported: bert"
        )
    if size >= config.hidden_size:
        raise RecipeError(
            f"distill.student.embedding_size: {size} is not below the hidden size, {config.hidden_size}"
        )
    shared = {name: value for name, value in config.to_dict().items() if name not in _OF_ITS_TYPE}
    student = loading.new_classifier(ElectraConfig(**shared, embedding_size=size))
    source, found = model.state_dict(), student.state_dict()
    state = {
        name: source["bert" + rest] for name in found if "bert" + (rest := name[7:]) in source and _kept(name)
    }
    state |= _narrow(bert.embeddings, size, seed)
    for ours, theirs in {"dense": "bert.pooler.dense", "out_proj": "classifier"}.items():
        state |= {f"classifier.{ours}.{part}": source[f"{theirs}.{part}"] for part in ("weight", "bias")}
    student.load_state_dict(found | state)
    return student


_OF_ITS_TYPE = ("model_type", "architectures", "transformers_version", "torch_dtype", "dtype")


def _kept(name: str) -> bool:
    """Whether a tensor of the student's is one of the teacher's: the layers."""
    return name.startswith("electra.encoder.")


def _narrow(wide: BertEmbeddings, size: int, seed: int) -> dict[str, torch.Tensor]:
    """The tensors of the narrow embeddings and their projection, by the student's names."""
    words, positions, types = (wide.get_parameter(f"{name}.weight").detach().double() for name in TABLES)
    generator = torch.Generator().manual_seed(seed)
    count = min(SAMPLE, 4 * len(words) + 8 * size)
    token = torch.randint(len(words), (count,), generator=generator)
    place = torch.randint(len(positions), (count,), generator=generator)
    summed = words[token] + positions[place] + types[0]
    norm = wide.LayerNorm
    target = functional.layer_norm(
        summed, norm.normalized_shape, norm.weight.double(), norm.bias.double(), norm.eps
    )
    centred = summed - summed.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -size:]  # ascending eigenvalues
    inside = functional.layer_norm(summed @ directions, (size,), eps=norm.eps)
    inside = torch.cat([inside, torch.ones(count, 1, dtype=inside.dtype)], dim=1)
    fitted = torch.linalg.lstsq(inside, target).solution
    named = {
        f"embeddings.{name}.weight": table @ directions
        for name, table in zip(TABLES, (words, positions, types), strict=True)
    }
    named |= {"embeddings_project.weight": fitted[:-1].T, "embeddings_project.bias": fitted[-1]}
    return {f"electra.{name}": tensor.float().contiguous() for name, tensor in named.items()}
