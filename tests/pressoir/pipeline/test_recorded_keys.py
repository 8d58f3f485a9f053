"""Recorded store keys: a result that is stored today is found tomorrow, wherever the code that names it lies.

`recorded_keys.json` holds the keys of every stage, of every step of the shipped recipes, the digests of a
model folder, and one whole artifact as it stands on disk. Nothing in it depends on this machine: inputs are
invented digests, files are written here, and the versions of the decisive packages are those of the record.

A changed key makes everybody build anew what they have, so a failure here is a mistake unless the results of
the stage themselves change: its `VERSION` was raised on purpose, a section has a new field, a shipped recipe
or the embedded corpus another content, another package decides. Only then record again, and read the
difference before committing it:

    PYTHONPATH=. python tests/pressoir/test_recorded_keys.py
"""

import hashlib
import importlib.metadata
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from pressoir.pipeline import keys as keys_module
from pressoir.pipeline.keys import stage_key
from pressoir.pipeline.plan import Planner
from pressoir.pipeline.sources import Sources
from pressoir.recipe.recipe import Recipe
from pressoir.recipe.sections import (
    AugmentConfig,
    BenchmarkConfig,
    DataConfig,
    DistillConfig,
    ExportConfig,
    MergeConfig,
    PruneConfig,
    QuantizeConfig,
    ShardConfig,
    TeacherConfig,
    TextConfig,
    VocabularyConfig,
)
from pressoir.sources import resolve
from pressoir.sources.resolve import Source
from pressoir.stage import stage_names
from pressoir.store.artifact import DECISIVE_PACKAGES, Artifact, StageKey
from pressoir.store.store import Store
from pressoir.system import runtime
from pressoir.system.files import MANIFEST

RECORD = Path(__file__).with_name("recorded_keys.json")
CONFIGS = Path(__file__).parents[3] / "configs"
OTHERS = ("evaluation-", "search-", "serving-")
SHIPPED = sorted(path for path in CONFIGS.glob("*.yaml") if not path.name.startswith(OTHERS))
SEED = 42
STAGES = stage_names()
MACHINE = {
    "cpu": "Intel(R) Xeon(R) Processor",
    "cpu_features": "avx2 avx512f avx512_vnni avx_vnni avx512_bf16 amx_int8 amx_bf16",
}
# One of them is not installed.
VERSIONS = {
    "torch": "2.0.1+cpu",
    "transformers": "4.0.2",
    "onnx": "1.0.3",
    "onnxruntime": "1.0.4",
    "optimum-onnx": "0.0.5",
    "safetensors": "0.0.6",
    "mergekit": None,
    "tokenizers": "0.0.7",
    "numpy": "0.0.8",
    "datasets": "0.0.9",
}
# The contents alone go into keys, so they need not be of use to anybody.
FILES = {
    "train.tsv": "text\tlabel\na good film\tpositive\na bad film\tnegative\n",
    "validation.csv": "text,label\na fine meal,positive\n",
    "test.JSONL": '{"text": "a dull hotel", "label": "negative"}\n',
    "unlabelled.txt": "the phone was there\n",
    "calibration.txt": "Ein Satz zum Eichen – mit Umlauten: äöü.\n",
    "wiki.txt": "The first of two texts.\n",
    "plays.txt": "The second of two texts.\n",
    "hub/README.md": "a data set\n",
    "hub/data/train.jsonl": '{"text": "warm", "label": 1}\n',
    "model/config.json": '{"model_type": "bert", "architectures": ["BertModel"]}\n',
    "model/model.safetensors": "\x40\0\0\0\0\0\0\0"
    + '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(64)
    + "abcd",
    "model/tokenizer.json": "{}\n",
    "model/notes.txt": "no part of the model\n",
}


def fake_digest(name):
    """What stands for the digest of an input."""
    return hashlib.sha256(name.encode()).hexdigest()


def given(*names):
    """Invented digests of these inputs."""
    return {name: fake_digest(name) for name in names}


