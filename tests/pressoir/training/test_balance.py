"""Unbalanced data: which metric chooses the epoch, and what the labels weigh."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight

from pressoir.data import sentences
from pressoir.errors import RecipeError
from pressoir.inference.text_classification import TextClassifier
from pressoir.models import loading
from pressoir.models.layouts import class_names
from pressoir.recipe.sections import DistillConfig, TeacherConfig
from pressoir.stages import teacher
from pressoir.training import balance, loop
from pressoir.training.distillation import DistillationLoss


@pytest.fixture(scope="module")
def unbalanced(tiny_data, tmp_path_factory):
    """The tiny data with every tenth positive sentence only; positive is the data's second label."""
    folder = tmp_path_factory.mktemp("unbalanced")
    for split in sentences.SPLITS:
        rows = sentences.load_split(tiny_data, split).to_list()
        kept = [row for number, row in enumerate(rows) if not row["label"] or number % 20 == 1]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    (folder / sentences.INFO).write_text(json.dumps(sentences.info(tiny_data)), encoding="utf-8")
    return folder


@pytest.fixture
def reversed_classes(tiny_classifier):
    model = loading.load_classifier(tiny_classifier)
    loading.rename(model.config, ["positive", "negative"])
    return model


@pytest.mark.parametrize("config", [TeacherConfig(), DistillConfig()])
def test_the_best_epoch_is_chosen_by_macro_f1_where_labels_are_unbalanced(config, tiny_data, unbalanced):
    assert balance.best_metric(config, tiny_data) == "accuracy"
    assert balance.best_metric(config, unbalanced) == "macro_f1"
    for metric in ("accuracy", "macro_f1"):
        chosen = config.model_copy(update={"best_metric": metric})
        assert balance.best_metric(chosen, tiny_data) == balance.best_metric(chosen, unbalanced) == metric


def test_balanced_weights_are_scikit_learns_in_the_models_order(unbalanced):
    labels = np.array(sentences.load_split(unbalanced, "train")["label"][:])
    negative, positive = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    assert positive > 5 * negative
    config = TeacherConfig(class_weights="balanced")
    for names, expected in (
        (["negative", "positive"], [negative, positive]),
        (["positive", "negative"], [positive, negative]),
    ):
        found = balance.class_weights(config, unbalanced, names)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_given_weights_are_by_label_and_others_weigh_one(unbalanced):
    names = ["positive", "negative"]
    config = TeacherConfig(class_weights={"positive": 5})
    assert balance.class_weights(config, unbalanced, names).tolist() == [5, 1]
    assert balance.class_weights(TeacherConfig(), unbalanced, names) is None


def test_a_weight_of_a_label_that_the_data_lack_is_refused_with_those_they_have(unbalanced):
    config = TeacherConfig(class_weights={"spam": 2})
    with pytest.raises(RecipeError, match=r"\['negative', 'positive'\], not \['spam'\]"):
        balance.class_weights(config, unbalanced, ["negative", "positive"])
    with pytest.raises(ValidationError):
        TeacherConfig(class_weights={"positive": 0})


def test_training_weighs_the_labels_and_measuring_does_not(reversed_classes, tiny_classifier, unbalanced):
    model, tokenizer = reversed_classes, loading.load_tokenizer(tiny_classifier)
    batch = dict(tokenizer(["the film was good", "the book was dull"], padding=True, return_tensors="pt"))
    batch["labels"], weights = torch.tensor([0, 1]), torch.tensor([5.0, 1.0])
    trainer = object.__new__(loop._Trainer)
    trainer.class_weights = weights
    model.train()
    torch.manual_seed(0)  # the same dropout for both
    logits = model(**batch).logits
    expected = F.cross_entropy(logits, batch["labels"], weights)
    torch.manual_seed(0)
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), expected)
    assert not torch.isclose(expected, F.cross_entropy(logits, batch["labels"]))
    model.eval()
    own = F.cross_entropy(model(**batch).logits, batch["labels"])
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), own)


def test_distilling_weighs_the_hard_labels_alone():
    logits, told = torch.tensor([[1.0, -1.0], [0.2, 0.1]]), torch.tensor([[2.0, 0.5], [0.0, 1.0]])
    labels, weights = torch.tensor([1, 0]), torch.tensor([3.0, 1.0])
    loss = DistillationLoss(temperature=2.0, alpha=0.4, hidden_weight=0)
    plain, weighted = loss(logits, labels, told), loss(logits, labels, told, class_weights=weights)
    difference = F.cross_entropy(logits, labels, weights) - F.cross_entropy(logits, labels)
    torch.testing.assert_close(weighted - plain, 0.6 * difference)


def test_every_f1_is_scikit_learns_whatever_the_order_of_the_models_classes(
    reversed_classes, tiny_classifier, unbalanced, context
):
    loading.save_model(reversed_classes, context.work_dir)
    loading.save_tokenizer(loading.load_tokenizer(tiny_classifier), context.work_dir)
    config = TeacherConfig(epochs=1, learning_rate=1e-3, class_weights="balanced")
    found = teacher.run({"model": context.work_dir, "data": unbalanced}, config, context)
    rows = sentences.load_split(unbalanced, "validation")
    classifier = TextClassifier.open(context.out_dir, 1)
    assert class_names(loading.load_classifier(context.out_dir)) == ["positive", "negative"]
    told = [max(one, key=one.get) for one in classifier.predict(rows["text"][:])]
    expected = [["negative", "positive"][label] for label in rows["label"]]
    f1 = f1_score(expected, told, pos_label="positive", zero_division=0)
    macro = f1_score(expected, told, average="macro", zero_division=0)
    assert (found["validation_f1"], found["validation_macro_f1"]) == pytest.approx((f1, macro))
    (epoch,) = json.loads((context.out_dir / "history.json").read_text(encoding="utf-8"))
    assert (epoch["f1"], epoch["macro_f1"]) == pytest.approx((f1, macro))
    messages = "\n".join(context.reporter.messages)
    assert "weights of the labels: positive " in messages
    assert "best macro-averaged F1" in messages
    assert "validation_f1 is that of the label 'positive'" in messages
