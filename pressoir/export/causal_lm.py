"""Write a causal LM as one ONNX graph with a key-value cache, and prove that it computes the same.

**What.** The model is traced without its weights (`pressoir.export.decoder_trace`), float weights or the
packed checkpoint's own codes, scales and zero points are put in (`pressoir.export.weight_only_graph`), every
quantised layer is read back from the files, and real text goes through PyTorch and through the graph.

**Why.** ONNX Runtime multiplies 4-bit codes as they are: a token needs an eighth of the memory traffic of
float32, which is what decoding is bound by. The same bytes serve on disk, in memory and in the shards.

**Cost.** Seconds for the graph, whatever the model's size, and little more memory than its largest layer;
then the parity check, for which PyTorch holds the dequantised model in float32. With `low_memory` it holds
one dequantised layer at a time instead.

**Parity.** At `accuracy_level` 0 MatMulNBits computes in float32 what the dequantised model computes, so both
must agree: max |Δlogit| ≤ `max_logit_difference` on windows of text, and the same tokens under greedy
decoding, unless PyTorch's logits of the two tokens differ by less than twice that (a tie). Level 4, the fast
default, also rounds activations to int8, one scale a block: it is another model by a hair, and how far it
departs is reported, not judged.

**Sources.** MatMulNBits, https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md;
optimum, https://huggingface.co/docs/optimum-onnx.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from pressoir.data import running_text
from pressoir.errors import ParityError, SourceError
from pressoir.export import decoder_trace, weight_only_graph
from pressoir.export.graph import operator_counts
from pressoir.export.tracing import REPORT
from pressoir.formats.folder import GRAPH, task_of
from pressoir.formats.packed_checkpoint import PackedCheckpoint, PackedLayer, is_packed, open_packed
from pressoir.inference.engines.decoder import OnnxDecoder, TorchDecoder
from pressoir.inference.parity import Parity, compare
from pressoir.inference.tokenizers.tokenizers import LanguageModelTokenizer
from pressoir.models import loading, skeleton, weight_layers
from pressoir.recipe.sections import ExportConfig, TextConfig
from pressoir.stage import StageContext

WINDOWS = 8
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 32, 64
# What a model folder has beside its weights, and what does not belong to an exported one.
_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja")
_OTHERS = ("artifact.json", "metadata.json", "model.safetensors.index.json", "shard_manifest.json", REPORT)


def run(inputs: Mapping[str, Path], config: ExportConfig, context: StageContext) -> dict[str, float]:
    """Export the causal LM `inputs["model"]`, float or packed; check it on text of `inputs["data"]`.

    Without `data`, the embedded reviews are the text.

    Raises:
        ParityError: the architecture cannot be exported, or the graph does not hold or does not compute what
            the checkpoint does. SourceError, QuantizationError: the model does not load.
    """
    source, out, tell = inputs["model"], context.out_dir, context.reporter.message
    checkpoint = open_packed(source) if is_packed(source) else None
    model = _fill(skeleton.build(source), checkpoint) if checkpoint else loading.load_causal_lm(source)
    weights = _ModelWeights(model, checkpoint)
    tell("tracing the model without its weights")
    trace = decoder_trace.trace(model, config.opset, context.work_dir, simplify=config.fuse)
    tell(f"writing {len(trace.layers)} weight layers")
    graph = weight_only_graph.lower(trace, weights, out, accuracy_level=0)
    quantised = weight_only_graph.verify(graph, out, weights, trace.layers)
    if checkpoint:
        tell(f"{quantised} quantised layers read back; codes, scales and zero points are identical")
    _copy_beside(source, out)

    levels = [0] if checkpoint is None else sorted({0, config.accuracy_level})
    candidates = {}
    for level in levels:
        weight_only_graph.set_accuracy_level(graph, level)
        onnx.save(graph, out / GRAPH)
        _check_graph(out / GRAPH)
        candidates[level] = OnnxDecoder(out, context.threads)
    if checkpoint is None:
        reference = model
    elif config.low_memory:
        reference = _on_demand(model, checkpoint)
    else:
        del model, weights
        reference = loading.load_causal_lm(source)
    parity = compare(
        candidates, TorchDecoder(reference), *_text(inputs, candidates[0].context), context.reporter
    )
    _judge(parity, config, source)

    sizes = weight_only_graph.sizes(graph)
    report = {
        "task": task_of(source),
        "opset": config.opset,
        "fused": config.fuse,
        "accuracy_level": config.accuracy_level if checkpoint else None,
        "operators": operator_counts(graph),
        "quantised_layers": quantised,
        "packed3_layers": len(weight_only_graph.packed3(graph)),
        "graph_bytes": (out / GRAPH).stat().st_size,
        "weights": sizes,
        "parity": {f"level_{level}": asdict(found) for level, found in parity.items()},
        "versions": {
            name: version(name) for name in ("onnx", "onnxruntime", "optimum", "torch", "transformers")
        },
    }
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for level, found in parity.items():
        tell(("float32: " if checkpoint is None else f"accuracy level {level}: ") + found.describe())
    size = sum((out / name).stat().st_size for name in (GRAPH, weight_only_graph.DATA)) / 1e6
    unpacked = " (3-bit weights are expanded to 4 bits)" if report["packed3_layers"] else ""
    tell(f"{size:.1f} MB on disk; weights {sizes['memory_bytes'] / 1e6:.1f} MB in memory{unpacked}")
    last = parity[levels[-1]]
    return {
        "max_logit_difference": parity[0].max_logit_difference,
        "published_max_logit_difference": last.max_logit_difference,
        "published_greedy_agreement": last.equal_prompts / last.prompts,
        "parity_windows": float(last.windows),
        "graph_mb": size,
        "weights_in_memory_mb": sizes["memory_bytes"] / 1e6,
    }


def _judge(parity: Mapping[int, Parity], config: ExportConfig, source: Path) -> None:
    """Pass or refuse what accuracy level 0 gives; of another level only that its logits are numbers."""
    found = parity[0]
    limit, advice = config.max_logit_difference, "try fuse: false or another opset"
    if found.max_logit_difference > limit:
        raise ParityError(
            f"the ONNX graph of {source} differs from PyTorch on {found.windows} windows of text: max "
            f"|Δlogit| is {found.max_logit_difference:.3g} (window {found.worst_window}, token "
            f"{found.worst_position}), above export.max_logit_difference {limit:g}; {advice}; if the "
            "difference remains, this is a bug in the export"
        )
    for divergence in found.divergences:
        if divergence.margin > 2 * limit:
            raise ParityError(
                f"the ONNX graph of {source} generates different text than PyTorch: prompt "
                f"{divergence.prompt}, new token {divergence.position} is {divergence.token} instead of "
                f"{divergence.expected}, whose logit is {divergence.margin:.3g} higher. Logits of whole "
                f"windows agree, so the key-value cache is at fault; {advice}"
            )
    for level, other in parity.items():
        if not np.isfinite(other.max_logit_difference):
            raise ParityError(
                f"at accuracy level {level} the ONNX graph of {source} produces logits that are not "
                "finite; export with accuracy_level: 0"
            )


class _ModelWeights:
    """The layers of a model in PyTorch; those that a packed checkpoint has are read from it."""

    def __init__(self, model: PreTrainedModel, checkpoint: PackedCheckpoint | None) -> None:
        self._model, self._checkpoint = model, checkpoint
        self._owners: dict[int, str] = {}
        for name, module in model.named_modules():
            if weight_layers.kind_of(module):
                self._owners.setdefault(id(module.weight), name)

    def packed(self, layer: str) -> PackedLayer | None:
        """See `weight_only_graph.Weights`."""
        if self._checkpoint is None or layer not in self._checkpoint.layers:
            return None
        return self._checkpoint.layer(layer)

    def matrix(self, layer: str) -> NDArray[np.float32]:
        """See `weight_only_graph.Weights`."""
        module = self._model.get_submodule(layer)
        weight: NDArray[np.float32] = module.get_parameter("weight").detach().float().numpy()
        return np.ascontiguousarray(weight.T) if isinstance(module, nn.Linear) else weight

    def owner(self, layer: str) -> str:
        """See `weight_only_graph.Weights`."""
        return self._owners[id(self._model.get_submodule(layer).weight)]


def _fill(model: PreTrainedModel, checkpoint: PackedCheckpoint) -> PreTrainedModel:
    """Give an empty model every tensor that is not quantised.

    Raises:
        ParityError: a quantised layer is of a kind that a graph cannot hold.
        SourceError: tensors are missing, or do not fit the model.
    """
    modules = dict(model.named_modules())
    for name in checkpoint.layers:
        module = modules.get(name)
        if module is None or weight_layers.kind_of(module) is None:
            what = "not in the model" if module is None else f"a {type(module).__name__}"
            raise ParityError(
                f"{checkpoint.folder}: the quantised layer {name} is {what}, which cannot be exported in "
                "quantised form; add it to quantize.exclude (or set `embeddings: float`) and quantise "
                "again"
            )
    known = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in checkpoint.plain():
        if name not in known or known[name].shape != tensor.shape:
            raise SourceError(
                f"{checkpoint.folder}: {name} {list(tensor.shape)} does not match the model in "
                "config.json; quantise the model again"
            )
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        value = tensor.float() if tensor.is_floating_point() else tensor
        if attribute in module._parameters:
            value = nn.Parameter(value, requires_grad=False)
        setattr(module, attribute, value)
    model.tie_weights()
    quantised = {f"{name}.weight" for name in checkpoint.layers}
    missing = [n for n, p in model.named_parameters() if p.is_meta and n not in quantised]
    if missing:
        raise SourceError(
            f"{checkpoint.folder} is missing weights ({', '.join(missing[:5])}); quantise the model again"
        )
    return model


class _OnDemand(nn.Module):
    """A quantised layer whose weights exist, dequantised, only while it is computed."""

    def __init__(self, layer: nn.Module, name: str, checkpoint: PackedCheckpoint) -> None:
        super().__init__()
        self.bias = getattr(layer, "bias", None)
        self.scale = weight_layers.embedding_scale(layer) if isinstance(layer, nn.Embedding) else None
        self._name, self._checkpoint = name, checkpoint

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = torch.from_numpy(self._checkpoint.layer(self._name).dequantize())  # (out, in)
        if self.scale is None:
            return nn.functional.linear(x, weight, self.bias)
        return nn.functional.embedding(x, weight) * self.scale


def _on_demand(model: PreTrainedModel, checkpoint: PackedCheckpoint) -> PreTrainedModel:
    """Let each quantised layer of a filled model read its codes whenever it is called."""
    for name in checkpoint.layers:
        model.set_submodule(name, _OnDemand(model.get_submodule(name), name, checkpoint))
    return model


def _text(inputs: Mapping[str, Path], limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Windows (windows, tokens), prompts (prompts, tokens) and new tokens: real text, within the context."""
    folder = inputs.get("data")
    content = running_text.load_calibration(folder) if folder else running_text.embedded_calibration()
    window = min(running_text.info(folder).window if folder else TextConfig().window, limit)
    ids = LanguageModelTokenizer.open(inputs["model"]).encode(content)
    windows = running_text.windows(ids, window, WINDOWS, spread=True)
    new = min(NEW_TOKENS, max(limit - PROMPT_TOKENS, limit // 2))
    prompts = running_text.windows(ids, min(PROMPT_TOKENS, limit - new), PROMPTS, spread=True)
    return windows, prompts, new


def _check_graph(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path))  # by path: external data is beside it
    except onnx.checker.ValidationError as error:
        raise ParityError(f"the exported graph is not valid ONNX: {error}") from error


def _copy_beside(source: Path, out: Path) -> None:
    """Copy configuration, tokenizer and `quantization.json` as they are."""
    for path in sorted({path for pattern in _BESIDE for path in source.glob(pattern)}):
        if path.is_file() and path.name not in _OTHERS:
            shutil.copyfile(path, out / path.name)