def cases(folder):
    """(configuration, inputs) of every recorded key, by `stage/what is special`."""
    from pressoir.recipe.sections import OutputsConfig

    table = {"source": "files", "train": folder / "train.tsv", "test": folder / "test.JSONL"}
    texts = {"wiki": folder / "wiki.txt", "plays": folder / "plays.txt"}
    models = ("parent_0", "parent_1")
    taught = ("teacher", "data", "outputs")
    training = {
        "batch_size": 16,
        "weight_decay": 0.1,
        "warmup_fraction": 0.2,
        "best_metric": "macro_f1",
        "class_weights": {"negative": 2, "positive": 0.5},
        "early_stopping_patience": 2,
        "precision": "bfloat16",
        "checkpoint_every_steps": 50,
    }
    learning = {
        **training,
        "epochs": 4,
        "learning_rate": 2e-4,
        "temperature": 4,
        "alpha": 0.5,
        "hidden_weight": 10,
        "relation_weight": 0.5,
        "relation_heads": 12,
    }
    return {
        "text/default": (TextConfig(), {}),
        "text/calibration": (TextConfig(calibration=folder / "calibration.txt"), {}),
        "text/evaluation": (TextConfig(evaluation=texts), {}),
        "text/whole": (
            TextConfig(
                calibration=folder / "calibration.txt",
                evaluation=dict(reversed(texts.items())),
                window=64,
                calibration_windows=8,
                evaluation_windows=4,
            ),
            {},
        ),
        "merge/slerp": (MergeConfig(models=("a", "org/b"), ratios=(0.5, 0.5)), given("data", *models)),
        "merge/ties": (
            MergeConfig(method="ties", models=("a", "b", "c"), base="d", density=0.5, int8_mask=True),
            given("data", "base", *models, "parent_2"),
        ),
        "merge/gradients": (
            MergeConfig(
                models=("a", "b"),
                t=({"filter": "mlp", "value": (0, 0.5, 1)}, {"value": 0.5}),
                tokenizer_source="union",
                out_dtype="float16",
            ),
            given("data", *models),
        ),
        "merge/dare": (
            MergeConfig(
                method="dare_ties",
                models=("a", "b"),
                base="c",
                parameters=({"weight": 0.3, "density": (0.1, 0.9)}, {"weight": 0.7}),
                normalize=True,
                rescale=False,
                scaling=0.8,
                dtype="bfloat16",
                tokenizer_source=1,
                allow_crimes=True,
            ),
            given("data", "base", *models),
        ),
        "merge/slices": (
            MergeConfig(
                method="passthrough",
                models=("a", "b"),
                slices=tuple({"sources": ({"model": i, "layer_range": (0, 2 + i)},)} for i in range(2)),
            ),
            given("data", *models),
        ),
        "data/default": (DataConfig(), {}),
        "data/files": (DataConfig(**table), {}),
        "data/three-files": (DataConfig(**table, validation=folder / "validation.csv"), {}),
        "data/unlabelled": (DataConfig(**table, unlabelled=folder / "unlabelled.txt"), {}),
        "data/demo-unlabelled": (DataConfig(unlabelled=folder / "unlabelled.txt"), {}),
        "data/hub": (
            DataConfig(
                source="hub",
                hub_id="org/reviews",
                hub_config="small",
                hub_revision="main",
                hub_splits=("train", "validation", "test"),
            ),
            {},
        ),
        "data/hub-folder": (DataConfig(source="hub", hub_id=str(folder / "hub")), {}),
        "data/columns": (
            DataConfig(
                **table,
                header=False,
                text_column=1,
                label_column=0,
                labels=("négatif", "positif"),
                train_samples=100,
                validation_samples=50,
                test_samples=25,
                max_tokens=64,
            ),
            {},
        ),
        "data/one-file": (
            DataConfig(
                source="files",
                train=folder / "train.tsv",
                test_fraction=0.2,
                delimiter=";",
                quoting="csv",
                encoding="cp1252",
                on_bad_row="drop",
            ),
            {},
        ),
        "data/pairs": (DataConfig(**table, text_pair_column="second"), {}),
        "teacher/default": (TeacherConfig(), given("model", "data")),
        "teacher/checkpoint": (TeacherConfig(checkpoint="org/teacher"), given("model", "data")),
        "teacher/trained": (TeacherConfig(**training, epochs=1, learning_rate=3e-5), given("model", "data")),
        "augment/default": (AugmentConfig(), given("model", "teacher", "data")),
        "augment/neighbours": (
            AugmentConfig(copies=2, spans=1, replace=0.5, method="neighbours", candidates=5),
            given("model", "teacher", "data"),
        ),
        "vocabulary/default": (VocabularyConfig(), given("model", "data")),
        "vocabulary/rare": (VocabularyConfig(min_count=3, positions=False), given("model", "data")),
        "teacher_outputs/logits": (OutputsConfig(hidden=False, student=None), given("teacher", "data")),
        "teacher_outputs/layers": (
            OutputsConfig(hidden=True, relations=True, student={"layers": 3}),
            given("teacher", "data", "reference"),
        ),
        "teacher_outputs/student": (
            OutputsConfig(hidden=True, student={"model": "org/student"}),
            given("teacher", "data", "student"),
        ),
        "distill/default": (DistillConfig(), given(*taught)),
        "distill/model": (DistillConfig(student={"model": "org/student"}), given(*taught, "student")),
        "distill/layers": (DistillConfig(student={"layers": (1, 3)}, seeds=3), given(*taught)),
        "distill/config": (DistillConfig(student={"config": {"hidden_size": 192}}), given(*taught)),
        "distill/aware": (DistillConfig(**learning, quantization_aware=True), given(*taught)),
        "distill/aware-q4": (DistillConfig(quantization_aware="int8_q4"), given(*taught)),
        "prune/default": (PruneConfig(), given("model", "data", "outputs")),
        "prune/structured": (
            PruneConfig(
                **learning,
                head_sparsity=0.25,
                ffn_sparsity=0.5,
                importance="activation",
                allocation="global",
                calibration_samples=64,
                rounds=2,
                quantization_aware="int8",
            ),
            given("model", "data", "outputs"),
        ),
        "prune/unstructured": (
            PruneConfig(granularity="unstructured", sparsity=0.3, epochs=0),
            given("model", "data"),
        ),
        "prune/parameters": (PruneConfig(target={"parameters": 15_000_000}), given("model", "data")),
        "prune/size": (PruneConfig(target={"size_mb": 12.5}), given("model", "data")),
        "prune/latency": (PruneConfig(target={"latency_ms": 3}), given("model", "data")),
        "quantize/default": (QuantizeConfig(), given("model", "data")),
        "quantize/embeddings": (
            QuantizeConfig(embeddings="q4", block_size=16, max_accuracy_drop=None, exclude=()),
            given("model", "data"),
        ),
        **{
            f"quantize/{scheme}": (QuantizeConfig(scheme=scheme), given("model", "data"))
            for scheme in ("q8", "q4", "q3", "q2")
        },
        "quantize/gptq": (
            QuantizeConfig(scheme="q4", algorithm="gptq", act_order=True, damping=0.05, target_bits=3.0),
            given("model", "data"),
        ),
        "quantize/perplexity": (
            QuantizeConfig(scheme="q4", algorithm="rtn", max_perplexity_increase="5%", embeddings="float"),
            given("model", "data"),
        ),
        "export/default": (ExportConfig(), given("model", "data")),
        "export/changed": (
            ExportConfig(
                opset=18,
                fuse=False,
                parity_samples=300,
                max_logit_difference=0.01,
                min_label_agreement=0.9,
                accuracy_level=0,
                low_memory=True,
            ),
            given("model", "data"),
        ),
        "shard/default": (ShardConfig(), given("model")),
        "shard/count": (ShardConfig(shards=3), given("model")),
        "shard/size": (ShardConfig(max_shard_size_mb=100), given("model")),
        "benchmark/default": (BenchmarkConfig(), given("data", "source", "quantize", "export")),
        "benchmark/changed": (
            BenchmarkConfig(
                warmup=1,
                latency_samples=10,
                throughput_batch_size=8,
                throughput_batches=2,
                prompt_tokens=16,
                new_tokens=8,
                prompts=2,
            ),
            given("data", "teacher", "teacher_onnx", "vocabulary", "distill", "prune", "quantize", "shard"),
        ),
    }


