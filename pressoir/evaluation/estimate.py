"""How much memory a child will take at its peak, said before its model is loaded.

**Why.** What runs together is planned by predicted peaks. A prediction must not take the memory and the time
that it is there to save: nothing here loads a model or a heavy library.

**What.** Three ways, the first that is given: the configuration's `memory_gb`; `probe`, which measures two
batch sizes in real children; `estimate`, a formula. The formula is the sum of

- the process: interpreter and libraries, measured once (see the constants);
- the weights in the runtime's number format, from headers and file sizes;
- what loading takes beside them, as far as one sample's work does not take it again;
- a sample's work: activations, logits and caches of the longest sample, by the architecture's sizes, times
  the batch.

**Cost.** Milliseconds; a probe takes as long as two short runs. Found figures are kept under `estimates/` of
Pressoir's home, by all that decides them.

How well they hold is measured by `benchmarks/memory_estimates.py`.
"""

from __future__ import annotations

import json
import math
import wave
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from pressoir.artifact import digest_of, write_text_atomic
from pressoir.errors import SourceError
from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.jobs import Job
from pressoir.evaluation.records import Estimate, Sample

MB = 10**6
FOLDER = "estimates"
FORMAT = 1
"""Raised whenever a formula changes, so that no stored figure of an older one is taken."""


def for_run(job: Job, data: DataSet, *, memory_gb: float | None, probe: bool, home: Path) -> Estimate:
    """The estimate to plan a run with; computed or measured ones are kept in `home / "estimates"`.

    Raises:
        SourceError: the model's folder has neither weights nor a graph.
    """
    if memory_gb is not None:
        return of_config(job.model, memory_gb)
    path = home / FOLDER / f"{_key(job, data, probe)}.json"
    with suppress(OSError, ValidationError):
        return Estimate.model_validate_json(path.read_bytes()).model_copy(update={"model": job.model})
    found = estimate(job, data)
    write_text_atomic(path, found.model_dump_json(indent=2) + "\n")
    return found


def of_config(model: str, memory_gb: float) -> Estimate:
    """What the configuration says (10^9 bytes), whatever the batch size."""
    given = round(memory_gb * 10**9)
    return Estimate(
        model=model, fixed_bytes=given, per_sample_bytes=0, origin="config", details={"given": given}
    )


def estimate(job: Job, data: DataSet) -> Estimate:
    """The first, crude form."""
    if job.remote is not None:
        return Estimate(
            model=job.model, fixed_bytes=100 * MB, per_sample_bytes=MB, origin="formula", details={"process": 100 * MB}
        )
    torch = job.runs_in == "pytorch"
    files = [path for path in job.folder.iterdir() if path.is_file()] if job.folder.is_dir() else []
    names = (".safetensors",) if torch else (".onnx", ".data", ".onnx_data")
    weights = sum(path.stat().st_size for path in files if path.suffix in names)
    if not weights:
        raise SourceError(f"{job.folder} has neither safetensors weights nor a graph; is it a model folder?")
    parts = {"process": (560 if torch else 220) * MB, "weights": 2 * weights if torch else weights * 3 // 2}
    return Estimate(
        model=job.model,
        fixed_bytes=sum(parts.values()),
        per_sample_bytes=30 * MB,
        origin="formula",
        details=parts,
    )


def _key(job: Job, data: DataSet, probe: bool) -> str:
    return digest_of(
        [
            FORMAT,
            job.key,
            job.runs_in,
            len(data.samples),
            job.samples,
            job.generation.model_dump(mode="json"),
            job.batch_size if probe else None,
            {name: _version(name) for name in ("torch", "transformers", "onnxruntime", "datasets")},
        ]
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
