"""Declarations of stages: read in an instant, checked when they are loaded, open to other packages."""

import subprocess
import sys

import pytest

from pressoir.errors import ExtensionError
from pressoir.extensions import loader
from pressoir.pipeline.keys import stage_key
from pressoir.recipe.sections import ShardConfig
from pressoir.stage import GROUP, Stage, load_stage, outside_stages, stage_names


def declared(**fields):
    return Stage(
        **{"name": "smooth", "version": 1, "kind": "model", "config": ShardConfig, "run": dict, **fields}
    )


@pytest.mark.process
def test_all_declarations_are_read_without_torch_prefect_or_mlflow():
    program = (
        "import sys; from pressoir.stage import load_stage, stage_names\n"
        "print(*[load_stage(name).name for name in stage_names()])\n"
        "print({'torch', 'prefect', 'mlflow', 'transformers', 'onnxruntime', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    names, heavy = done.stdout.splitlines()
    assert {"data", "teacher", "distill", "prune", "quantize", "export", "benchmark"} <= set(names.split())
    assert heavy == "set()"


def test_an_unknown_stage_is_refused_by_name():
    with pytest.raises(ExtensionError, match="no 'os'"):
        load_stage("os")
    with pytest.raises(ExtensionError, match="did you mean 'distill'"):
        load_stage("distil")


def test_runs_are_named_after_the_stage_or_by_its_label():
    assert declared().label_of({}) == "smooth"
    assert declared(label="smooth {model}").label_of({"model": "x", "data": None}) == "smooth x"


def test_a_stage_that_follows_what_cannot_be_followed_is_refused():
    assert declared(after="prune").after == "prune"
    with pytest.raises(ExtensionError, match="follows 'data'; it can follow teacher, vocabulary"):
        declared(after="data")


def test_a_stage_of_another_package_is_found_and_keyed_with_its_version(smooth):
    before = {name: stage_key(name, ShardConfig(), {}, 0).hash() for name in ("shard", "export")}
    smooth.install(version="1.2")
    assert "smooth" in stage_names()
    assert list(outside_stages()) == ["smooth"]
    config = load_stage("smooth").config()
    key = stage_key("smooth", config, {"model": "0"}, 0)
    assert key.config == {"strength": 0.5, "from": "pressoir-smooth 1.2"}
    assert before == {name: stage_key(name, ShardConfig(), {}, 0).hash() for name in before}, "ours do not"
    smooth.install(version="1.3")
    assert stage_key("smooth", config, {"model": "0"}, 0).hash() != key.hash()


@pytest.mark.parametrize("value", ["json", "pressoir.stages.shard:STAGE"])
def test_an_entry_that_names_no_stage_of_its_name_is_refused(smooth, value):
    smooth.install(value=value)
    with pytest.raises(ExtensionError, match="has 'smooth', but what it names is not a Stage"):
        load_stage("smooth")


def test_a_stage_of_another_package_without_a_place_is_refused(smooth):
    smooth.install(after="None")
    with pytest.raises(ExtensionError, match="'smooth' has no place"):
        outside_stages()


def test_nothing_of_another_package_is_left_after_a_test():
    assert all(loader.origin(GROUP, name) is None for name in stage_names())
