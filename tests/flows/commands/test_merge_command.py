"""`pressoir merge` as it is typed: many values after a flag, refusals of one screen, nothing half-written."""

import json
import shutil
import sys

import click
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from pressoir.flows.cli import main
from pressoir.flows.commands.merge import ManyValues, merge


@pytest.fixture(scope="module")
def pair(tiny_llama, tmp_path_factory):
    """Two fine-tunes, which are a base and the same with a little noise."""
    folder = tmp_path_factory.mktemp("pair")
    first, second = (shutil.copytree(tiny_llama, folder / name) for name in ("first", "second"))
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(second / "model.safetensors")
    noisy = {name: t + 0.05 * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}
    save_file(noisy, second / "model.safetensors", {"format": "pt"})
    return first, second


def call(*arguments):
    if "merge" not in main.commands:
        main.add_command(merge)
    return CliRunner().invoke(main, ["merge", *map(str, arguments)])


def refused(output, *arguments):
    """The message of a command that must fail, and must have left nothing behind."""
    result = call(*arguments, "--output", output)
    assert result.exit_code == 2
    assert not output.exists()
    assert not list(output.parent.glob(f".{output.name}*"))
    return " ".join(result.output.split())


@pytest.mark.process
def test_a_merge_as_it_is_typed(pair, tmp_path):
    text = tmp_path / "Some Text.txt"
    text.write_text("the film was good and the meal was warm\n" * 40, encoding="utf-8")
    out = tmp_path / "merged"
    command = (
        f"--models {pair[0]} {pair[1]} --ratios 0.25 0.75 --method slerp --output {out} --evaluate".split()
    )
    result = call(*command, text)
    assert result.exit_code == 0, result.output
    assert "some-text" in result.output
    first, second, merged = (load_file(folder / "model.safetensors") for folder in (*pair, out))
    assert all(not torch.equal(t, first[n]) and not torch.equal(t, second[n]) for n, t in merged.items())
    assert "t: 0.75" in (out / "mergekit_config.yml").read_text(encoding="utf-8")
    metadata = json.loads((out / "metadata.json").read_text(encoding="utf-8"))
    assert [model["reference"] for model in metadata["models"]] == ["first", "second"]
    assert {path.name for path in tmp_path.iterdir()} == {"merged", text.name}


def test_help_shows_that_a_flag_takes_many_values():
    text = CliRunner().invoke(merge, ["--help"]).output
    for line in ("--models MODEL MODEL …", "--ratios R R …", "--evaluate FILE …", "dare is an alias"):
        assert line in text


@pytest.mark.parametrize(
    "written",
    [
        "--many a b --flag --many c",
        "--many a --many b --flag --many c",
        "--many=a b --flag --many=c",
        "--flag --many a b c",
    ],
)
def test_many_values_in_every_way_of_writing_them(written):
    found = {}

    @click.command(cls=ManyValues)
    @click.option("--many", multiple=True)
    @click.option("--flag", is_flag=True)
    def command(many, flag):
        found.update(many=many, flag=flag)

    assert CliRunner().invoke(command, written.split()).exit_code == 0
    assert found == {"many": ("a", "b", "c"), "flag": True}


def test_a_value_too_many_after_a_flag_of_one_is_refused(pair, tmp_path):
    assert "unexpected extra argument (x)" in refused(
        tmp_path / "out", "--models", *pair, "--method", "slerp", "x"
    )


def test_everything_wrong_is_told_at_once_and_nothing_is_written(pair, tiny_gpt2, tmp_path):
    nowhere = tmp_path / "nowhere"
    models = ("--models", *pair, tiny_gpt2, nowhere)
    text = refused(tmp_path / "out", *models, "--ratios", 1, -1, 1, "--method", "slerp")
    for told in (
        "slerp needs exactly two, not 4",
        "3 given for 4 models",
        "-1 is negative",
        f"model '{nowhere}': no such folder",
        "is a GPT2LMHeadModel",
        "tensors missing",
    ):
        assert told in text


