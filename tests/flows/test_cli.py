"""The command line: errors that a user can mend, the plan, the output, a kill in the middle, a full disk."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from real_evaluation import until

from pressoir.store.store import Store


def run(*words):
    from pressoir.flows.cli import main

    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def written(real_recipe, tmp_path):
    """The tiny recipe as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(real_recipe.to_yaml(), encoding="utf-8")
    return path


def pickle_only(tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    return folder


MISTAKES = {
    "an unknown field": (["distil.epochs=3"], ["distil: unknown field", "did you mean `distill`?"]),
    "three wrong types at once": (
        ["seed=x", "teacher.epochs=many", "threads=[1]"],
        ["3 errors", "seed:", "teacher.epochs:", "threads:"],
    ),
    "a missing data file": (["data.train=nowhere.tsv"], ["data.train", "nowhere.tsv", "is not a file"]),
    "a base model that does not exist": (
        ["model=no-such/model"],
        ["no-such/model", "HF_HUB_OFFLINE", "local model folder"],
    ),
    "options that contradict": (["prune.sparsity=0.3"], ["prune:", "`sparsity`", "head_sparsity"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_exit_code_2_and_nothing_written(mistake, written, home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    overrides, told = MISTAKES[mistake]
    result = run("compress", written, *(word for text in overrides for word in ("--set", text)))
    assert result.exit_code == 2
    message = result.stderr
    assert all(part in message for part in told), message
    assert len(message.splitlines()) < 24
    assert not home.exists()


def test_a_tracking_server_that_is_down_is_one_line_before_any_work(written, home, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        result = run("compress", written)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"error: MLflow at {uri} does not answer" in result.stderr
    assert not [path for path in (home / "store").glob("*/*") if path.is_dir()]


def test_a_row_without_label_is_named_by_file_and_line(written, home, tmp_path):
    broken = tmp_path / "broken.tsv"
    broken.write_text("text\tlabel\nfine words\tpositive\nno label here\n")
    result = run("compress", written, "--set", f"data.train={broken}")
    assert result.exit_code == 2
    assert "broken.tsv, line 3: no label" in result.stderr
    assert not home.exists()


def test_pickled_weights_are_refused_with_how_to_convert_them(written, home, tmp_path):
    result = run("compress", written, "--set", f"model={pickle_only(tmp_path)}")
    assert result.exit_code == 2
    assert "pickled weights" in result.stderr
    assert "safe_serialization=True" in result.stderr
    assert not home.exists()


@pytest.mark.parametrize(
    ("options", "told"), [("ro", "is not writable"), ("size=2m", "MB free, but this run")]
)
def test_a_read_only_or_full_disk_is_told_before_any_work(options, told, written, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    monkeypatch.setenv("PRESSOIR_HOME", str(disk / "home"))
    try:
        result = run("compress", written)
        assert result.exit_code == 2
        assert told in result.stderr
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_dry_run_prints_every_step_and_builds_none(written, home):
    result = run("compress", written, "--dry-run")
    assert result.exit_code == 0, result.output
    steps = [line.split()[0] for line in result.output.splitlines()[1:11]]
    assert steps == [
        *("data", "teacher", "teacher_outputs", "export", "distill", "prune", "quantize"),
        *("export", "shard", "benchmark"),
    ]
    assert "0 of 10 steps are in the store" in result.output
    assert "GB" in result.output
    assert not home.exists()


def test_the_recipe_of_pairs_passes_the_dry_run(pair_data, pair_classifier, home, tmp_path):
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (pair_data / f"{split}.jsonl").read_text().splitlines()]
        lines = [
            {"sentence1": row["text"], "sentence2": row["text_pair"], "label": row["label"]} for row in rows
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = Path(__file__).parents[2] / "configs" / "mrpc-minilm.yaml"
    settings = [f"data.{split}={tmp_path / split}.jsonl" for split in ("train", "test")]
    settings += [f"model={pair_classifier('bert')}", "data.validation_samples=20"]
    words = [word for setting in settings for word in ("--set", setting)]
    result = run("compress", recipe, *words, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "0 of 10 steps are in the store" in result.output
    refused = run("compress", recipe, *words, "--set", "augment={copies: 1}", "--dry-run")
    assert refused.exit_code == 2
    assert "augment: pairs of texts" in refused.stderr


def test_an_output_folder_with_other_peoples_files_is_left_alone(written, home, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    result = run("compress", written, "--output", tmp_path / "mine")
    assert result.exit_code == 2
    assert "not empty" in result.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_help_is_there_for_every_command():
    for words in (
        (),
        ("compress",),
        ("init",),
        ("store",),
        ("store", "ls"),
        ("store", "verify"),
        ("store", "gc"),
        ("ui",),
        ("push",),
    ):
        result = run(*words, "--help")
        assert result.exit_code == 0
        assert "Usage:" in result.output


def command_line(*words, home, tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "PRESSOIR_"))}
    environment = {
        **kept,
        "PRESSOIR_HOME": str(home),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "pressoir.flows", *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.flow
@pytest.mark.usefixtures("prefect_harness", "no_cold_starts")
def test_a_run_killed_while_distilling_goes_on_without_the_teacher_and_finishes(written, home, tmp_path):
    output = tmp_path / "out"
    words = ("compress", written, "--set", "distill.epochs=15", "--set", "distill.checkpoint_every_steps=5")
    words = (*words, "--set", "distill.student.layers=2", "--output", output)
    killed = command_line(*words, home=home, tmp_path=tmp_path)
    waited_for = (
        "store/teacher_outputs/*/artifact.json",
        "work/*/seed-*/checkpoints/checkpoint-*5/trainer_state.json",
    )

    def distilling():
        assert killed.poll() is None, killed.stdout.read()
        try:
            return all(any(home.glob(pattern)) for pattern in waited_for)
        except FileNotFoundError:  # a folder went while it was being read
            return False

    try:
        until(distilling, "a checkpoint of the student", 300)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        killed.stdout.close()
    teacher = next((home / "store" / "teacher").glob("*/artifact.json")).read_text()
    assert not list((home / "store").glob("distill/[0-9a-f]*"))

    again = command_line(*words, home=home, tmp_path=tmp_path)
    told = again.communicate(timeout=600)[0]
    assert again.returncode == 0, told
    assert "teacher: found in the store" in told
    assert "distill: steps: resuming from checkpoint-" in told
    assert next((home / "store" / "teacher").glob("*/artifact.json")).read_text() == teacher

    files = {"recipe.yaml", "benchmark.json", "report.html"}
    assert {path.name for path in output.iterdir()} == {"model", "report", *files}
    rows = json.loads((output / "benchmark.json").read_text())["rows"]
    assert [row["stage"] for row in rows] == [
        *("teacher", "teacher", "distill", "prune", "quantize", "export", "shard"),
    ]
    assert yaml.safe_load((output / "recipe.yaml").read_text())["distill"]["epochs"] == 15
    assert not list((home / "work").iterdir())

    third = run(*words)
    assert third.exit_code == 0, third.output
    assert third.output.count("found in the store") == 10
    only = run(*words, "--set", "benchmark.warmup=2")
    assert only.output.count("found in the store") == 9
    assert "benchmark: built in" in only.output
    assert_store_commands(home)


def assert_store_commands(home):
    """`ls`, `verify` and `gc` on a store that a run left; a damaged artifact is told."""
    store = Store(home)
    artifacts = list(store.artifacts())
    listed = run("store", "ls").output
    assert all(artifact.key[:12] in listed for artifact in artifacts)
    assert run("store", "verify").exit_code == 0
    kept = run("store", "gc", "--older-than-days", 0)
    assert kept.exit_code == 0
    left = list(store.artifacts())
    assert {"shard", "teacher", "data"} <= {artifact.stage for artifact in left}, "the registered model stays"
    victim = next(artifact for artifact in left if artifact.stage == "shard")
    shard = next(store.path(victim).glob("shard_*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    verified = run("store", "verify")
    assert verified.exit_code == 1
    assert victim.key in verified.output.replace("\n", "")
    shutil.rmtree(store.path(victim))


@pytest.mark.process
def test_bash_completes_commands_and_options(tmp_path):
    """The real shell, with the script as the help says to load it."""
    program = tmp_path / "pressoir"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pressoir.flows "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = """
eval "$(pressoir completion bash)"
complete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _pressoir_completion pressoir; }
complete_words pressoir comp; echo "${COMPREPLY[@]}"
complete_words pressoir compress --dr; echo "${COMPREPLY[@]}"
"""
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    completed = [line.split() for line in done.stdout.splitlines()]
    assert completed == [["completion", "compress"], ["--dry-run"]], done.stderr


@pytest.mark.process
def test_each_artifact_is_one_line_of_80_columns(tmp_path, monkeypatch):
    from pressoir.store.artifact import StageKey
    from pressoir.store.store import Store

    figures = {f"a_long_name_of_a_figure_{number}": 123.456 for number in range(5)}
    key = StageKey(stage="teacher_outputs", version=1, kind="quantized-model", config={}, inputs={}, seed=0)
    Store(tmp_path).build(key, lambda out, work: figures)
    done = subprocess.run(
        [sys.executable, "-m", "pressoir.flows", "store", "ls"],
        env={**os.environ, "PRESSOIR_HOME": str(tmp_path), "COLUMNS": "80"},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout
    for word in ("teacher_outputs", key.hash()[:12], "0.0", "a_long_name_of_a"):
        assert word in lines[1]
    assert max(map(len, lines)) <= 80
