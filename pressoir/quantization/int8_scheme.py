"""int8 for encoders; the most sensitive layers stay in float32, so that validation accuracy holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from pressoir.data import sentences
from pressoir.data.texts import Text, texts_of
from pressoir.formats import symmetric_blocks
from pressoir.formats.folder import QUANTIZATION
from pressoir.formats.int8_checkpoint import FORMAT_VERSION, WEIGHTS, dequantize, stored
from pressoir.formats.problems import SINGLE_LABEL, Problem, thresholds_of
from pressoir.inference.engines.classifier import TorchEngine
from pressoir.inference.text_classification import TextClassifier
from pressoir.models import loading
from pressoir.models.layouts import class_names
from pressoir.models.simulated_int8 import quantize_input
from pressoir.quantization import symmetric
from pressoir.quantization.int8 import named_by, quantizable, quantize_rows, word_table
from pressoir.recipe.sections import QuantizeConfig
from pressoir.stage import StageContext
from pressoir.system.runtime import one_thread

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SENSITIVITY_SAMPLES = 128

Packed = dict[str, tuple[Tensor, Tensor]]
"""Codes and scales by layer."""


def run(inputs: Mapping[str, Path], config: QuantizeConfig, context: StageContext) -> dict[str, float]:
    """Quantise the classifier `inputs["model"]`; validate on the validation split of `inputs["data"]`.

    Raises:
        SourceError: the model does not load, or a weight is not finite.
    """
    source, out, tell = inputs["model"], context.out_dir, context.reporter.message
    model = loading.load_classifier(source)
    tokenizer = loading.load_tokenizer(source)
    split = sentences.load_split(inputs["data"], "validation", class_names(model))
    problem = sentences.problem_of(inputs["data"]).of(class_names(model))
    texts, labels = texts_of(split), problem.targets(split["label"][:], model.config.num_labels)
    reference = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    kinds = dict(quantizable(model))
    packed, excluded = pack(reference, kinds, word_table(model), config)

    scorer = Scorer(model, reference, packed, kinds, tokenizer, problem)
    validation, metric = _Validation(scorer, texts, labels), problem.metric.replace("_", " ")
    accuracy = first_accuracy = validation.accuracy(packed)
    widened, sensitivity = dict[str, str](), dict[str, float]()
    limit = config.max_accuracy_drop
    drop = validation.float_accuracy - accuracy
    if limit is not None and _exceeds(drop, limit):
        tell(
            f"int8 loses {100 * drop:.2f} points of validation {metric}, more than the {100 * limit:.2f} "
            f"allowed; ranking {len(packed)} layers by sensitivity"
        )
        accuracy, widened, sensitivity = _relax(validation, packed, excluded, limit, context)

    shutil.copyfile(source / "config.json", out / "config.json")
    loading.save_tokenizer(tokenizer, out)
    facts = {
        "sentences": len(texts),
        **({} if problem is SINGLE_LABEL else {"metric": problem.metric}),
        "float_accuracy": validation.float_accuracy,
        "accuracy_before_exclusions": first_accuracy,
        "accuracy": accuracy,
        "max_accuracy_drop": limit,
    }
    reasons = {"excluded": excluded, **({"widened": widened} if widened else {})}
    summary, figures = write_weights(out, config, reference, packed, kinds, reasons, facts, sensitivity)
    tell(f"{summary}; validation {metric} {validation.float_accuracy:.4f} → {accuracy:.4f}")
    return {
        f"validation_{problem.metric}": accuracy,
        f"validation_{problem.metric}_drop": validation.float_accuracy - accuracy,
        **figures,
    }


def write_weights(
    out: Path,
    config: QuantizeConfig,
    reference: Mapping[str, Tensor],
    packed: Packed,
    kinds: Mapping[str, str],
    reasons: Mapping[str, Mapping[str, str]],
    validation: Mapping[str, Any],
    sensitivity: Mapping[str, float],
) -> tuple[str, dict[str, float]]:
    """Write the weights, and `QUANTIZATION` with what was found; return a summary and the stage's metrics.

    `reasons` are why layers are not as configured: `excluded` ones are in float32.
    """
    state, layers = _stored_layers(reference, packed, kinds)
    save_file(state, out / WEIGHTS, metadata={"format": "pt"})
    original, new = (
        sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        for tensors in (reference, state)
    )
    description = {
        "format_version": FORMAT_VERSION,
        "scheme": config.scheme,
        "activations": "dynamic",
        "layers": layers,
        **reasons,
        "original_bytes": original,
        "new_bytes": new,
        "validation": validation,
        "sensitivity": sensitivity,
    }
    (out / QUANTIZATION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    errors = [layer["relative_error"] for layer in layers.values()]
    figures = {
        "size_ratio": original / new,
        "mean_relative_error": float(np.mean(errors)) if errors else 0.0,
        "max_relative_error": max(errors, default=0.0),
        "excluded_layers": float(len(reasons["excluded"])),
    }
    megabytes = f"{original / 1e6:.1f} → {new / 1e6:.1f} MB"
    return f"{len(layers)} of {len(kinds)} layers in int8, {megabytes}", figures


def pack(
    reference: Mapping[str, Tensor], kinds: Mapping[str, str], words: str | None, config: QuantizeConfig
) -> tuple[Packed, dict[str, str]]:
    """Quantise every layer that the configuration does not exclude; return those, and why others are not."""
    packed, excluded = Packed(), dict[str, str]()
    for name in kinds:
        weight = reference[f"{name}.weight"]
        if named_by(name, config.exclude):
            excluded[name] = "named in quantize.exclude"
        elif name == words and config.embeddings == "float":
            excluded[name] = "quantize.embeddings is float"
        elif name == words and config.embeddings == "q4":
            size = symmetric.block_size(weight.shape[1], config.block_size, name)
            packed[name] = symmetric.quantize(weight, size, name)
        else:
            packed[name] = quantize_rows(weight, name)
    return packed, excluded


def _relax(
    validation: _Validation, packed: Packed, excluded: dict[str, str], limit: float, context: StageContext
) -> tuple[float, dict[str, str], dict[str, float]]:
    """Give the most sensitive layers more bits, one by one, until validation accuracy is within `limit`.

    Alters `packed` and `excluded`; returns the accuracy, the layers with 8 bits instead of 4, and every
    layer's sensitivity.
    """
    tell, scorer, widened = context.reporter.message, validation.scorer, dict[str, str]()
    accuracy = validation.float_accuracy
    sensitivity = scorer.sensitivity(validation.texts[:SENSITIVITY_SAMPLES], context)
    for name in sorted(sensitivity, key=lambda layer: (-sensitivity[layer], layer)):
        reason = f"most sensitive of the remaining layers: mean KL divergence {sensitivity[name]:.3g}"
        if packed[name][1].ndim == 2:
            packed[name] = scorer.packed[name] = quantize_rows(scorer.reference[f"{name}.weight"], name)
            widened[name], becomes = reason, "gets 8 bits instead of 4"
        else:
            del packed[name]
            excluded[name], becomes = reason, "stays in float32"
        accuracy = validation.accuracy(packed)
        metric = scorer.problem.metric.replace("_", " ")
        tell(f"{name} {becomes}: int8 validation {metric} is now {accuracy:.4f}")
        if not _exceeds(validation.float_accuracy - accuracy, limit):
            break
    return accuracy, widened, sensitivity


def _stored_layers(
    reference: Mapping[str, Tensor], packed: Packed, kinds: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The tensors of the file, and what `quantization.json` says of each quantised layer."""
    state, layers = dict[str, Tensor](), dict[str, dict[str, Any]]()
    for name, tensor in reference.items():
        layer = name.removesuffix(".weight")
        if layer in packed and name.endswith(".weight"):
            codes, scales = packed[layer]
            state[name], state[f"{layer}.weight_scale"] = stored(codes, scales), scales
            layers[layer] = _describe(kinds[layer], tensor, codes, scales)
        else:
            state[name] = tensor.contiguous()
    return state, layers


