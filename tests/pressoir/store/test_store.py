"""The store: what makes a key, that publishing is all or nothing, and what is swept away.

Crashes here are real: child processes kill themselves with SIGKILL at a chosen point of a build.
"""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import save_file

from pressoir.errors import StoreError
from pressoir.store import artifact as artifact_module
from pressoir.store.artifact import StageKey
from pressoir.store.store import Store, default_home
from pressoir.system import files
from pressoir.system.files import MANIFEST, folder_digest, replace_folder, write_text_atomic

ROOT = Path(__file__).parents[3]
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="only Linux tells the path of an open file"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
FIELDS = {
    "stage": "prune",
    "version": 1,
    "kind": "model",
    "config": {"a": 1, "b": 2},
    "inputs": {},
    "seed": 0,
}
DAY = 86400

# What every child process builds: two files and a metric. Its arguments: home, where to die, folder of flags.
CHILD = """
import json, os, signal, sys, time
from pathlib import Path
from pressoir.store import store as module
from pressoir.store.artifact import Artifact, StageKey
from pressoir.store.store import Store
from pressoir.system import files

home, point, flags = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
told = []
die = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
rename, write_text, replace = Path.rename, Path.write_text, module.replace_folder

def make(out, work):
    with (flags / "builds").open("a") as log:
        log.write("x")
    (work / "checkpoint").write_text("half way")
    (out / "sub").mkdir()
    (out / "sub" / "weights.bin").write_bytes(b"w" * 1000)
    with (out / "config.json").open("w") as file:
        file.write('{"whole":')
        file.flush()
        if point == "in_make":
            die()
        file.write(" true}")
    if point == "wait_in_make":
        (flags / "started").touch()
        while not (flags / "go").exists():
            time.sleep(0.01)
    return {"accuracy": 0.5}

def tell(text):
    told.append(text)
    (flags / "told").write_text(text)

if point == "before_manifest":
    Artifact.model_dump_json = die
elif point == "in_manifest":
    def half(path, text, **options):
        write_text(path, text[: len(text) // 2], **options)
        die()
    Path.write_text = half
elif point == "before_rename":
    module.replace_folder = die
elif point == "after_rename":
    module.replace_folder = lambda draft, target: (replace(draft, target), die())
elif point == "between_renames":
    def second(path, target):
        if path.name.startswith("."):
            die()
        return rename(path, target)
    Path.rename = second
    files._exchange = lambda one, other: False

key = StageKey(stage="prune", version=1, kind="model", config={"a": 1, "b": 2}, inputs={}, seed=0)
made, hit = Store(home).build(key, make, refresh=point == "between_renames", tell=tell)
print(json.dumps({"hit": hit, "told": told, "digest": made.digest}))
"""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


