"""`pressoir shard`, `unshard` and `verify`: what they write, what they refuse, what they find."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner
from safetensors import safe_open

from pressoir.formats.tensor_bytes import checkpoint_tensors


def run(*words):
    from pressoir.flows.cli import main

    return CliRunner().invoke(main, [str(word) for word in words])


def told(result):
    """Its message, in one line: the terminal's width breaks lines where it likes."""
    return " ".join((result.stderr or result.output).split())


@pytest.fixture
def sharded(tiny_llama, tmp_path):
    result = run("shard", "--model", tiny_llama, "--output", tmp_path / "sharded", "--shards", 3)
    assert result.exit_code == 0, result.output
    assert "3 shards" in result.output
    return tmp_path / "sharded"


def shards(folder):
    return sorted(path.name for path in folder.glob("shard_*.safetensors"))


def test_there_and_back_gives_the_same_tensors(sharded, tiny_llama, tmp_path):
    assert shards(sharded) == [f"shard_0{i}.safetensors" for i in range(3)]
    assert run("verify", sharded).exit_code == 0
    result = run("unshard", "--model", sharded, "--output", tmp_path / "whole")
    assert result.exit_code == 0, result.output
    with (
        safe_open(tmp_path / "whole" / "model.safetensors", "np") as new,
        safe_open(tiny_llama / "model.safetensors", "np") as old,
    ):
        assert set(new.keys()) == set(old.keys())
        for name in old.keys():  # noqa: SIM118
            assert new.get_tensor(name).tobytes() == old.get_tensor(name).tobytes()
    assert run("verify", tmp_path / "whole").exit_code == 0


def test_the_size_decides_when_nothing_is_said(tiny_llama, tmp_path):
    assert run("shard", "--model", tiny_llama, "--output", tmp_path / "out").exit_code == 0
    assert len(shards(tmp_path / "out")) == 2


def test_a_largest_size_is_kept(tiny_llama, tmp_path):
    words = ("shard", "--model", tiny_llama, "--output", tmp_path / "out", "--max-shard-size", 0.1)
    assert run(*words).exit_code == 0
    sizes = [(tmp_path / "out" / name).stat().st_size for name in shards(tmp_path / "out")]
    assert len(sizes) > 3
    assert max(sizes) <= 100_000


