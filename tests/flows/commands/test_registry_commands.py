"""`pressoir registry`: what each command prints, refuses, and leaves behind."""

import io
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console
from safetensors.numpy import save_file

from pressoir.flows.cli import main
from pressoir.flows.commands import registry
from pressoir.registry.registry import Registry
from pressoir.store.artifact import StageKey
from pressoir.store.store import Store
from pressoir.system.files import folder_digest


def run(*words):
    return CliRunner().invoke(main, ["registry", *(str(word) for word in words)])


@pytest.fixture(autouse=True)
def empty_hub(tmp_path, monkeypatch):
    """No model of this machine's own cache of the hub is seen."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "model")


def make_model(folder, value=1.0):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    save_file({"w": np.full(50_000, value, np.float32)}, folder / "model.safetensors")
    return folder


def test_help_is_there_for_every_command():
    for words in ((), *([name] for name in registry.registry.commands)):
        result = run(*words, "--help")
        assert result.exit_code == 0
        assert "Usage:" in result.output
    assert set(registry.registry.commands) == {"add", "list", "show", "verify", "remove", "gc"}


# --- add ---


def test_add_says_what_it_registered(model, home):
    result = run("add", "mine", "--path", model, "--metric", "perplexity=21.5", "--metric", "speedup=2")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "registered mine: causal-lm, 0.2 MB, MIT",
        f"  at      {model}",
        f"  digest  {folder_digest(model)[0]}",
    ]
    assert Registry(home).get("mine").metrics == {"perplexity": 21.5, "speedup": 2.0}


def test_add_again_updates_and_other_files_need_force(model, home, tmp_path):
    run("add", "mine", "--path", model)
    again = run("add", "mine", "--path", model, "--name", "My model", "--quantization", "q4")
    assert "updated mine: causal-lm, 0.2 MB, q4, MIT" in again.output
    other = make_model(tmp_path / "other", value=2.0)
    refused = run("add", "mine", "--path", other)
    assert refused.exit_code == 2
    assert "'mine' is already registered with different files" in refused.stderr
    assert Registry(home).get("mine").name == "My model"
    forced = run("add", "mine", "--path", other, "--force")
    assert "replaced mine: causal-lm" in forced.output
    assert Registry(home).get("mine").urls.base == str(other)


def test_add_takes_any_reference_and_mirrors(model, home):
    run("add", "mine", "--path", model)
    result = run("add", "yours", "--from", "mine", "--type", "translation", "--mirror", "https://host/m")
    assert "registered yours: translation" in result.output
    assert Registry(home).get("yours").urls.mirrors == ("https://host/m",)


def test_add_says_when_no_license_was_found_and_when_a_shipped_model_is_hidden(model, home):
    (model / "README.md").unlink()
    result = run("add", "bert-base-uncased", "--path", model)
    assert "no license found; specify it with --license" in result.output
    assert (
        "overrides the shipped model with this id; to undo: pressoir registry remove bert-base-uncased"
        in result.output
    )
    assert "NOASSERTION" not in run("add", "mine", "--path", model, "--license", "MIT").output


def test_add_takes_the_license_by_the_name_of_version_0_1_0_too(model, home):
    run("add", "mine", "--path", model, "--licence", "BSD-3-Clause")
    assert Registry(home).get("mine").license == "BSD-3-Clause"
    assert "--licence" not in run("add", "--help").output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "--path FOLDER or --from REFERENCE"),
        (("--path", "{model}", "--from", "x"), "--path FOLDER or --from REFERENCE"),
        (("--path", "nowhere"), "--path nowhere: no such folder"),
        (("--from", "nobody/nothing"), "not in the hub cache"),
        (("--path", "{model}", "--metric", "speedup"), "expected name=number"),
        (("--path", "{model}", "--metric", "speedup=fast"), "expected name=number"),
        (("--path", "{model}", "--metric", "speedup=inf"), "expected name=number"),
        (("--path", "{model}", "--metric", "=2"), "expected name=number"),
        (("--path", "{model}", "--type", "poetry"), "'poetry' is not one of"),
        (("--path", "{model}", "--mirror", ""), "model '': no such folder"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(words, told, model, home):
    result = run("add", "mine", *(word.format(model=model) for word in words))
    assert result.exit_code == 2
    assert told in result.stderr
    assert not (home / "models.json").exists()


def test_a_folder_that_is_no_model_is_refused_as_everywhere_else(home, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    result = run("add", "mine", "--path", tmp_path)
    assert result.exit_code == 2
    assert "only pickled weights" in result.stderr


def test_a_broken_registry_is_told_by_its_line_and_kept(model, home):
    home.mkdir()
    (home / "models.json").write_text('{\n  "models": {,}\n}\n')
    for words in (("add", "mine", "--path", model), ("list",), ("show", "mine"), ("verify",), ("gc",)):
        result = run(*words)
        assert result.exit_code == 2
        assert "models.json, line 2: not valid JSON" in result.stderr
    assert (home / "models.json").read_text() == '{\n  "models": {,}\n}\n'


# --- list and show ---


def on_terminal(width, monkeypatch, *words):
    """What a command prints on a terminal of that width, and how it ended."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(registry, "console", console)
    result = run(*words)
    return console.file.getvalue(), result.exit_code