@pytest.fixture
def child(tmp_path):
    """Start a process that builds the key of `FIELDS` in `store`, and dies at `point`."""
    script, flags = tmp_path / "child.py", tmp_path / "flags"
    script.write_text(CHILD, encoding="utf-8")
    flags.mkdir()
    started = []

    def start(store, point="nowhere"):
        process = subprocess.Popen(
            [sys.executable, str(script), str(store.home), point, str(flags)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    start.flags = flags
    start.builds = lambda: len((flags / "builds").read_text()) if (flags / "builds").exists() else 0
    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def disk_calls(monkeypatch):
    """What goes to the disk, in order: ("fsync", path, bytes, or None of a folder) and ("rename", from, to).

    The calls are carried out; a flushed path is that of the handle when it was flushed.
    """
    calls, fsync, exchange = [], os.fsync, files._exchange

    def record_fsync(handle):
        path, status = Path(f"/proc/self/fd/{handle}").readlink(), os.fstat(handle)
        calls.append(("fsync", path, None if stat.S_ISDIR(status.st_mode) else status.st_size))
        fsync(handle)

    def recording(rename):
        def record(source, target, **options):
            calls.append(("rename", Path(source), Path(target)))
            rename(source, target, **options)

        return record

    def record_exchange(source, target):
        calls.append(("rename", source, target))
        return exchange(source, target)

    monkeypatch.setattr(files, "_exchange", record_exchange)
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", recording(os.rename))
    monkeypatch.setattr(os, "replace", recording(os.replace))
    return calls


def around_the_rename(calls, target):
    """The draft that became `target`, and what was flushed before that and after, in order."""
    (at,) = (i for i, call in enumerate(calls) if call[0] == "rename" and call[2] == target)
    before, after = ([call[1:] for call in part if call[0] == "fsync"] for part in (calls[:at], calls[at:]))
    return calls[at][1], before, after


def key(**changes):
    return StageKey(**{**FIELDS, **changes})


def make(text="content", metrics=None):
    """A function that builds an artifact of one file."""

    def build(out, work):
        (out / "file.txt").write_text(text, encoding="utf-8")
        return metrics or {}

    return build


def never(out, work):
    raise AssertionError("built although the store has it")


def result_of(process):
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(out)


def wait_for(path):
    limit = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < limit, f"{path} never came"
        time.sleep(0.01)


def entries(store):
    """Everything in the store and in the work folder, as `stage/name`."""
    return sorted(
        path.relative_to(store.home).as_posix()
        for path in [*store.root.glob("*/*"), *(store.home / "work").glob("*")]
    )


def age(store, artifact, days):
    then = time.time() - days * DAY
    os.utime(store.path(artifact) / MANIFEST, (then, then))


# --- keys and digests ---


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "distill"},
        {"version": 2},
        {"kind": "onnx"},
        {"config": {"a": 1, "b": 3}},
        {"config": {"a": 1}},
        {"inputs": {"model": "0" * 64}},
        {"seed": 1},
    ],
    ids=lambda change: "-".join(change),
)
def test_the_key_changes_with_everything_that_decides_the_result(change):
    assert key(**change).hash() != key().hash()


def test_the_key_tells_which_input_has_which_digest():
    one = key(inputs={"model": "a", "data": "b"}).hash()
    assert one != key(inputs={"model": "b", "data": "a"}).hash()
    assert one == key(inputs={"data": "b", "model": "a"}).hash()


@pytest.mark.parametrize("package", artifact_module.DECISIVE_PACKAGES)
def test_the_key_changes_with_the_version_of_a_package_that_decides_the_result(package, monkeypatch):
    before, version = key().hash(), artifact_module._version
    monkeypatch.setattr(
        artifact_module, "_version", lambda name: "99.0" if name == package else version(name)
    )
    assert key().hash() != before


def test_the_key_does_not_change_with_the_order_in_which_a_configuration_is_written():
    assert key(config={"b": 2, "a": 1}).hash() == key().hash()


def test_the_digest_covers_names_and_content_but_not_the_manifest_nor_the_place(tmp_path):
    def digest(name, files):
        for path, text in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text, encoding="utf-8")
        return folder_digest(tmp_path / name)[0]

    files = {"a.txt": "one", "sub/b.txt": "two"}
    reference = digest("reference", files)
    assert digest("elsewhere", files) == reference
    assert digest("manifest", {**files, MANIFEST: "{}"}) == reference
    others = {
        digest("content", {**files, "a.txt": "One"}),
        digest("renamed", {"c.txt": "one", "sub/b.txt": "two"}),
        digest("moved", {"a.txt": "one", "b.txt": "two"}),
        digest("swapped", {"a.txt": "two", "sub/b.txt": "one"}),
        digest("more", {**files, "empty.txt": ""}),
        digest("nested", {**files, f"sub/{MANIFEST}": "{}"}),
        digest("shifted", {"a.txt": "onet", "sub/b.txt": "wo"}),
        reference,
    }
    assert len(others) == 8


def test_the_size_is_the_sum_of_the_files(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"4567")
    assert folder_digest(tmp_path)[1] == 7


# --- building and finding again ---


def test_a_built_artifact_is_found_again_and_says_what_it_is(store):
    made, hit = store.build(key(inputs={"data": "d" * 64}), make(metrics={"accuracy": 0.5}))
    again, hit_again = store.build(key(inputs={"data": "d" * 64}), never)
    assert (hit, hit_again) == (False, True)
    assert again == made == store.find(key(inputs={"data": "d" * 64}))
    assert (made.stage, made.kind, made.parents) == ("prune", "model", {"data": "d" * 64})
    assert (made.size_bytes, made.metrics) == (7, {"accuracy": 0.5})
    assert made.environment.keys() == {"python", *artifact_module.DECISIVE_PACKAGES}
    assert store.verify(made)


