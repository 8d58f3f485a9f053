"""The precision of a training, on CPUs with and without bfloat16 instructions."""

import pytest

from pressoir.pipeline.keys import stage_key
from pressoir.recipe.sections import DistillConfig, PruneConfig, TeacherConfig
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext
from pressoir.system import runtime
from pressoir.training import loop, precision

CONFIGS = {"teacher": TeacherConfig, "distill": DistillConfig, "prune": PruneConfig}


@pytest.fixture(params=[True, False], ids=["bf16", "no-bf16"])
def has(request, monkeypatch):
    monkeypatch.setattr(runtime, "has_bfloat16", lambda: request.param)
    return request.param


@pytest.mark.parametrize("stage", CONFIGS)
def test_auto_is_keyed_as_the_precision_it_means(stage, has):
    def key(**fields):
        return stage_key(stage, CONFIGS[stage](**fields), {}, 0).hash()

    meant, other = ("bfloat16", "float32") if has else ("float32", "bfloat16")
    assert key() == key(precision="auto") == key(precision=meant) != key(precision=other)


def test_the_trainer_gets_what_auto_means_and_a_slow_choice_is_said(has, tmp_path):
    def asked(config):
        return loop._arguments(config, tmp_path, "accuracy", 0).bf16

    assert asked(TeacherConfig()) is has
    assert asked(TeacherConfig(precision="bfloat16"))
    assert not asked(TeacherConfig(precision="float32"))
    assert precision.warning(TeacherConfig()) is None
    assert (precision.warning(TeacherConfig(precision="bfloat16")) is None) is has


def test_the_warning_comes_before_the_training(tiny_classifier, tiny_data, tmp_path, monkeypatch):
    from pressoir.models import loading

    said = []

    class Listener(LogReporter):
        def message(self, text):
            said.append(text)

    monkeypatch.setattr(runtime, "has_bfloat16", lambda: False)
    context = StageContext(tmp_path / "out", tmp_path / "work", Listener(), seed=0, threads=1)
    model, tokenizer = loading.load_classifier(tiny_classifier), loading.load_tokenizer(tiny_classifier)
    config = TeacherConfig(epochs=1, precision="bfloat16")
    loop.fit(model, tokenizer, tiny_data, config, context, what="teacher")
    assert "no bfloat16 instructions" in said[0]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", False),
        ("flags\t\t: fpu avx512f avx512_bf16", True),
        ("flags\t\t: fpu amx_bf16 amx_int8", True),
        ("Features\t: fp asimddp bf16 i8mm", True),
        ("Features\t: fp asimddp", False),
    ],
)
def test_the_instructions_are_read_from_the_flags_of_the_cpu(flags, expected, monkeypatch):
    text = f"processor\t: 0\nmodel name\t: A CPU\n{flags}\n"
    monkeypatch.setattr(runtime.Path, "exists", lambda self: True)
    monkeypatch.setattr(runtime.Path, "read_text", lambda self, encoding: text)
    assert runtime.has_bfloat16() is expected
