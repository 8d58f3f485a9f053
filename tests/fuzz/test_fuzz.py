"""Damaged inputs of every kind: each is used, or refused with one of the product's own errors; nothing else.

`make fuzz` runs many; `FUZZ_INPUTS` says how many of each class.
"""

import os
import shutil

import forked
import pytest
import targets

from pressoir.formats.tensor_bytes import INDEX
from pressoir.quantization import weight_only
from pressoir.recipe.sections import QuantizeConfig, ShardConfig
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext
from pressoir.stages import quantize, shard
from pressoir.store.artifact import StageKey
from pressoir.store.store import Store

INPUTS = int(os.environ.get("FUZZ_INPUTS", "200"))
pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # Python 3.12: forks beside threads
]


def stage(folder, run, inputs, config):
    """The folder that a stage fills."""
    folder.mkdir()
    work = folder.with_name(f"{folder.name}-work")
    work.mkdir()
    run(inputs, config, StageContext(folder, work, LogReporter(), seed=0, threads=1))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_classifier, tiny_llama, tiny_data):
    """Valid examples, by name."""
    base = tmp_path_factory.mktemp("examples")
    int8 = stage(base / "int8", quantize.run, {"model": tiny_classifier, "data": tiny_data}, QuantizeConfig())
    q4 = QuantizeConfig(scheme="q4", algorithm="rtn")
    packed = stage(base / "packed", weight_only.run, {"model": tiny_llama}, q4)
    graph = targets.make_graph(base / "graph")
    two = ShardConfig(shards=2)
    cut, cut_graph = (
        stage(base / f"{source.name}-cut", shard.run, {"model": source}, two)
        for source in (tiny_llama, graph)
    )
    store = Store(base / "home")
    key = StageKey(stage="teacher", version=1, kind="model", config={}, inputs={}, seed=0)

    def build(out, work):
        shutil.copytree(
            tiny_classifier, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("artifact.json")
        )
        return {"accuracy": 0.5}

    artifact = store.path(store.build(key, build)[0])
    assert (cut / INDEX).exists()
    return {
        "configurations": targets.Configurations(),
        "overrides": targets.Overrides(),
        "safetensors": targets.Safetensors(tiny_classifier, int8, packed),
        "index": targets.Index(cut),
        "manifests": targets.Manifests(cut, cut_graph, artifact=artifact),
        "graphs": targets.Graphs(graph, cut_graph),
        "models": targets.Models(targets.registry_text(tiny_llama)),
        "settings": targets.Settings(tiny_classifier, tiny_llama),
        "data": targets.Data(),
    }


CLASSES = "configurations overrides safetensors index manifests graphs models settings data".split()


@pytest.mark.parametrize("name", CLASSES)
def test_every_input_is_used_or_refused(name, made, tmp_path):
    accepted, refused, faults = forked.run(name, made[name], INPUTS, tmp_path)
    print(f"{name}: {accepted} accepted, {refused} refused, {len(faults)} faults")
    assert not faults, "\n".join(faults[:10])
    assert accepted > 0
    assert refused > INPUTS // 10


def escape(rng, own):
    def use():
        raise ValueError("not one of the product's own")

    return [use]


def write_outside(rng, own):
    return [lambda: (own / "outside" / "new").touch()]


def take_memory(rng, own):
    return [lambda: bytearray(2 * forked.MEMORY_BYTES)]


def die(rng, own):
    return [os.abort]


def wait(rng, own):
    os.mkfifo(own / "input" / "pipe")
    return [(own / "input" / "pipe").read_bytes]


def compute(rng, own):
    return [lambda: all(True for _ in iter(int, 1))]


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (escape, "ValueError: not one of the product's own"),
        (write_outside, "written outside of the output"),
        (take_memory, "MemoryError"),
        (die, "the process ended by SIGABRT"),
        (wait, "Timeout"),
        (compute, "the process ended by SIGPROF"),
    ],
)
def test_what_goes_wrong_is_told_for_each_input(target, told, tmp_path, monkeypatch):
    monkeypatch.setattr(forked, "SECONDS", 1)
    monkeypatch.setattr(forked, "WAITING_SECONDS", 10 if target is compute else 1)
    accepted, refused, faults = forked.run("bad", target, 3, tmp_path)
    assert (accepted, refused, len(faults)) == (0, 0, 3)
    assert all(told in fault for fault in faults), faults