@contextmanager
def recorded_versions(bfloat16=False):
    """Let `VERSIONS` be those of the decisive packages (nothing is imported), `MACHINE` the machine, whose
    CPU has bfloat16 instructions or not."""
    installed, machine_of = importlib.metadata.version, keys_module.machine_of
    has_bfloat16, runtime.has_bfloat16 = runtime.has_bfloat16, lambda: bfloat16

    def version(package):
        if package not in VERSIONS:
            return installed(package)
        if VERSIONS[package] is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return VERSIONS[package]

    importlib.metadata.version = version
    keys_module.machine_of = lambda threads: {**MACHINE, "threads": str(threads)}
    try:
        yield
    finally:
        importlib.metadata.version, keys_module.machine_of = installed, machine_of
        runtime.has_bfloat16 = has_bfloat16


def write_files(folder):
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode())
    return folder


def fill(out, work):
    """What every stage makes here."""
    (out / "sub").mkdir()
    (out / "config.json").write_bytes(b"{}\n")
    (out / "sub" / "weights.bin").write_bytes(b"weights")
    return {"accuracy": 0.5, "loss": float("inf")}


def stored(store, key):
    """The key, and where the store really puts its result."""
    made, found = store.build(key, fill)
    assert not found
    folder = store.path(made)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    decided = {name: manifest[name] for name in ("kind", "stage", "parents")}
    assert decided == {"kind": key.kind, "stage": key.stage, "parents": key.inputs}
    return {
        "folder": folder.relative_to(store.home).as_posix(),
        "config_digest": manifest["config_digest"],
        "key": key.model_dump(mode="json"),
    }


