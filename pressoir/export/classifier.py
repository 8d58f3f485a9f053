"""A classifier as an ONNX graph: traced, fused, lowered to int8 if quantised, and compared with PyTorch."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pressoir.data import sentences as data
from pressoir.data.texts import Text, texts_of
from pressoir.errors import ParityError
from pressoir.export import first_token, int8_graph
from pressoir.export.graph import (
    MICROSOFT,
    operator_counts,
    remove_copies,
    remove_unused,
    split_skip_layer_norm,
)
from pressoir.export.tracing import REPORT, quiet, unscripted
from pressoir.formats import int8_checkpoint
from pressoir.formats.folder import GRAPH, QUANTIZATION, has_token_head, is_token_classifier
from pressoir.formats.problems import problem_of, thresholds_of
from pressoir.inference.engines.classifier import OnnxEngine, TorchEngine
from pressoir.inference.engines.session import feed, input_names
from pressoir.inference.text_classification import TextClassifier
from pressoir.models import loading
from pressoir.models.simulated_int8 import load_simulated
from pressoir.recipe.sections import ExportConfig
from pressoir.stage import StageContext
from pressoir.system.runtime import one_thread

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# ONNX Runtime kernels behind the names; below opset 17 it defines LayerNormalization itself.
NORMALISATIONS = ("LayerNormalization", "SkipLayerNormalization", "EmbedLayerNormalization")

# ‖graph − checkpoint‖ / ‖checkpoint‖ of a layer's output from which it counts as departing.
FLOAT_TOLERANCE, INT8_TOLERANCE = 1e-3, 0.05


def run(inputs: Mapping[str, Path], config: ExportConfig, context: StageContext) -> dict[str, float]:
    """Export the classifier `inputs["model"]`, float or int8; check it on sentences of `inputs["data"]`.

    Raises:
        ParityError: the graph cannot hold a quantised layer exactly, or does not compute what the checkpoint
        computes. SourceError: the model does not load.
    """
    source, out, tell = inputs["model"], context.out_dir, context.reporter.message
    quantised = (source / QUANTIZATION).exists()
    tokenizer = loading.load_tokenizer(source)
    tell("tracing the float32 model")
    graph = trace(loading.load_classifier(source), config, context.work_dir)
    if config.fuse:
        tell("fusing operators")
        graph = fuse(graph, context.work_dir, all_tokens=is_token_classifier(source))
    remove_copies(graph)
    placements: dict[str, int8_graph.Placement] = {}
    if quantised:
        packed = int8_checkpoint.packed_layers(source)
        placements = int8_graph.lower_to_int8(graph, packed)
        tell(f"{len(placements)} int8 layers written to the graph; codes and scales are identical")
    remove_unused(graph)
    check_graph(graph)
    onnx.save(graph, out / GRAPH)
    shutil.copyfile(source / "config.json", out / "config.json")
    if quantised:
        shutil.copyfile(source / QUANTIZATION, out / QUANTIZATION)
    loading.save_tokenizer(tokenizer, out)

    model = load_simulated(source) if quantised else loading.load_classifier(source)
    sentences = parity_sentences(inputs["data"], config.parity_samples)
    if len(sentences) < config.parity_samples:
        tell(
            f"the data has only {len(sentences)} sentences for the parity check (export.parity_samples is "
            f"{config.parity_samples})"
        )
    parity = check_parity(out / GRAPH, model, tokenizer, sentences, config, quantised, context.threads)
    graph_mb = write_report(out, graph, config, parity, placements)
    tell(
        f"parity on {len(sentences)} sentences: max |Δlogit| {parity['max_logit_difference']:.2g}, "
        f"label agreement {parity['label_agreement']:.4f}; {graph_mb:.1f} MB"
    )
    return {**parity, "graph_mb": graph_mb}


def write_report(
    out: Path,
    graph: onnx.ModelProto,
    config: ExportConfig,
    parity: Mapping[str, float],
    placements: Mapping[str, int8_graph.Placement],
) -> float:
    """Write `REPORT` beside the graph that was written; return the graph's size, MB = 10^6 bytes."""
    size = (out / GRAPH).stat().st_size
    report = {
        "opset": config.opset,
        "fused": config.fuse,
        "operators": operator_counts(graph),
        "parity": parity,
        "graph_bytes": size,
        "int8_layers": {name: asdict(placement) for name, placement in placements.items()},
    }
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return size / 1e6


