"""Students with narrow embeddings: an ELECTRA of a BERT's layers, by transformers' own classes."""

import json

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, ElectraForSequenceClassification

from pressoir.errors import RecipeError
from pressoir.models import loading
from pressoir.recipe.sections import (
    DistillConfig,
    ExportConfig,
    OutputsConfig,
    PruneConfig,
    QuantizeConfig,
    StudentConfig,
)
from pressoir.stages import distill, export, prune, quantize, teacher_outputs
from pressoir.training.factorized import with_embedding_size


def embeddings(model, ids):
    """What the first layer reads."""
    with torch.no_grad():
        return model(input_ids=ids, output_hidden_states=True).hidden_states[0]


@pytest.fixture
def ids(tiny_classifier):
    rows = len(loading.load_tokenizer(tiny_classifier))
    return torch.randint(rows, (20, 30), generator=torch.Generator().manual_seed(1))


def test_wider_tables_come_nearer_to_the_teachers_embeddings(tiny_classifier, ids):
    model = loading.load_classifier(tiny_classifier)
    wanted = embeddings(model, ids)
    spread = (wanted - wanted.mean((0, 1))).square().mean()
    missed = []
    for size in (4, 12, 24):
        student = with_embedding_size(model, size, seed=0)
        missed.append(float((embeddings(student, ids) - wanted).square().mean() / spread))
    assert missed[0] > missed[1] > missed[2]
    assert missed[2] < 0.3


def test_the_projection_is_the_best_one_for_these_tables(tiny_classifier, ids):
    """On tokens that it was not fitted on, too, each change of it is worse."""
    model = loading.load_classifier(tiny_classifier)
    wanted, student = embeddings(model, ids), with_embedding_size(model, 16, seed=0)
    fitted = functional.mse_loss(embeddings(student, ids), wanted)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        weight = student.electra.embeddings_project.weight
        for _ in range(20):
            change = 0.2 * weight.std() * torch.randn(weight.shape, generator=generator)
            weight += change
            assert functional.mse_loss(embeddings(student, ids), wanted) > fitted
            weight -= change


def test_layers_and_classes_are_the_teachers(tiny_classifier):
    model = loading.load_classifier(tiny_classifier)
    student = with_embedding_size(model, 8, seed=0)
    assert isinstance(student, ElectraForSequenceClassification)
    assert student.config.id2label == model.config.id2label
    assert student.config.embedding_size == 8
    ours, theirs = student.electra.encoder.state_dict(), model.bert.encoder.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = with_embedding_size(model, 8, seed=0).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in student.state_dict().items())


def test_what_has_no_such_student_is_refused(tiny_classifier, tiny_encoder):
    with pytest.raises(RecipeError, match="32 is not below the hidden size, 32"):
        with_embedding_size(loading.load_classifier(tiny_classifier), 32, seed=0)
    with pytest.raises(RecipeError, match="not supported for a roberta model; supported: bert"):
        with_embedding_size(loading.load_classifier(tiny_encoder("roberta")), 8, seed=0)
    for other in ({"model": "m"}, {"config": {"num_hidden_layers": 2}}):
        with pytest.raises(ValueError, match="`embedding_size` can be combined with `layers` only"):
            StudentConfig(**other, embedding_size=8)


def test_it_is_distilled_pruned_quantized_and_exported(tiny_classifier, tiny_data, context, tmp_path):
    def step(run, config, **inputs):
        own = context.__class__(tmp_path / run.__module__, tmp_path / "work", context.reporter, 0, 2)
        own.out_dir.mkdir()
        own.work_dir.mkdir(exist_ok=True)
        return own.out_dir, run(inputs, config, own)

    student = StudentConfig(layers=2, embedding_size=16)
    brief = {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3}
    teacher = {"teacher": tiny_classifier, "data": tiny_data}
    outputs, _ = step(teacher_outputs.run, OutputsConfig(hidden=True, student=student), **teacher)
    small, found = step(distill.run, DistillConfig(**brief, student=student), **teacher, outputs=outputs)
    assert found["parameters_of_teacher"] < 0.8
    assert AutoModelForSequenceClassification.from_pretrained(small).config.model_type == "electra"
    recovery = PruneConfig(**brief, head_sparsity=0.25, ffn_sparsity=0.5)
    pruned, _ = step(prune.run, recovery, **teacher, outputs=outputs, model=small)
    int8, _ = step(
        quantize.run, QuantizeConfig(embeddings="q4", max_accuracy_drop=None), model=pruned, data=tiny_data
    )
    graph, figures = step(export.run, ExportConfig(), model=int8, data=tiny_data)
    assert figures["label_agreement"] > 0.98
    operators = json.loads((graph / "export.json").read_text())["operators"]
    assert operators["GatherBlockQuantized"] == 1
    assert "MatMul" not in operators, "the projection, too, is a product of integers"