def test_another_key_is_built_beside_it(store):
    one, _ = store.build(key(seed=1), make())
    two, hit = store.build(key(seed=2), make())
    assert not hit
    assert store.path(one) != store.path(two)
    assert one.digest == two.digest  # same bytes


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_metric_that_is_not_finite_does_not_make_the_artifact_unreadable(store, value):
    store.build(key(), make(metrics={"ratio": value}))
    found, hit = store.build(key(), never)
    assert hit
    np.testing.assert_equal(found.metrics["ratio"], value)
    json.loads((store.path(found) / MANIFEST).read_text(), parse_constant=lambda name: pytest.fail(name))


def test_an_artifact_is_frozen_and_does_not_know_where_it_lies(store):
    made, _ = store.build(key(), make())
    with pytest.raises(ValueError, match="frozen"):
        made.digest = ""
    assert str(store.home) not in made.model_dump_json()


def test_refresh_builds_again_and_starts_from_no_checkpoint(store):
    store.build(key(), make("old"))
    checkpoint = store.home / "work" / key().hash() / "checkpoint"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    seen = []

    def build(out, work):
        seen.extend(work.iterdir())
        return make("new")(out, work)

    made, hit = store.build(key(), build, refresh=True)
    assert (hit, seen) == (False, [])
    assert (store.path(made) / "file.txt").read_text() == "new"
    assert entries(store) == [f"store/prune/{key().hash()}"]


def test_a_refresh_that_fails_keeps_the_artifact_it_would_have_replaced(store):
    made, _ = store.build(key(), make("old"))

    def fail(out, work):
        raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        store.build(key(), fail, refresh=True)
    assert store.build(key(), never) == (made, True)


