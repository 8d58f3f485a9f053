"""One attempt at one model, in a process of its own: `python -m pressoir.evaluation.child JOB.json`.

**Why.** Only the end of a process gives all its memory back, and a model that crashes, hangs or takes too
much takes nobody with it.

**What.** Read the job, load the data and the model, leave out what the journal already has, and predict the
rest, the longest first, in batches as large as the allowance lets be. A batch is committed to the journal as
soon as it is done, so that a kill loses the batch in work at most. When an allocation fails, the batch is
halved and tried again; see `pressoir.system.allowance`.

Messages to the parent go to what was standard output (`pressoir.evaluation.jobs`); whatever libraries print
goes to the log, which is standard error. Standard input is a pipe that nothing is written to: when it closes,
the parent is gone, and the kernel ends this process, too, whatever it is doing.

Nothing heavy is imported before the thread limits are set.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressoir.errors import QuantizationError, ShardError, SourceError, StoreError, UnreachableError
from pressoir.system.allowance import (
    BatchSize,
    data_limit,
    is_out_of_memory,
    peak_resident_bytes,
)
from pressoir.system.runtime import (
    end_with_parent,
    hide_scikit_learn,
    limit_threads,
    map_large_blocks,
    release_memory,
)

if TYPE_CHECKING:
    from pressoir.evaluation.child.predictors import BatchPredictor
    from pressoir.evaluation.datasets import DataSet
    from pressoir.evaluation.jobs import End, Job, Message
    from pressoir.evaluation.journal import Journal
    from pressoir.evaluation.records import EvaluationSample

LOCK_S = 60.0
_TRACEBACK_LINES, _COLUMNS = 12, 300
_FAILURES = 3  # first samples that all fail: then it is not their fault
_STREAK = 20  # so many in a row that fail after others worked: the model or the machine is broken now
_SHOWN = 3

Open = Callable[["Job", "DataSet"], "BatchPredictor"]
Tell = Callable[["Message"], None]


class _TooLargeError(Exception):
    """Not even one sample goes through the model within the allowance."""


class _DamagedError(Exception):
    """The model's files cannot be used."""


def main(arguments: Sequence[str] | None = None, open_model: Open | None = None) -> int:
    """Run the job of a file; return the exit code, which is 0 once the end was reported."""
    path = Path((sys.argv[1:] if arguments is None else arguments)[0])
    end_with_parent()
    raw = json.loads(path.read_text(encoding="utf-8"))
    limit_threads(raw["threads"])
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    from filelock import FileLock, Timeout

    from pressoir.evaluation.jobs import End, Job

    def tell(message: Message) -> None:
        print(message.model_dump_json(), file=messages, flush=True)

    job = Job.model_validate(raw)
    # A process that was asked to end may still be writing: the kernel releases its lock when it is gone.
    lock = FileLock(path.with_name(f"{job.key[:32]}.lock"), timeout=LOCK_S)
    try:
        with lock:
            tell(run(job, tell, open_model))
    except Timeout:
        tell(
            End(
                verdict="exception",
                detail=f"another process is still running {job.model} into {job.journal} (it holds "
                f"{lock.lock_file}); end it, then resume",
            )
        )
    return 0


def run(job: Job, tell: Tell, open_model: Open | None = None) -> End:
    """Predict what the journal lacks, and say how it ended. `open_model` is by default `open_predictor`."""
    from pressoir.evaluation.jobs import End
    from pressoir.evaluation.journal import Journal

    stats = _AttemptStats()
    verdict, detail = "ok", ""
    try:
        journal = Journal(job.journal)
        try:
            _attempt(job, journal, stats, tell, open_model)
        finally:
            journal.close()
    except _TooLargeError as error:
        verdict, detail = "skipped_oom", str(error)
    except _DamagedError as error:
        verdict, detail = "damaged", str(error)
    except Exception as error:
        if isinstance(error, UnreachableError):
            verdict, detail = "unreachable", str(error)
        elif job.remote is None and is_out_of_memory(error):
            verdict, detail = "skipped_oom", f"out of memory outside a batch: {_short(error)}"
        else:
            verdict, detail = "exception", _end_of_traceback(error)
            traceback.print_exc()
    if verdict == "ok" and stats.failed:
        detail = _failures(stats.failed)
    return End.model_validate(
        {
            "verdict": verdict,
            "detail": detail,
            "batch_size": stats.batch_size,
            "seconds": stats.seconds,
            "peak_bytes": peak_resident_bytes(),
        }
    )