class FullStore(Store):
    """A store that has every result, and notes the keys it is asked for."""

    def __init__(self):
        super().__init__(Path("nowhere"))
        self.keys: list[StageKey] = []

    def find(self, key):
        self.keys.append(key)
        return Artifact(
            kind=key.kind,
            stage=key.stage,
            key=key.hash(),
            digest=fake_digest(f"step {len(self.keys)}: {key.stage}"),
            size_bytes=0,
            parents=key.inputs,
            config_digest="",
            metrics={},
            environment={},
            created_at="",
        )


class RecordedPlanner(Planner):
    """A planner for which every model is there."""

    def fetch(self, reference):
        return Source(reference=reference, folder=Path("nowhere"), digest=fake_digest(reference))


def stage_keys(folder):
    """The keys of `cases`, and where their results lie: the default precision was float32."""
    made = {name: (name.partition("/")[0], *case) for name, case in cases(folder).items()}
    with recorded_versions():
        store = Store(folder / "home")
        return {
            name: stored(store, stage_key(stage, config, inputs, SEED))
            for name, (stage, config, inputs) in made.items()
        }


def recipe_keys(path, folder):
    """The key of every step of a shipped recipe, from its own pipeline: they asked for bfloat16."""
    from pressoir.flows.compress import pipeline

    recipe = Recipe.from_yaml(path)
    if recipe.data.source == "files":
        here = [f"data.{split}={folder / 'train.tsv'}" for split in ("train", "test")]
        recipe = Recipe.from_yaml(path, here)
    with recorded_versions(bfloat16=True):
        store = FullStore()
        planner = RecordedPlanner(recipe, Sources(store))
        pipeline(recipe, planner)
        hashes = [key.hash() for key in store.keys]
    assert [row.key for row in planner.rows] == hashes
    return [
        {"folder": f"store/{key.stage}/{name}", "key": key.model_dump(mode="json")}
        for key, name in zip(store.keys, hashes, strict=True)
    ]