def test_the_work_folder_survives_a_failure_and_goes_after_success(store):
    def fail(out, work):
        (out / "half").touch()
        (work / "checkpoint").write_text("epoch 1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.build(key(), fail)
    assert entries(store) == [f"work/{key().hash()}"]  # no draft

    def resume(out, work):
        assert (work / "checkpoint").read_text() == "epoch 1"
        assert not any(out.iterdir())
        return make()(out, work)

    store.build(key(), resume)
    assert entries(store) == [f"store/prune/{key().hash()}"]


def test_what_a_stage_raises_passes_through_as_it_is(store):
    class OwnError(Exception):
        pass

    def fail(out, work):
        raise OwnError

    with pytest.raises(OwnError):
        store.build(key(), fail)


@pytest.mark.parametrize(
    "damage", ["flipped byte", "missing file", "extra file", "broken manifest", "no manifest"]
)
def test_a_damaged_artifact_is_built_again_and_said_so(store, damage):
    made, _ = store.build(key(), make("content"))
    folder, told = store.path(made), []
    match damage:
        case "flipped byte":
            (folder / "file.txt").write_text("cOntent")
        case "missing file":
            (folder / "file.txt").unlink()
        case "extra file":
            (folder / "extra").touch()
        case "broken manifest":
            (folder / MANIFEST).write_text("{}")
        case "no manifest":
            (folder / MANIFEST).unlink()
    again, hit = store.build(key(), make("content"), tell=told.append)
    assert not hit
    assert again.digest == made.digest
    assert store.verify(again)
    assert len(told) == 1
    assert "prune: the stored artifact" in told[0]
    assert "is damaged; rebuilding it" in told[0]


def test_an_artifact_copied_under_another_key_is_not_taken_for_it(store):
    made, _ = store.build(key(seed=1), make("one"))
    shutil.copytree(store.path(made), store.root / "prune" / key(seed=2).hash())
    assert store.find(key(seed=2)) is None
    assert not store.build(key(seed=2), make("two"))[1]


def test_a_moved_store_still_works(store, tmp_path):
    made, _ = store.build(key(), make())
    store.home.rename(tmp_path / "moved")
    moved = Store(tmp_path / "moved")
    assert moved.build(key(), never) == (made, True)
    assert moved.path(made).is_relative_to(tmp_path / "moved")


def test_artifacts_are_listed_oldest_use_first_and_damaged_manifests_are_passed_over(store):
    made = [store.build(key(seed=seed), make())[0] for seed in range(4)]
    for artifact, days in zip(made, (1, 3, 2, 9), strict=True):
        age(store, artifact, days)
    (store.path(made[3]) / MANIFEST).write_text("{")
    assert list(store.artifacts()) == [made[1], made[2], made[0]]


# --- crashes and company ---


@pytest.mark.process
@pytest.mark.parametrize("point", ["in_make", "before_manifest", "in_manifest", "before_rename"])
def test_a_build_killed_before_it_is_published_leaves_nothing_that_looks_finished(store, child, point):
    victim = child(store, point)
    victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL
    assert store.find(key()) is None
    assert list(store.artifacts()) == []
    assert any("/." in name for name in entries(store)), "the crash left no draft, so it tests nothing"
    assert (store.home / "work" / key().hash() / "checkpoint").exists()

    after = result_of(child(store))
    assert (after["hit"], after["told"], child.builds()) == (False, [], 2)
    made = store.find(key())
    assert store.verify(made)
    assert json.loads((store.path(made) / "config.json").read_text()) == {"whole": True}
    assert entries(store) == [f"store/prune/{key().hash()}"]


@pytest.mark.process
def test_a_build_killed_after_it_is_published_is_finished(store, child):
    victim = child(store, "after_rename")
    victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL
    after = result_of(child(store))
    assert (after["hit"], after["told"], child.builds()) == (True, [], 1)
    assert entries(store) == [f"store/prune/{key().hash()}"]  # its checkpoints are gone too


@pytest.mark.process
def test_a_refresh_killed_between_its_two_renames_is_built_again(store, child):
    result_of(child(store))
    victim = child(store, "between_renames")
    victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL
    after = result_of(child(store))
    assert (after["hit"], child.builds()) == (False, 3)
    assert entries(store) == [f"store/prune/{key().hash()}"]


@pytest.mark.process
def test_of_two_processes_one_builds_and_the_other_waits_for_its_result(store, child):
    first = child(store, "wait_in_make")
    wait_for(child.flags / "started")
    second = child(store)
    wait_for(child.flags / "told")
    assert second.poll() is None
    (child.flags / "go").touch()
    one, two = result_of(first), result_of(second)
    assert (one["hit"], two["hit"]) == (False, True)
    assert one["digest"] == two["digest"]
    assert "waiting" in two["told"][0]
    assert child.builds() == 1


@pytest.mark.process
def test_the_lock_of_a_killed_process_does_not_block_the_next(store, child):
    first = child(store, "wait_in_make")
    wait_for(child.flags / "started")
    first.kill()
    first.wait()
    assert result_of(child(store)) | {"digest": ""} == {"hit": False, "told": [], "digest": ""}


# --- sweeping ---


def chain(store):
    """data → teacher → student, and a model that nobody refers to; all long unused."""
    data, _ = store.build(key(stage="data"), make("data"))
    teacher, _ = store.build(key(stage="teacher", inputs={"data": data.digest}), make("teacher"))
    student, _ = store.build(key(stage="distill", inputs={"teacher": teacher.digest}), make("student"))
    stray, _ = store.build(key(stage="prune"), make("stray"))
    for artifact in (data, teacher, student, stray):
        age(store, artifact, 30)
    return data, teacher, student, stray


def test_collect_keeps_what_is_referred_to_and_all_its_ancestors(store):
    data, teacher, student, stray = chain(store)
    removed = store.collect({student.digest, "f" * 64}, older_than_days=7)
    assert removed == [(f"store/prune/{stray.key}", 5)]
    assert {made.stage for made in store.artifacts()} == {data.stage, teacher.stage, student.stage}


def test_collect_keeps_the_ancestors_of_every_artifact_with_the_referenced_bytes(store):
    parents = [store.build(key(stage="data", seed=seed), make(f"data {seed}"))[0] for seed in (0, 1)]
    children = [store.build(key(inputs={"data": parent.digest}), make("same"))[0] for parent in parents]
    for artifact in (*parents, *children):
        age(store, artifact, 30)
    assert children[0].digest == children[1].digest
    assert store.collect({children[0].digest}, older_than_days=7) == []


def test_collect_keeps_what_was_used_lately(store):
    _, _, _, stray = chain(store)
    store.build(key(stage="prune"), never)  # a hit is a use
    assert f"store/prune/{stray.key}" not in dict(store.collect(set(), older_than_days=7))
    assert list(store.artifacts()) == [stray]


def test_collect_of_zero_days_takes_everything_that_nothing_refers_to(store):
    store.build(key(), make())
    assert len(store.collect(set(), older_than_days=0)) == 1
    assert entries(store) == []


def test_a_dry_run_of_collect_tells_and_removes_nothing(store):
    chain(store)
    before = entries(store)
    told = store.collect(set(), older_than_days=7, dry_run=True)
    assert entries(store) == before
    assert told == store.collect(set(), older_than_days=7)
    assert entries(store) == []


def test_collect_sweeps_old_drafts_checkpoints_and_folders_without_a_manifest(store):
    name, then = key().hash(), time.time() - 30 * DAY
    old = [f"store/prune/.{name}-0123abcd", f"store/prune/{name}", f"work/{name}"]
    young = [f"store/export/.{'a' * 64}-0123abcd", f"work/{'b' * 64}"]
    for path in (*old, *young):
        (store.home / path).mkdir(parents=True)
        (store.home / path / "half").write_bytes(b"12345")
    (store.home / old[0] / MANIFEST).touch()  # killed before the rename
    os.utime(store.home / old[0] / MANIFEST, (then, then))
    for path in old:
        os.utime(store.home / path, (then, then))
    assert sorted(store.collect(set(), older_than_days=7)) == [(path, 5) for path in sorted(old)]
    assert entries(store) == sorted(young)


def test_collect_leaves_a_finished_artifact_alone_whose_manifest_it_cannot_read(store):
    made, _ = store.build(key(), make())
    manifest = store.path(made) / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "field_of_a_later_version": 1}))
    age(store, made, 30)
    assert store.collect(set(), older_than_days=7) == []


