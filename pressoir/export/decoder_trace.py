"""Trace a causal LM to ONNX without its weights.

While optimum traces, a stand-in takes each weight layer's place: a few standard operators whose output has
the layer's shape, around a (1, out) constant that carries the layer's name into the graph. Nothing of what
the tracer copies, folds, compares, writes and runs then grows with the model: a billion parameters take the
seconds and the memory of a thousand. And since every stand-in names its layer, no weight is ever looked for
by its content: two equal layers stay two. `pressoir.export.weight_only_graph` puts the real weights in.

Two things make the graph cheaper to run, and are left out with `simplify=False`:

- grouped attention: the query heads that share a key head are rows of one product, so keys and values are
  not copied for each (Ainslie et al., GQA, arXiv:2305.13245, section 2.2);
- a dimension that an input has (batch, sequence) is read off that input once, not off every layer's tensors.

Source: https://huggingface.co/docs/optimum-onnx; the stand-ins are an own design.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pressoir.errors import ParityError
from pressoir.export.graph import remove_unused, set_nodes
from pressoir.export.tracing import quiet
from pressoir.models import weight_layers

_NOT_GROUPED = ("head_mask", "softcap", "s_aux", "output_attentions")


@dataclass(frozen=True)
class Trace:
    """A graph that has stand-ins where the weights belong."""

    graph: onnx.ModelProto
    layers: dict[str, str]
    """Kind (`linear`, `embedding`) of each layer; its stand-in is the initializer `<layer>.weight`."""


class _StandIn(nn.Module):
    """Operators that give a layer's output shape; its `weight` (1, out) is unlike any other's."""

    def __init__(self, layer: nn.Module, mark: int) -> None:
        super().__init__()
        self.embeds = isinstance(layer, nn.Embedding)
        self.scale = weight_layers.embedding_scale(layer) if isinstance(layer, nn.Embedding) else None
        width = next(
            getattr(layer, size) for size in ("out_features", "nf", "embedding_dim") if hasattr(layer, size)
        )
        # The exporter merges constants that are equal.
        self.weight = nn.Parameter(torch.full((1, width), float(mark)), requires_grad=False)
        self.bias = getattr(layer, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        column = x.unsqueeze(-1).to(self.weight.dtype) if self.embeds else x.mean(-1, keepdim=True)
        product = torch.matmul(column, self.weight)  # (…, 1) × (1, out)
        if self.scale not in (None, 1.0):
            product = product * self.scale  # stays in the graph, behind the table's look-up
        return product if self.bias is None else product + self.bias


def stand_in_input(node: onnx.NodeProto, layer_kind: str, producers: dict[str, onnx.NodeProto]) -> str:
    """The value that the layer behind a stand-in's MatMul takes: ids of an embedding, else activations."""
    value = str(node.input[0])
    for _ in range(2 if layer_kind == "embedding" else 1):  # Unsqueeze and Cast, or ReduceMean
        value = str(producers[value].input[0])
    return value


def trace(model: PreTrainedModel, opset: int, work_dir: Path, simplify: bool = True) -> Trace:
    """Trace `model`, whose weight layers' own parameters may lie on the meta device; it is left as it was.

    Inputs: `input_ids` (batch, seq), `attention_mask` (batch, past + seq), where the architecture takes them
    `position_ids` (batch, seq), and `past_key_values.{i}.key` and `.value`. Outputs: `logits`
    (batch, seq, vocabulary) and `present.{i}.key` and `.value`.

    Raises:
        ParityError: optimum cannot export the architecture, or a layer does not appear in the graph.
    """
    kinds = {name: weight_layers.kind_of(module) for name, module in model.named_modules()}
    layers = {name: model.get_submodule(name) for name, kind in kinds.items() if kind}
    try:
        for mark, (name, module) in enumerate(layers.items(), start=1):
            model.set_submodule(name, _StandIn(module, mark))
        graph = _export(model, opset, work_dir, simplify)
    finally:
        for name, module in layers.items():
            model.set_submodule(name, module)
    traced = {name: "embedding" if kinds[name] == "embedding" else "linear" for name in layers}
    remove_identities(graph)
    if simplify:
        share_dimensions(graph)
    present = {tensor.name for tensor in graph.graph.initializer}
    if lost := [name for name in traced if f"{name}.weight" not in present]:
        raise ParityError(
            f"the traced graph does not use {', '.join(lost[:5])}; this architecture "
            f"({model.config.model_type}) cannot be exported"
        )
    return Trace(graph, traced)


def _export(model: PreTrainedModel, opset: int, work_dir: Path, simplify: bool) -> onnx.ModelProto:
    from optimum.exporters.onnx import onnx_export_from_model

    attention = _grouped_attention() if simplify else contextlib.nullcontext()
    with quiet(), attention, tempfile.TemporaryDirectory(dir=work_dir) as folder:
        try:
            onnx_export_from_model(
                model,
                Path(folder),
                task="text-generation-with-past",
                opset=opset,
                do_validation=False,
                no_post_process=True,  # which would merge tied weights: stand-ins have none
            )
        except Exception as error:  # optimum, torch's tracer and the architecture's code each raise their own
            raise ParityError(
                f"a model of type {model.config.model_type!r} cannot be exported with opset {opset}: {error}"
            ) from error
        return onnx.load(Path(folder) / "model.onnx")


