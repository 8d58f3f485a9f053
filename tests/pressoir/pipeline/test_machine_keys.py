"""What is measured belongs to a machine; what is computed only says on which one it was."""

import pytest

from pressoir.pipeline import build
from pressoir.pipeline.sources import Sources
from pressoir.recipe.sections import (
    BenchmarkConfig,
    PruneConfig,
    PruneTarget,
    TeacherConfig,
    VocabularyConfig,
)
from pressoir.sources import resolve
from pressoir.store.store import Store
from pressoir.system import runtime

MEASURED = {
    "benchmark": BenchmarkConfig(),
    "prune": PruneConfig(target=PruneTarget(latency_ms=1.0)),
}
COMPUTED = {"teacher": TeacherConfig(), "prune": PruneConfig(target=PruneTarget(size_mb=1.0))}


@pytest.fixture
def machine(monkeypatch):
    """Sets what the machine is."""

    def machine(**values):
        whole = {"cpu": "A", "cpu_features": "avx2", "cpus": "2", "system": "Linux"}
        monkeypatch.setattr(
            runtime, "describe_machine", lambda threads: {**whole, "threads": str(threads), **values}
        )

    machine()
    return machine


@pytest.mark.parametrize("stage", MEASURED)
def test_what_is_measured_holds_for_one_number_of_threads_on_one_cpu(stage, machine, tmp_path):
    def key(threads):
        return Sources(Store(tmp_path)).key(stage, MEASURED[stage], {}, 0, (), threads).hash()

    first = key(1)
    assert key(1) == first != key(2)
    machine(cpu_features="avx2 avx512_vnni")
    assert key(1) != first


@pytest.mark.parametrize("stage", COMPUTED)
def test_what_is_computed_is_found_by_any_number_of_threads(stage, machine, tmp_path):
    def key(threads):
        return Sources(Store(tmp_path)).key(stage, COMPUTED[stage], {}, 0, (), threads).hash()

    first = key(1)
    machine(cpu="B")
    assert key(2) == first


def test_a_result_from_another_machine_is_named_as_such(machine, tmp_path, reporter, replace_run):
    replace_run("vocabulary", lambda inputs, config, context: {})

    def built(threads):
        reporter.messages.clear()
        return build.build_stage(
            *("vocabulary", VocabularyConfig(), {}, Store(tmp_path), reporter), seed=0, threads=threads
        )

    made, _ = built(2)
    assert (made.environment["cpu"], made.environment["threads"]) == ("A", "2")
    assert built(2)[1]
    assert reporter.messages == []
    machine(cpu="B")
    assert built(1)[1]
    assert "made with 2 threads on A (avx2)" in reporter.messages[-1]


@pytest.mark.parametrize(
    "file",
    ["chat_template.jinja", "additional_chat_templates/tool.jinja", "bpe.codes", "prophetnet.tokenizer"],
)
def test_every_file_that_a_tokenizer_loads_is_part_of_a_models_digest(file, tiny_bert, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    digests = [resolve.resolve(str(folder), Store(tmp_path)).digest]
    for text in ("one", "other"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text)
        digests.append(resolve.resolve(str(folder), Store(tmp_path)).digest)
    assert len(set(digests)) == 3