@pytest.mark.process
def test_collect_leaves_alone_what_another_process_is_building(store, child):
    builder = child(store, "wait_in_make")
    wait_for(child.flags / "started")
    before = entries(store)
    assert len(before) == 2  # its draft and its checkpoints
    assert store.collect(set(), older_than_days=0) == []
    assert entries(store) == before
    (child.flags / "go").touch()
    assert not result_of(builder)["hit"]
    assert store.verify(store.find(key()))


def test_collect_does_not_wait_for_a_lock(store):
    made, _ = store.build(key(), make())
    with FileLock(store.home / "locks" / f"{made.key}.lock"):
        assert store.collect(set(), older_than_days=0) == []
    assert len(store.collect(set(), older_than_days=0)) == 1


# --- copies ---


def test_a_copy_has_the_files_and_not_the_manifest_and_shares_no_inode(store, tmp_path):
    def build(out, work):
        (out / "sub").mkdir()
        (out / "sub" / "weights").write_bytes(b"w" * 5000)
        return make()(out, work)

    made, _ = store.build(key(), build)
    target = tmp_path / "new" / "copy"
    store.copy(made, target)
    assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*")) == [
        "file.txt",
        "sub",
        "sub/weights",
    ]
    assert folder_digest(target)[0] == made.digest
    weights = target / "sub" / "weights"  # onnx refuses external data that is linked
    assert not weights.is_symlink()
    assert weights.stat().st_nlink == 1
    assert [path.name for path in target.parent.iterdir()] == ["copy"]


