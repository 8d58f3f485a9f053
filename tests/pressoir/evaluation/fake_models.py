"""Children without a model: what they do to whom stands in `behaviour.json` of the model's folder.

As a script it is the child (`fake_models.py JOB.json`), or a parent (`fake_models.py --drive RUN.json`). Both
can be told to kill themselves at the nth passage of a named point.
"""

import hashlib
import json
import mmap
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pressoir.errors import SourceError, StoreError
from pressoir.evaluation.child import __main__ as child
from pressoir.system.runtime import limit_threads

COMMAND = (sys.executable, __file__)
MB = 10**6


class Dying:
    """Kills this process at a point, `die` being its name and the how many-eth passage."""

    def __init__(self, die):
        self.die, self.passed = tuple(die or ()), {}

    def at(self, name):
        self.passed[name] = self.passed.get(name, 0) + 1
        if self.die == (name, self.passed[name]):
            os.kill(os.getpid(), signal.SIGKILL)

    def after(self, owner, method, name, before=None):
        """Pass the point `before` when a method is called, and `name` when it returns."""
        original = getattr(owner, method)

        def wrapped(*args, **kwargs):
            if before:
                self.at(before)
            result = original(*args, **kwargs)
            self.at(name)
            return result

        setattr(owner, method, wrapped)


class Database:
    """A connection that passes the point `inserted` before every commit."""

    def __init__(self, connection, dying):
        self._connection, self._dying = connection, dying

    def execute(self, statement, *values):
        if statement == "COMMIT":
            self._dying.at("inserted")
        return self._connection.execute(statement, *values)

    def __getattr__(self, name):
        return getattr(self._connection, name)


def expected(sample):
    """What the fake model gives for a sample's id."""
    return {"similarity": int(hashlib.sha256(sample.encode()).hexdigest()[:6], 16) / 2**24}


class FakePredictor:
    """Notes every sample it is asked in `calls.log`."""

    def __init__(self, folder, behaviour, dying):
        self.folder, self.behaviour, self.dying = folder, behaviour, dying
        self.together = behaviour.get("together", True)

    def length(self, sample):
        return 1 if "bytes" in self.behaviour else sample.length

    def predict(self, samples):
        import numpy as np

        self.dying.at("before")
        with (self.folder / "calls.log").open("a") as log:
            log.write("".join(f"{sample.id}\n" for sample in samples))
        time.sleep(self.behaviour.get("sleep_s", 0))
        for sample in samples:
            if sample.id == self.behaviour.get("raise_at"):
                raise StoreError(f"no prediction for {sample.id}")  # not the sample's fault
            if sample.id == self.behaviour.get("signal_at"):
                os.kill(os.getpid(), self.behaviour["signal"])
            if sample.id == self.behaviour.get("hang_at"):
                time.sleep(3600)
            if sample.id == self.behaviour.get("abort_at"):
                print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr)
                sys.stderr.flush()
                os.abort()
        if limit := self.behaviour.get("dry_after"):  # a process whose memory comes to be in pieces
            self.seen = getattr(self, "seen", 0) + len(samples)
            if self.seen > limit:
                raise MemoryError("in pieces")
        if size := self.behaviour.get("bytes", 0):  # an allocation that may fail
            np.ones(size * len(samples), dtype=np.uint8)
        if size := self.behaviour.get("shared_bytes", 0):  # one that RLIMIT_DATA does not see
            taken = mmap.MAP_SHARED | mmap.MAP_POPULATE
            with mmap.mmap(-1, size * len(samples), flags=taken):
                time.sleep(self.behaviour.get("hold_s", 0))
        print("a library that prints")
        self.dying.at("predicted")
        return [expected(sample.id) for sample in samples]


def open_fake(job, data):
    behaviour = json.loads((job.folder / "behaviour.json").read_text())
    if message := behaviour.get("source_error"):
        raise SourceError(message)
    time.sleep(behaviour.get("load_s", 0))
    dying = Dying(behaviour.get("die"))
    dying.at("opened")
    return FakePredictor(job.folder, behaviour, dying)


