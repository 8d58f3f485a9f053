"""How many parameters each part of a model has, and in how many bytes they are stored: from headers alone.

A tensor's name says what it belongs to; where an architecture is declared (`pressoir.architectures`), by the
names that it gives, else by those that transformers' models have in common. In a graph, a weight that the
exporter has given a name of its own is known by the node that reads it first, whose name is its module's.

Parameters are those of the model, however they are stored: a layer of codes counts as its matrix, scales and
zero points count as bytes alone, and so does a second copy of tied weights. Buffers do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from pressoir.extensions import architecture
from pressoir.formats import onnx_weights
from pressoir.formats.folder import (
    DECODER,
    ENCODER,
    GRAPH,
    QUANTIZATION,
    QuantizedLayer,
    quantized_layers,
    read_json,
    runtime_of,
)
from pressoir.formats.tensor_bytes import checkpoint_tensors
from pressoir.models.execution_order import LAYER, weight_of

if TYPE_CHECKING:
    import onnx

    from pressoir.extensions.architecture import EncoderArchitecture

PartName = Literal[
    "word_embeddings", "position_embeddings", "attention", "feed_forward", "norms", "head", "other"
]
"""`norms`: of the layers, with whatever else they have. `head`: with its pooler. `other`: outside the layers,
such as the embeddings' norm, the last norm, or convolutions over sound."""
Stack = Literal["encoder", "decoder", ""]
"""Whose layers a part belongs to; empty where the names do not say, or it is outside the layers."""
PARTS: tuple[PartName, ...] = get_args(PartName)
STACKS: tuple[Stack, ...] = get_args(Stack)
IN_LAYERS: tuple[PartName, ...] = ("attention", "feed_forward", "norms")

_POSITIONS = re.compile(
    r"position_embed|embed_positions|(^|\.)wpe\.|relative_(attention_bias|position)|pos_conv_embed"
    r"|rel_embeddings|pos_emb"
)
_WORDS = re.compile(r"word_embed|embed_tokens|tok_embeddings|(^|\.)(wte|shared|embed_in)\.")
_HEAD = re.compile(
    r"(^|\.)(lm_head|proj_out|embed_out|classifier|pre_classifier|pooler|score|cls|qa_outputs|summary"
    r"|projector|final_logits_bias|vocab_(transform|layer_norm|projector))(\.|$)"
)
_NORM = re.compile(r"norm|(^|\.)ln_\w+(\.|$)", re.IGNORECASE)
_ATTENTION = re.compile(r"att(entio)?n|past_key_values\.|(^|\.)([qkvo]|qkv)_proj\.|query_key_value", re.I)
_FORWARD = re.compile(
    r"mlp|ffn|feed_?forward|intermediate|output\.dense|(^|\.)fc_?(1|2|in|out)\.|(^|\.)lin[12]\."
    r"|DenseReluDense|dense_(h|4h)_to|expert|moe",
    re.IGNORECASE,
)
_CROSS = re.compile(r"past_key_values\.\d+\.encoder\.")  # of the decoder, computed by the encoder's graph
# In files, but no parameters: what a model computes when it is built, or keeps beside its parameters.
_BUFFERS = re.compile(
    r"(position_ids|inv_freq|masked_bias|final_logits_bias|running_(mean|var)|num_batches_tracked)$"
)
_MASK = re.compile(r"attn\.(attention\.)?bias$")  # GPT-2's, with four dimensions
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_GRAPH_FLOATS = ("DOUBLE", "FLOAT", "FLOAT16", "BFLOAT16")
_CODES = ("INT8", "UINT8", "INT4", "UINT4")
_PACKED = ("MatMulNBits", "GatherBlockQuantized")  # scales and zero points are the third and fourth input
_FUSED = ("Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention")


class Place(NamedTuple):
    """What a tensor belongs to."""

    stack: Stack
    part: PartName


@dataclass(frozen=True)
class PartSize:
    """What one part of a model takes."""

    place: Place
    parameters: int
    bytes: int