def test_list_gives_a_pipe_one_whole_line_a_model(model, home):
    run("add", "m" * 63, "--path", model)
    lines = run("list").output.splitlines()
    assert lines[0].split() == ["id", "type", "MB", "weights", "from", "license", "registered"]
    created = Registry(home).get("m" * 63).created_at[:10]
    assert lines[-1].split() == ["m" * 63, "causal-lm", "0.2", "float", "own", "MIT", created]
    assert "bert-base-uncased" in lines[2]
    assert lines[2].split()[-2:] == ["shipped", "Apache-2.0"]


@pytest.mark.parametrize("width", [80, 120])
def test_list_fits_the_terminal(width, model, home, monkeypatch):
    run("add", "a-model-of-speech", "--path", model, "--type", "automatic-speech-recognition")
    table, _ = on_terminal(width, monkeypatch, "list")
    lines = table.splitlines()
    assert len(lines) == 5  # nothing was wrapped
    assert max(map(len, lines)) <= width
    assert "automatic-speech-recognition" in lines[1]
    assert ("license" in lines[0]) is (width == 120)


def test_list_folds_a_long_id_and_cuts_nothing(model, home, monkeypatch):
    run("add", "m" * 63, "--path", model, "--type", "automatic-speech-recognition")
    table, _ = on_terminal(80, monkeypatch, "list")
    assert max(map(len, table.splitlines())) <= 80
    assert sum(line.split(" ")[0].count("m") for line in table.splitlines() if line.startswith("mm")) == 63
    assert "automatic-speech-recognition" in table


def test_list_can_be_of_one_type_and_for_programs(model, home):
    run("add", "mine", "--path", model, "--metric", "speedup=2")
    assert "mine" not in run("list", "--type", "translation").output
    (entry,) = json.loads(run("list", "--type", "causal-lm", "--json").output)
    assert entry == Registry(home).get("mine").model_dump(mode="json")


def test_show_prints_every_field_with_digests_whole(model, home):
    run("add", "mine", "--path", model, "--metric", "speedup=2", "--mirror", "https://host/[m]")
    entry = Registry(home).get("mine")
    shown = {line.split()[0]: line.split()[1:] for line in run("show", "mine").output.splitlines()}
    fields = {*type(entry).model_fields, *type(entry.urls).model_fields} - {"urls"}
    assert set(shown) == fields
    assert shown["digest"] == [entry.digest]
    assert shown["metrics"] == ["speedup", "2"]
    assert shown["mirrors"] == ["https://host/[m]"]
    assert shown["revision"] == ["–"]
    assert json.loads(run("show", "mine", "--json").output) == entry.model_dump(mode="json")