def run_child(path):
    job = json.loads(path.read_text())
    limit_threads(job["threads"])
    from pressoir.evaluation import datasets
    from pressoir.evaluation.journal import Journal

    behaviour = json.loads((Path(job["folder"]) / "behaviour.json").read_text())
    dying = Dying(behaviour.get("die"))
    dying.at("start")
    dying.after(datasets, "load", "data")
    dying.after(Journal, "done", "done")
    dying.after(Journal, "add", "committed", before="adding")
    dying.after(child, "run", "ran")
    original = Journal.__init__

    def opened(self, path):
        original(self, path)
        self._database = Database(self._database, dying)

    Journal.__init__ = opened
    return child.main([str(path)], open_fake)


@dataclass
class Run:
    """Everything `run_plan` takes, in a folder."""

    folder: Path
    plan: object
    jobs: dict
    estimates: dict
    limits: object

    @property
    def journal(self):
        return self.folder / "journal.sqlite"

    def calls(self, model):
        """Ids of the samples that a model was asked, in order."""
        log = self.folder / model / "calls.log"
        return log.read_text().split() if log.exists() else []

    def told(self, model):
        """The jobs of a model's children, in order."""
        files = sorted(
            self.folder.glob(f"jobs/{model}-*.json"), key=lambda path: int(path.stem.split("-")[-1])
        )
        return [json.loads(path.read_text()) for path in files]

    def behave(self, model, **behaviour):
        (self.folder / model / "behaviour.json").write_text(json.dumps(behaviour))


def make_run(
    folder,
    models,
    *,
    samples=12,
    batch_size=4,
    budget=10_000 * MB,
    fixed=100 * MB,
    per_sample=MB,
    max_parallel=2,
    **limits,
):
    """A run of fake models, by their behaviour. The longest sample is 0, the shortest the last."""
    from pressoir.evaluation.config import DataSetConfig
    from pressoir.evaluation.jobs import Job
    from pressoir.evaluation.journal import prediction_key
    from pressoir.evaluation.planner import plan
    from pressoir.evaluation.records import Estimate
    from pressoir.evaluation.supervisor import SupervisorLimits

    pairs = folder / "pairs.tsv"
    pairs.write_text("".join(f"{'x' * (2 * samples - i)}\tb\t0.5\n" for i in range(samples)))
    data = DataSetConfig(task="feature-extraction", pairs=pairs)
    jobs, estimates = {}, {}
    for name in models:
        (folder / name).mkdir(exist_ok=True)
        jobs[name] = Job(
            model=name,
            folder=folder / name,
            task="feature-extraction",
            data=data,
            key=prediction_key(name, "fingerprint", {}),
            journal=folder / "journal.sqlite",
            batch_size=batch_size,
        )
        estimates[name] = Estimate(
            model=name, fixed_bytes=fixed, per_sample_bytes=per_sample, origin="config"
        )
    planned = plan(list(estimates.values()), dict.fromkeys(models, batch_size), budget, max_parallel)
    settings = {"threads": 2, "timeout_s": 60.0, "patience_s": 0.3, "max_parallel": max_parallel, **limits}
    run = Run(folder, planned, jobs, estimates, SupervisorLimits(**settings))
    for name, behaviour in models.items():
        run.behave(name, **behaviour)
    return run


def drive(run, **options):
    """Run all of it; the outcomes by model."""
    from pressoir.evaluation.supervisor import run_plan

    options = {"available": lambda: 10**11, "command": COMMAND, **options}
    found = list(run_plan(run.plan, run.jobs, run.estimates, run.limits, **options))
    assert len({outcome.model for outcome in found}) == len(found)
    return {outcome.model: outcome for outcome in found}


def run_parent(path):
    """A parent in a process of its own, for tests that kill it."""
    from pressoir.evaluation import supervisor
    from pressoir.evaluation.journal import Journal

    told = json.loads(path.read_text())
    dying = Dying(told.get("die"))
    dying.at("start")
    dying.after(Journal, "begin", "begun", before="beginning")
    dying.after(Journal, "end", "noted", before="noting")
    dying.after(supervisor, "Child", "launched")

    def on_event(event):
        print(event.kind, event.model, event.pid, flush=True)
        dying.at(event.kind)

    run = make_run(Path(told["folder"]), told["models"], **told.get("options", {}))
    for outcome in drive(run, on_event=on_event).values():
        print("outcome", outcome.model, outcome.verdict, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--drive":
        run_parent(Path(sys.argv[2]))
    else:
        sys.exit(run_child(Path(sys.argv[1])))
