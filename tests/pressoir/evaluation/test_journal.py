"""Predictions survive kills, and none is made twice."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from pressoir.errors import StoreError
from pressoir.evaluation.journal import Journal, Prediction, prediction_key

KEY = prediction_key("model", "data", {"beams": 1})


def some(*ids):
    return [Prediction(one, {"text": f"said {one}"}, 0.5, 2) for one in ids]


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


def test_predictions_come_back_raw_in_the_order_asked_for(journal):
    attempt = journal.begin("m", KEY)
    journal.add(KEY, attempt, some("b", "a"))
    assert list(journal.predictions(KEY)) == some("a", "b")
    assert list(journal.predictions(KEY, ["b", "missing", "a"])) == some("b", "a")
    assert journal.done(KEY) == {"a", "b"}
    assert journal.done(prediction_key("model", "data", {"beams": 2})) == set()


def test_a_sample_is_never_stored_twice_and_the_whole_batch_is_refused(journal):
    attempt = journal.begin("m", KEY)
    journal.add(KEY, attempt, some("a"))
    with pytest.raises(StoreError, match="UNIQUE"):
        journal.add(KEY, attempt, some("b", "a"))
    assert journal.done(KEY) == {"a"}


@pytest.mark.parametrize("changed", ["model", "data", "settings"])
def test_whatever_decides_a_prediction_is_in_its_key(changed):
    given = {"model": "m", "data": "d", "settings": "s"}
    other = given | {changed: "x"}
    keys = [prediction_key(one["model"], one["data"], {"s": one["settings"]}) for one in (given, other)]
    assert keys[0] != keys[1]


def test_an_attempt_that_was_killed_has_no_outcome(journal):
    first = journal.begin("m", KEY)
    second = journal.begin("m", KEY)
    journal.end(second, "ok")
    assert first != second
    assert journal.outcomes("m") == [None, "ok"]
    assert journal.outcomes("other") == []


@pytest.mark.process
def test_what_was_committed_before_a_kill_is_there_and_nothing_half(tmp_path):
    code = textwrap.dedent("""
        import sys; from pathlib import Path
        from pressoir.evaluation.journal import Journal, Prediction
        journal = Journal(Path(sys.argv[1])); attempt = journal.begin("m", "k")
        journal.add("k", attempt, [Prediction("a", 1, 0.1, 1)])
        journal._database.execute("BEGIN IMMEDIATE")
        journal._database.execute("INSERT INTO predictions VALUES ('k', 'b', '2', 0.1, 1, 1)")
        print("in", flush=True); sys.stdin.read()
    """)
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "j.sqlite")],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )
    assert child.stdout.readline() == b"in\n"
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    journal = Journal(tmp_path / "j.sqlite")
    assert journal.done("k") == {"a"}
    journal.add("k", journal.begin("m", "k"), [Prediction("b", 2, 0.1, 1)])
    journal.close()


@pytest.mark.process
def test_several_processes_write_at_once(tmp_path):
    code = textwrap.dedent("""
        import sys; from pathlib import Path
        from pressoir.evaluation.journal import Journal, Prediction
        journal = Journal(Path(sys.argv[1])); key = sys.argv[2]; attempt = journal.begin("m", key)
        for i in range(20): journal.add(key, attempt, [Prediction(str(i), i, 0.1, 1)])
    """)
    path = tmp_path / "j.sqlite"
    children = [subprocess.Popen([sys.executable, "-c", code, str(path), f"k{i}"]) for i in range(4)]
    assert [child.wait() for child in children] == [0, 0, 0, 0]
    journal = Journal(path)
    assert all(len(journal.done(f"k{i}")) == 20 for i in range(4))
    journal.close()


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    (tmp_path / "j.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Journal(tmp_path / "j.sqlite")
