"""Peak memory of a child by formula: process, weights, and the longest sample's work.

**What.** The sum of

- the process: interpreter and libraries, measured (see the constants of `sample_memory`);
- the weights in the runtime's number format, from headers and file sizes;
- what loading takes beside them, as far as one sample's work does not take it again;
- a sample's work: activations, logits and caches of the longest sample, by the architecture's sizes, times
  the batch.

The last three are `pressoir.evaluation.estimates.footprint`'s. How well they hold is measured by
`benchmarks/memory_estimates.py`, for the CPU: what a GPU's driver takes of the RAM is not in it.
"""

from __future__ import annotations

from pathlib import Path

from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.estimates import footprint
from pressoir.evaluation.estimates.sample_memory import MB, ONNX, TORCH, TaskMemory, texts_of
from pressoir.evaluation.jobs import Job
from pressoir.evaluation.records import Estimate
from pressoir.extensions.task import task
from pressoir.formats.folder import runtime_of
from pressoir.inference.tokenizers.encoder_decoder import TOKENIZER, needs_transformers

REMOTE = 90 * MB  # a process without any of the libraries that run models, with an HTTP client
REQUEST = 4  # of a sound in a request to a server, times what it takes as an array: numbers, and their text

TOKENIZER_FACTOR = 20
"""Bytes in memory of a byte of a tokenizer's file: maps from tokens to ids and back."""
SAMPLE = 1500
"""Bytes of a sample beside its text."""
HEAP = 1.15
"""PyTorch's activations, as the C library holds them: what is freed leaves holes."""
MARGIN = 0.05
"""Added to everything: the same run takes a little more now, a little less then."""


def estimate(job: Job, data: DataSet) -> Estimate:
    """Peak memory by formula, without loading anything.

    `details` are the parts of `fixed_bytes`: `process`, `tokenizer`, `data`, `weights`, `work` (what does not
    grow with the batch), `loading` and `text` (what loading and cutting the text take beyond all that and one
    sample's work), and the margin.

    Raises:
        SourceError: the model's folder has no weights for its runtime.
    """
    memory: TaskMemory = task(job.task).part("estimate")(job, data)
    if job.remote is not None:
        each = MB + REQUEST * memory.held()
        return _assemble(job, {"process": REMOTE, "data": _data_bytes(data)}, 0, each, 0, 0)
    runtime, config = runtime_of(job.folder, job.runtime), footprint.settings(job.folder)
    weights = footprint.weights(job.folder, runtime, config, memory.unused)
    work = memory.work(runtime, config)
    fast = (job.folder / TOKENIZER).exists()
    torch = runtime == "pytorch" or (memory.needs_tokenizer and needs_transformers(job.folder))
    sizes = {
        "process": (TORCH if torch else ONNX) + memory.process(torch),
        "tokenizer": TOKENIZER_FACTOR * _tokenizer_bytes(job.folder),
        "data": _data_bytes(data),
        "weights": weights.resident,
    }
    heap = HEAP if runtime == "pytorch" else 1.0
    alone, each = (round(heap * size) for size in work)
    if not memory.together(runtime):
        alone, each = alone + each, memory.held()
    return _assemble(job, sizes, alone, each, weights.loading, memory.reading(torch and not fast))


def _assemble(job: Job, sizes: dict[str, int], alone: int, each: int, loading: int, text: int) -> Estimate:
    """Loading and cutting the text are over when a sample's work begins: they do not add to it."""
    sizes = sizes | {"work": alone}
    sizes["loading"] = max(0, loading - alone - each)
    sizes["text"] = max(0, text - sum(sizes.values()) - each)
    sizes["margin"] = round(MARGIN * sum(sizes.values()))
    sizes = {name: size for name, size in sizes.items() if size}
    return Estimate(
        model=job.model,
        fixed_bytes=sum(sizes.values()),
        per_sample_bytes=round((1 + MARGIN) * each),
        origin="formula",
        details=sizes,
    )


def _tokenizer_bytes(folder: Path) -> int:
    fast = folder / TOKENIZER
    files = (
        [fast] if fast.exists() else [folder / "vocab.json", *folder.glob("*.spm"), *folder.glob("*.model")]
    )
    return sum(path.stat().st_size for path in files if path.is_file())


def _data_bytes(data: DataSet) -> int:
    characters = sum(len(text) for sample in data.samples for text in texts_of(sample))
    return SAMPLE * len(data.samples) + 4 * characters
