"""ONNX graphs of encoder-decoders and of CTC speech models: traced once, every weight stored once.

Optimum's exporter gives an encoder, a decoder for the first token and one for the tokens after it; its merged
form puts the latter two into the branches of an `If`. Here one decoder does, for it runs just as well on an
empty cache. What the first one has beside it, the projection of the encoder's output to the keys and values
of the cross-attention, depends on the input alone and so is at the encoder's end.

    encoder_model.onnx   input → past_key_values.<layer>.encoder.key and .value (batch, heads, seq, size)
    decoder_model.onnx   next tokens (batch, n), those, and the cache (empty at first) → logits, longer cache
    model.onnx.data      the weights of both; equal bytes are stored once, whichever graph reads them

A head that is tied to the embedding is its transpose, which ONNX Runtime folds when the session is made.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pressoir.errors import ParityError
from pressoir.export.decoder_trace import remove_identities, share_dimensions
from pressoir.export.graph import remove_unused
from pressoir.export.tracing import quiet
from pressoir.formats.folder import DECODER, ENCODER, GRAPH
from pressoir.formats.int8_checkpoint import PackedWeight
from pressoir.quantization.int8 import quantize_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DATA = f"{GRAPH}.data"
# Types that optimum does not know, and the one with the same inputs and outputs that it does.
_DESCRIBED_AS = {"umt5": "t5"}
# Smaller tensors stay inside the graph; larger ones are aligned as ONNX Runtime's vector loads like it.
INLINE_BYTES, ALIGNMENT = 1024, 64


@dataclass(frozen=True)
class Layers:
    """The quantisable modules of one graph, by name."""

    linear: dict[str, nn.Linear]
    embedding: dict[str, nn.Embedding]


def trace(
    model: PreTrainedModel, opset: int, work_dir: Path, simplify: bool = True
) -> dict[str, onnx.ModelProto]:
    """The float32 graphs of `model` by file name, weights inside. The model's settings are changed by it.

    With `simplify`, dimensions that are equal are computed once.

    Raises:
        ParityError: optimum cannot export this architecture.
    """
    from optimum.exporters.onnx import export
    from optimum.exporters.tasks import TasksManager
    from optimum.utils import DEFAULT_DUMMY_SHAPES

    whole: Any = model
    encoder_decoder = bool(model.config.is_encoder_decoder)
    speech = model.main_input_name in ("input_features", "input_values")
    task = "automatic-speech-recognition" if speech else "text2text-generation"
    shapes = dict(DEFAULT_DUMMY_SHAPES)
    if speech and encoder_decoder:
        shapes["nb_max_frames"] = 2 * model.config.max_source_positions  # Whisper's window has one length
    graphs: dict[str, onnx.ModelProto] = {}
    with quiet(), tempfile.TemporaryDirectory(dir=work_dir) as folder:
        try:
            kind = model.config.model_type
            constructor = TasksManager.get_exporter_config_constructor(
                "onnx", task=task, library_name="transformers", model_type=_DESCRIBED_AS.get(kind, kind)
            )
            config = constructor(model.config, task=task, **({"use_past": True} if encoder_decoder else {}))
        except (KeyError, ValueError) as error:
            raise ParityError(f"optimum cannot export a {kind} model: {error}") from error
        modules: dict[str, tuple[Any, Any]] = {GRAPH: (model, config)}
        if encoder_decoder:
            modules = {
                ENCODER: (whole.get_encoder(), config.with_behavior("encoder")),
                DECODER: (
                    model,
                    config.with_behavior("decoder", use_past=True, use_past_in_inputs=True),
                ),
            }
        for name, (module, module_config) in modules.items():
            path = Path(folder) / Path(name).stem / name  # beside it lie its tensors, where it is large
            export(module, module_config, path, opset=opset, input_shapes=shapes)
            graphs[name] = onnx.load(path)
    if encoder_decoder:
        _append_cross_attention(graphs[ENCODER], model)
    for graph in graphs.values():
        remove_identities(graph)
        if simplify:
            share_dimensions(graph)
        remove_unused(graph)
    return graphs


def layers(model: PreTrainedModel) -> dict[str, Layers]:
    """Linear layers and token embeddings of each graph of `model`, by file name.

    Position tables, convolutions and the head of a CTC model (a few dozen rows) are not among them.
    """
    whole: Any = model
    names = {id(module): name for name, module in model.named_modules()}
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not model.config.is_encoder_decoder:
        return {GRAPH: Layers({name: module for name, module in linear.items() if name != "lm_head"}, {})}
    cross = {id(module) for pair in _cross_attention(model) for module in pair[:2]}
    head, result = model.get_output_embeddings(), {}
    for graph, stack in ((ENCODER, whole.get_encoder()), (DECODER, whole.get_decoder())):
        prefix = f"{names[id(stack)]}."
        inside = {
            name: module
            for name, module in linear.items()
            if (graph == ENCODER if id(module) in cross else name.startswith(prefix))
        }
        if graph == DECODER and isinstance(head, nn.Linear):
            inside[names[id(head)]] = head
        table = getattr(stack, "embed_tokens", None)
        embedding = {f"{prefix}embed_tokens": table} if isinstance(table, nn.Embedding) else {}
        result[graph] = Layers(inside, embedding)
    return result


def quantize(
    parts: Mapping[str, Layers],
) -> tuple[dict[str, dict[str, PackedWeight]], dict[str, float]]:
    """int8 codes of every layer of every graph, by file name; each module's weight becomes codes × scales.

    Rows (output channels, tokens) have a scale each. A weight that several modules share is quantised once.
    Beside the codes, the relative error ‖W − Ŵ‖ / ‖W‖ of each layer is returned.

    Raises:
        SourceError: a weight is not finite.
    """
    # By the address of the weight's memory.
    packed: dict[int, tuple[PackedWeight, float]] = {}
    errors: dict[str, float] = {}
    result: dict[str, dict[str, PackedWeight]] = {}
    for graph, graph_layers in parts.items():
        result[graph] = {}
        for kind, modules in (("linear", graph_layers.linear), ("embedding", graph_layers.embedding)):
            for name, module in modules.items():
                weight: Any = module.weight
                if weight.data_ptr() not in packed:
                    codes, scales = quantize_rows(weight.detach(), name)
                    expanded = codes.float() * scales[:, None]
                    norm = float(torch.linalg.vector_norm(weight.detach()))
                    error = (
                        float(torch.linalg.vector_norm(weight.detach() - expanded)) / norm if norm else 0.0
                    )
                    with torch.no_grad():
                        weight.copy_(expanded)
                    layer = PackedWeight(kind, codes.numpy(), scales.numpy())
                    packed[weight.data_ptr()] = layer, error
                shared, errors[name] = packed[weight.data_ptr()]
                result[graph][name] = PackedWeight(kind, shared.codes, shared.scales)
    return result, errors


def save(graphs: Mapping[str, onnx.ModelProto], folder: Path) -> int:
    """Write the graphs and one file of weights beside them; return the bytes of all. The graphs are changed.

    Raises:
        ParityError: a graph is not valid ONNX.
    """
    locations: dict[bytes, tuple[int, int]] = {}  # SHA-256 of the content: offset, length
    with (folder / DATA).open("wb") as data:
        for graph in graphs.values():
            _share_transposed(graph)
            for tensor in graph.graph.initializer:
                content = numpy_helper.to_array(tensor).tobytes()
                if len(content) < INLINE_BYTES:
                    continue
                digest = hashlib.sha256(content).digest()
                if digest not in locations:
                    data.write(b"\0" * (-data.tell() % ALIGNMENT))
                    locations[digest] = data.tell(), len(content)
                    data.write(content)
                _refer(tensor, *locations[digest])
    for name, graph in graphs.items():
        path = folder / name
        path.write_bytes(graph.SerializeToString())
        try:
            onnx.checker.check_model(str(path))
        except onnx.checker.ValidationError as error:
            raise ParityError(f"the exported graph {name} is not valid ONNX: {error}") from error
    return sum((folder / name).stat().st_size for name in (*graphs, DATA))


def _cross_attention(model: PreTrainedModel) -> list[tuple[nn.Linear, nn.Linear, int]]:
    """Key and value projection and the head size of each decoder layer's cross-attention, in order."""
    decoder: Any = model.get_decoder()
    result = []
    for layer in decoder.block if hasattr(decoder, "block") else decoder.layers:
        if hasattr(decoder, "block"):  # T5
            attention = layer.layer[1].EncDecAttention
            result.append((attention.k, attention.v, attention.key_value_proj_dim))
        else:
            attention = layer.encoder_attn
            result.append((attention.k_proj, attention.v_proj, attention.head_dim))
    return result


