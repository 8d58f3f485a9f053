"""Recorded results of every stage: a result that changes needs a raised `version`.

The store finds a result again by its stage's version and inputs. Where a stage computes something else under
the same version, what people have stored is silently another thing than what a new run makes. So each stage
runs here on a few inputs of a fixed content, and what it makes is compared with `recorded_outputs.json`:
names, shapes, types and whole numbers exactly, real numbers within the rounding that differs from CPU to CPU.

A failure here means: raise the stage's `version`, say so in CHANGELOG.md, and record again:

    RECORD_OUTPUTS=1 python -m pytest tests/pressoir/stages/test_recorded_outputs.py
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors import safe_open
from transformers import BertModel, LlamaForCausalLM

from pressoir.inference.text_classification import TextClassifier
from pressoir.models import loading
from pressoir.recipe.sections import (
    AugmentConfig,
    BenchmarkConfig,
    DataConfig,
    DistillConfig,
    ExportConfig,
    MergeConfig,
    OutputsConfig,
    PruneConfig,
    QuantizeConfig,
    ShardConfig,
    TeacherConfig,
    TextConfig,
    VocabularyConfig,
)
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext, load_stage, stage_names
from pressoir.store.artifact import digest_of
from pressoir.system.files import files_of
from pressoir.system.runtime import one_thread
from pressoir.training import loop

RECORD = Path(__file__).with_name("recorded_outputs.json")
# By how much numbers may differ: a CPU with other vector instructions rounds sums otherwise, training adds up
# such errors, float16 rounds more, and GPTQ's integers depend on sums.
TOLERANCE = {"computed": 1e-6, "trained": 1e-4, "half": 1e-4, "gptq": 1e-3}
# Measured, or of the machine and the installed libraries.
VOLATILE = re.compile(
    r"_ms|per_s|rss|load_s|train_s$|speedup|drift|free_cpus|_at$|machine|(?<!format_)version|_name_or_path|digest|sha256"
    r"|parity|max_logit|published|^bytes$"
)
SENTENCES = ["the soup was awful", "a dull and weak book", "the song was superb", "fine"]
FEW = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3}


def _cases():
    """By name, which begins with the stage's: the configuration, and what it is given (see `given`)."""
    student = {"layers": 2}
    lm = {"model": "llama", "data": "text"}
    return {
        "data": (data_config, {}),
        "text": (text_config, {}),
        "teacher": (TeacherConfig(**FEW), {"model": "bert", "data": "data"}),
        "teacher/checkpoint": (TeacherConfig(checkpoint="-"), {"model": "classifier", "data": "data"}),
        "teacher/balanced": (
            TeacherConfig(**FEW, class_weights="balanced"),
            {"model": "bert", "data": "data"},
        ),
        "vocabulary": (VocabularyConfig(), {"model": "classifier", "data": "data"}),
        "augment": (
            AugmentConfig(copies=1, spans=1, method="neighbours", candidates=3),
            {"model": "bert", "teacher": "classifier", "data": "data"},
        ),
        "teacher_outputs": (
            OutputsConfig(hidden=True, relations=True, student=student),
            {"teacher": "classifier", "data": "data"},
        ),
        "distill": (
            DistillConfig(**FEW, student=student, hidden_weight=1, relation_weight=0.5),
            {"teacher": "classifier", "data": "data", "outputs": "outputs"},
        ),
        "distill/aware": (
            DistillConfig(**FEW, student=student, hidden_weight=0, quantization_aware="int8_q4"),
            {"teacher": "classifier", "data": "data", "outputs": "outputs"},
        ),
        "prune": (
            PruneConfig(**FEW, head_sparsity=0.5, ffn_sparsity=0.5, hidden_weight=0),
            {"model": "classifier", "data": "data", "outputs": "logits"},
        ),
        "prune/unstructured": (
            PruneConfig(granularity="unstructured", sparsity=0.5, epochs=0),
            {"model": "classifier", "data": "data"},
        ),
        "quantize": (QuantizeConfig(), {"model": "classifier", "data": "data"}),
        "quantize/q4-embeddings": (
            QuantizeConfig(embeddings="q4", max_accuracy_drop=None),
            {"model": "classifier", "data": "data"},
        ),
        "quantize/rtn": (QuantizeConfig(scheme="q4", algorithm="rtn"), lm),
        "quantize/hqq": (QuantizeConfig(scheme="q3", algorithm="hqq"), lm),
        "quantize/gptq": (QuantizeConfig(scheme="q8", algorithm="gptq", act_order=True), lm),
        "export": (ExportConfig(), {"model": "classifier", "data": "data"}),
        "export/int8": (ExportConfig(), {"model": "int8", "data": "data"}),
        "export/llama": (ExportConfig(), lm),
        "export/q4": (ExportConfig(), {"model": "q4", "data": "text"}),
        "shard": (ShardConfig(shards=3), {"model": "classifier"}),
        "shard/onnx": (ShardConfig(shards=3), {"model": "onnx"}),
        "benchmark": (
            BenchmarkConfig(warmup=0, latency_samples=10, throughput_batch_size=2, throughput_batches=1),
            {"data": "data", "teacher": "classifier", "teacher_onnx": "onnx"},
        ),
        "benchmark/llama": (
            BenchmarkConfig(warmup=0, prompt_tokens=8, new_tokens=4, prompts=2),
            {"data": "text", "source": "llama"},
        ),
        "merge/linear": (
            MergeConfig(method="linear", models=("-", "-"), ratios=(0.25, 0.75)),
            {"parent_0": "llama", "parent_1": "other", "data": "text"},
        ),
        "merge/ties": (
            MergeConfig(method="ties", models=("-", "-"), base="-", density=0.5),
            {"parent_0": "llama", "parent_1": "other", "base": "llama", "data": "text"},
        ),
    }


