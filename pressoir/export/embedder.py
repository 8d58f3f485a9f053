"""A sentence encoder as an ONNX graph, text to embedding: pooling, Dense and Normalize are inside.

The encoder is traced, fused and lowered as a classifier's is; what follows it is traced by itself and put
behind. The graph has two outputs: `sentence_embedding`, which Pressoir takes, and `last_hidden_state`, which
sentence-transformers takes with `backend="onnx"` and pools itself: the folder has its modules, too. Nothing
that is asked for one of them is computed for the other.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import compose, helper
from torch import Tensor, nn

from pressoir.errors import ParityError
from pressoir.export import int8_graph
from pressoir.export.classifier import check_graph, fuse, parity_sentences, write_report
from pressoir.export.graph import remove_copies, remove_unused
from pressoir.export.tracing import quiet, unscripted
from pressoir.formats import int8_checkpoint
from pressoir.formats.folder import GRAPH, QUANTIZATION
from pressoir.formats.sentence_modules import MODES, write_modules
from pressoir.inference.engines.classifier import TorchEngine
from pressoir.inference.engines.sentence_encoder import EMBEDDING
from pressoir.inference.feature_extraction import SentenceEncoder
from pressoir.inference.text_classification import TextClassifier
from pressoir.metrics import cosines
from pressoir.models import loading
from pressoir.models.sentence_embedder import (
    POOLINGS,
    SentenceEmbedder,
    load_embedder,
    load_embedder_tokenizer,
    load_simulated_embedder,
)
from pressoir.recipe.sections import ExportConfig
from pressoir.stage import StageContext
from pressoir.system.runtime import one_thread

STATES = "last_hidden_state"
MIN_COSINE = 0.99
"""Of int8 graphs: least mean cosine of an embedding with the checkpoint's. Their kernels round activations at
their own places; of float32 graphs `export.max_logit_difference` limits each number's difference."""


def run(inputs: Mapping[str, Path], config: ExportConfig, context: StageContext) -> dict[str, float]:
    """Export the sentence encoder `inputs["model"]`, float or int8; check it on texts of `inputs["data"]`.

    Raises:
        ParityError: the graph cannot hold a quantised layer exactly, or does not compute what the checkpoint
        computes. SourceError: the model does not load.
    """
    source, out, tell = inputs["model"], context.out_dir, context.reporter.message
    quantised = (source / QUANTIZATION).exists()
    model = load_embedder(source)
    tell("tracing the float32 model")
    graph = _trace_encoder(model, config, context.work_dir)
    if config.fuse:
        tell("fusing operators")
        graph = fuse(graph, context.work_dir)
    _append(graph, _trace_tail(model, config, context.work_dir))
    remove_copies(graph)
    placements: dict[str, int8_graph.Placement] = {}
    if quantised:
        placements = int8_graph.lower_to_int8(graph, int8_checkpoint.packed_layers(source))
        tell(f"{len(placements)} int8 layers written to the graph; codes and scales are identical")
    remove_unused(graph)
    check_graph(graph)
    onnx.save(graph, out / GRAPH)
    shutil.copyfile(source / "config.json", out / "config.json")
    if quantised:
        shutil.copyfile(source / QUANTIZATION, out / QUANTIZATION)
    write_modules(model.described(), int(model.config.hidden_size), out)
    loading.save_tokenizer(loading.load_tokenizer(source), out)

    parity = _check_parity(source, out, inputs["data"], config, context)
    graph_mb = write_report(out, graph, config, parity, placements)
    tell(
        f"parity on {parity['parity_samples']:.0f} texts: mean cosine {parity['mean_cosine']:.5f}, least "
        f"{parity['min_cosine']:.5f}; {graph_mb:.1f} MB"
    )
    return {**parity, "graph_mb": graph_mb}