def check_graph(graph: onnx.ModelProto) -> None:
    """Run `onnx.checker`.

    Raises:
        ParityError: the graph is not valid ONNX.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    if any(entry.domain == "" and entry.version < 17 for entry in copy.opset_import):
        for node in copy.graph.node:  # see NORMALISATIONS: ONNX itself does not know it yet
            if node.op_type == "LayerNormalization":
                node.domain = MICROSOFT
    try:
        onnx.checker.check_model(copy)
    except onnx.checker.ValidationError as error:
        raise ParityError(f"the exported graph is not valid ONNX: {error}") from error


def check_parity(
    graph: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Text],
    config: ExportConfig,
    quantised: bool,
    threads: int,
) -> dict[str, float]:
    """Compare a graph with its checkpoint on `sentences`; return the metrics.

    Raises:
        ParityError: they differ by more than `config` allows; the first layer that departs is named.
    """
    labels = [str(index) for index in range(model.config.num_labels)]
    engine = OnnxEngine(graph, threads, batch_invariant=not quantised)
    actual = TextClassifier(engine, tokenizer, labels).logits(sentences)
    torch_engine = TorchEngine(model, batch_invariant=not quantised)
    with one_thread() if quantised else contextlib.nullcontext():
        expected = TextClassifier(torch_engine, tokenizer, labels).logits(sentences)
    apart = np.abs(actual.astype(np.float64) - expected)
    differences = apart.reshape(len(apart), -1).max(axis=1)
    settings = model.config.to_dict()
    problem, thresholds = problem_of(settings), thresholds_of(settings)
    agreement = problem.agreement(problem.decide(actual, thresholds), problem.decide(expected, thresholds))
    worst = int(np.argmax(np.where(np.isnan(differences), np.inf, differences)))
    largest = float(differences[worst])
    metrics = {
        "max_logit_difference": largest,
        "label_agreement": agreement,
        "parity_samples": float(len(sentences)),
    }
    if quantised:
        passed = agreement >= config.min_label_agreement and bool(np.isfinite(largest))
        fault = (
            f"label agreement is {agreement:.4f}, below export.min_label_agreement "
            f"{config.min_label_agreement}"
        )
    else:
        passed = largest <= config.max_logit_difference
        fault = (
            f"max |Δlogit| is {largest:.3g}, above export.max_logit_difference "
            f"{config.max_logit_difference:g}"
        )
    if not passed:
        departure = first_departure(graph, model, tokenizer, sentences[worst], quantised, threads)
        raise ParityError(
            f"the ONNX graph differs from PyTorch on {len(sentences)} sentences: {fault} (max |Δlogit| "
            f"{largest:.3g}). {departure}. Try fuse: false or another opset; if the difference remains, this "
            "is a bug in the export"
        )
    return metrics


def first_departure(
    graph: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentence: Text,
    quantised: bool,
    threads: int,
) -> str:
    """Say at which normalisation the graph first leaves the checkpoint on one sentence."""
    from torch import nn

    proto = onnx.load(graph)
    values = [node.output[0] for node in proto.graph.node if node.op_type in NORMALISATIONS]
    known = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None)
        for value in values
        if value not in known
    )
    outputs: list[tuple[str, NDArray[np.float32]]] = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: outputs.append((name, output.numpy())))
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
    ]
    labels = [str(index) for index in range(model.config.num_labels)]
    try:
        torch_classifier = TextClassifier(TorchEngine(model), tokenizer, labels)
        encoded = torch_classifier.encode([sentence])
        torch_classifier.engine.run(encoded)
    finally:
        for hook in hooks:
            hook.remove()
    if len(values) != len(outputs):
        return (
            f"The first layer that differs is unknown: the graph has {len(values)} normalisation nodes, "
            f"the model {len(outputs)} LayerNorm modules"
        )
    with tempfile.TemporaryDirectory() as folder:
        exposed = Path(folder) / GRAPH
        onnx.save(proto, exposed)
        engine = OnnxEngine(exposed, threads)
        results: Any = engine.session.run(values, feed(input_names(engine.session), encoded))
    tolerance = INT8_TOLERANCE if quantised else FLOAT_TOLERANCE
    for (name, expected), actual in zip(outputs, results, strict=True):
        if actual.ndim < expected.ndim:  # of the first token only, see `pressoir.export.first_token`
            expected = expected[:, 0]
        difference = float(np.linalg.norm(actual - expected) / max(float(np.linalg.norm(expected)), 1e-30))
        if not difference <= tolerance:
            return (
                f"The first layer that differs is {name}: relative difference {difference:.3g}, tolerance "
                f"{tolerance:g}"
            )
    return (
        f"All {len(values)} LayerNorm outputs agree within {tolerance:g}: only the head after the last one "
        "differs"
    )


def parity_sentences(folder: Path, count: int) -> list[Text]:
    """Up to `count` different sentences or pairs, validation first, then train, never of the test split."""
    found: dict[Text, None] = {}
    for split in ("validation", "train"):
        for text in texts_of(data.load_split(folder, split)):
            if len(found) == count:
                return list(found)
            found[text] = None
    return list(found)


def trace(model: PreTrainedModel, config: ExportConfig, work_dir: Path) -> onnx.ModelProto:
    """The float32 graph, weights inside."""
    from optimum.exporters.onnx import onnx_export_from_model

    tokens = has_token_head({"architectures": [type(model).__name__]})
    with quiet(), unscripted(model), tempfile.TemporaryDirectory(dir=work_dir) as folder:
        onnx_export_from_model(
            model,
            Path(folder),
            task="token-classification" if tokens else "text-classification",
            opset=config.opset,
            do_validation=False,
        )
        return onnx.load(Path(folder) / GRAPH)


def fuse(graph: onnx.ModelProto, work_dir: Path, all_tokens: bool = False) -> onnx.ModelProto:
    """Fuse what ONNX Runtime has operators for; what does not fit a known pattern stays as it is.

    Unless `all_tokens` are classified, what is computed of one alone is chosen early.

    Embeddings are left apart (their tables become int8, and the fused operator is no faster), and the
    attention mask is passed as it is, so that padding may be on either side.
    """
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    options = FusionOptions("bert")
    options.enable_embed_layer_norm = False
    options.use_raw_attention_mask(True)
    with quiet(), tempfile.TemporaryDirectory(dir=work_dir) as folder:
        path = Path(folder) / GRAPH
        onnx.save(graph, path)
        # 0 heads and hidden size 0: read them off each layer, which may have been pruned.
        fused = optimizer.optimize_model(
            str(path),
            model_type="bert",
            num_heads=0,
            hidden_size=0,
            optimization_options=options,
            opt_level=0,
        )
        fused.topological_sort()
        result: onnx.ModelProto = fused.model
    split_skip_layer_norm(result)
    if not all_tokens:
        first_token.choose_early(result)
    return result