def rows(count, seed):
    """Lines of a table: sentences of eight words, and their labels by rule."""
    words = "the was and good great bad awful film book meal song soup".split()
    rng = np.random.default_rng(seed)
    for number in range(count):
        chosen = rng.choice(words, size=8)
        yield " ".join([*chosen, f"{number:03}"]), "negative" if number % 3 == 1 else "positive"


def data_config(folder):
    for seed, (split, count) in enumerate({"train": 48, "validation": 16, "test": 16}.items()):
        table = "".join(f"{text} {split}\t{label}\n" for text, label in rows(count, seed))
        (folder / f"{split}.tsv").write_text("text\tlabel\n" + table, encoding="utf-8")
    return DataConfig(
        source="files",
        **{split: folder / f"{split}.tsv" for split in ("train", "validation", "test")},
        max_tokens=16,
    )


def text_config(folder):
    for name in ("calibration", "plays"):
        lines = "".join(f"{text}.\n" for text, _ in rows(200, len(name)))
        (folder / f"{name}.txt").write_text(lines, encoding="utf-8")
    return TextConfig(
        calibration=folder / "calibration.txt",
        evaluation={"plays": folder / "plays.txt"},
        window=16,
        calibration_windows=8,
        evaluation_windows=4,
    )


def drawn(model, seed):
    """`model` with weights from numpy, whose numbers are the same on every CPU."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, weight in sorted(dict(model.named_parameters()).items()):
            values = rng.standard_normal(tuple(weight.shape)).astype(np.float32)
            norm = "norm" in name.lower() and name.endswith("weight")
            weight.copy_(torch.from_numpy(1 + 0.1 * values if norm else 0.15 * values))
    return model


CASES = _cases()


@pytest.fixture(scope="module")
def given(tiny_bert, tiny_llama, tmp_path_factory):
    """`given(name)`: the folder of an input."""
    root, made = tmp_path_factory.mktemp("given"), {}

    def by_stage(stage, config, **inputs):
        return lambda folder: run_stage(stage, config, {k: given(v) for k, v in inputs.items()}, folder)

    def classifier(folder):
        model = loading.load_classifier(tiny_bert, labels=["negative", "positive"])
        loading.save_model(drawn(model, 1), folder)
        loading.save_tokenizer(loading.load_tokenizer(tiny_bert), folder)

    def bert(folder):
        drawn(BertModel.from_pretrained(tiny_bert), 2).save_pretrained(folder)
        loading.save_tokenizer(loading.load_tokenizer(tiny_bert), folder)

    def llama(folder, seed=3):
        shutil.copytree(tiny_llama, folder, dirs_exist_ok=True)
        drawn(LlamaForCausalLM.from_pretrained(tiny_llama), seed).save_pretrained(folder)

    def outputs(folder, hidden=True):
        model, tokenizer = loading.load_classifier(given("classifier")), loading.load_tokenizer(tiny_bert)
        lengths = loop.tokenize(given("data"), "train", tokenizer, model)["length"][:]
        offsets, rng = np.concatenate([[0], np.cumsum(lengths)]), np.random.default_rng(4)
        shapes = {"logits": (len(lengths), 2)}
        if hidden:
            shapes |= {"hidden": (offsets[-1], 2, 32), "relations": (offsets[-1], 3, 32)}
        for name, shape in shapes.items():
            values = rng.standard_normal(shape)
            np.save(folder / f"{name}.npy", values.astype(np.float32 if name == "logits" else np.float16))
        np.save(folder / "offsets.npy", offsets)

    makers = {
        "data": by_stage("data", data_config),
        "text": by_stage("text", text_config),
        "bert": bert,
        "classifier": classifier,
        "llama": llama,
        "other": lambda folder: llama(folder, 5),
        "outputs": outputs,
        "logits": lambda folder: outputs(folder, hidden=False),
        "int8": by_stage("quantize", QuantizeConfig(max_accuracy_drop=None), model="classifier", data="data"),
        "q4": by_stage("quantize", QuantizeConfig(scheme="q4", algorithm="rtn"), model="llama", data="text"),
        "onnx": by_stage("export", ExportConfig(), model="classifier", data="data"),
    }

    def given(name):
        if name not in made:
            folder = root / name
            folder.mkdir()
            makers[name](folder)
            made[name] = folder
        return made[name]

    return given


def run_stage(stage, config, inputs, out):
    """Run a stage as the pipeline does, on one thread; return its metrics."""
    work = out.with_name(f"{out.name}-work")
    work.mkdir()
    if callable(config):
        config = config(work)
    with one_thread(), trained_in_float64():
        metrics = load_stage(stage).run(inputs, config, StageContext(out, work, LogReporter(), 42, 1))
    shutil.rmtree(work)
    return metrics


@contextmanager
def trained_in_float64():
    """Let trainings compute in float64: AdamW makes a whole step of a gradient that is rounding alone.

    In float32 results differ between kinds of CPU by thousandths.
    """
    fit = loop.fit

    def wide(model, *arguments, **named):
        history = fit(model.double(), *arguments, **named)
        model.float()
        return history

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "fit", wide)
        yield


# --- what is compared ---


class Found(NamedTuple):
    """What is compared of a file."""

    exact: Any
    """Compared as it is: names, types, shapes, whole numbers, texts."""
    numbers: Sequence[float] = ()
    """Compared but for rounding."""


def of_tensors(arrays, how="computed"):
    """Of each array its name, type and shape; integers whole, real numbers by a weighted sum as large as one.

    Of what was trained the weights are left out: some have no influence on the result, and drift.
    """
    exact, numbers = {}, []
    for name, array in sorted(arrays.items()):
        exact[name] = [str(array.dtype), list(array.shape)]
        if not np.issubdtype(array.dtype, np.floating) and how != "gptq":
            exact[name].append(hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest())
        elif how != "trained":
            weights = np.random.default_rng(0).standard_normal(array.size)
            numbers.append(weights @ array.astype(np.float64).ravel() / math.sqrt(max(array.size, 1)))
    return Found(exact, numbers)


def of_json(value):
    """Of a JSON value, without what is measured, the real numbers apart."""
    numbers = []

    def exact(value, name=""):
        if VOLATILE.search(name):
            return "…"
        if isinstance(value, dict):
            return {key: exact(each, key) for key, each in sorted(value.items())}
        if isinstance(value, list):
            return [exact(each) for each in value]
        if isinstance(value, float) and math.isfinite(value):
            numbers.append(value)
            return "a number"
        return value

    return Found(exact(value), numbers)


def of_safetensors(path, how):
    with safe_open(path, framework="np") as file:
        return of_tensors({name: file.get_tensor(name) for name in file.keys()}, how)  # noqa: SIM118


def of_onnx(path):
    graph = onnx.load(path).graph
    operators = Counter(f"{node.domain} {node.op_type}" for node in graph.node)
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    exact, numbers = of_tensors(arrays)
    return Found([operators, exact, [each.name for each in (*graph.input, *graph.output)]], numbers)


def of_file(path, how):
    if path.suffix == ".safetensors":
        return of_safetensors(path, how)
    if path.suffix == ".onnx":
        return of_onnx(path)
    if path.suffix == ".npy":
        return of_tensors({"": np.load(path)})
    if path.suffix == ".json":
        return of_json(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix in (".jsonl", ".txt"):
        return Found(path.read_text(encoding="utf-8"))
    return Found("is there")  # pictures, texts about measurements, weights that a graph names


def of_outputs(folder):
    """What a trained classifier says."""
    classifier = TextClassifier.open(folder)
    return Found(classifier.labels, classifier.logits(SENTENCES).astype(float).ravel().tolist())


def described(folder, metrics=None, how="computed"):
    """What of a stage's result is recorded, by where it is found."""
    found = {path.relative_to(folder).as_posix(): of_file(path, how) for path in files_of(folder)}
    if metrics:
        found["metrics"] = of_json({name: float(value) for name, value in metrics.items()})
    if how == "trained":
        found["logits"] = of_outputs(folder)
    return {
        name: [digest_of(json.dumps(each.exact))[:12], *(float(f"{number:.8g}") for number in each.numbers)]
        for name, each in found.items()
    }


