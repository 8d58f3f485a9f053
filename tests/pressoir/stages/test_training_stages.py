"""Teacher, its outputs, distill and prune, on a tiny random BERT and sentences that it can learn."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from stopping import StoppedError, StopsAt

from pressoir.data import sentences
from pressoir.errors import RecipeError
from pressoir.models import loading
from pressoir.models.layouts import encoder_layers
from pressoir.pruning import units
from pressoir.quantization.int8 import quantize_rows
from pressoir.recipe.sections import DistillConfig, OutputsConfig, PruneConfig, StudentConfig, TeacherConfig
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext
from pressoir.stages import distill, prune, teacher, teacher_outputs
from pressoir.system.files import folder_digest
from pressoir.training import loop
from pressoir.training.distillation import PROJECTION, DistillationLoss, TeacherOutputs
from pressoir.training.students import make_student
from pressoir.training.teacher_outputs import matched_layers

FAST = {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3}


def fresh(context, name):
    """The same context with an output and a work folder of its own."""
    out, work = context.out_dir / name, context.work_dir / f"{name}-work"
    out.mkdir()
    work.mkdir()
    return dataclasses.replace(context, out_dir=out, work_dir=work)


@pytest.fixture(scope="session")
def trained(tiny_bert, tiny_data, tmp_path_factory):
    """A trained tiny teacher and its outputs for a two-layer student: folders by name, and the metrics."""
    root = tmp_path_factory.mktemp("trained")
    context = StageContext(root, root, LogReporter(), seed=0, threads=2)
    config = TeacherConfig(epochs=4, batch_size=16, learning_rate=3e-3)
    own = fresh(context, "teacher")
    metrics = teacher.run({"model": tiny_bert, "data": tiny_data}, config, own)
    outputs = fresh(context, "outputs")
    inputs = {"teacher": own.out_dir, "data": tiny_data}
    teacher_outputs.run(inputs, OutputsConfig(hidden=True, student=StudentConfig(layers=2)), outputs)
    every = fresh(context, "every")
    teacher_outputs.run(inputs, OutputsConfig(hidden=True, student=None), every)
    folders = {"teacher": own.out_dir, "outputs": outputs.out_dir, "every": every.out_dir}
    return folders | {"data": tiny_data}, metrics


def test_teacher_learns_and_reports_what_it_reached(trained, tiny_bert):
    folders, metrics = trained
    assert metrics["validation_accuracy"] > 0.9
    history = json.loads((folders["teacher"] / "history.json").read_text())
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert {"loss", "accuracy", "f1", "train_loss"} <= set(history[0])
    reloaded = loading.load_classifier(folders["teacher"])
    assert reloaded.config.id2label == {0: "negative", 1: "positive"}
    again = loop.evaluate(reloaded, loading.load_tokenizer(folders["teacher"]), folders["data"])
    assert again["validation_accuracy"] == metrics["validation_accuracy"]
    assert loading.load_tokenizer(folders["teacher"]).model_max_length == 32


@pytest.mark.slow
def test_the_best_epoch_is_kept_not_the_last(tiny_bert, tiny_data, context):
    # A learning rate that is far too high ruins the model in late epochs of a long schedule.
    config = TeacherConfig(epochs=5, batch_size=16, learning_rate=0.05, warmup_fraction=0.5)
    metrics = teacher.run({"model": tiny_bert, "data": tiny_data}, config, context)
    history = json.loads((context.out_dir / "history.json").read_text())
    assert metrics["validation_accuracy"] == pytest.approx(max(row["accuracy"] for row in history), abs=0.02)


@pytest.mark.slow
def test_early_stopping_ends_a_run_that_no_longer_improves(tiny_bert, tiny_data, context):
    config = TeacherConfig(epochs=20, batch_size=16, learning_rate=3e-3, early_stopping_patience=1)
    teacher.run({"model": tiny_bert, "data": tiny_data}, config, context)
    assert len(json.loads((context.out_dir / "history.json").read_text())) < 20


def test_a_finished_checkpoint_is_taken_as_it_is(trained, tiny_data, context):
    folders, metrics = trained
    config = TeacherConfig(checkpoint="anything")
    taken = teacher.run({"model": folders["teacher"], "data": tiny_data}, config, context)
    assert taken["validation_accuracy"] == metrics["validation_accuracy"]
    ours, theirs = (loading.load_classifier(f).state_dict() for f in (context.out_dir, folders["teacher"]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_teacher_outputs_are_the_teachers_logits_and_hidden_states(trained):
    folders, _ = trained
    outputs = TeacherOutputs.open(folders["outputs"])
    model, tokenizer = loading.load_classifier(folders["teacher"]), loading.load_tokenizer(folders["teacher"])
    texts = sentences.load_split(folders["data"], "train")["text"][:]
    for row in (0, 7, len(texts) - 1):
        encoded = tokenizer(texts[row], return_tensors="pt")
        with torch.no_grad():
            expected = model(**encoded, output_hidden_states=True)
        length = encoded["input_ids"].shape[1]
        batch = outputs.batch([row], length + 3)
        torch.testing.assert_close(batch["teacher_logits"], expected.logits, atol=1e-5, rtol=1e-4)
        for place, layer in enumerate((1, 3)):  # the two layers a two-layer student learns from
            found = batch["teacher_hidden"][0, :length, place].float()
            torch.testing.assert_close(found, expected.hidden_states[layer + 1][0], atol=1e-2, rtol=1e-2)
        assert not batch["teacher_hidden"][0, length:].any()


@pytest.mark.parametrize("hidden", [True, False])
def test_the_logits_are_a_references_where_there_is_one(trained, context, hidden):
    folders, _ = trained
    model = loading.load_classifier(folders["teacher"])
    with torch.no_grad():
        model.classifier.weight.neg_()
        model.classifier.bias.neg_()
    loading.save_model(model, context.work_dir)
    loading.save_tokenizer(loading.load_tokenizer(folders["teacher"]), context.work_dir)
    inputs = {"teacher": folders["teacher"], "data": folders["data"], "reference": context.work_dir}
    teacher_outputs.run(inputs, OutputsConfig(hidden=hidden, student=None), context)
    found, own = (TeacherOutputs.open(f) for f in (context.out_dir, folders["every"]))
    torch.testing.assert_close(torch.tensor(found.logits), -torch.tensor(own.logits), atol=1e-5, rtol=1e-4)
    assert found.offsets.tolist() == own.offsets.tolist()
    assert (found.hidden == own.hidden).all() if hidden else found.hidden is None


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        (StudentConfig(), [1, 3, 5]),
        (StudentConfig(layers=3), [1, 3, 5]),
        (StudentConfig(layers=4), [0, 2, 3, 5]),
        (StudentConfig(layers=(5, 0)), [0, 5]),
        (StudentConfig(config={"num_hidden_layers": 2}), [2, 5]),
    ],
)
def test_student_layers_are_matched_with_evenly_spread_teacher_layers(student, expected):
    assert matched_layers(student, 6) == expected


@pytest.mark.parametrize("student", [StudentConfig(layers=(1, 6)), StudentConfig(layers=7)])
def test_layers_that_the_teacher_lacks_are_refused(student):
    with pytest.raises(RecipeError, match="teacher has"):
        matched_layers(student, 6)


def test_distillation_loss_is_the_formula_it_names():
    logits, teacher_logits = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 0.5]])
    labels, mask = torch.tensor([1]), torch.tensor([[1, 1, 0]])
    hidden, teacher_hidden = torch.zeros(1, 3, 4), torch.ones(1, 3, 1, 4)
    teacher_hidden[0, 2] = 100  # padding must not count
    loss = DistillationLoss(temperature=3.0, alpha=0.7, hidden_weight=2.0)
    p, q = F.softmax(teacher_logits / 3, -1), F.softmax(logits / 3, -1)
    expected = 0.7 * 9 * (p * (p / q).log()).sum() + 0.3 * F.cross_entropy(logits, labels) + 2.0 * 1.0
    found = loss(logits, labels, teacher_logits, (hidden,), teacher_hidden, mask)
    torch.testing.assert_close(found, expected)
    same = DistillationLoss(temperature=3.0, alpha=1.0, hidden_weight=0)
    assert same(logits, labels, logits).abs() < 1e-6


def test_a_student_starts_from_the_layers_it_keeps(trained):
    folders, _ = trained
    model = loading.load_classifier(folders["teacher"])
    student = make_student(model, StudentConfig(layers=(0, 2)), None, print)
    assert student.config.num_hidden_layers == 2
    ours, theirs = encoder_layers(student), encoder_layers(model)
    assert len(theirs) == 4, "the teacher is left whole"
    for mine, kept in zip(ours, (theirs[0], theirs[2]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), kept.parameters(), strict=True))


def test_distilled_student_is_smaller_and_learns_from_the_teacher(trained, context):
    folders, metrics = trained
    config = DistillConfig(**FAST, student=StudentConfig(layers=2))
    result = distill.run(folders, config, context)
    assert result["validation_accuracy"] >= metrics["validation_accuracy"] - 0.1
    assert result["parameters_of_teacher"] < 0.8
    assert loading.load_classifier(context.out_dir).config.num_hidden_layers == 2


@pytest.mark.slow
def test_of_several_seeds_the_best_is_kept_and_finished_ones_are_not_trained_again(
    trained, context, monkeypatch
):
    folders, _ = trained
    random = StudentConfig(config={"num_hidden_layers": 2})
    brief = {**FAST, "epochs": 1, "student": random, "hidden_weight": 0}
    alone, weights = {}, {}
    for seed in (0, 1, 2):
        one = dataclasses.replace(fresh(context, f"alone-{seed}"), seed=seed)
        alone[seed] = distill.run(folders, DistillConfig(**brief), one)["validation_accuracy"]
        weights[seed] = load_file(one.out_dir / "model.safetensors")

    fit, seeds = loop.fit, []

    def failing_at_the_third(*args, **kwargs):
        seeds.append(args[4].seed)
        if len(seeds) == 3:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    monkeypatch.setattr(loop, "fit", failing_at_the_third)
    config, several = DistillConfig(**brief, seeds=3), fresh(context, "several")
    with pytest.raises(KeyboardInterrupt):
        distill.run(folders, config, several)
    result = distill.run(folders, config, several)
    assert seeds == [0, 1, 2, 2]
    assert result["validation_accuracy"] == alone[result["seed"]] == max(alone.values())
    kept = load_file(several.out_dir / "model.safetensors")
    assert kept.keys() == weights[result["seed"]].keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights[result["seed"]].items())


def test_a_narrower_student_learns_hidden_states_through_a_projection_that_is_not_kept(trained, context):
    folders, _ = trained
    student = StudentConfig(config={"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2})
    distill.run(folders, DistillConfig(**FAST, student=student), context)
    model = loading.load_classifier(context.out_dir)
    assert model.config.hidden_size == 16
    assert not any(PROJECTION in name for name in model.state_dict())


def test_a_student_config_that_does_not_fit_is_refused(trained, context):
    folders, _ = trained
    for config, match in (({"hiden_size": 16}, "no field"), ({"hidden_size": 30}, "multiple")):
        with pytest.raises(RecipeError, match=match):
            distill.run(folders, DistillConfig(**FAST, student=StudentConfig(config=config)), context)


def test_hidden_states_of_other_layers_than_the_students_are_refused(trained, context):
    folders, _ = trained
    inputs = folders | {"outputs": folders["every"]}
    with pytest.raises(RecipeError, match="2 layers, but 4"):
        distill.run(inputs, DistillConfig(**FAST, student=StudentConfig(layers=2)), context)


def test_unstructured_pruning_zeroes_the_smallest_weights_and_keeps_them_zero(trained, context):
    folders, _ = trained
    config = PruneConfig(granularity="unstructured", sparsity=0.3, **FAST)
    inputs = {"model": folders["teacher"], "outputs": folders["every"], "data": folders["data"]}
    result = prune.run(inputs, config, context)
    before, after = (loading.load_classifier(f) for f in (folders["teacher"], context.out_dir))
    for name, module in encoder_layers(after).named_modules():
        if isinstance(module, torch.nn.Linear):
            zero = (module.weight == 0).flatten()
            assert zero.float().mean() == pytest.approx(0.3, abs=0.001)
            original = encoder_layers(before).get_submodule(name).weight.abs().flatten()
            assert original[zero].max() <= original[~zero].min()
    assert result["parameters_kept"] == 1.0
    assert any("dense runtimes are not faster" in message for message in context.reporter.messages)


def test_structured_pruning_physically_removes_heads_and_neurons(trained, context):
    folders, _ = trained
    config = PruneConfig(head_sparsity=0.5, ffn_sparsity=0.5, **FAST)
    inputs = {"model": folders["teacher"], "outputs": folders["every"], "data": folders["data"]}
    result = prune.run(inputs, config, context)
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(context.out_dir)  # no Pressoir needed
    layer = plain.bert.encoder.layer[1]
    assert layer.attention.self.query.out_features == 16
    assert layer.intermediate.dense.out_features == 32
    size = [(folder / "model.safetensors").stat().st_size for folder in (context.out_dir, folders["teacher"])]
    assert size[0] < 0.75 * size[1]
    assert result["validation_accuracy"] >= 0.9
    ours = loading.load_classifier(context.out_dir)
    encoded = loading.load_tokenizer(context.out_dir)("the film was good", return_tensors="pt")
    torch.testing.assert_close(plain.eval()(**encoded).logits, ours(**encoded).logits)


def test_global_allocation_gives_layers_different_widths_and_reloads_through_the_loader(trained, context):
    folders, _ = trained
    model, tokenizer = loading.load_classifier(folders["teacher"]), loading.load_tokenizer(folders["teacher"])
    heads = [torch.tensor([1.0, 5, 5, 5]), torch.ones(4), torch.tensor([9.0, 0, 0, 0]), torch.ones(4)]
    neurons = [torch.rand(64) + (3 if index == 0 else 0) * (torch.arange(64) > 8) for index in range(4)]
    neurons[3][:60] = 0
    scores = units.Importance(heads, neurons)
    units.remove(model, units.plan_pruning(scores, 0.4, 0.4, False, units.units(model)))
    widths = [layer.intermediate.dense.out_features for layer in encoder_layers(model)]
    assert len(set(widths)) > 1
    assert all(width % 16 == 0 for width in widths)
    loading.save_model(model, context.out_dir)
    loading.save_tokenizer(tokenizer, context.out_dir)
    again = loading.load_classifier(context.out_dir)
    encoded = tokenizer("the book was awful and dull", return_tensors="pt")
    torch.testing.assert_close(again(**encoded).logits, model(**encoded).logits)


def test_taylor_importance_finds_the_neurons_that_matter(trained, context):
    folders, _ = trained
    model, tokenizer = loading.load_classifier(folders["teacher"]), loading.load_tokenizer(folders["teacher"])
    layer = encoder_layers(model)[2]
    with torch.no_grad():
        layer.output.dense.weight[:, 10:20] = 0  # these neurons reach nothing
        layer.attention.output.dense.weight[:, 8:16] = 0  # nor does head 1
    for kind in ("taylor", "activation"):
        config = PruneConfig(importance=kind, calibration_samples=64)
        heads, neurons = units.importance(model, tokenizer, folders["data"], config, context)
        if kind == "taylor":
            assert neurons[2][10:20].max() == 0 < neurons[2][20:].min()
            assert heads[2].argmin() == 1
        assert [len(scores) for scores in (*heads, *neurons)] == [4] * 4 + [64] * 4


def test_select_units_keeps_the_best_and_never_empties_a_layer():
    scores = [torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 1e-9])]
    kept = units.select_units(scores, 0.9, uniform=False)
    assert all(len(layer) >= 1 for layer in kept)
    assert units.select_units(scores, 0.5, uniform=True)[0].tolist() == [0, 2]


def test_half_written_checkpoints_are_removed_and_the_last_whole_one_found(tmp_path):
    for step, state in ((10, "{}"), (9, "{}"), (20, None), (30, "{broken"), (40, "{}")):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if step != 40:
            np.savez(folder / "epoch.npz", steps=3)
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    for step, written in ((50, b""), (60, b"PK\x03\x04 broken off")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
        (tmp_path / f"checkpoint-{step}" / "epoch.npz").write_bytes(written)
    assert loop.last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


CHILD = """
import sys
from pathlib import Path
from pressoir.recipe.sections import TeacherConfig
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext
from pressoir.stages import teacher
model, data, root = map(Path, sys.argv[1:])
(root / "out").mkdir(exist_ok=True)

