"""How much memory a child will take at its peak, estimated before its model is loaded.

**Why.** What runs together is planned by predicted peaks. A prediction must not take the memory and the time
that it is there to save: nothing here loads a model or a heavy library.

**What.** Three ways: what the configuration says (`memory_gb`); `probe`, which measures two batch sizes in
real children; `estimate`, a formula (`pressoir.evaluation.estimates.formula`).

**Cost.** A formula takes milliseconds, a probe two short runs. What was found is kept under `estimates/` of
Pressoir's home, by all that decides it.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from pressoir.errors import StoreError
from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.estimates.formula import MARGIN, estimate
from pressoir.evaluation.jobs import Job
from pressoir.evaluation.journal import Journal, Prediction
from pressoir.evaluation.process import Child
from pressoir.evaluation.records import Estimate
from pressoir.extensions.task import task
from pressoir.store.artifact import digest_of
from pressoir.system.files import write_text_atomic
from pressoir.system.memory import effective_memory

FOLDER = "estimates"
FORMAT = 3
"""Raised whenever a formula changes, so that no stored figure of an older one is taken."""
COMMAND: Sequence[str] = (sys.executable, "-m", "pressoir.evaluation.child")
_PROBE_S, _POLL_S = 600.0, 0.05
_PROBED_PART = 0.9  # of the memory that is available: so much may a probe take
_DECIDING = ("torch", "transformers", "onnxruntime", "tokenizers", "numpy")

log = logging.getLogger("pressoir")


class Point(NamedTuple):
    """A measured peak."""

    batch_size: int
    peak_bytes: int


def for_run(job: Job, data: DataSet, *, memory_gb: float | None, probe: bool, home: Path) -> Estimate:
    """The estimate to plan a run with; computed or measured ones are kept in `home / "estimates"`.

    Raises:
        SourceError: the model's folder has no weights for its runtime.
    """
    if memory_gb is not None:
        return of_config(job.model, memory_gb)
    path = home / FOLDER / f"{_key(job, data, probe)}.json"
    with suppress(OSError, ValidationError):
        return Estimate.model_validate_json(path.read_bytes()).model_copy(update={"model": job.model})
    found = _measured(job, data) if probe else estimate(job, data)
    if not probe or found.origin == "probe":
        try:
            write_text_atomic(path, found.model_dump_json(indent=2) + "\n")
        except (OSError, StoreError) as error:
            log.warning(
                "%s could not be written: %s; the estimate will be computed again next time", path, error
            )
    return found


def of_config(model: str, memory_gb: float) -> Estimate:
    """What the configuration says (10^9 bytes), whatever the batch size."""
    given = round(memory_gb * 10**9)
    return Estimate(
        model=model, fixed_bytes=given, per_sample_bytes=0, origin="config", details={"given": given}
    )


def probe(job: Job, data: DataSet, command: Sequence[str] | None = None) -> Estimate:
    """Measure a single sample, and batches of the job's size, each in a fresh child, on the longest samples.

    The peak grows by at least as much from a batch to a larger one as it did before, so that the line through
    both is above what lies between; `MARGIN` is added. Where a child fails, the log says why, and the
    formula's estimate is returned.

    Raises:
        SourceError: the model's folder has no weights for its runtime.
    """
    formula = estimate(job, data)
    if job.remote is not None:
        return formula
    many = job.batch_size if task(job.task).windows else min(job.batch_size, len(data.samples))
    points = list[Point]()
    for size in sorted({1, many}):
        point = _run(job, data, size, command or COMMAND)
        if point is None:
            return formula
        points.append(point)
    first, last = points[0], points[-1]
    if last.batch_size > first.batch_size:
        each = max(0, last.peak_bytes - first.peak_bytes) // (last.batch_size - first.batch_size)
    else:  # there is one sample, or they go through the model one by one
        each = formula.per_sample_bytes if many == 1 else 0
    measured = max(0, first.peak_bytes - each) if each else max(point.peak_bytes for point in points)
    margin = round(MARGIN * measured)
    return Estimate(
        model=job.model,
        fixed_bytes=measured + margin,
        per_sample_bytes=round((1 + MARGIN) * each),
        origin="probe",
        details={"measured": measured, "margin": margin},
    )


def _measured(job: Job, data: DataSet) -> Estimate:
    return probe(job, data)


def _run(job: Job, data: DataSet, size: int, command: Sequence[str]) -> Point | None:
    """Peak of two batches of the longest samples in a fresh child; None, and a log entry, if it fails."""
    with tempfile.TemporaryDirectory(prefix="pressoir-probe-") as temporary:
        folder, count = Path(temporary), 2 * size
        journal = Journal(folder / "journal.sqlite")
        given = {
            "journal": journal.path,
            "batch_size": size,
            "max_batch_size": None,
            "allowance_bytes": round(_PROBED_PART * effective_memory().available_bytes),
        }
        if task(job.task).windows:  # all of its samples are as long
            given["samples"] = min(count, job.samples or count)
        else:  # what the journal has is not run
            others = sorted(data.samples, key=lambda sample: -sample.length)[count:]
            journal.add(job.key, 0, [Prediction(sample.id, None, 0.0, 1) for sample in others])
        journal.close()
        child = Child(job.model_copy(update=given), folder, command, _PROBE_S)
        try:
            while not child.has_ended():
                child.read()
                child.watch()
                time.sleep(_POLL_S)
            child.read()
        finally:
            child.kill()
            child.close()
        cause = child.cause()
    if cause.verdict != "ok" or child.end is None or not child.end.peak_bytes or not child.end.batch_size:
        log.warning("%s: probe at batch size %d failed, using the formula: %s", job.model, size, cause.detail)
        return None
    return Point(child.end.batch_size, child.end.peak_bytes)


def _key(job: Job, data: DataSet, probed: bool) -> str:
    """All that decides an estimate: `job.key` has the model's files, the data and the settings."""
    return digest_of(
        {
            "format": FORMAT,
            "prediction": job.key,
            "runtime": job.runs_in,
            "samples": [len(data.samples), job.samples],
            "probed": [job.batch_size, job.threads] if probed else None,
            "versions": {name: _version(name) for name in _DECIDING},
        }
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