def test_sharding_again_replaces_the_shards_and_nobody_elses_files(sharded, tiny_llama, tmp_path):
    assert run("shard", "--model", tiny_llama, "--output", sharded, "--shards", 2).exit_code == 0
    assert len(shards(sharded)) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for words in (("shard", "--model", tiny_llama), ("unshard", "--model", sharded)):
        result = run(*words, "--output", tmp_path / "mine")
        assert result.exit_code == 2
        assert "not empty" in told(result)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shards", 0], r"shards: Input should be greater than 0 \(got 0\)"),
        (["--shards", -2], r"shards: Input should be greater than 0 \(got -2\)"),
        (["--max-shard-size", 0], r"max_shard_size_mb: Input should be greater than 0"),
        (["--shards", 2, "--max-shard-size", 1], "specify either `shards` or `max_shard_size_mb`, not both"),
        (["--shards", 22], "shards is 22, but the model has 21 tensors; specify at most 21"),
    ],
)
def test_a_count_that_cannot_be_is_one_message_and_nothing_written(tiny_llama, tmp_path, options, message):
    assert len(checkpoint_tensors(tiny_llama)) == 21
    result = run("shard", "--model", tiny_llama, "--output", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert re.search(message, told(result)), told(result)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_there_or_is_none_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    for model, message in (("./nowhere", "no such folder"), (tmp_path / "empty", "nor safetensors weights")):
        result = run("shard", "--model", model, "--output", tmp_path / "out")
        assert result.exit_code == 2
        assert message in told(result)
        assert not (tmp_path / "out").exists()


def test_pickled_weights_are_not_taken(tmp_path):
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    result = run("shard", "--model", tmp_path / "pickled", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "safetensors" in told(result)


def test_unsharding_what_is_not_sharded_is_refused(tiny_llama, tmp_path):
    result = run("unshard", "--model", tiny_llama, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "is not a sharded model" in told(result)
    assert not (tmp_path / "out").exists()


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("name", ["shard_01.safetensors", "config.json", "tokenizer.json"])
def test_verify_names_what_is_damaged_with_exit_code_1(sharded, name):
    flip(sharded / name)
    result = run("verify", sharded)
    assert result.exit_code == 1
    assert f"{name} was modified" in told(result)
    assert result.output.count("damaged") == 1


def test_verify_names_everything_that_is_damaged(sharded):
    flip(sharded / "shard_00.safetensors")
    (sharded / "shard_02.safetensors").unlink()
    output = told(run("verify", sharded))
    assert "shard_00.safetensors was modified" in output
    assert "shard_02.safetensors is missing" in output


def test_verify_of_a_plain_model_says_that_it_has_no_checksums(tiny_llama, tmp_path):
    result = run("verify", tiny_llama)
    assert result.exit_code == 0
    assert "headers and lengths only" in told(result)
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-100])
    result = run("verify", copy)
    assert result.exit_code == 1
    assert "model.safetensors is not a complete safetensors file" in told(result)


def test_verify_of_an_artifact_compares_its_digest(tiny_llama, tmp_path):
    from pressoir.store.artifact import StageKey
    from pressoir.store.store import Store

    def make(out, work):
        shutil.copytree(tiny_llama, out, dirs_exist_ok=True)
        return {}

    store = Store(tmp_path)
    key = StageKey(stage="merge", version=1, kind="model", config={}, inputs={}, seed=0)
    folder = store.path(store.build(key, make)[0])
    assert run("verify", folder).exit_code == 0
    (folder / "config.json").write_text("{}")
    result = run("verify", folder)
    assert result.exit_code == 1
    assert "a file was modified" in told(result)


def test_verify_looks_into_the_folders_of_a_command_that_wrote_several(sharded, tiny_llama, tmp_path):
    whole = tmp_path / "result"
    shutil.copytree(sharded, whole / "shards")
    shutil.copytree(tiny_llama, whole / "quantized")
    assert run("verify", whole).output.count("ok ") == 2
    flip(whole / "shards" / "shard_00.safetensors")
    result = run("verify", whole)
    assert result.exit_code == 1
    assert "shard_00.safetensors was modified" in told(result)
    assert result.output.count("ok ") == 1


@pytest.mark.parametrize("version", [1, 2])
def test_verify_of_quantised_weights_compares_them_with_their_description(tiny_llama, tmp_path, version):
    folder = shutil.copytree(tiny_llama, tmp_path / "quantised")
    layer = {
        **{"kind": "linear", "role": "head", "bits": 4, "block_size": 16},
        **{"shape": [320, 64], "relative_error": 0.1},
    }
    description = {"format_version": version, "layers": {"lm_head": layer}}
    (folder / "quantization.json").write_text(json.dumps(description))
    result = run("verify", folder)
    assert result.exit_code == 1
    assert "lm_head" in told(result)


def test_verify_of_a_graph_finds_data_that_is_missing(tmp_path):
    from onnx import TensorProto, helper

    weight = TensorProto(
        name="w", dims=[4, 4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "model.onnx.data"
    node = helper.make_node("Identity", ["w"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])
    model = helper.make_model(helper.make_graph([node], "g", [], [output], [weight]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "model.onnx.data").write_bytes(bytes(64))
    assert run("verify", tmp_path).exit_code == 0
    (tmp_path / "model.onnx.data").write_bytes(bytes(60))
    result = run("verify", tmp_path)
    assert result.exit_code == 1
    assert "tensor 'w' ends at 64" in told(result)


def test_verify_of_no_model_at_all_is_an_error(tmp_path):
    for folder, message in ((tmp_path, "contains no model"), (tmp_path / "nowhere", "is not a folder")):
        result = run("verify", folder)
        assert result.exit_code == 2
        assert message in told(result)


@pytest.mark.process
def test_the_snippets_for_people_run_as_they_stand(sharded):
    snippets = re.findall(r"```python\n(.*?)```", (sharded / "SHARDING_INFO.md").read_text(), flags=re.S)
    assert len(snippets) == 4
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(snippets)],
        cwd=sharded,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "all files are intact" in done.stdout
    assert "model.embed_tokens.weight F32 [320, 64]" in done.stdout
