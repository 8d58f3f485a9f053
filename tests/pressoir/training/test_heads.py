"""The head of a checkpoint: kept where its classes are the wanted labels, by name; else new, or refused."""

import dataclasses
import json
import shutil

import pytest
import torch
import transformers

from pressoir.data import sentences
from pressoir.errors import DataError, SourceError
from pressoir.inference.tokenizers.tokenizers import FastTokenizer
from pressoir.models import loading
from pressoir.models.layouts import class_names
from pressoir.recipe.sections import (
    AugmentConfig,
    BenchmarkConfig,
    OutputsConfig,
    PruneConfig,
    QuantizeConfig,
    TeacherConfig,
)
from pressoir.stages import augment, benchmark, prune, quantize, teacher, teacher_outputs
from pressoir.training import heads, loop

TRAINED = {"epochs": 1, "batch_size": 64, "learning_rate": 1e-5}


@pytest.fixture(scope="module")
def checkpoint(tiny_classifier, tiny_data, tmp_path_factory):
    """A classifier whose classes are (positive, negative), each told of half of the sentences."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model, tokenizer = loading.load_classifier(tiny_classifier), loading.load_tokenizer(tiny_classifier)
    texts = sentences.load_split(tiny_data, "train")["text"][:]
    with torch.no_grad():
        model.classifier.weight.mul_(50)
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        model.classifier.bias.sub_(logits.median(dim=0).values)
    loading.rename(model.config, ["positive", "negative"])
    loading.save_model(model, folder)
    loading.save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def told(checkpoint, tiny_data, tmp_path_factory):
    """Data whose labels are what transformers' own pipeline says with the checkpoint."""
    folder = tmp_path_factory.mktemp("told")
    pipeline = transformers.pipeline("text-classification", str(checkpoint), device="cpu")
    for split in sentences.SPLITS:
        texts = sentences.load_split(tiny_data, split)["text"][:]
        rows = [
            {"text": text, "label": ["negative", "positive"].index(found["label"])}
            for text, found in zip(texts, pipeline(texts), strict=True)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    facts = sentences.info(tiny_data)
    (folder / sentences.INFO).write_text(json.dumps(facts), encoding="utf-8")
    labels = sentences.load_split(folder, "train")["label"][:]
    assert 0.3 < sum(labels) / len(labels) < 0.7
    return folder


def edited(folder, target, **fields):
    """A copy of a model folder with other fields in its configuration."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    for name, value in fields.items():
        config[name] = value
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def named(folder, target, *names):
    """A copy with other names of the classes."""
    places = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return edited(folder, target, **places)


def head(model):
    return model.classifier.weight.detach()


def test_a_perfect_checkpoint_is_perfect_whatever_the_order_of_its_classes(checkpoint, told, context):
    found = teacher.run({"model": checkpoint, "data": told}, TeacherConfig(checkpoint="x"), context)
    assert (found["validation_accuracy"], found["validation_f1"]) == (1.0, 1.0)
    made = loading.load_classifier(context.out_dir)
    assert class_names(made) == ["positive", "negative"]
    assert torch.equal(head(made), head(loading.load_classifier(checkpoint)))


def test_the_longest_length_of_the_data_holds_with_a_finished_checkpoint_and_what_it_cuts_is_told(
    checkpoint, told, context, tmp_path
):
    data = shutil.copytree(told, tmp_path / "short")
    facts = sentences.info(told) | {"max_tokens": 9}
    (data / sentences.INFO).write_text(json.dumps(facts), encoding="utf-8")
    found = teacher.run({"model": checkpoint, "data": data}, TeacherConfig(checkpoint="x"), context)
    own = transformers.AutoTokenizer.from_pretrained(checkpoint)
    lengths = [len(ids) for ids in own(sentences.load_split(data, "train")["text"][:])["input_ids"]]
    assert found["train_texts_truncated"] == sum(length > 9 for length in lengths) > 0
    assert found["train_tokens_truncated"] == sum(max(length - 9, 0) for length in lengths)
    (told_of,) = (text for text in context.reporter.messages if ": train: " in text)
    assert "more than 9 tokens" in told_of
    for tokenizer in (loading.load_tokenizer(context.out_dir), FastTokenizer(context.out_dir)):
        assert tokenizer.model_max_length == 9


def test_every_stage_that_follows_reads_the_labels_by_name(checkpoint, told, context):
    outputs = teacher_outputs.run(
        {"teacher": checkpoint, "data": told}, OutputsConfig(hidden=False, student=None), context
    )
    assert outputs["train_accuracy"] == 1.0
    inputs = {"model": checkpoint, "teacher": checkpoint, "data": told}
    added = augment.run(inputs, AugmentConfig(copies=1, method="neighbours"), context)
    assert added["teacher_agreement_before"] == 1.0
    texts = [row["text"] for row in sentences.load_split(context.out_dir, "train")]
    own = loop.logits_of(checkpoint, texts, "told", context.reporter).argmax(axis=1)
    labels = sentences.load_split(context.out_dir, "train", ["positive", "negative"])["label"][:]
    assert labels == own.tolist()


def test_pruning_quantising_and_measuring_read_the_labels_by_name(checkpoint, told, context, no_cold_starts):
    def step(name, module, config, **inputs):
        folders = context.out_dir / name, context.work_dir / name
        for folder in folders:
            folder.mkdir()
        own = dataclasses.replace(context, out_dir=folders[0], work_dir=folders[1])
        return folders[0], module.run(inputs, config, own)

    _, pruned = step("prune", prune, PruneConfig(epochs=0, head_sparsity=0.25), model=checkpoint, data=told)
    assert pruned["accuracy_before"] == 1.0
    _, kept = step(
        "same", prune, PruneConfig(epochs=0, ffn_sparsity=0, head_sparsity=0), model=checkpoint, data=told
    )
    assert kept["validation_accuracy"] == 1.0
    small, int8 = step("int8", quantize, QuantizeConfig(max_accuracy_drop=None), model=checkpoint, data=told)
    assert int8["validation_accuracy"] + int8["validation_accuracy_drop"] == pytest.approx(1.0)
    config = BenchmarkConfig(latency_samples=10, warmup=0)
    _, measured = step("benchmark", benchmark, config, data=told, teacher=checkpoint, quantize=small)
    assert measured["reference_accuracy"] == 1.0
    assert measured["accuracy"] > 0.5  # a random model's labels hang on a hair; swapped ones are below


def test_training_goes_on_from_a_head_that_has_the_labels(checkpoint, told, context):
    found = teacher.run({"model": checkpoint, "data": told}, TeacherConfig(**TRAINED), context)
    assert found["validation_accuracy"] > 0.95  # a new head, or one in another order, starts from chance
    assert class_names(loading.load_classifier(context.out_dir)) == ["positive", "negative"]
    assert not [text for text in context.reporter.messages if "head" in text]


def test_a_checkpoint_with_strange_labels_is_refused_with_both_lists(checkpoint, told, context, tmp_path):
    strange = named(checkpoint, tmp_path / "mail", "spam", "ham")
    both = r"mail: .*\('spam', 'ham'\), but the data have 2 \('negative', 'positive'\)"
    with pytest.raises(DataError, match=both):
        teacher.run({"model": strange, "data": told}, TeacherConfig(checkpoint="x"), context)


def test_training_on_strange_labels_makes_a_new_head_and_says_so(checkpoint, told, context, tmp_path):
    strange = named(checkpoint, tmp_path / "mail", "spam", "ham")
    model = heads.to_train(strange, told, context.reporter.message)
    assert class_names(model) == ["negative", "positive"]
    own = loading.load_classifier(checkpoint)
    assert torch.equal(model.bert.pooler.dense.weight, own.bert.pooler.dense.weight)
    assert head(model).abs().max() < 0.2 < head(own).abs().max()
    assert "'spam', 'ham'" in context.reporter.messages[-1]
    assert "new one for ['negative', 'positive']" in context.reporter.messages[-1]


def test_unnamed_classes_are_taken_by_index_where_the_data_have_an_order_of_their_own(
    checkpoint, told, context, tmp_path
):
    unnamed = named(checkpoint, tmp_path / "unnamed", "LABEL_0", "LABEL_1")
    with pytest.raises(DataError, match=r"set data\.labels"):
        heads.finished(unnamed, told)
    data = shutil.copytree(told, tmp_path / "ordered")
    facts = sentences.info(told) | {"labels_ordered": True}
    (data / sentences.INFO).write_text(json.dumps(facts), encoding="utf-8")
    assert class_names(heads.finished(unnamed, data)) == ["negative", "positive"]


def test_classes_that_are_numbers_keep_them_in_another_order_of_the_data(checkpoint, told, tmp_path):
    numbered = named(checkpoint, tmp_path / "numbered", "0", "1")
    data = shutil.copytree(told, tmp_path / "data")
    facts = sentences.info(told) | {"labels": ["1", "0"], "labels_ordered": True}
    (data / sentences.INFO).write_text(json.dumps(facts), encoding="utf-8")
    assert class_names(heads.finished(numbered, data)) == ["0", "1"]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"architectures": ["BertForTokenClassification"]}, "token classifier"),
        ({"problem_type": "multi_label_classification"}, "multi-label classifier"),
        ({"problem_type": "regression"}, "regression model"),
    ],
)
def test_a_checkpoint_of_another_kind_is_named_and_only_its_encoder_is_trained(
    checkpoint, told, context, tmp_path, fields, kind
):
    other = edited(checkpoint, tmp_path / "other", **fields)
    inputs = {"model": other, "data": told}
    with pytest.raises(SourceError, match=f"other is a {kind}"):
        teacher.run(inputs, TeacherConfig(checkpoint="x"), context)
    teacher.run(inputs, TeacherConfig(**TRAINED), context)
    assert kind in "".join(context.reporter.messages)
    assert loading.load_config(context.out_dir).problem_type == "single_label_classification"


def test_a_base_model_without_a_head_may_say_any_problem_type(tiny_bert, told, context, tmp_path):
    base = edited(tiny_bert, tmp_path / "base", problem_type="multi_label_classification")
    teacher.run({"model": base, "data": told}, TeacherConfig(**TRAINED), context)
    assert loading.load_config(context.out_dir).problem_type == "single_label_classification"


def test_a_student_keeps_its_head_only_in_the_order_of_the_teacher(checkpoint, context):
    told_of, own = context.reporter.messages, head(loading.load_classifier(checkpoint))
    kept = heads.to_distill(checkpoint, ["Positive", "Negative"], context.reporter.message)
    assert torch.equal(head(kept), own)
    assert class_names(kept) == ["Positive", "Negative"]
    assert not told_of
    new = heads.to_distill(checkpoint, ["negative", "positive"], context.reporter.message)
    assert not torch.equal(head(new), own)
    assert class_names(new) == ["negative", "positive"]
    assert "in another order" in told_of[-1]
