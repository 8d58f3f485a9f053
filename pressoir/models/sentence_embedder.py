"""A sentence encoder as one PyTorch module: hidden states, pooling, Dense and Normalize, text in, vector out.

Its output has the embedding as `logits`: what compresses classifiers (int8, pruning, graph surgery) asks a
model for these alone, and works on embeddings likewise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from pressoir.errors import SourceError
from pressoir.formats import int8_checkpoint
from pressoir.formats.folder import QUANTIZATION
from pressoir.formats.sentence_modules import (
    Dense,
    Normalize,
    SentenceModules,
    read_modules,
    write_modules,
)
from pressoir.models import loading
from pressoir.models.simulated_int8 import quantize_input

ENCODER, STEPS = "encoder", "steps"
"""Attributes, and beginnings of the names of weights, of a `SentenceEmbedder`."""


class SentenceEmbedder(nn.Module):
    """An encoder and what makes one vector of its tokens'."""

    base_model_prefix = ENCODER

    def __init__(self, encoder: PreTrainedModel, modules: SentenceModules) -> None:
        super().__init__()
        self.encoder = encoder
        self.modules_config = modules
        self.steps = nn.ModuleList(_step(step) for step in modules.steps)
        self._takes_types = "token_type_ids" in inspect.signature(encoder.forward).parameters

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        """Embeddings (batch, dimensions) as `logits`, and the last hidden states, for (batch, seq)."""
        types = {"token_type_ids": token_type_ids} if self._takes_types else {}
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        vectors = torch.cat(
            [POOLINGS[mode](states, attention_mask) for mode in self.modules_config.pooling], dim=1
        )
        for step in self.steps:
            vectors = step(vectors)
        output: Any = SequenceClassifierOutput
        return output(logits=vectors, hidden_states=(states,))

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return self.encoder.config

    @property
    def base_model(self) -> PreTrainedModel:
        """The encoder."""
        return self.encoder

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.device

    @property
    def dimensions(self) -> int:
        """Length of an embedding."""
        for step in reversed(self.steps):
            if isinstance(step, DenseLayer):
                return step.linear.out_features
        return int(self.config.hidden_size) * len(self.modules_config.pooling)

    def get_input_embeddings(self) -> Any:
        """The table of word pieces."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, table: nn.Module) -> None:
        """Put another table in its place."""
        self.encoder.set_input_embeddings(table)

    def prune_heads(self, heads: dict[int, list[int]]) -> None:
        """Remove attention heads by transformers' own method."""
        self.encoder.prune_heads(heads)

    def described(self) -> SentenceModules:
        """The modules with the weights as they are now."""
        steps = [step.described() if isinstance(step, DenseLayer) else Normalize() for step in self.steps]
        return replace(self.modules_config, steps=tuple(steps))

    def append(self, dense: Dense) -> None:
        """Put a Dense module after the others, before the last Normalize."""
        steps = list(self.described().steps)
        place = len(steps) - 1 if steps and isinstance(steps[-1], Normalize) else len(steps)
        steps.insert(place, dense)
        self.modules_config = replace(self.modules_config, steps=tuple(steps))
        self.steps = nn.ModuleList(_step(step) for step in steps)

    def save_pretrained(self, folder: Path, **options: Any) -> None:
        """Write a sentence-transformers folder, without its tokenizer."""
        self.encoder.save_pretrained(folder, safe_serialization=True)
        write_modules(self.described(), int(self.config.hidden_size), Path(folder))


class DenseLayer(nn.Module):
    """A linear layer and its activation."""

    def __init__(self, dense: Dense) -> None:
        super().__init__()
        out, width = dense.weight.shape
        self.activation = dense.activation
        self.linear = nn.Linear(width, out, bias=dense.bias is not None)
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(dense.weight))
            if dense.bias is not None:
                self.linear.bias.copy_(torch.from_numpy(dense.bias))

    def forward(self, vectors: Tensor) -> Tensor:
        """(batch, out) for (batch, in)."""
        return _ACTIVATIONS[self.activation](self.linear(vectors))

    def described(self) -> Dense:
        """The weights as they are now."""
        bias = None if self.linear.bias is None else self.linear.bias.detach().cpu().float().numpy().copy()
        return Dense(self.linear.weight.detach().cpu().float().numpy().copy(), bias, self.activation)


