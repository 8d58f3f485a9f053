"""Run a causal LM on text one decoder layer at a time, from its files: what calibration needs of it.

The architecture stands on the meta device, without memory for weights. Windows of text go through the
embeddings once; then each decoder layer in turn gets its weights, transforms the hidden states of all
windows, and gives the weights back. Never more than one layer is held, whatever the model's size, beside the
hidden states: (windows, tokens, hidden) in float32.

What a decoder layer takes besides the hidden states (rotary embeddings, masks) is not reconstructed: it is
what the model's own forward passes to it, recorded once a batch size.

A layer's Hessian is X Xᵀ of the inputs of a matrix. Matrices that read the same tensor (query, key, value)
share one, and groups are quantised in the order in which the layer uses them, each after a new run that sees
all earlier ones quantised, within the layer and before it (Frantar et al. 2022, arXiv:2210.17323, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pressoir.errors import QuantizationError
from pressoir.quantization.source import SourceModel

_BATCH_TOKENS = 4096
_LOGITS = 1 << 22  # most logits held at a time
Hidden = list[Tensor]
"""Hidden states of all windows, a batch an entry: float32 (batch, tokens, hidden)."""
Replace = Callable[[str, Tensor, Tensor | None], Tensor]
"""From a matrix's name, its weight (out, in) and its inputs' Hessian (None: never used) to its new weight."""


class _StopForwardError(Exception):
    """What is wanted of a forward pass has been seen."""


@dataclass(frozen=True)
class _Call:
    """What the model passes to one decoder layer, the hidden states left out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class DecoderStream:
    """A causal LM and the text that runs through it.

    Raises:
        QuantizationError: the decoder's layers cannot be distinguished from the rest of the model.
    """

    def __init__(self, source: SourceModel, windows: NDArray[np.int64]) -> None:
        """`windows` are token ids (windows, tokens)."""
        self.source, self._model = source, source.skeleton
        vocabulary = int(self._model.config.vocab_size)
        batch = max(1, min(_BATCH_TOKENS, _LOGITS // vocabulary) // windows.shape[1])
        self._ids = list(torch.from_numpy(np.ascontiguousarray(windows)).split(batch))
        self._prefix, self._layers = _decoder_layers(source)
        self._calls: dict[int, list[_Call]] = {}
        self._in_tuple = False

    def __len__(self) -> int:
        """Number of decoder layers."""
        return len(self._layers)

    def inside(self, layer: int) -> list[str]:
        """Names of the matrices of one decoder layer, in the model's order."""
        return [name for name in self.source.matrices if name.startswith(f"{self._prefix}.{layer}.")]

    def embed(self, replaced: Mapping[str, Tensor] | None = None) -> Hidden:
        """What goes into the first decoder layer. `replaced`: weights (out, in) by matrix name."""
        result: Hidden = []
        with torch.inference_mode(), self._filled(self._around(embedding=True), replaced):
            for ids in self._ids:
                hidden, call = self._first_call(ids)
                result.append(hidden)
                if len(ids) not in self._calls:
                    self._calls[len(ids)] = self._record_calls(ids, hidden, call)
        return result

    def through(self, layer: int, hidden: Hidden, replaced: Mapping[str, Tensor] | None = None) -> Hidden:
        """`hidden` after one decoder layer. `replaced`: weights (out, in) by matrix name."""
        with torch.inference_mode(), self._filled_layer(layer, replaced):
            return [self._run(layer, batch) for batch in hidden]

    def quantize(self, layer: int, hidden: Hidden, replace: Replace, names: set[str]) -> Hidden:
        """Let `replace` change the matrices `names` of one decoder layer, group by group, in order of use.

        Returns:
            `hidden` after the layer, as it then is.
        """
        with torch.inference_mode(), self._filled_layer(layer, None):
            for group, hessian in self.hessians(layer, hidden, names):
                for name in group:
                    self._assign(name, replace(name, self._weight(name), hessian))
            return [self._run(layer, batch) for batch in hidden]

    def hessians(
        self, layer: int, hidden: Hidden, names: set[str]
    ) -> Iterator[tuple[list[str], Tensor | None]]:
        """Groups of the matrices `names` of a filled layer that read one tensor x, and the mean of x xᵀ.

        Runs the layer again for each group, so that changes made in between are seen. None: never used.
        """
        for group in self._groups(layer, hidden[0], names):
            yield group, self._hessian(layer, hidden, group[0])

    @contextmanager
    def filled(self, layer: int) -> Iterator[None]:
        """Inside, one decoder layer has its weights."""
        with torch.inference_mode(), self._filled_layer(layer, None):
            yield

    def perplexity(self, hidden: Hidden, replaced: Mapping[str, Tensor] | None = None) -> float:
        """exp of the mean −log p of each window's tokens but the first, of states after the last layer."""
        total, tokens = 0.0, 0
        with torch.inference_mode(), self._filled(self._around(embedding=False), replaced):
            for ids, states in zip(self._ids, hidden, strict=True):
                log_p = torch.log_softmax(self._logits(states)[:, :-1], dim=-1)
                total -= float(log_p.gather(2, ids[:, 1:, None]).sum(dtype=torch.float64))
                tokens += ids[:, 1:].numel()
        return math.exp(total / tokens)

    def divergences(self, reference: Hidden, others: Hidden) -> list[float]:
        """Mean KL divergence, nats a token, of the output distributions of `others` from `reference`.

        All are states after the last layer; `others` are those of several models, one after the other.
        """
        totals = [0.0] * (len(others) // len(reference))
        with torch.inference_mode(), self._filled(self._around(embedding=False), None):
            for index, states in enumerate(reference):
                expected = torch.log_softmax(self._logits(states), dim=-1)  # (batch, tokens, vocabulary)
                p = expected.exp()
                for model, other in enumerate(others[index :: len(reference)]):
                    log_q = torch.log_softmax(self._logits(other), dim=-1)
                    totals[model] += float((p * (expected - log_q)).sum(dtype=torch.float64))
        tokens = sum(ids.numel() for ids in self._ids)
        return [total / tokens for total in totals]

    def _first_call(self, ids: Tensor) -> tuple[Tensor, _Call]:
        """The hidden states (batch, tokens, hidden) that enter the first layer, and what else does."""
        seen: list[tuple[Tensor, _Call]] = []

        def stop(*args: Any, **kwargs: Any) -> Any:
            seen.append(_split(args, kwargs))
            raise _StopForwardError

        with self._forwards([stop] * len(self._layers)), suppress(_StopForwardError):
            self._model(input_ids=ids, use_cache=False)
        return seen[0]

    def _record_calls(self, ids: Tensor, hidden: Tensor, first: _Call) -> list[_Call]:
        """What each layer is called with beside the hidden states; they may differ (sliding windows)."""
        calls: list[_Call] = []
        with self._filled_layer(0, None):
            self._in_tuple = isinstance(self._layers[0](hidden, *first.args, **first.kwargs), tuple)

        def note(*args: Any, **kwargs: Any) -> Any:
            states, call = _split(args, kwargs)
            calls.append(call)
            if len(calls) == len(self._layers):
                raise _StopForwardError
            return (states,) if self._in_tuple else states

        with self._forwards([note] * len(self._layers)), suppress(_StopForwardError):
            self._model(input_ids=ids, use_cache=False)
        return calls

    def _logits(self, hidden: Tensor) -> Tensor:
        """The model's own forward, in which the last decoder layer's output is `hidden`."""

        def inject(*args: Any, **kwargs: Any) -> Any:
            return (hidden,) if self._in_tuple else hidden

        with self._forwards([inject] * len(self._layers)):
            logits: Tensor = self._model(inputs_embeds=hidden, use_cache=False).logits
        return logits.float()

    def _run(self, layer: int, hidden: Tensor) -> Tensor:
        call = self._calls[len(hidden)][layer]
        output = self._layers[layer](hidden, *call.args, **call.kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def _groups(self, layer: int, hidden: Tensor, names: set[str]) -> list[list[str]]:
        """Names of the layer's matrices in the order of use, those in one group that read one tensor."""
        order: list[tuple[Tensor, list[str]]] = []
        mine = [name for name in self.inside(layer) if name in names]

        def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                if any(name in group for _, group in order):
                    return
                if order and order[-1][0] is args[0]:
                    order[-1][1].append(name)
                else:
                    order.append((args[0], [name]))

            return hook

        hooks = [self._model.get_submodule(name).register_forward_pre_hook(note(name)) for name in mine]
        try:
            self._run(layer, hidden)
        finally:
            for hook in hooks:
                hook.remove()
        used = [group for _, group in order]
        return used + [[name] for name in mine if not any(name in group for group in used)]

    def _hessian(self, layer: int, hidden: Hidden, name: str) -> Tensor | None:
        columns = self.source.matrices[name].shape[1]
        total, rows = torch.zeros(columns, columns), 0

        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            nonlocal rows
            inputs = args[0].reshape(-1, columns).float()  # (tokens, in)
            total.addmm_(inputs.T, inputs)
            rows += len(inputs)

        hook = self._model.get_submodule(name).register_forward_pre_hook(add)
        try:
            for batch in hidden:
                self._run(layer, batch)
        finally:
            hook.remove()
        return total.div_(rows) if rows else None

    def _around(self, embedding: bool) -> list[str]:
        """Names of the parameters outside the decoder's layers, without the head or without the embedding."""
        unused = self._model.get_output_embeddings() if embedding else self._model.get_input_embeddings()
        tables = {f"{name}.weight" for name, module in self._model.named_modules() if module is unused}
        return [
            name
            for name, _ in self._model.named_parameters(remove_duplicate=False)
            if not name.startswith(f"{self._prefix}.") and name not in tables
        ]

    @contextmanager
    def _filled_layer(self, layer: int, replaced: Mapping[str, Tensor] | None) -> Iterator[None]:
        prefix = f"{self._prefix}.{layer}"
        names = [f"{prefix}.{name}" for name, _ in self._layers[layer].named_parameters()]
        with self._filled(names, replaced):
            yield

    @contextmanager
    def _filled(self, names: Sequence[str], replaced: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Inside, the parameters `names` have their values."""
        empty = {name: self._model.get_parameter(name) for name in names}
        try:
            for name in names:
                matrix = name.removesuffix(".weight")
                matrix = getattr(self.source.matrices.get(matrix), "tied_to", None) or matrix
                if replaced is not None and matrix in replaced:
                    self._assign(name.removesuffix(".weight"), replaced[matrix])
                else:
                    self._set(name, self.source.read(name))
            yield
        finally:
            for name, parameter in empty.items():
                self._put(name, parameter)

    def _weight(self, name: str) -> Tensor:
        """The weight (out, in) that a matrix has now."""
        weight = self._model.get_parameter(f"{name}.weight").data
        return weight.T.contiguous() if self.source.matrices[name].kind == "conv1d" else weight

    def _assign(self, name: str, weight: Tensor) -> None:
        """Give a matrix the weight (out, in)."""
        transposed = self.source.matrices[name].kind == "conv1d"
        self._set(f"{name}.weight", weight.T.contiguous() if transposed else weight)

    def _set(self, name: str, value: Tensor) -> None:
        self._put(name, nn.Parameter(value, requires_grad=False))

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        module, _, attribute = name.rpartition(".")
        self._model.get_submodule(module)._parameters[attribute] = parameter

    @contextmanager
    def _forwards(self, forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
        """Inside, the decoder's layers compute `forwards` instead of themselves."""
        for module, forward in zip(self._layers, forwards, strict=True):
            module.__dict__["forward"] = forward
        try:
            yield
        finally:
            for module in self._layers:
                del module.__dict__["forward"]


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, _Call]:
    """The hidden states, and the rest of a layer's arguments."""
    if args:
        return args[0], _Call(args[1:], kwargs)
    return kwargs["hidden_states"], _Call((), {k: v for k, v in kwargs.items() if k != "hidden_states"})


def _decoder_layers(source: SourceModel) -> tuple[str, list[nn.Module]]:
    """The name of the list of decoder layers, and the layers."""
    count = getattr(source.skeleton.config, "num_hidden_layers", None)
    for name, module in source.skeleton.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, list(module)
    raise QuantizationError(
        f"{source.folder}: no list of {count} decoder layers found in {type(source.skeleton).__name__}, so "
        "it cannot run layer by layer; use an algorithm that needs no calibration text, such as the default, "
        "without target_bits and max_perplexity_increase"
    )
