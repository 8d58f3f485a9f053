"""Store weights in int8: one symmetric scale an output channel, one a row of each embedding table.

**What.** A weight row w becomes codes round(w / s) in −127…127 with s = max|w| / 127. The codes and the
scales are what the file holds: `model.safetensors` has int8 `<module>.weight` and float32
`<module>.weight_scale`; biases, norms and excluded modules stay float32. Activations are quantised while the
model runs, per tensor, to uint8 (dynamic).

**Why.** A quarter of the bytes, and integer matrix products, which CPUs with VNNI run several times faster
than float ones. Per-channel scales keep a channel of small weights from being rounded away by a neighbour
with large ones.

**Cost.** Seconds, plus two passes over the validation split. An activation's scale depends on the whole
batch, so int8 models are scored one sentence at a time. Where validation accuracy drops by more than
`max_accuracy_drop`, the layers are ranked by how far each one alone moves the model's output (mean KL
divergence), and the most sensitive go back to float32 until the limit holds.

**Sources.** Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference, CVPR 2018, arXiv:1712.05877; activations follow ONNX `DynamicQuantizeLinear`,
https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html; ranking layers by KL divergence: Cai et al.,
ZeroQ, CVPR 2020, arXiv:2001.00281.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pressoir import data, metrics, models
from pressoir.errors import SourceError
from pressoir.inference.engines import QUANTIZATION, TorchEngine
from pressoir.inference.text_classification import TextClassifier
from pressoir.sections import QuantizeConfig
from pressoir.stages import StageContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "quantize"
VERSION = 1
KIND = "quantized-model"

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
SENSITIVITY_SAMPLES = 128


@dataclass(frozen=True)
class PackedWeight:
    """One quantised layer as it is stored."""

    kind: str
    """`linear` or `embedding`."""
    codes: NDArray[np.int8]
    """(out, in) of a linear layer, (rows, width) of an embedding; −127…127."""
    scales: NDArray[np.float32]
    """(out,) or (rows,)."""

    @property
    def weight(self) -> NDArray[np.float32]:
        """The float32 weight, exactly codes × scales."""
        return self.codes.astype(np.float32) * self.scales[:, None]


def run(inputs: Mapping[str, Path], config: QuantizeConfig, context: StageContext) -> dict[str, float]:
    """Quantise `inputs["model"]`; validate on the validation split of `inputs["data"]`.

    Schemes that quantise weights only are `pressoir.quantization.weight_only`'s.

    Raises:
        SourceError: the model does not load, or a weight is not finite.
    """
    if config.scheme != "int8":
        from pressoir.quantization import weight_only

        return weight_only.run(inputs, config, context)
    source, out, tell = inputs["model"], context.out_dir, context.reporter.message
    model = models.load_classifier(source)
    tokenizer = models.load_tokenizer(source)
    split = data.load_split(inputs["data"], "validation")
    texts, labels = list(split["text"]), list(split["label"])
    reference = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    excluded: dict[str, str] = {}
    packed: dict[str, tuple[Tensor, Tensor]] = {}  # layer: int8 codes and float32 scales
    kinds = dict(quantizable(model))
    for name in kinds:
        if any(name == part or name.startswith(f"{part}.") for part in config.exclude):
            excluded[name] = "named in quantize.exclude"
        else:
            packed[name] = quantize_rows(reference[f"{name}.weight"], name)

    scorer = _Scorer(model, reference, packed, kinds, tokenizer)
    float_accuracy = metrics.accuracy(scorer.float_logits(texts).argmax(axis=1), labels)
    accuracy = metrics.accuracy(scorer.logits(texts, set(packed)).argmax(axis=1), labels)
    first_accuracy, sensitivity = accuracy, dict[str, float]()
    limit = config.max_accuracy_drop
    if limit is not None and _exceeds(float_accuracy - accuracy, limit):
        tell(
            f"int8 loses {100 * (float_accuracy - accuracy):.2f} points of validation accuracy, more than "
            "the "
            f"{100 * limit:.2f} allowed; ranking {len(packed)} layers by sensitivity"
        )
        sensitivity = scorer.sensitivity(texts[:SENSITIVITY_SAMPLES], context)
        for name in sorted(sensitivity, key=lambda layer: (-sensitivity[layer], layer)):
            del packed[name]
            excluded[name] = f"most sensitive of the layers left: mean KL divergence {sensitivity[name]:.3g}"
            accuracy = metrics.accuracy(scorer.logits(texts, set(packed)).argmax(axis=1), labels)
            tell(f"{name} stays in float32: int8 validation accuracy is now {accuracy:.4f}")
            if not _exceeds(float_accuracy - accuracy, limit):
                break

    state: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Any]] = {}
    for name, tensor in reference.items():
        layer = name.removesuffix(".weight")
        if layer in packed and name.endswith(".weight"):
            codes, scales = packed[layer]
            state[name], state[f"{layer}.weight_scale"] = codes, scales
            layers[layer] = {
                "kind": kinds[layer],
                "bits": 8,
                "shape": list(codes.shape),
                "granularity": "output channel" if kinds[layer] == "linear" else "row",
                "relative_error": _relative_error(tensor, codes, scales),
            }
        else:
            state[name] = tensor.contiguous()
    save_file(state, out / WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(source / "config.json", out / "config.json")
    models.save_tokenizer(tokenizer, out)
    original = sum(tensor.numel() * tensor.element_size() for tensor in reference.values())
    new = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    errors = [layer["relative_error"] for layer in layers.values()]
    description = {
        "format_version": FORMAT_VERSION,
        "scheme": config.scheme,
        "activations": "dynamic",
        "layers": layers,
        "excluded": excluded,
        "original_bytes": original,
        "new_bytes": new,
        "validation": {
            "sentences": len(texts),
            "float_accuracy": float_accuracy,
            "accuracy_before_exclusions": first_accuracy,
            "accuracy": accuracy,
            "max_accuracy_drop": limit,
        },
        "sensitivity": sensitivity,
    }
    (out / QUANTIZATION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    tell(
        f"{len(layers)} of {len(kinds)} layers in int8, {original / 1e6:.1f} → {new / 1e6:.1f} MB; "
        f"validation accuracy {float_accuracy:.4f} → {accuracy:.4f}"
    )
    return {
        "validation_accuracy": accuracy,
        "validation_accuracy_drop": float_accuracy - accuracy,
        "size_ratio": original / new,
        "mean_relative_error": float(np.mean(errors)) if errors else 0.0,
        "max_relative_error": max(errors, default=0.0),
        "excluded_layers": float(len(excluded)),
    }


def quantizable(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Name and kind (`linear`, `embedding`) of every module that int8 can hold, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name, "linear"
        elif isinstance(module, nn.Embedding):
            yield name, "embedding"


def quantize_rows(weight: Tensor, name: str = "weight") -> tuple[Tensor, Tensor]:
    """Symmetric int8 codes (rows, columns) and float32 scales (rows,) of a float32 matrix.

    Raises:
        SourceError: the matrix has NaN or infinite values; `name` is told.
    """
    if not torch.isfinite(weight).all():
        raise SourceError(f"{name}.weight has NaN or infinite values and cannot be quantised; train it again")
    scales = weight.abs().amax(dim=1) / 127
    # A row of zeros, or of numbers so small that the scale underflows, gets codes 0.
    scales = torch.where(scales < torch.finfo(torch.float32).tiny, torch.ones_like(scales), scales)
    codes = torch.clamp(torch.round(weight / scales[:, None]), -127, 127).to(torch.int8)
    return codes.contiguous(), scales.contiguous()


def dynamic_quantize(activations: Tensor) -> Tensor:
    """What `activations` become under ONNX `DynamicQuantizeLinear`: uint8 and back, one scale a tensor.

    The range always includes 0, so that 0 stays 0; rounding is half to even.
    """
    low, high = activations.min().clamp(max=0), activations.max().clamp(min=0)
    if high == low:
        return activations
    scale = (high - low) / 255
    zero_point = torch.clamp(torch.round(-low / scale), 0, 255)
    codes = torch.clamp(torch.round(activations / scale) + zero_point, 0, 255)
    return (codes - zero_point) * scale


def packed_layers(folder: Path) -> dict[str, PackedWeight]:
    """Codes and scales of every quantised layer of a folder, exactly as stored.

    Raises:
        SourceError: `quantization.json` or the weights are damaged, or of an unknown format.
    """
    _, layers, state = _read(folder)
    return {
        name: PackedWeight(
            kind=layer["kind"],
            codes=state[f"{name}.weight"].numpy(),
            scales=state[f"{name}.weight_scale"].numpy(),
        )
        for name, layer in layers.items()
    }


def dequantized_state(folder: Path) -> dict[str, Tensor]:
    """The state dict of a quantised folder in float32; a quantised weight is exactly codes × scales.

    Raises:
        SourceError: `quantization.json` or the weights are damaged, or of an unknown format.
    """
    _, layers, state = _read(folder)
    for name in layers:
        codes, scales = state[f"{name}.weight"], state.pop(f"{name}.weight_scale")
        state[f"{name}.weight"] = codes.float() * scales[:, None]
    return state


def load_simulated(folder: Path) -> PreTrainedModel:
    """Load a quantised folder so that it computes what integer kernels compute, up to float32 rounding.

    Weights are dequantised, and the input of every quantised linear layer goes through `dynamic_quantize`.

    Raises:
        SourceError: the folder is damaged, or of an unknown format.
    """
    _, layers, _ = _read(folder)
    model = models.load_classifier(folder)
    for name, layer in layers.items():
        if layer["kind"] == "linear":
            model.get_submodule(name).register_forward_pre_hook(_quantize_input)
    return model


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread: at batch 1 more gain little, and cost much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _quantize_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (dynamic_quantize(args[0]), *args[1:])


class _Scorer:
    """Runs one model with any subset of its layers in int8, one sentence at a time."""

    def __init__(
        self,
        model: PreTrainedModel,
        reference: dict[str, Tensor],
        packed: Mapping[str, tuple[Tensor, Tensor]],
        kinds: Mapping[str, str],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.model, self.reference, self.kinds, self.tokenizer = model, reference, kinds, tokenizer
        self.packed = dict(packed)
        self.labels = [str(index) for index in range(model.config.num_labels)]

    def float_logits(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Logits (sentences, labels) of the float model."""
        return self._run(texts, batch_invariant=True)

    def logits(self, texts: Sequence[str], layers: set[str]) -> NDArray[np.float32]:
        """Logits (sentences, labels) with `layers` in int8."""
        with self._quantized(layers):
            return self._run(texts, batch_invariant=False)

    def sensitivity(self, texts: Sequence[str], context: StageContext) -> dict[str, float]:
        """Mean KL divergence from the float model's output distribution with one layer in int8, by layer."""
        expected, result = _log_softmax(self.float_logits(texts)), {}
        for done, name in enumerate(self.packed, start=1):
            actual = _log_softmax(self.logits(texts, {name}))
            result[name] = float((np.exp(expected) * (expected - actual)).sum(axis=1).mean())
            context.reporter.progress(done, len(self.packed), "layers ranked")
        return result

    def _run(self, texts: Sequence[str], batch_invariant: bool) -> NDArray[np.float32]:
        engine = TorchEngine(self.model, batch_invariant)
        with nullcontext() if batch_invariant else one_thread():
            return TextClassifier(engine, self.tokenizer, self.labels).logits(texts)

    @contextmanager
    def _quantized(self, layers: set[str]) -> Iterator[None]:
        hooks = []
        try:
            for name in layers:
                module, (codes, scales) = self.model.get_submodule(name), self.packed[name]
                _assign(module, codes.float() * scales[:, None])
                if self.kinds[name] == "linear":
                    hooks.append(module.register_forward_pre_hook(_quantize_input))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for name in layers:
                _assign(self.model.get_submodule(name), self.reference[f"{name}.weight"])