def test_an_unknown_id_suggests_the_nearest(model, home):
    run("add", "mine", "--path", model)
    for words in (("show", "mien"), ("verify", "mien"), ("remove", "mien")):
        result = run(*words)
        assert result.exit_code == 2
        assert "did you mean 'mine'?" in result.stderr


# --- verify ---


def test_verify_tells_ok_from_damaged_and_ends_accordingly(model, home, tmp_path):
    run("add", "mine", "--path", model)
    run("add", "other", "--path", make_model(tmp_path / "other"))
    assert run("verify", "mine", "other").exit_code == 0
    (model / "config.json").write_text('{"architectures": []}')
    result = run("verify", "mine", "other")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0].split() == ["damaged", "mine"]
    assert lines[1].startswith(f"             {model} has digest ")
    assert lines[2].split() == ["ok", "other"]
    assert lines[3] == "2 models: 1 ok, 1 damaged, 0 unreachable"


def test_verify_does_not_fail_for_what_is_elsewhere_unless_it_is_to_fetch(home):
    result = run("verify", "bert-base-uncased")
    assert result.exit_code == 0
    assert result.output.splitlines()[0].split() == ["unreachable", "bert-base-uncased"]
    assert "1 model: 0 ok, 0 damaged, 1 unreachable" in result.output
    assert run("verify", "bert-base-uncased", "--fetch").exit_code == 1
    assert not home.exists()


# --- remove and gc ---


def test_remove_forgets_the_entry_and_says_that_the_files_stay(model, home):
    run("add", "mine", "--path", model)
    result = run("remove", "mine")
    assert result.output.splitlines() == [f"removed mine; the model files remain at {model}"]
    assert (model / "model.safetensors").exists()
    assert not Registry(home).own()


def test_a_shipped_model_is_not_removed_but_comes_back_when_ones_own_is(model, home):
    refused = run("remove", "bert-base-uncased")
    assert refused.exit_code == 2
    assert "ships with Pressoir and cannot be removed" in refused.stderr
    run("add", "bert-base-uncased", "--path", model)
    assert "the shipped model with this id is visible again" in run("remove", "bert-base-uncased").output


def test_gc_forgets_what_is_gone_and_a_dry_run_only_says_so(model, home, tmp_path):
    run("add", "kept", "--path", make_model(tmp_path / "kept"))
    run("add", "gone", "--path", model)
    shutil.rmtree(model)
    told = run("gc", "--dry-run").output.splitlines()
    assert told == [f"gone: {model} does not exist", "would remove 1 of your entries"]
    assert set(Registry(home).own()) == {"kept", "gone"}
    assert run("gc").output.splitlines() == [told[0], "removed 1 of your entries"]
    assert set(Registry(home).own()) == {"kept"}
    assert run("gc").output.splitlines() == ["removed 0 of your entries"]


def test_gc_with_the_store_frees_what_only_the_forgotten_needed(model, home):
    store = Store(home)

    def build(stage, inputs):
        key = StageKey(stage=stage, version=1, kind="model", config={}, inputs=inputs, seed=0)

        def make(out, work):
            shutil.copytree(model, out, dirs_exist_ok=True)
            (out / "made_by.txt").write_text(stage)
            return {}

        return store.build(key, make)[0]

    source, stray = build("merge", {}), build("prune", {})
    kept, gone = (build(stage, {"model": source.digest}) for stage in ("quantize", "shard"))
    run("add", "kept", "--from", f"store:quantize/{kept.key}")
    run("add", "gone", "--from", f"store:shard/{gone.key}")
    shutil.rmtree(store.path(gone))
    everything = ("gc", "--store", "--older-than-days", "0")
    told = run(*everything, "--dry-run").output
    assert f"store/prune/{stray.key}: 0.2 MB" in told
    assert "would remove 1 from the store, 0.2 MB" in told
    assert {artifact.stage for artifact in store.artifacts()} == {"merge", "quantize", "prune"}
    assert "removed 1 from the store, 0.2 MB" in run(*everything).output
    assert {artifact.stage for artifact in store.artifacts()} == {"merge", "quantize"}
    run("remove", "kept")
    run(*everything)
    assert not list(store.artifacts())
