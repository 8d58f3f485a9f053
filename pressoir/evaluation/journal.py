"""What has been predicted, so that nothing is predicted twice: one SQLite file a run.

Children write each batch of predictions in one transaction; a kill at any point loses at most the batch that
was being computed. The key of a prediction is everything that decides it (model digest, data fingerprint,
sample, generation settings, code version), so a run that is resumed under other settings starts anew by
itself. Predictions are kept raw; scores are computed from them at the end.

The write-ahead log (https://www.sqlite.org/wal.html) lets several children write, and the parent read, at
once; `synchronous=FULL` makes a committed batch survive even a power cut.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pressoir.errors import StoreError
from pressoir.store.artifact import digest_of

CODE_VERSION = 2
"""Raised whenever a prediction of the same model on the same sample would change."""
_BUSY_S = 60.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS predictions (
    key TEXT NOT NULL, sample TEXT NOT NULL, prediction TEXT NOT NULL,
    seconds REAL NOT NULL, batch_size INTEGER NOT NULL, attempt INTEGER NOT NULL,
    PRIMARY KEY (key, sample)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, key TEXT NOT NULL, outcome TEXT
);
"""


@dataclass(frozen=True)
class Prediction:
    """What a model gave for one sample."""

    sample: str
    """Id of the sample."""
    value: Any
    """Raw, JSON-able: probabilities, a text, an embedding, a sum of negative log-likelihoods."""
    seconds: float
    """Its share of the time its batch took."""
    batch_size: int


@dataclass(frozen=True)
class Totals:
    """Sums over the predictions of one key."""

    samples: int
    seconds: float
    """Spent in the model."""
    batch_size: int | None
    """The largest; None where there is no prediction."""


def prediction_key(model_digest: str, data_fingerprint: str, settings: dict[str, Any]) -> str:
    """SHA-256 of all that decides a model's predictions on a data set."""
    return digest_of(
        {"model": model_digest, "data": data_fingerprint, "settings": settings, "code": CODE_VERSION}
    )


class Journal:
    """The journal of a run; open one in every process that uses it.

    Raises:
        StoreError: the file cannot be opened or written, or is not a journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _errors(path):
            self._database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def begin(self, model: str, key: str) -> int:
        """Note that an attempt at a model begins; return its number."""
        with _errors(self.path):
            cursor = self._database.execute("INSERT INTO attempts (model, key) VALUES (?, ?)", (model, key))
            return int(cursor.lastrowid or 0)

    def end(self, attempt: int, outcome: str) -> None:
        """Note how an attempt ended, as JSON."""
        with _errors(self.path):
            self._database.execute("UPDATE attempts SET outcome = ? WHERE id = ?", (outcome, attempt))

    def outcomes(self, model: str, key: str | None = None) -> list[str | None]:
        """How each attempt at a model (under one key) ended, in order; None where nobody could note it."""
        with _errors(self.path):
            rows = self._database.execute(
                "SELECT outcome FROM attempts WHERE model = ? AND (key = ? OR ? IS NULL) ORDER BY id",
                (model, key, key),
            )
            return [row[0] for row in rows]

    def totals(self, key: str) -> Totals:
        """What is stored under a key, added up over all attempts."""
        with _errors(self.path):
            row = self._database.execute(
                "SELECT COUNT(*), TOTAL(seconds), MAX(batch_size) FROM predictions WHERE key = ?",
                (key,),
            ).fetchone()
            return Totals(*row)

    def add(self, key: str, attempt: int, predictions: Iterable[Prediction]) -> None:
        """Commit a batch of predictions, all or none.

        Raises:
            StoreError: one of them is there already: a sample was run twice.
        """
        rows = [
            (key, p.sample, json.dumps(p.value, allow_nan=True), p.seconds, p.batch_size, attempt)
            for p in predictions
        ]
        with _errors(self.path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany("INSERT INTO predictions VALUES (?, ?, ?, ?, ?, ?)", rows)
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def done(self, key: str) -> set[str]:
        """Ids of the samples that have a prediction."""
        with _errors(self.path):
            rows = self._database.execute("SELECT sample FROM predictions WHERE key = ?", (key,))
            return {row[0] for row in rows}

    def predictions(self, key: str, samples: Sequence[str] | None = None) -> Iterator[Prediction]:
        """Predictions by sample id, in the order of `samples`, or of the ids."""
        with _errors(self.path):
            rows = {
                row[0]: Prediction(row[0], json.loads(row[1]), row[2], row[3])
                for row in self._database.execute(
                    "SELECT sample, prediction, seconds, batch_size FROM predictions WHERE key = ?", (key,)
                )
            }
        for sample in sorted(rows) if samples is None else samples:
            if sample in rows:
                yield rows[sample]


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(
            f"the journal {path} is not usable: {error}; free some disk space, or start a new run"
        ) from error