def _assign(module: nn.Module, weight: Tensor) -> None:
    with torch.no_grad():
        assert isinstance(module.weight, Tensor)
        module.weight.copy_(weight)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return result


def _exceeds(drop: float, limit: float) -> bool:
    return drop > limit + 1e-9  # 0.90 − 0.89 is a little more than 0.01 in binary


def _relative_error(weight: Tensor, codes: Tensor, scales: Tensor) -> float:
    """‖W − Ŵ‖ / ‖W‖ (Frobenius)."""
    norm = float(torch.linalg.vector_norm(weight))
    difference = float(torch.linalg.vector_norm(weight - codes.float() * scales[:, None]))
    return difference / norm if norm else 0.0


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, Tensor]]:
    """`quantization.json`, its layers, and the raw tensors, all checked against each other."""
    path = folder / QUANTIZATION
    advice = "quantise the model again"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}; {advice}") from error
    except ValueError as error:
        raise SourceError(f"{path} is not valid JSON ({error}); {advice}") from error
    if not isinstance(description, dict):
        raise SourceError(f"{path} holds a {type(description).__name__}, not an object; {advice}")
    for field, known in (("format_version", FORMAT_VERSION), ("scheme", "int8"), ("activations", "dynamic")):
        if description.get(field) != known:
            raise SourceError(
                f"{path}: {field} is {description.get(field)!r}, but this version of Pressoir knows "
                f"{known!r}; use the version that wrote it, or {advice}"
            )
    layers = description.get("layers")
    if not isinstance(layers, dict) or not all(isinstance(layer, dict) for layer in layers.values()):
        raise SourceError(f"{path}: `layers` is not an object of objects; {advice}")
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise SourceError(f"{folder / WEIGHTS} cannot be read ({error}); {advice}") from error
    for name, layer in layers.items():
        codes, scales = state.get(f"{name}.weight"), state.get(f"{name}.weight_scale")
        if codes is None or scales is None:
            raise SourceError(f"{folder / WEIGHTS} has no codes or no scales of layer {name}; {advice}")
        if layer.get("kind") not in ("linear", "embedding") or layer.get("bits") != 8:
            raise SourceError(
                f"{path}, layer {name}: kind {layer.get('kind')!r} with {layer.get('bits')!r} bits is not "
                "known "
                f"(linear or embedding, 8 bits); {advice}"
            )
        if (
            codes.dtype != torch.int8
            or scales.dtype != torch.float32
            or list(codes.shape) != layer.get("shape")
            or scales.shape != codes.shape[:1]
        ):
            raise SourceError(
                f"{folder / WEIGHTS}, layer {name}: codes {codes.dtype} {list(codes.shape)} and scales "
                f"{scales.dtype} {list(scales.shape)} do not fit {path.name} ({layer.get('shape')}); {advice}"
            )
    orphans = [
        name
        for name in state
        if name.endswith(".weight_scale") and name.removesuffix(".weight_scale") not in layers
    ]
    if orphans:
        raise SourceError(f"{path} does not describe {orphans[0].removesuffix('.weight_scale')}; {advice}")
    return description, layers, state