class Scorer:
    """Runs one model with any subset of its layers in int8, one sentence at a time."""

    def __init__(
        self,
        model: PreTrainedModel,
        reference: dict[str, Tensor],
        packed: Mapping[str, tuple[Tensor, Tensor]],
        kinds: Mapping[str, str],
        tokenizer: PreTrainedTokenizerBase,
        problem: Problem = SINGLE_LABEL,
        outputs: int | None = None,
    ) -> None:
        self.problem, self.thresholds = problem, thresholds_of(model.config.to_dict())
        self.model, self.reference, self.kinds, self.tokenizer = model, reference, kinds, tokenizer
        self.packed = dict(packed)
        self.labels = [str(index) for index in range(outputs or model.config.num_labels)]

    def float_logits(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        """Logits (sentences, labels) of the float model."""
        return self._run(texts, batch_invariant=True)

    def logits(self, texts: Sequence[Text], layers: set[str]) -> NDArray[np.float32]:
        """Logits (sentences, labels) with `layers` in int8."""
        with self._quantized(layers):
            return self._run(texts, batch_invariant=False)

    def sensitivity(self, texts: Sequence[Text], context: StageContext) -> dict[str, float]:
        """Mean divergence (`Problem.divergence`) from the float model with one layer in int8, by layer."""
        expected, result = self.float_logits(texts), dict[str, float]()
        for done, name in enumerate(self.packed, start=1):
            result[name] = self.problem.divergence(expected, self.logits(texts, {name}))
            context.reporter.progress(done, len(self.packed), "layers ranked")
        return result

    def _run(self, texts: Sequence[Text], batch_invariant: bool) -> NDArray[np.float32]:
        engine = TorchEngine(self.model, batch_invariant)
        with nullcontext() if batch_invariant else one_thread():
            return TextClassifier(engine, self.tokenizer, self.labels).logits(texts)

    @contextmanager
    def _quantized(self, layers: set[str]) -> Iterator[None]:
        hooks = []
        try:
            for name in layers:
                module, (codes, scales) = self.model.get_submodule(name), self.packed[name]
                _assign(module, dequantize(codes, scales))
                if self.kinds[name] == "linear":
                    hooks.append(module.register_forward_pre_hook(quantize_input))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for name in layers:
                _assign(self.model.get_submodule(name), self.reference[f"{name}.weight"])


class _Validation:
    """Accuracy, or the problem's own metric, on the validation split with any set of layers in int8."""

    def __init__(self, scorer: Scorer, texts: Sequence[Text], labels: NDArray[Any]) -> None:
        self.scorer, self.texts, self.labels = scorer, texts, labels
        self.float_accuracy = self._score(scorer.float_logits(texts))

    def accuracy(self, packed: Packed) -> float:
        """That with the layers of `packed` in int8."""
        return self._score(self.scorer.logits(self.texts, set(packed)))

    def _score(self, logits: NDArray[np.float32]) -> float:
        problem = self.scorer.problem
        predicted = problem.decide(logits, self.scorer.thresholds)
        return problem.score(predicted, self.labels, logits.shape[-1])[problem.metric]


def _assign(module: nn.Module, weight: Tensor) -> None:
    with torch.no_grad():
        assert isinstance(module.weight, Tensor)
        module.weight.copy_(weight)


def _exceeds(drop: float, limit: float) -> bool:
    return drop > limit + 1e-9  # 0.90 − 0.89 is a little more than 0.01 in binary


def _describe(kind: str, weight: Tensor, codes: Tensor, scales: Tensor) -> dict[str, Any]:
    """What `quantization.json` says of a layer."""
    norm = float(torch.linalg.vector_norm(weight))
    difference = float(torch.linalg.vector_norm(weight - dequantize(codes, scales)))
    description = {
        "kind": kind,
        "bits": 8,
        "shape": list(codes.shape),
        "granularity": "output channel" if kind == "linear" else "row",
        "relative_error": difference / norm if norm else 0.0,  # Frobenius
    }
    if scales.ndim == 1:
        return description
    size = codes.shape[1] // scales.shape[1]
    return description | {
        "bits": symmetric_blocks.BITS,
        "granularity": f"block of {size}",
        "block_size": size,
    }