class Loud(LogReporter):
    def progress(self, done, total, what):
        print("step", done, flush=True)
    def message(self, text):
        print(text, flush=True)

config = TeacherConfig(epochs=3, batch_size=16, learning_rate=1e-3, checkpoint_every_steps=10)
teacher.run({"model": model, "data": data}, config, StageContext(root / "out", root / "work", Loud(), 0, 1))
print("finished")
"""


@pytest.mark.process
def test_a_training_killed_half_way_resumes_from_its_last_checkpoint(tiny_bert, tiny_data, tmp_path):
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD))
    command = [sys.executable, str(script), str(tiny_bert), str(tiny_data), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(loop.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        for line in child.stdout:
            if line.strip() == "step 45":
                os.kill(child.pid, signal.SIGKILL)
                break
    steps = {int(path.name.rpartition("-")[2]) for path in (tmp_path / "work" / "checkpoints").iterdir()}
    assert 40 in steps
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True).stdout
    assert "resuming from checkpoint-40" in done
    assert "step 41" in done
    assert "step 40\n" not in done
    assert done.endswith("finished\n")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [12, 25, 26, 37, 48, 50, 55])
def test_a_resumed_training_reports_every_epoch_once_as_one_that_was_not_stopped(
    stop, tiny_bert, tiny_data, context
):
    """Stopped in an epoch, at its last step (which a checkpoint falls on) and at the first one after it."""
    inputs = {"model": tiny_bert, "data": tiny_data}
    config = TeacherConfig(
        epochs=3, batch_size=16, learning_rate=1e-3, checkpoint_every_steps=5, early_stopping_patience=3
    )

    def run(stop):
        given = dataclasses.replace(own, reporter=StopsAt(stop))
        teacher.run(inputs, config, given)
        return given.reporter.metrics

    own = fresh(context, "whole")
    whole = run(None)
    own = fresh(context, "stopped")
    with pytest.raises(StoppedError):
        run(stop)
    assert run(None) == whole
    assert folder_digest(own.out_dir)[0] == folder_digest(context.out_dir / "whole")[0]
    assert [step for name, _, step in whole if name == "validation_accuracy"] == [1, 2, 3]


def test_a_training_that_was_finished_but_not_published_gives_the_same(tiny_bert, tiny_data, context):
    inputs, first = {"model": tiny_bert, "data": tiny_data}, fresh(context, "first")
    second = dataclasses.replace(fresh(context, "second"), work_dir=first.work_dir)
    for own in (first, second):
        teacher.run(inputs, TeacherConfig(**FAST), own)
    assert any("resuming from checkpoint-50" in text for text in context.reporter.messages)
    assert folder_digest(first.out_dir) == folder_digest(second.out_dir)


def test_bfloat16_training_leaves_a_float32_model(tiny_bert, tiny_data, context):
    config = TeacherConfig(epochs=1, batch_size=16, precision="bfloat16")
    teacher.run({"model": tiny_bert, "data": tiny_data}, config, context)
    model = loading.load_classifier(context.out_dir)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    scores = loop.evaluate(model, loading.load_tokenizer(context.out_dir), tiny_data)
    assert np.isfinite(scores["validation_f1"])


# Quantisation-aware training.


@pytest.fixture(scope="module")
def itself(tiny_classifier, tiny_data, tmp_path_factory):
    """Inputs of a recovery of the random classifier under its own outputs."""
    root = tmp_path_factory.mktemp("itself")
    context = StageContext(root, root, LogReporter(), seed=0, threads=1)
    inputs = {"teacher": tiny_classifier, "data": tiny_data}
    teacher_outputs.run(inputs, OutputsConfig(hidden=False, student=None), context)
    return {"model": tiny_classifier, "outputs": root, "data": tiny_data}


def recovered(itself, context, name, **config):
    """Recovery epochs of the model under itself, nothing being pruned: the folder of what comes out."""
    own = fresh(context, name)
    fields = {"epochs": 2, "batch_size": 16, "learning_rate": 3e-4, "alpha": 1.0, "hidden_weight": 0}
    fields |= {"granularity": "unstructured", "sparsity": 0.0, **config}
    prune.run(itself, PruneConfig(**fields), own)
    return own.out_dir


@pytest.mark.slow
def test_a_quantisation_aware_model_is_saved_plainly_and_every_weight_has_learned(itself, context):
    from transformers import AutoModelForSequenceClassification

    folder = recovered(itself, context, "aware", quantization_aware="int8_q4", epochs=1)
    plain, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    before = loading.load_classifier(itself["model"]).state_dict()
    assert list(plain.state_dict()) == list(before)
    for name, tensor in plain.state_dict().items():
        if name.endswith("weight"):
            assert not torch.equal(tensor, before[name]), name
    unaware = loading.load_classifier(recovered(itself, context, "unaware", epochs=1)).state_dict()
    name = "bert.encoder.layer.2.output.dense.weight"
    assert not torch.equal(plain.state_dict()[name], unaware[name])
    codes, scales = quantize_rows(plain.state_dict()[name])
    assert not torch.equal(codes * scales[:, None], plain.state_dict()[name])  # it is on no grid


@pytest.mark.slow
def test_a_stopped_quantisation_aware_training_goes_on_as_if_it_had_not_been_stopped(itself, context):
    config = {"quantization_aware": "int8", "epochs": 1, "checkpoint_every_steps": 5}
    whole = recovered(itself, context, "whole", **config)
    fields = {"batch_size": 16, "learning_rate": 3e-4, "alpha": 1.0, "hidden_weight": 0}
    given = PruneConfig(granularity="unstructured", sparsity=0.0, **fields, **config)
    own = dataclasses.replace(fresh(context, "stopped"), reporter=StopsAt(12))
    with pytest.raises(StoppedError):
        prune.run(itself, given, own)
    last = loop.last_whole_checkpoint(own.work_dir / "round-1" / "checkpoints")
    assert last.name == "checkpoint-10"
    assert (
        loading.load_classifier(last).state_dict().keys()
        == loading.load_classifier(whole).state_dict().keys()
    )
    own = dataclasses.replace(own, reporter=StopsAt(None))
    prune.run(itself, given, own)
    assert any("resuming from checkpoint-10" in text for text in own.reporter.messages)
    ours, theirs = (loading.load_classifier(folder).state_dict() for folder in (own.out_dir, whole))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], msg=name)


@pytest.mark.parametrize(("given", "taken"), [(True, "int8"), (False, None), ("int8_q4", "int8_q4")])
def test_quantization_aware_is_a_level_and_yes_is_int8(given, taken):
    assert DistillConfig(quantization_aware=given).quantization_aware == taken