def test_a_model_without_safetensors_is_refused_with_the_way_out(pair, tmp_path):
    folder = shutil.copytree(pair[1], tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    text = refused(tmp_path / "out", "--models", pair[0], folder)
    assert "pickled weights" in text
    assert "safe_serialization=True" in text


def test_an_unknown_field_and_an_unknown_method_are_refused(pair, tmp_path):
    assert "did you mean `density`" in refused(tmp_path / "out", "--models", *pair, "--set", "densty=1")
    assert "'soup' is not one of" in refused(tmp_path / "out", "--models", *pair, "--method", "soup")
    assert "expected model:first-end" in refused(tmp_path / "out", "--models", *pair, "--slices", "0-1")


def test_text_that_is_missing_is_refused_before_any_work(pair, tmp_path):
    text = refused(tmp_path / "out", "--models", *pair, "--evaluate", tmp_path / "none.txt")
    assert "does not exist" in text


@pytest.mark.process
def test_a_killed_merge_leaves_nothing(pair, tmp_path, monkeypatch):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho half > "$4/model.safetensors"\nkill -9 $$\n', encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    assert "killed by signal 9" in refused(tmp_path / "out", "--models", *pair)
    assert {path.name for path in tmp_path.iterdir()} == {"python"}


def test_a_folder_of_somebody_else_is_never_replaced(pair, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work", encoding="utf-8")
    result = call("--models", *pair, "--output", out)
    assert result.exit_code == 2
    assert "was not created by this command" in " ".join(result.output.split())
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


@pytest.fixture
def settled(pair, monkeypatch, tmp_path):
    """A function that calls the command with options, and returns what it would hand to the stage."""
    from pressoir.stages import merge as stage

    found = {}

    def record(inputs, config, context):
        found.update(config=config, inputs=inputs, seed=context.seed)
        if "data" in inputs:
            found["files"] = {
                str(path.relative_to(inputs["data"])): path.read_text(encoding="utf-8")
                for path in inputs["data"].rglob("*")
                if path.is_file()
            }
        for name in (stage.CONFIG, "merge_report.md"):
            (context.out_dir / name).write_text("", encoding="utf-8")

    monkeypatch.setattr(stage, "run", record)

    def run(*options, models=pair):
        result = call("--models", *models, "--output", tmp_path / "out", *options)
        assert result.exit_code == 0, result.output
        return found

    return run


def test_options_become_the_fields_of_a_recipe(settled):
    options = (
        "--method dare --density 0.2 0.8 --seed 9 --allow-crimes --tokenizer-source 1 --set normalize=true"
    )
    found = settled(*options.split())
    config = found["config"]
    assert config.method == "dare_ties"
    assert config.density == (0.2, 0.8)
    assert config.tokenizer_source == 1
    assert config.allow_crimes
    assert config.normalize
    assert found["seed"] == 9


def test_slices_are_written_in_short(settled):
    config = settled("--method", "linear", "--slices", "0:0-1,1:0-1", "0:1-2,1:1-2")["config"]
    assert [[(s.model, s.layer_range) for s in part.sources] for part in config.slices] == [
        [(0, (0, 1)), (1, (0, 1))],
        [(0, (1, 2)), (1, (1, 2))],
    ]


def test_two_texts_of_one_name_are_both_measured(settled, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "Wiki.txt").write_text(f"text {folder}\n", encoding="utf-8")
    files = settled("--evaluate", tmp_path / "a" / "Wiki.txt", tmp_path / "b" / "Wiki.txt")["files"]
    assert files["evaluation/wiki.txt"] == "text a\n"
    assert files["evaluation/wiki-1.txt"] == "text b\n"


@pytest.mark.parametrize("header", ["text\tlabel\n", ""])
def test_a_classifier_is_measured_on_a_table(header, settled, tiny_classifier, tmp_path):
    other = shutil.copytree(tiny_classifier, tmp_path / "other")
    table = tmp_path / "reviews.tsv"
    table.write_text(f"{header}good film\tpositive\nbad film\tnegative\n", encoding="utf-8")
    files = settled("--evaluate", table, models=(tiny_classifier, other))["files"]
    rows = [json.loads(line) for line in files["validation.jsonl"].splitlines()]
    assert rows == [{"text": "good film", "label": 1}, {"text": "bad film", "label": 0}]
    assert json.loads(files["data.json"])["labels"] == ["negative", "positive"]