class _AttemptStats:
    """What is known of an attempt however it ends."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.batch_size: int | None = None
        self.failed: dict[str, str] = {}
        """Samples that failed on their own, and why."""


def _attempt(job: Job, journal: Journal, stats: _AttemptStats, tell: Tell, open_model: Open | None) -> None:
    from pressoir.evaluation import datasets
    from pressoir.evaluation.jobs import Loaded, Progress

    data = datasets.load(job.data, job.samples, job.seed)
    samples = _checking_files(job, lambda: _samples(job, data))
    done = journal.done(job.key)
    waiting = [sample for sample in samples if sample.id not in done]
    finished = len(samples) - len(waiting)
    tell(Progress(done=finished, total=len(samples), batch_size=0))
    if not waiting:
        return
    start = time.perf_counter()
    predictor = _checking_files(job, lambda: _open(job, data, open_model))
    _start_threads()
    tell(Loaded(seconds=time.perf_counter() - start))
    # Of all samples, those that are done too: so a resumed attempt makes the batches it would have made.
    lengths = {sample.id: predictor.length(sample) for sample in samples}
    with data_limit(job.allowance_bytes, job.folder):
        _predict(job, predictor, waiting, lengths, journal, stats, tell)
    tell(Progress(done=len(samples) - len(stats.failed), total=len(samples), batch_size=0))


def _predict(
    job: Job,
    predictor: BatchPredictor,
    waiting: Sequence[EvaluationSample],
    length_of: dict[str, int],
    journal: Journal,
    stats: _AttemptStats,
    tell: Tell,
) -> None:
    """Predict and commit batch by batch; of a batch that fails, each sample is tried on its own.

    A sample that fails on its own has no prediction. Where the first ones all do, or many in a row, it is not
    their fault.
    """
    from pressoir.evaluation.jobs import Progress
    from pressoir.evaluation.journal import Prediction

    total, longest, alone = len(length_of), max(length_of.values()), 0
    anything, streak = len(waiting) < total, 0
    waiting = sorted(waiting, key=lambda sample: -length_of[sample.id])
    lengths = [length_of[sample.id] for sample in waiting]
    size = BatchSize(job.batch_size, longest, job.max_batch_size)
    while waiting:
        batch = waiting[:1] if alone else size.take(waiting, lengths)
        together = len(batch) if predictor.together else 1
        tell(Progress(done=total - len(waiting), total=total, batch_size=together))
        start = time.perf_counter()
        values: list[Any] = []
        problem = ""
        try:
            values = predictor.predict(batch)
        except Exception as error:
            if isinstance(error, UnreachableError | StoreError):
                raise
            if job.remote is None and is_out_of_memory(error):  # a server's words are not about us
                problem = _short(error)
            elif len(batch) > 1:
                alone = len(batch)
                continue
            else:
                stats.failed[batch[0].id] = _short(error)
                print(f"{batch[0].id} failed: {_short(error)}", file=sys.stderr, flush=True)
                streak += 1
                if streak == (_STREAK if anything else _FAILURES) or (not anything and len(waiting) == 1):
                    raise
                waiting, lengths, alone = waiting[1:], lengths[1:], max(0, alone - 1)
                continue
        # Out here nothing holds the failed batch's arrays any more, as its traceback did.
        if problem:
            map_large_blocks()
            release_memory()
            print(f"batch of {len(batch)} failed: {problem}", file=sys.stderr, flush=True)
            if not size.failed(len(batch), lengths[0]):
                allowed = f"{job.allowance_bytes / 1e9:.2f} GB" if job.allowance_bytes else "the machine"
                raise _TooLargeError(f"a single sample does not fit in {allowed}: {problem}")
            continue
        seconds = time.perf_counter() - start
        each = seconds / len(batch)
        journal.add(
            job.key,
            job.attempt,
            [
                Prediction(sample.id, value, each, together)
                for sample, value in zip(batch, values, strict=True)
            ],
        )
        stats.seconds += seconds
        stats.batch_size = max(together, stats.batch_size or 1)
        anything, streak, alone = True, 0, max(0, alone - 1)
        size.worked(len(batch), lengths[0])
        waiting, lengths = waiting[len(batch) :], lengths[len(batch) :]


def _samples(job: Job, data: DataSet) -> tuple[EvaluationSample, ...]:
    if job.remote is not None:
        from pressoir.evaluation.child import remote

        return remote.samples_of(job, data)
    from pressoir.evaluation.child.predictors import samples_of

    return samples_of(job, data)


def _open(job: Job, data: DataSet, open_model: Open | None) -> BatchPredictor:
    from pressoir.formats.folder import check_model_folder

    if open_model is not None:
        return open_model(job, data)
    if job.remote is not None:
        from pressoir.evaluation.child import remote

        return remote.open_remote_predictor(job, data)
    from pressoir.evaluation.child.predictors import open_predictor

    check_model_folder(job.folder, job.model)
    return open_predictor(job, data)


def _checking_files(job: Job, step: Callable[[], Any]) -> Any:
    """Do a step that reads the model's files; what it finds wrong with them is the model's verdict."""
    try:
        return step()
    except (SourceError, ShardError, QuantizationError) as error:
        if is_out_of_memory(error) or isinstance(error, UnreachableError):
            raise
        raise _DamagedError(str(error)) from error


def _start_threads() -> None:
    """Start torch's thread pool: under a limit, OpenMP ends the process if it cannot start a thread."""
    if torch := sys.modules.get("torch"):
        torch.ones(1 << 20).exp()


def _failures(failed: dict[str, str]) -> str:
    shown = "; ".join(f"{sample}: {reason}" for sample, reason in list(failed.items())[:_SHOWN])
    more = f"; and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
    return f"{len(failed)} samples failed on their own and are not scored: {shown}{more}"


def _short(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:_COLUMNS] if text else ''}".rstrip(": ")


def _end_of_traceback(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    return "\n".join(line[:_COLUMNS] for line in lines[-_TRACEBACK_LINES:])


if __name__ == "__main__":
    hide_scikit_learn()
    sys.exit(main())
