"""What tests see of a real evaluation from outside: its folder, its journal, its children.

As a script it is an evaluation without Prefect and MLflow, which take seconds to start:
`real_evaluation.py CONFIG [--resume FOLDER]`.
"""

import sqlite3
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil

from pressoir.evaluation.report.results import EvaluationOutcome


class Watch:
    """A run of which only the folder of results is known; it may not have begun."""

    def __init__(self, results):
        self.results = Path(results)

    @property
    def folder(self):
        """The run's folder; None before it has one."""
        return next(self.results.glob("*"), None) if self.results.exists() else None

    def exists(self, pattern):
        return self.folder is not None and any(self.folder.glob(pattern))

    def query(self, statement):
        """Rows of the journal; none where there is no journal yet."""
        if not self.exists("journal.sqlite"):
            return []
        uri = f"file:{self.folder / 'journal.sqlite'}?mode=rw"
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(uri, uri=True, timeout=60)) as open_:
            return open_.execute(statement).fetchall()
        return []

    def committed(self, model):
        """How many samples of a model have a prediction."""
        found = dict(
            self.query("SELECT model, COUNT(*) FROM predictions JOIN attempts ON id = attempt GROUP BY model")
        )
        return found.get(model, 0)

    def predictions(self):
        """Key and sample: raw prediction and the attempt that made it."""
        rows = self.query("SELECT key, sample, prediction, attempt FROM predictions")
        found = {(key, sample): rest for key, sample, *rest in rows}
        assert len(found) == len(rows)
        return found

    def attempts(self, model):
        """The outcome, as JSON, of each attempt at a model; None where nobody could note it."""
        return [
            row[0] for row in self.query(f"SELECT outcome FROM attempts WHERE model = '{model}' ORDER BY id")
        ]

    def writing(self):
        """Whether somebody is in the midst of a transaction."""
        uri = f"file:{self.folder / 'journal.sqlite'}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None)) as open_:
            try:
                open_.execute("BEGIN IMMEDIATE")
                open_.execute("ROLLBACK")
            except sqlite3.OperationalError:
                return True
        return False


def child_of(parent, model):
    """The running child for a model; None where there is none."""
    with suppress(psutil.NoSuchProcess):
        for child in parent.children():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                words = child.cmdline()
                if words and Path(words[-1]).name.rpartition("-")[0] == model:
                    return child
    return None


def until(condition, what, seconds=120):
    """What the condition gives as soon as it is true: nothing is measured, only waited for."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"in {seconds} s never: {what}"
        time.sleep(0.005)
    return found


def main(config, resumed=None):
    from pressoir.evaluation import memory_log, run
    from pressoir.evaluation.config import load
    from pressoir.evaluation.report import scoring, write
    from pressoir.store.store import Store

    parsed = load(config)
    prepared = run.prepare(parsed, Store())
    if resumed is None:
        folder, prepared = run.begin(prepared, parsed.results)
    else:
        folder = Path(resumed)
        prepared = run.resume(prepared, folder)
    with memory_log.MemoryLog(folder):
        outcomes = {one.model: one for one in run.evaluate(prepared)}
    results = []
    for name, (model, data) in prepared.names.items():
        asked = prepared.dataset(name)
        found = run.predictions(prepared.jobs[name], asked)
        score = scoring.score(asked, {one.sample: one.value for one in found})
        scored = outcomes[name].model_copy(update={"metrics": score.metrics, "notes": score.notes})
        results.append(EvaluationOutcome(name, model, data, asked, scored, found, score))
    write.write(folder, results, prepared.plan, memory_log.stats(folder), {"name": parsed.name})


if __name__ == "__main__":
    main(sys.argv[1], *sys.argv[3:])