class NormalizeLayer(nn.Module):
    """Divides each vector by its length."""

    def forward(self, vectors: Tensor) -> Tensor:
        """The same shape."""
        return F.normalize(vectors, p=2.0, dim=1)


def load_embedder(folder: Path) -> SentenceEmbedder:
    """Load a sentence encoder in float32, in evaluation mode; an int8 one with its codes expanded.

    Raises:
        SourceError: the folder does not hold one that transformers knows, lacks some of its weights, or has a
            module that is not supported.
    """
    modules = read_modules(folder)
    if not (folder / QUANTIZATION).exists() and not _widths(folder):
        model = SentenceEmbedder(loading.load_encoder(folder), modules)
        return model.eval()
    if (folder / QUANTIZATION).exists():
        state = int8_checkpoint.dequantized_state(folder)
    else:
        encoder = load_file(folder / "model.safetensors")
        state = {f"{ENCODER}.{name}": tensor for name, tensor in encoder.items()}
    model = SentenceEmbedder(loading.new_encoder(loading.load_config(folder)), modules)
    if not (folder / QUANTIZATION).exists():  # Dense modules have files of their own
        state |= {name: value for name, value in model.state_dict().items() if name.startswith(f"{STEPS}.")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("position_ids") and ".pooler." not in name]
    if missing or unexpected:
        raise SourceError(f"{folder}: weights do not match the config: {[*missing, *unexpected][:5]}")
    return model.eval()


def load_simulated_embedder(folder: Path) -> SentenceEmbedder:
    """Load an int8 folder so that it computes what integer kernels compute; see
    `pressoir.models.simulated_int8`.

    Raises:
        SourceError: the folder is damaged, or of an unknown format.
    """
    layers, _ = int8_checkpoint.read(folder)
    model = load_embedder(folder)
    for name, layer in layers.items():
        if layer["kind"] == "linear":
            model.get_submodule(name).register_forward_pre_hook(quantize_input)
    return model


def load_embedder_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a sentence encoder, which cuts where sentence-transformers does.

    Raises:
        SourceError: there is none, or it or a module is broken.
    """
    tokenizer, limit = loading.load_tokenizer(folder), read_modules(folder).max_tokens
    if limit is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    return tokenizer


def _widths(folder: Path) -> bool:
    """Whether the layers have feed-forward widths of their own."""
    return bool(getattr(loading.load_config(folder), "intermediate_sizes", None))


def _step(step: Dense | Normalize) -> nn.Module:
    return DenseLayer(step) if isinstance(step, Dense) else NormalizeLayer()


def _weights(states: Tensor, mask: Tensor) -> Tensor:
    return mask.unsqueeze(-1).to(states.dtype)


def _cls(states: Tensor, mask: Tensor) -> Tensor:
    first = mask.to(torch.int32).argmax(dim=1)
    return _gathered(states, first)


def _last(states: Tensor, mask: Tensor) -> Tensor:
    positions = torch.arange(states.shape[1], device=states.device)
    return _gathered(states, (mask * positions).to(torch.int32).argmax(dim=1))  # ONNX Runtime has no other


def _gathered(states: Tensor, positions: Tensor) -> Tensor:
    index = positions.to(torch.int64)[:, None, None].expand(-1, 1, states.shape[2])
    return torch.gather(states, 1, index).squeeze(1)


def _max(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).max(dim=1).values


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    weights = _weights(states, mask)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def _mean_sqrt(states: Tensor, mask: Tensor) -> Tensor:
    weights = _weights(states, mask)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9).sqrt()


def _weighted_mean(states: Tensor, mask: Tensor) -> Tensor:
    positions = torch.arange(1, states.shape[1] + 1, device=states.device)
    return _mean(states, mask * positions)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
"""By the names in `pressoir.formats.sentence_modules.MODES`: of (batch, seq, hidden) and (batch, seq)."""
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda vectors: vectors,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}