def one_artifact(folder):
    """A stored result as it stands on disk: its folder, and its manifest without time and interpreter."""
    config, inputs = cases(folder)["prune/structured"]
    with recorded_versions():
        store = Store(folder / "one")
        made, _ = store.build(stage_key("prune", config, inputs, SEED), fill)
    manifest = json.loads((store.path(made) / MANIFEST).read_text(encoding="utf-8"))
    manifest["created_at"], manifest["environment"]["python"] = "2026-01-01T00:00:00+00:00", "3.11.0"
    return {"folder": store.path(made).relative_to(store.home).as_posix(), "manifest": manifest}


def model_digest(folder):
    """What stands for a model folder in keys."""
    return resolve.resolve(str(folder / "model"), Store(folder / "none")).digest


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module")
def keys(files):
    return stage_keys(files)


def test_every_stage_has_recorded_keys(record):
    assert {name.partition("/")[0] for name in record["stages"]} == set(STAGES)
    assert {name.partition("/")[0] for name in record["stages"]} == {
        case["key"]["stage"] for case in record["stages"].values()
    }


def test_the_packages_that_decide_are_those_of_the_record():
    assert set(DECISIVE_PACKAGES) == set(VERSIONS)


def test_every_field_of_every_section_is_recorded_with_two_values(files):
    values = {}
    for name, (config, _) in cases(files).items():
        for field in type(config).model_fields:
            values.setdefault((name.partition("/")[0], field), []).append(getattr(config, field))
    assert {stage for stage, _ in values} == set(STAGES)
    always_alike = {place for place, found in values.items() if all(value == found[0] for value in found)}
    assert not always_alike


def test_recorded_keys_are_all_different(record):
    folders = [case["folder"] for case in record["stages"].values()]
    assert len(set(folders)) == len(folders) == len(record["stages"])


def test_the_cases_are_those_of_the_record(record, keys):
    assert list(keys) == list(record["stages"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_stores_under_its_recorded_keys(stage, record, keys):
    def of_stage(entries):
        return {name: entry for name, entry in entries.items() if name.startswith(f"{stage}/")}

    assert of_stage(keys)
    assert of_stage(keys) == of_stage(record["stages"])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_step_of_a_shipped_recipe_has_its_recorded_key(path, record, files):
    steps = recipe_keys(path, files)
    assert len(steps) >= 4
    assert steps == record["recipes"][path.stem]


def test_all_shipped_recipes_are_recorded_and_take_every_stage(record):
    assert list(record["recipes"]) == [path.stem for path in SHIPPED]
    assert {step["key"]["stage"] for steps in record["recipes"].values() for step in steps} == set(STAGES)


def test_a_model_folder_has_its_recorded_digest(record, files):
    assert model_digest(files) == record["model_digest"]


def test_an_artifact_is_written_as_recorded(record, files):
    assert one_artifact(files) == record["artifact"]


def test_a_store_of_that_time_is_found_and_not_built_again(record, files, tmp_path):
    folder = tmp_path / record["artifact"]["folder"]
    folder.mkdir(parents=True)
    fill(folder, tmp_path)
    (folder / MANIFEST).write_text(json.dumps(record["artifact"]["manifest"]), encoding="utf-8")
    config, inputs = cases(files)["prune/structured"]
    with recorded_versions():
        key, store = stage_key("prune", config, inputs, SEED), Store(tmp_path)
        assert store.find(key) is not None
        _, found = store.build(key, lambda out, work: pytest.fail("built although the store has it"))
    assert found


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = write_files(Path(name))
        record = {
            "model_digest": model_digest(folder),
            "artifact": one_artifact(folder),
            "stages": stage_keys(folder),
            "recipes": {path.stem: recipe_keys(path, folder) for path in SHIPPED},
        }
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