def _append_cross_attention(graph: onnx.ModelProto, model: PreTrainedModel) -> None:
    """Let the encoder give every decoder layer's keys and values instead of its last hidden state."""
    body, hidden = graph.graph, graph.graph.output[0]
    sequence = hidden.type.tensor_type.shape.dim[1]
    batch, length = "batch_size", sequence.dim_param or sequence.dim_value
    outputs = []
    for index, (key, value, size) in enumerate(_cross_attention(model)):
        for role, linear in (("key", key), ("value", value)):
            name = f"past_key_values.{index}.encoder.{role}"
            heads = linear.out_features // size
            tensors = {
                f"{name}.weight": linear.weight.detach().numpy().T,
                f"{name}.shape": [0, 0, heads, size],
            }
            if linear.bias is not None:
                tensors[f"{name}.bias"] = linear.bias.detach().numpy()
            body.initializer.extend(
                numpy_helper.from_array(np.ascontiguousarray(array), title)
                for title, array in tensors.items()
            )
            product, steps = f"{name}.projected", [("MatMul", [hidden.name, f"{name}.weight"])]
            if linear.bias is not None:
                steps.append(("Add", [product, f"{name}.bias"]))
                product = f"{name}.shifted"
            for (operator, inputs), output in zip(
                steps, (f"{name}.projected", f"{name}.shifted"), strict=False
            ):
                body.node.append(helper.make_node(operator, inputs, [output], output))
            body.node.append(helper.make_node("Reshape", [product, f"{name}.shape"], [f"{name}.heads"]))
            body.node.append(helper.make_node("Transpose", [f"{name}.heads"], [name], perm=[0, 2, 1, 3]))
            shape = [batch, heads, length, size]
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    del body.output[:]
    body.output.extend(outputs)


