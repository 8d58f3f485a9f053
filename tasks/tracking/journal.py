"""What a run writes to MLflow, in order; what MLflow does not take now waits on the disk and is sent later.

A server that is down, or a database that is locked, must cost neither a training nor its record. Each entry
is sent at once while MLflow answers. Once it does not, that entry and all after it are kept in
`<home>/tracking/<id>/`, a folder each with the files that belong to it, and are sent in the same order: as
soon as MLflow answers again, at the end of the run, when the next one starts, or by
`pressoir tracking flush`. Sending an entry twice changes nothing: a run and a model version are found again
by a tag, and MLflow itself keeps a parameter, a tag, a metric's value at a step and time, an input and a file
once.

The folder lasts as long as its run, and the process holds its lock: a folder that nobody holds belongs to a
process that was killed. Its entries are sent, and what it left as running ends as KILLED.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock, Timeout
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import ERROR_CODE_TO_HTTP_STATUS, MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pressoir.errors import PressoirError
from pressoir.registry.version import VersionRequest
from pressoir.store.outbox import Entry, Outbox
from pressoir.system.addresses import without_password
from pressoir.system.files import write_text_atomic
from pressoir.tasks.tracking.database import environment
from pressoir.tasks.tracking.model_version import send_version

WAITS = object()
"""What `write` returns of an entry that is not sent yet."""
_FOLDER, _HEADER, _LOCK = "tracking", "journal.json", "lock"
_ID = "pressoir.id"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 60.0
# MLflow's codes for what will not be otherwise the next time: the entry is wrong, or its run was deleted.
_FINAL = (400, 404, 409)
_OURS = (AssertionError, AttributeError, LookupError, TypeError, ValueError, PressoirError)
# MLflow itself would retry for minutes while the work waits; here the journal retries.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# MLflow tells of each table it makes and each model it checks, and prints a traceback when a database is
# locked; what a person should read, the reporter says.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
log = logging.getLogger("pressoir")


@dataclass(frozen=True)
class _Header:
    uri: str
    """Where its entries go, without a password."""
    experiment_id: str
    run: str
    """The parent run, an id of ours."""


@dataclass
class Journal:
    """The entries of one flow run, its parent run and the nested ones."""

    uri: str
    experiment_id: str
    folder: Path
    tell: Callable[[str], None] = log.warning
    known: dict[str, str] = field(default_factory=dict)
    """MLflow's ids of the runs, by ours."""
    _mutex: Any = field(default_factory=threading.RLock, repr=False)
    _pause_s: float = 0.0
    _not_before: float = 0.0

    def __deepcopy__(self, memo: Any) -> Journal:
        """Itself: what a transaction of Prefect keeps is given back as a copy, and this is one folder."""
        return self

    @property
    def client(self) -> mlflow.MlflowClient:
        """A client of the store that holds the runs."""
        return mlflow.MlflowClient(self.uri, self.uri)

    def create(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> str:
        """Create a run; return our id of it, which it has even while MLflow has none.

        The parent run of the others comes first, and MLflow has to take it at once.
        """
        ours = uuid.uuid4().hex
        data = {"name": name, "tags": {**tags, _ID: ours}, "parent": parent, "time": now_ms()}
        if parent is None:
            header = _Header(without_password(self.uri), self.experiment_id, ours)
            write_text_atomic(self.folder / _HEADER, json.dumps(asdict(header)))
            self._send(Entry(kind="create", run=ours, data=data))
        else:
            self.write("create", ours, data)
        return ours

    def write(
        self,
        kind: str,
        run: str,
        data: Mapping[str, Any] | None = None,
        files: Sequence[tuple[Path, str | None]] = (),
    ) -> Any:
        """Send an entry, or keep it after those that wait; return what MLflow answered, or WAITS.

        Raises:
            MlflowException: MLflow answers, and refuses it for good.
            StoreError: the disk is full.
        """
        paths = tuple((path.absolute(), where) for path, where in files)
        entry = Entry(kind=kind, run=run, data=dict(data or {}), files=paths)
        with self._mutex:
            with suppress(OSError):
                os.utime(self.folder)  # when the run was last alive
            if time.monotonic() >= self._not_before and not self.send_waiting():
                try:
                    return self._send(entry)
                except Exception as error:
                    if not _may_pass(error):
                        raise
                    self._failed(error)
            self.outbox.put(entry)
        return WAITS

    @property
    def outbox(self) -> Outbox:
        """What waits."""
        return Outbox(self.folder)

    def send_waiting(self) -> int:
        """Send what waits, up to the first that MLflow does not take; return how many are left.

        An entry that MLflow refuses for good is dropped, and said.
        """
        with self._mutex:
            folders = self.outbox.waiting()
            for done, folder in enumerate(folders):
                entry = self.outbox.read(folder)
                try:
                    self._send(entry, again=True)
                except Exception as error:
                    if _may_pass(error):
                        self._failed(error)
                        return len(folders) - done
                    self.tell(f"an entry ({entry.kind}) that waited is dropped: {reason_of(error)}")
                self.outbox.drop(folder)
            if folders:
                self.tell(f"MLflow answers again; {len(folders)} entries that had waited were sent")
            self._pause_s = 0.0
        return 0

    def id_of(self, run: str) -> str | None:
        """MLflow's id of a run, or None where it has none yet."""
        if run not in self.known:
            found = self.client.search_runs([self.experiment_id], f"tags.`{_ID}` = '{run}'", max_results=1)
            if not found:
                return None
            self.known[run] = str(found[0].info.run_id)
        return self.known[run]

    def _send(self, entry: Entry, again: bool = False) -> Any:
        with environment("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"):
            if entry.kind == "create":
                return self._create(entry, again)
            run_id = self.id_of(entry.run)
            if run_id is None:
                raise MlflowException.invalid_parameter_value("the run is not there")
            return _SEND[entry.kind](self, run_id, entry)

    def _create(self, entry: Entry, again: bool) -> None:
        if again and self.id_of(entry.run) is not None:
            return
        tags = dict(entry.data["tags"])
        if (parent := entry.data["parent"]) is not None:
            tags[MLFLOW_PARENT_RUN_ID] = self.id_of(parent) or ""
        # Not `mlflow.start_run`, which would also look for a Git repository around the working directory.
        created = self.client.create_run(
            self.experiment_id, entry.data["time"], tags=tags, run_name=entry.data["name"]
        )
        self.known[entry.run] = created.info.run_id

    def _failed(self, error: Exception) -> None:
        if not self._pause_s:
            self.tell(
                f"MLflow at {without_password(self.uri)} does not answer ({reason_of(error)}); the run goes "
                f"on, and what it logs waits in {self.folder}"
            )
        self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        self._not_before = time.monotonic() + self._pause_s


@contextmanager
def journal(
    home: Path, uri: str, experiment_id: str, tell: Callable[[str], None] = log.warning
) -> Iterator[Journal]:
    """The journal of a flow run; what still waits at its end is kept."""
    book = Journal(uri, experiment_id, home / _FOLDER / uuid.uuid4().hex, tell)
    book.folder.mkdir(parents=True)
    with FileLock(book.folder / _LOCK):
        try:
            yield book
        finally:
            if left := book.send_waiting():
                tell(
                    f"{left} entries for MLflow wait in {book.folder}; the next run sends them, or "
                    "`pressoir tracking flush`"
                )
            else:
                shutil.rmtree(book.folder, ignore_errors=True)


@dataclass(frozen=True)
class Flushed:
    """What became of the journals that no running process holds."""

    runs: int = 0
    """Runs all of whose entries MLflow has now."""
    killed: int = 0
    """Those among them that had been left as running, and are KILLED now."""
    waiting: int = 0
    """Entries that MLflow still does not take."""
    elsewhere: tuple[str, ...] = ()
    """Addresses, without passwords, for which other entries wait."""
    running: int = 0
    """Journals of runs that are running."""


def flush_journals(home: Path, uri: str, tell: Callable[[str], None] = log.warning) -> Flushed:
    """Send what earlier runs could not, and end those as KILLED whose process was killed."""
    runs = killed = waiting = running = 0
    elsewhere = set[str]()
    for folder in sorted((home / _FOLDER).glob("*"), key=_age):
        try:
            with FileLock(folder / _LOCK, timeout=0):
                header = _header(folder)
                if header is None:  # killed before it began
                    shutil.rmtree(folder, ignore_errors=True)
                    continue
                if header.uri != without_password(uri):
                    elsewhere.add(header.uri)
                    continue
                book = Journal(uri, header.experiment_id, folder, tell)
                last = int(1000 * _age(folder))
                if left := book.send_waiting():
                    waiting += left
                    continue
                killed += _end_as_killed(book, header.run, last)
                runs += 1
                shutil.rmtree(folder, ignore_errors=True)
        except Timeout:
            running += 1
        except FileNotFoundError:  # another process was faster
            continue
    return Flushed(runs, killed, waiting, tuple(sorted(elsewhere)), running)


def live_since(home: Path) -> float | None:
    """When the oldest of the runs began that are in progress (seconds since 1970); None without any."""
    began = []
    for folder in (home / _FOLDER).glob("*"):
        try:
            with FileLock(folder / _LOCK, timeout=0):
                pass
        except Timeout:
            began.append(_age(folder / _HEADER))
        except FileNotFoundError:
            continue
    return min(began, default=None)


def reason_of(error: BaseException) -> str:
    """What is behind an error that wraps others, in a few words and without a password."""
    while (deeper := error.__cause__ or error.__context__ or _within(error)) is not None:
        error = deeper
    return without_password(getattr(error, "strerror", None) or f"{error}").partition("\n")[0][:200]


def _within(error: BaseException) -> BaseException | None:
    return next((each for each in error.args if isinstance(each, BaseException)), None)


def _end_as_killed(book: Journal, run: str, time_ms: int) -> bool:
    """End a run that was left as running, and those below it; return whether there was one."""
    running = RunStatus.to_string(RunStatus.RUNNING)
    run_id = book.id_of(run)
    if run_id is None or book.client.get_run(run_id).info.status != running:
        return False
    query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}' and attributes.status = '{running}'"
    below = book.client.search_runs([book.experiment_id], query, max_results=50_000)
    for left in (*(child.info.run_id for child in below), run_id):
        book.client.set_terminated(left, RunStatus.to_string(RunStatus.KILLED), time_ms)
    return True