class StoredTensor(NamedTuple):
    """A tensor of a file."""

    name: str
    """Its module's path."""
    parameters: int
    bytes: int
    shape: tuple[int, ...]
    operator: str = ""
    """Of the node of a graph that reads it."""


def parts(folder: Path) -> list[PartSize]:
    """The parts of the model that is run from a folder, in the model's order; those that it lacks are left
    out. Of a graph its initializers are counted, of a checkpoint the tensors of its safetensors files.

    Raises:
        SourceError: weights, their index or a configuration are missing or broken. ShardError: a graph is.
        ExtensionError: the package that declares the architecture cannot be imported.
    """
    config = read_json(folder / "config.json")
    path = folder / QUANTIZATION
    layers = quantized_layers(read_json(path)) if path.exists() else {}
    graphs = runtime_of(folder) == "onnxruntime"
    tensors = list(_of_graphs(folder) if graphs else _of_checkpoint(folder, layers))
    names = architecture.find(config.get("model_type"))
    return _summed(_tied(config, [(place_of(tensor, config, names), tensor) for tensor in tensors]))


def place_of(
    tensor: StoredTensor, config: Mapping[str, Any], names: EncoderArchitecture | None = None
) -> Place:
    """What a tensor belongs to."""
    name, layer = tensor.name, LAYER.match(tensor.name)
    inside = layer is not None and "conv_layers" not in layer[0] and "feature_extractor" not in layer["path"]
    stack: Stack = ""
    if _CROSS.search(name):
        stack = "decoder"
    elif inside or tensor.operator in _FUSED:
        stack = next((side for side in STACKS[:2][::-1] if side in name.split(".")), "")
    if _POSITIONS.search(name) or (names and names.position_embeddings and names.position_embeddings in name):
        return Place("", "position_embeddings")
    if tensor.shape == (config.get("max_source_positions"), config.get("d_model")):
        return Place("", "position_embeddings")  # a graph's, which are added as a constant
    if not inside and _WORDS.search(name):
        return Place("", "word_embeddings")
    if not inside and _HEAD.search(name):
        return Place("", "head")
    if tensor.operator in _FUSED:
        return Place(stack, "attention")
    if names and inside and (declared := _declared(name, names)):
        return Place(stack, declared)
    if _NORM.search(name):
        return Place(stack, "norms") if inside else Place("", "other")
    if _ATTENTION.search(name):
        return Place(stack, "attention")
    if _FORWARD.search(name) and inside:
        return Place(stack, "feed_forward")
    return Place(stack, "norms") if inside else Place("", "other")


def _declared(name: str, names: EncoderArchitecture) -> PartName | None:
    """The part by the names that an architecture declares."""
    for part, paths in {
        "attention": (names.query, names.key, names.value, names.attention_output),
        "feed_forward": (names.ffn_in, names.ffn_out),
    }.items():
        if any(re.search(rf"\.\d+\.{re.escape(path)}(\.|$)", name) for path in paths):
            return part  # type: ignore[return-value]
    return None


def _of_checkpoint(folder: Path, layers: Mapping[str, QuantizedLayer]) -> Iterator[StoredTensor]:
    for tensor in checkpoint_tensors(folder):
        name = weight_of(tensor.name)
        packed = layers.get(name.removesuffix(".weight"))
        parameters = tensor.elements if tensor.dtype in _FLOATS else 0
        if _BUFFERS.search(name) or (_MASK.search(name) and len(tensor.shape) == 4):
            continue
        if packed is not None and name.endswith(".weight"):
            parameters = packed.elements if name == tensor.name else 0
        yield StoredTensor(name, parameters, tensor.length, tensor.shape)