def differences(recorded, made, tolerance):
    """Where the two differ, and by how much."""
    for name in sorted(recorded.keys() | made.keys()):
        before, now = recorded.get(name, [None]), made.get(name, [None])
        if before[0] != now[0] or len(before) != len(now):
            yield name
        elif not np.allclose(now[1:], before[1:], rtol=tolerance, atol=tolerance):
            yield f"{name} by {np.max(np.abs(np.subtract(now[1:], before[1:]))):.3g}"


# --- the tests ---


@pytest.fixture(scope="module")
def record():
    recorded = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    yield recorded
    if os.environ.get("RECORD_OUTPUTS") == "1":
        lines = (f"{json.dumps(name)}: {json.dumps(recorded[name])}" for name in CASES if name in recorded)
        RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def check(name, given, record, folder):
    stage, (config, inputs) = name.partition("/")[0], CASES[name]
    folder.mkdir()
    how = {"teacher_outputs": "half", "quantize/gptq": "gptq"}.get(name, "computed")
    if "epochs" in getattr(config, "model_fields_set", ()) and config.epochs > 0:
        how = "trained"
    folders = {use: given(what) for use, what in inputs.items()}
    metrics = run_stage(stage, config, folders, folder)
    made = {
        "version": load_stage(stage).version,
        "given": {use: described(place) for use, place in folders.items()},
        "made": described(folder, metrics, how),
    }
    if os.environ.get("RECORD_OUTPUTS") == "1":
        record[name] = made
    recorded = record[name]
    assert made["version"] == recorded["version"], f"{stage} has another version: record its outputs again"
    for use in inputs:
        other = list(differences(recorded["given"][use], made["given"][use], TOLERANCE["computed"]))
        assert not other, f"what {name} is given as {use} has changed: look at that stage first"
    changed = list(differences(recorded["made"], made["made"], TOLERANCE[how]))
    assert not changed, f"{stage} makes something else under the same version: raise it, and record again"


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("merge")])
def test_a_stage_makes_what_its_version_made(name, given, record, tmp_path, no_cold_starts):
    check(name, given, record, tmp_path / "out")


@pytest.mark.process
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("merge")])
def test_a_merge_makes_what_its_version_made(name, given, record, tmp_path):
    check(name, given, record, tmp_path / "out")


def test_every_stage_is_recorded():
    assert {name.partition("/")[0] for name in CASES} == set(stage_names())