def _log(book: Journal, run_id: str, entry: Entry) -> None:
    book.client.log_batch(
        run_id,
        metrics=[Metric(*metric) for metric in entry.data.get("metrics", ())],
        params=[Param(*param) for param in entry.data.get("params", ())],
        tags=[RunTag(*tag) for tag in entry.data.get("tags", ())],
    )


def _files(book: Journal, run_id: str, entry: Entry) -> None:
    for path, folder in entry.files:
        book.client.log_artifact(run_id, str(path), folder)


def _inputs(book: Journal, run_id: str, entry: Entry) -> None:
    inputs = [
        DatasetInput(Dataset(**item["dataset"]), [InputTag(*tag) for tag in item["tags"]])
        for item in entry.data["inputs"]
    ]
    book.client.log_inputs(run_id, inputs)


def _end(book: Journal, run_id: str, entry: Entry) -> None:
    book.client.set_terminated(run_id, entry.data["status"], entry.data["time"])


def _version(book: Journal, run_id: str, entry: Entry) -> Any:
    request = VersionRequest.model_validate(entry.data)
    return send_version(request, book.uri, book.experiment_id, run_id)


_SEND: Mapping[str, Callable[[Journal, str, Entry], Any]] = {
    "log": _log,
    "files": _files,
    "inputs": _inputs,
    "end": _end,
    "version": _version,
}
"""By kind; each takes the journal, MLflow's id of the run, and the entry."""


def _may_pass(error: Exception) -> bool:
    """Whether the same entry may be taken later: nobody answers, or a server or a database has a bad time."""
    if isinstance(error, MlflowException):
        return (
            ERROR_CODE_TO_HTTP_STATUS.get(error.error_code, 500) not in _FINAL
            and error.error_code != "INVALID_STATE"
        )
    # What is no JSON was sent by something between us and MLflow.
    return isinstance(error, OSError | json.JSONDecodeError) or not isinstance(error, _OURS)


def _header(folder: Path) -> _Header | None:
    try:
        return _Header(**json.loads((folder / _HEADER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _age(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def now_ms() -> int:
    """The time now, as MLflow counts it: milliseconds since 1970."""
    return int(time.time() * 1000)