def _share_transposed(graph: onnx.ModelProto) -> None:
    """Replace a large matrix that is another's transpose by a `Transpose` of it."""
    body = graph.graph
    matrices = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in body.initializer
        if len(tensor.dims) == 2 and np.prod(tensor.dims) >= INLINE_BYTES
    }
    known = {_digest(array): name for name, array in matrices.items()}
    dropped, nodes = set(), []
    for name, array in matrices.items():
        other = known.get(_digest(array.T))
        # Tables have more rows than columns: those are read row by row and stay.
        if other is not None and other != name and array.shape[0] < array.shape[1]:
            nodes.append(helper.make_node("Transpose", [other], [name], f"{name}.transpose", perm=[1, 0]))
            dropped.add(name)
    kept = [tensor for tensor in body.initializer if tensor.name not in dropped]
    del body.initializer[:]
    body.initializer.extend(kept)
    for node in reversed(nodes):
        body.node.insert(0, node)


def _digest(array: Any) -> tuple[tuple[int, ...], str, bytes]:
    return array.shape, array.dtype.str, hashlib.sha256(np.ascontiguousarray(array).data).digest()


def _refer(tensor: onnx.TensorProto, offset: int, length: int) -> None:
    """Let a tensor's content lie in the file of weights."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", DATA), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