def test_a_copy_takes_the_place_of_an_older_one_as_a_whole(store, tmp_path):
    old, _ = store.build(key(seed=1), lambda out, work: (out / "old.txt").touch() or {})
    new, _ = store.build(key(seed=2), make())
    store.copy(old, tmp_path / "copy")
    store.copy(new, tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["file.txt"]


def test_a_copy_that_fails_leaves_the_older_one_and_no_draft(store, tmp_path, monkeypatch):
    old, _ = store.build(key(seed=1), make("old"))
    new, _ = store.build(key(seed=2), make("new"))
    (tmp_path / "out").mkdir()
    store.copy(old, tmp_path / "out" / "copy")

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_reflink", fail)
    with pytest.raises(StoreError, match="no space left"):
        store.copy(new, tmp_path / "out" / "copy")
    assert (tmp_path / "out" / "copy" / "file.txt").read_text() == "old"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["copy"]


def test_an_artifact_of_another_store_cannot_be_copied_and_is_said_to_be_missing(store, tmp_path):
    made, _ = store.build(key(), make())
    with pytest.raises(StoreError, match=f"does not hold prune/{made.key}"):
        Store(tmp_path / "other").copy(made, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_replacing_a_folder_that_fails_puts_the_old_one_back(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old").touch()
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "no-draft", tmp_path / "target")
    assert (tmp_path / "target" / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_text_is_written_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file.json"
    write_text_atomic(path, "ä")
    assert path.read_text(encoding="utf-8") == "ä"

    def fail(draft):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "flush", fail)
    with pytest.raises(OSError, match="No space"):
        write_text_atomic(path, "b")
    assert path.read_text(encoding="utf-8") == "ä"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


# --- what is on the disk, and when ---


def make_tree(out, work):
    (out / "sub").mkdir()
    (out / "sub" / "weights.bin").write_bytes(b"w" * 1000)
    (out / "config.json").write_text("{}", encoding="utf-8")
    return {}


def publish(store, refresh, disk_calls):
    """Build the tree, over an older one with `refresh`; return its folder and `around_the_rename`."""
    if refresh:
        store.build(key(), make())
        disk_calls.clear()
    made, found = store.build(key(), make_tree, refresh=refresh)
    assert not found
    return store.path(made), *around_the_rename(disk_calls, store.path(made))


@needs_proc
@pytest.mark.parametrize("refresh", [False, True], ids=["new", "refresh"])
def test_every_file_is_whole_on_the_disk_before_the_rename_that_publishes_it(store, refresh, disk_calls):
    folder, draft, before, _ = publish(store, refresh, disk_calls)
    files = {path.relative_to(folder): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert {path.as_posix() for path in files} == {"config.json", "sub/weights.bin", MANIFEST}
    flushed = {path.relative_to(draft): size for path, size in before if size is not None}
    assert flushed == files


@needs_proc
@pytest.mark.parametrize("refresh", [False, True], ids=["new", "refresh"])
def test_the_manifest_is_the_last_file_on_the_disk_and_the_folder_that_names_it_follows(
    store, refresh, disk_calls
):
    _, draft, before, _ = publish(store, refresh, disk_calls)
    assert [path for path, size in before if size is not None][-1] == draft / MANIFEST
    manifest = [path for path, _ in before].index(draft / MANIFEST)
    assert draft in [path for path, _ in before[manifest:]]


@needs_proc
@pytest.mark.parametrize("refresh", [False, True], ids=["new", "refresh"])
def test_folders_within_are_on_the_disk_before_the_rename(store, refresh, disk_calls):
    _, draft, before, _ = publish(store, refresh, disk_calls)
    assert {path for path, size in before if size is None} >= {draft, draft / "sub"}


@needs_proc
@pytest.mark.parametrize("refresh", [False, True], ids=["new", "refresh"])
def test_the_rename_that_publishes_is_on_the_disk_before_a_build_returns(store, refresh, disk_calls):
    folder, _, _, after = publish(store, refresh, disk_calls)
    assert (folder.parent, None) in after


@needs_proc
@pytest.mark.parametrize("older", [False, True], ids=["new", "replaced"])
def test_a_text_is_on_the_disk_before_its_rename_and_the_rename_before_it_returns(
    tmp_path, older, disk_calls
):
    path = tmp_path / "file.json"
    if older:
        path.write_text("an older text", encoding="utf-8")
    write_text_atomic(path, "ä text")
    draft, before, after = around_the_rename(disk_calls, path)
    assert draft.parent == path.parent
    assert before == [(draft, len("ä text".encode()))]
    assert after == [(path.parent, None)]


# --- a disk that cannot be used ---


def test_a_folder_that_does_not_exist_yet_is_writable_and_is_not_made(tmp_path):
    Store(tmp_path / "a" / "b").check_writable()
    assert not (tmp_path / "a").exists()


def test_too_little_space_is_told_before_the_run(store):
    with pytest.raises(
        StoreError, match=r"MB free, but this run needs about \d+ MB.*pressoir store gc.*PRESSOIR_HOME"
    ):
        store.check_writable(needed_bytes=10**18)


def test_a_home_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is not writable; set PRESSOIR_HOME"):
        Store(tmp_path / "file" / "home").check_writable()


def test_a_read_only_folder_is_refused_early_and_late(tmp_path):
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.geteuid() == 0:  # permission bits do not stop root, a mount does
        mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("this machine does not let root mount a tmpfs")
    else:
        folder.chmod(0o555)
    try:
        with pytest.raises(StoreError, match="is not writable; set PRESSOIR_HOME"):
            Store(folder / "home").check_writable()
        with pytest.raises(StoreError, match="use a writable folder"):
            Store(folder / "home").build(key(), never)
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        else:
            folder.chmod(0o755)


@pytest.mark.process
@needs_root
def test_a_home_below_somebody_elses_closed_folder_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o700)
    script = f"""
import os
from pathlib import Path
from pressoir.store.store import Store
from pressoir.errors import StoreError
os.setuid(65534)
try:
    Store(Path({str(tmp_path / "closed" / "home")!r})).check_writable()
except StoreError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "is not writable; set PRESSOIR_HOME" in done.stdout, done.stderr


def fill_with_bytes(out, work):
    (out / "weights.bin").write_bytes(b"w" * 2_000_000)


def fill_with_safetensors(out, work):
    save_file({"w": np.zeros(500_000, np.float32)}, out / "model.safetensors")


def fill_to_the_brim(out, work):
    """Leave no room for the manifest."""
    with (out / "weights.bin").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"w" * 4096)
        except OSError:
            return {}


@needs_root
@pytest.mark.parametrize("fill", [fill_with_bytes, fill_with_safetensors, fill_to_the_brim])
def test_a_full_disk_says_what_to_do_and_leaves_neither_artifact_nor_draft(small_disk, fill):
    store = Store(small_disk / "home")
    before, _ = store.build(key(seed=1), make())
    with pytest.raises(
        StoreError, match=r"no space left on the device of .*free some space \(`pressoir store gc`\)"
    ):
        store.build(key(), fill)
    assert store.find(key()) is None
    assert entries(store) == sorted([f"store/prune/{before.key}", f"work/{key().hash()}"])
    assert store.verify(before)
    assert not store.build(key(), make())[1]  # there is room again


def test_home_is_the_environments_or_beside_the_work(monkeypatch, tmp_path):
    monkeypatch.setenv("PRESSOIR_HOME", str(tmp_path))
    assert default_home() == Store().home == tmp_path
    monkeypatch.setenv("PRESSOIR_HOME", "~/models")
    assert default_home() == Path.home() / "models"
    monkeypatch.setenv("PRESSOIR_HOME", "")
    monkeypatch.chdir(tmp_path)
    assert Store().home == tmp_path / ".pressoir"


def test_a_home_that_is_renamed_in_the_midst_is_an_error_that_says_so(tmp_path):
    """The stage writes on, or reads what it was given, and finds neither."""
    home, moved = tmp_path / "home", tmp_path / "moved"
    key = StageKey(stage="x", version=1, kind="model", config={}, inputs={}, seed=0)

    def make(out, work):
        home.rename(moved)
        (out / "weights").write_text("new")
        return {}

    with pytest.raises(StoreError, match="was renamed, moved or emptied while x was being built"):
        Store(home).build(key, make)
    made, cached = Store(moved).build(key, lambda out, work: {})
    assert (cached, Store(moved).verify(made)) == (False, True)