@contextlib.contextmanager
def _grouped_attention() -> Iterator[None]:
    """Let models that ask transformers for `sdpa` attention compute it by groups of heads."""
    ALL_ATTENTION_FUNCTIONS["sdpa"] = grouped_attention
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]  # the library's own is behind it


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """softmax(query · keyᵀ · scaling, where `attention_mask`) · value, without repeating keys and values.

    Args:
        module: the attention layer, as transformers passes it.
        query: (batch, heads, seq, width).
        key: (batch, key heads, total, width); value alike. Heads of one group are neighbours.
        value: see `key`.
        attention_mask: bool (batch, 1, seq, total), True where a token may look; anything else is left to
            transformers' own function.
        dropout: unused, for a model in evaluation mode has none.
        scaling: None: 1/√width.
        options: what else transformers passes.

    Returns:
        (batch, seq, heads, value width), and None for the attention weights.
    """
    special = any(options.get(name) is not None for name in _NOT_GROUPED)
    if special or attention_mask is None or attention_mask.dtype != torch.bool:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **options
        )
        return result
    batch, heads, _, width = query.shape
    groups, total = key.shape[1], key.shape[2]
    scale = width**-0.5 if scaling is None else scaling
    rows = query.reshape(batch, groups, -1, width)  # (batch, groups, heads of a group × seq, width)
    scores = torch.matmul(rows, key.transpose(2, 3)) * scale
    scores = scores.reshape(batch, heads, -1, total)
    scores = torch.where(attention_mask, scores, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1).reshape(batch, groups, -1, total)
    mixed = torch.matmul(weights, value).reshape(batch, heads, -1, value.shape[-1])
    return mixed.transpose(1, 2), None


def remove_identities(model: onnx.ModelProto) -> None:
    """Let readers of an Identity node read what it copies, unless it gives a graph output."""
    outputs = {value.name for value in model.graph.output}
    same: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        inputs = [same.get(value, value) for value in node.input]
        if node.op_type == "Identity" and node.output[0] not in outputs:
            same[node.output[0]] = inputs[0]
            continue
        del node.input[:]
        node.input.extend(inputs)
        kept.append(node)
    set_nodes(model, kept)


def share_dimensions(model: onnx.ModelProto) -> None:
    """Compute each dimension once: from a graph input that has it, or as a number where it is known.

    Exporters read dimensions off whatever tensor the model's code reads them off: dozens of tiny nodes a
    layer. Symbolic shape inference knows which of them are equal.
    """
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    try:
        with quiet():
            inferred = SymbolicShapeInference.infer_shapes(model, auto_merge=True)
    except Exception:  # it raises plain Exception where an operator defeats it; the graph is right without it
        return
    shapes = {
        value.name: [_dimension(d) for d in value.type.tensor_type.shape.dim]
        for value in (*inferred.graph.value_info, *inferred.graph.input)
    }
    _Dimensions(model, shapes).run()
    remove_unused(model)


def _dimension(dimension: Any) -> str | int | None:
    known = dimension.HasField("dim_value")
    return dimension.dim_param or (int(dimension.dim_value) if known else None)


class _Dimensions:
    """One pass that replaces Shape → Gather by a shared dimension, and the shape of a constant shape."""

    def __init__(self, model: onnx.ModelProto, shapes: dict[str, list[str | int | None]]) -> None:
        self.model, self.shapes = model, shapes
        self.numbers = {
            node.output[0]: numpy_helper.to_array(node.attribute[0].t)
            for node in model.graph.node
            if node.op_type == "Constant" and node.attribute[0].name == "value"
        }
        self.sources: dict[str | int | None, tuple[str, int]] = {}
        for value in model.graph.input:
            for axis, dimension in enumerate(shapes[value.name]):
                self.sources.setdefault(dimension, (value.name, axis))
        self.first: list[onnx.NodeProto] = []
        self.known: dict[str, str] = {}

    def run(self) -> None:
        measured: dict[str, str] = {}  # output of a Shape node: its input
        same: dict[str, str] = {}
        kept = []
        for node in self.model.graph.node:
            inputs = [same.get(value, value) for value in node.input]
            if node.op_type == "Shape":
                measured[node.output[0]] = node.input[0]
            if (shared := self._shared(node, measured)) is not None:
                same[node.output[0]] = shared
                continue
            del node.input[:]
            node.input.extend(inputs)
            kept.append(node)
        set_nodes(self.model, [*self.first, *kept])

    def _shared(self, node: onnx.NodeProto, measured: dict[str, str]) -> str | None:
        """The value that stands for `node`'s output from now on; None: keep the node."""
        if node.op_type == "Shape" and not node.attribute:
            shape = self.shapes.get(node.input[0])
            if shape and all(isinstance(dimension, int) for dimension in shape):
                return self._number(np.asarray(shape, dtype=np.int64))
        index = self.numbers.get(node.input[1]) if node.op_type == "Gather" else None
        shape = self.shapes.get(measured.get(node.input[0], "")) if index is not None else None
        if shape is None or index is None or index.size != 1:
            return None
        dimension = shape[int(index.reshape(-1)[0])]
        if isinstance(dimension, int):
            return self._number(np.full(index.shape, dimension, dtype=np.int64))
        if dimension is None or dimension not in self.sources:
            return None
        value, axis = self.sources[dimension]
        sizes = self._node("Shape", f"shape_of_{value}", value)
        return self._node(
            "Gather",
            f"{value}_axis_{axis}_{index.ndim}",
            sizes,
            self._number(np.full(index.shape, axis, np.int64)),
        )

    def _number(self, value: np.ndarray[Any, Any]) -> str:
        name = f"shape_{'x'.join(map(str, value.reshape(-1)))}_{value.ndim}"
        if name not in self.known:
            tensor = numpy_helper.from_array(value)
            self.first.append(helper.make_node("Constant", [], [name], name, value=tensor))
        return self.known.setdefault(name, name)

    def _node(self, operator: str, name: str, *inputs: str) -> str:
        if name not in self.known:
            self.first.append(helper.make_node(operator, inputs, [name], name))
        return self.known.setdefault(name, name)