def _check_parity(
    source: Path, out: Path, data: Path, config: ExportConfig, context: StageContext
) -> dict[str, float]:
    quantised = (source / QUANTIZATION).exists()
    texts = [str(text) for text in parity_sentences(data, config.parity_samples)]
    actual = SentenceEncoder.open(out, context.threads).embed(texts)
    model: Any = load_simulated_embedder(source) if quantised else load_embedder(source)
    names = [str(index) for index in range(model.dimensions)]
    with one_thread() if quantised else contextlib.nullcontext():
        engine = TorchEngine(model, batch_invariant=not quantised)
        expected = TextClassifier(engine, load_embedder_tokenizer(source), names).logits(texts)
    alike = cosines(actual, expected)
    largest = float(np.abs(actual.astype(np.float64) - expected).max())
    metrics = {
        "mean_cosine": float(alike.mean()),
        "min_cosine": float(alike.min()),
        "max_difference": largest,
        "parity_samples": float(len(texts)),
    }
    if quantised and not metrics["mean_cosine"] >= MIN_COSINE:
        fault = f"their mean cosine is {metrics['mean_cosine']:.4f}, below {MIN_COSINE}"
    elif not quantised and not largest <= config.max_logit_difference:
        limit = f"export.max_logit_difference {config.max_logit_difference:g}"
        fault = f"a number differs by {largest:.3g}, more than {limit}"
    else:
        return metrics
    raise ParityError(
        f"the ONNX graph's embeddings differ from PyTorch's on {len(texts)} texts: {fault}. Try fuse: false "
        "or another opset; if the difference remains, this is a bug in the export"
    )


def _trace_encoder(model: SentenceEmbedder, config: ExportConfig, work_dir: Path) -> onnx.ModelProto:
    """The float32 encoder, weights inside; its output is `STATES`."""
    from optimum.exporters.onnx import onnx_export_from_model

    with quiet(), unscripted(model.encoder), tempfile.TemporaryDirectory(dir=work_dir) as folder:
        onnx_export_from_model(
            model.encoder,
            Path(folder),
            task="feature-extraction",
            opset=config.opset,
            do_validation=False,
            library_name="transformers",
        )
        graph = onnx.load(Path(folder) / GRAPH)
    kept = [output for output in graph.graph.output if output.name == STATES]
    if not kept:
        raise ParityError(f"the exporter's graph of a {model.config.model_type} model has no {STATES}")
    del graph.graph.output[:]
    graph.graph.output.extend(kept)
    return graph


class _Tail(nn.Module):
    """What follows the encoder."""

    def __init__(self, model: SentenceEmbedder) -> None:
        super().__init__()
        self.pooling = [POOLINGS[mode] for mode in model.modules_config.pooling]
        self.steps = model.steps

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        vectors = torch.cat([pool(states, mask) for pool in self.pooling], dim=1)
        for step in self.steps:
            vectors = step(vectors)
        return vectors


def _trace_tail(model: SentenceEmbedder, config: ExportConfig, work_dir: Path) -> onnx.ModelProto:
    """Pooling and the other modules as a graph from `STATES` and `attention_mask` to `EMBEDDING`."""
    assert set(POOLINGS) == set(MODES)
    states, mask = torch.zeros(2, 3, int(model.config.hidden_size)), torch.ones(2, 3, dtype=torch.int64)
    axes = {0: "batch_size", 1: "sequence_length"}
    with quiet(), tempfile.TemporaryDirectory(dir=work_dir) as folder:
        path = Path(folder) / GRAPH
        torch.onnx.export(
            _Tail(model).eval(),
            (states, mask),
            str(path),
            input_names=[STATES, "attention_mask"],
            output_names=[EMBEDDING],
            dynamic_axes={STATES: axes, "attention_mask": axes, EMBEDDING: {0: "batch_size"}},
            opset_version=config.opset,
            dynamo=False,
        )
        return onnx.load(path)


def _append(graph: onnx.ModelProto, tail: onnx.ModelProto) -> None:
    """Put `tail` behind `graph`, in place; `STATES` stays an output."""
    tail = compose.add_prefix(
        tail, "pooling/", rename_inputs=False, rename_outputs=False, rename_initializers=True
    )
    graph.graph.node.extend(tail.graph.node)
    graph.graph.initializer.extend(tail.graph.initializer)
    width = tail.graph.output[0].type.tensor_type.shape.dim[1].dim_value or "dimensions"
    graph.graph.output.append(
        helper.make_tensor_value_info(EMBEDDING, onnx.TensorProto.FLOAT, ["batch_size", width])
    )