def _of_graphs(folder: Path) -> Iterator[StoredTensor]:
    """The initializers; what two graphs, or two initializers, share is counted once."""
    seen = set[tuple[object, int, int]]()
    for file in (GRAPH,) if (folder / GRAPH).exists() else (ENCODER, DECODER):
        model = onnx_weights.load(folder / file)
        readers = onnx_weights.first_readers(model)
        side = file.partition("_")[0] if file != GRAPH else ""
        for weight in onnx_weights.initializers(model, folder):
            own = weight.tensor
            if own.file is not None:
                if (place := (own.file, own.offset, own.length)) in seen:
                    continue
                seen.add(place)
            tensor = weight.initializers[0]
            if onnx_weights.kind_of(tensor) not in (*_GRAPH_FLOATS, *_CODES) or _BUFFERS.search(tensor.name):
                continue  # also shapes and axes
            reader = readers.get(tensor.name)
            yield StoredTensor(
                _graph_name(tensor.name, reader, side),
                _graph_parameters(tensor, reader),
                own.length,
                tuple(tensor.dims),
                reader.op_type if reader is not None else "",
            )


def _graph_name(name: str, reader: onnx.NodeProto | None, side: str) -> str:
    """The module's path: an initializer's own name, or that of the node which reads it."""
    name = weight_of(name.replace(".weight_codes", ".weight"))
    if reader is not None and ("::" in name or "." not in name):
        name = reader.name.lstrip("/").replace("/", ".")
    known = {"encoder", "decoder", "past_key_values"} & set(name.split("."))
    return name if known or not side else f"{side}.{name}"


def _graph_parameters(tensor: onnx.TensorProto, reader: onnx.NodeProto | None) -> int:
    """Weights that an initializer holds: none of scales, zero points, shapes and single numbers."""
    kind, elements = onnx_weights.kind_of(tensor), int(prod(tensor.dims))
    scales = reader is not None and tensor.name in reader.input[2:4] and reader.op_type in _PACKED
    if elements <= 1 or scales or tensor.name.endswith(onnx_weights.NOT_WEIGHTS):
        return 0
    if kind in _GRAPH_FLOATS:
        return elements
    given = {attribute.name: attribute.i for attribute in reader.attribute} if reader is not None else {}
    if reader is not None and reader.op_type == "MatMulNBits":
        return int(given.get("K", 0) * given.get("N", 0))
    if reader is not None and reader.op_type == "GatherBlockQuantized" and kind == "UINT8":
        return elements * 8 // int(given.get("bits") or 4)
    return elements


def _tied(
    config: Mapping[str, Any], placed: Iterable[tuple[Place, StoredTensor]]
) -> Iterator[tuple[Place, StoredTensor]]:
    """Second copies of tied weights count as bytes alone: a head of the word embeddings' shape, and the word
    embeddings of both sides where there are shared ones."""
    placed = list(placed)
    words = [tensor for place, tensor in placed if place.part == "word_embeddings"]
    shared = next((tensor for tensor in words if "shared" in tensor.name.split(".")), None)
    shapes = [sorted(tensor.shape) for tensor in words]  # a graph may hold a head transposed
    for place, tensor in placed:
        copy = shared is not None and tensor is not shared and tensor.shape == shared.shape
        if place.part == "head":
            copy = sorted(tensor.shape) in shapes and bool(config.get("tie_word_embeddings", True))
        elif place.part != "word_embeddings":
            copy = False
        yield place, tensor._replace(parameters=0) if copy else tensor


def _summed(placed: Iterable[tuple[Place, StoredTensor]]) -> list[PartSize]:
    """Where all other layers are one stack's, those whose names do not say are it, too."""
    placed, totals = list(placed), dict[Place, list[int]]()
    stacks = {place.stack for place, _ in placed} - {""}
    only = stacks.pop() if len(stacks) == 1 else ""
    for place, tensor in placed:
        own = Place(place.stack or only, place.part) if place.part in IN_LAYERS else place
        total = totals.setdefault(own, [0, 0])
        total[0] += tensor.parameters
        total[1] += tensor.bytes
    return [PartSize(place, *totals[place]) for place in sorted(totals, key=_rank)]


def _rank(place: Place) -> tuple[int, int, int]:
    """Embeddings, the layers of one stack after the other, the rest."""
    index, first = PARTS.index(place.part), PARTS.index(IN_LAYERS[0])
    inside = place.part in IN_LAYERS
    return (first if inside else index, STACKS.index(place.stack) if inside else 0, index)
