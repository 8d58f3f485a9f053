"""What the table of word pieces costs in each form: bytes, rounding error, accuracy, latency.

python benchmarks/embeddings.py --model MODEL --data DATA --split validation

MODEL is a float text classifier, DATA an artifact of the data stage. Everything but the table is int8 in
every row. `low rank` keeps the r largest singular values of the table, as two int8 factors: its accuracy is
that of the truncated table, its bytes are counted, and its one more product is not timed. Latency is of ONNX
Runtime at batch 1, the models in turn.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from pressoir import metrics
from pressoir.data import sentences
from pressoir.flows.commands.terminal import console, progress
from pressoir.formats import symmetric_blocks
from pressoir.formats.int8_checkpoint import dequantized_state
from pressoir.inference.engines.classifier import OnnxEngine
from pressoir.inference.text_classification import TextClassifier
from pressoir.models import loading
from pressoir.models.layouts import class_names
from pressoir.quantization import hqq, rtn, symmetric
from pressoir.quantization.int8 import word_table
from pressoir.recipe.sections import ExportConfig, QuantizeConfig
from pressoir.reporting import Reporter
from pressoir.stage import StageContext
from pressoir.stages import export, quantize
from pressoir.system.runtime import use_threads

FORMS = {
    "float32": {"embeddings": "float"},
    "int8, a scale a row": {"embeddings": "int8"},
    **{f"4 bits, blocks of {b}": {"embeddings": "q4", "block_size": b} for b in (16, 32, 64)},
}
RANKS = (96, 192, 256)


@dataclass
class Row:
    """One form, measured."""

    form: str
    table_bits: float
    error: float
    graph_mb: float
    logits: NDArray[np.float32]
    classifier: TextClassifier


def main() -> None:
    """Quantise and export every form, measure, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--samples", type=int, default=300, help="sentences timed")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    use_threads(options.threads)
    model = loading.load_classifier(options.model)
    rows = sentences.load_split(options.data, options.split, class_names(model))
    texts, labels = list(rows["text"]), list(rows["label"])
    words = f"{word_table(model)}.weight"
    table = model.get_parameter(words).detach()
    grids(table)
    with tempfile.TemporaryDirectory() as work, progress() as reporter:
        found = []
        for form, fields in FORMS.items():
            found.append(measure(form, fields, options.model, options.data, Path(work), texts, reporter))
        left, values, right = torch.linalg.svd(table, full_matrices=False)
        for rank in RANKS:
            low = (left[:, :rank] * values[:rank]) @ right[:rank]
            folder = shutil.copytree(options.model, Path(work) / f"rank{rank}")
            state = load_file(folder / "model.safetensors")
            save_file({**state, words: low.contiguous()}, folder / "model.safetensors", {"format": "pt"})
            fields = FORMS["float32"]
            row = measure(f"low rank, {rank}", fields, folder, options.data, Path(work), texts, reporter)
            counted = rank * (table.shape[0] + table.shape[1]) + 4 * (table.shape[0] + rank)  # codes, scales
            row.graph_mb -= (4 * table.numel() - counted) / 1e6
            row.table_bits = 8 * counted / table.numel()
            row.error = float((table - low).norm() / table.norm())
            found.append(row)
        latencies = timed(found[: len(FORMS)], texts[: options.samples])
    console.print(
        "| table | bits a weight | error | graph, MB | accuracy | mean Δlogit | median, ms |", soft_wrap=True
    )
    console.print("|---|---:|---:|---:|---:|---:|---:|")
    for row in found:
        accuracy = metrics.accuracy(row.logits.argmax(axis=1), labels)
        moved = float(np.abs(row.logits - found[0].logits).mean())
        latency = f"{latencies[row.form]:.2f}" if row.form in latencies else "–"
        console.print(
            f"| {row.form} | {row.table_bits:.2f} | {row.error:.4f} | {row.graph_mb:.2f} | {accuracy:.2%} "
            f"| {moved:.4f} | {latency} |",
            soft_wrap=True,
        )


def grids(table: torch.Tensor) -> None:
    """Print the rounding error of other 4-bit grids, with float16 scales counted for all."""
    console.print("| 4-bit grid | block | bits a weight | error |\n|---|---:|---:|---:|")
    for size in (16, 32, 64):
        plain = (table.reshape(-1, size).abs().amax(dim=1, keepdim=True) / 7).half().float()
        codes = (table.reshape(-1, size) / plain.clamp(min=1e-7)).round().clamp(-8, 7)
        candidates = {
            "symmetric, max / 7": ((codes * plain).reshape(table.shape), 16),
            "symmetric, signed scale, searched": (
                symmetric_blocks.dequantize(*symmetric.quantize(table, size)),
                16,
            ),
            "with zero points, min to max": (rtn.quantize(table, 4, size).dequantize(), 20),
            "with zero points, HQQ": (hqq.quantize(table, 4, size).dequantize(), 20),
        }
        for name, (result, overhead) in candidates.items():
            error = float((table - result).norm() / table.norm())
            console.print(f"| {name} | {size} | {4 + overhead / size:.3f} | {error:.4f} |")


def measure(
    form: str,
    fields: dict[str, object],
    model: Path,
    folder: Path,
    work: Path,
    texts: list[str],
    reporter: Reporter,
) -> Row:
    """Quantise `model`, export it, and run the graph on every sentence."""
    contexts = []
    for stage in ("quantize", "export"):
        out = Path(tempfile.mkdtemp(prefix=stage, dir=work))
        contexts.append(
            StageContext(out, Path(tempfile.mkdtemp(dir=work)), reporter, 42, torch.get_num_threads())
        )
    config = QuantizeConfig.model_validate({"max_accuracy_drop": None, **fields})
    quantize.run({"model": model, "data": folder}, config, contexts[0])
    graph = export.run({"model": contexts[0].out_dir, "data": folder}, ExportConfig(), contexts[1])
    state = load_file(contexts[0].out_dir / "model.safetensors")
    words = next(name for name in state if name.endswith("word_embeddings.weight"))
    stored = [state[name] for name in (words, f"{words}_scale") if name in state]
    original = load_file(model / "model.safetensors")[words]
    error = float((original - dequantized_state(contexts[0].out_dir)[words]).norm() / original.norm())
    engine = OnnxEngine(contexts[1].out_dir / "model.onnx", contexts[1].threads, batch_invariant=False)
    classifier = TextClassifier(engine, loading.load_tokenizer(model), ["0", "1"])
    bits = 8 * sum(tensor.numel() * tensor.element_size() for tensor in stored) / original.numel()
    return Row(form, bits, error, graph["graph_mb"], classifier.logits(texts), classifier)


def timed(rows: list[Row], texts: list[str]) -> dict[str, float]:
    """Median milliseconds a sentence, the models in turn."""
    seen: dict[str, list[float]] = {row.form: [] for row in rows}
    for text in texts:
        for row in rows:
            inputs = row.classifier.encode([text])
            row.classifier.engine.run(inputs)
            start = time.perf_counter()
            row.classifier.engine.run(inputs)
            seen[row.form].append(1000 * (time.perf_counter() - start))
    return {form: float(np.median(values)) for form, values in seen.items()}


if __name__ == "__main__":
    main()
