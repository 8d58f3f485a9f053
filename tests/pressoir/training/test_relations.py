"""Attention relations: the loss, what of the teacher is kept for it, and training with it."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import BertConfig, DistilBertConfig, RobertaConfig

from pressoir.data import sentences
from pressoir.errors import RecipeError
from pressoir.models import loading
from pressoir.models.layouts import architecture_of, encoder_layers
from pressoir.recipe.sections import DistillConfig, OutputsConfig, PruneConfig, StudentConfig
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext
from pressoir.stages import distill, teacher_outputs
from pressoir.training import loop, relations
from pressoir.training.distillation import PROJECTION, DistillationLoss, TeacherOutputs
from pressoir.training.students import make_student

BRIEF = {"epochs": 1, "batch_size": 40, "learning_rate": 1e-3, "hidden_weight": 0}
INTENSE = {**BRIEF, "batch_size": 8, "learning_rate": 1e-2}  # one epoch, so that none is chosen
LABELS = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plainly(student, teacher, mask, heads):
    """The loss as the paper writes it, one sentence, head and token at a time."""
    divergences = []
    for row, kept in enumerate(mask.bool()):
        for part in range(3):
            pair = []
            for given in (teacher, student):
                whole = given[row, kept, part].double().numpy()  # (tokens, width)
                pair.append(np.split(whole, heads, axis=1))
            for theirs, ours in zip(*pair, strict=True):
                for token in range(len(theirs)):
                    p, q = (np.exp(x @ x[token] / np.sqrt(x.shape[1])) for x in (theirs, ours))
                    p, q = p / p.sum(), q / q.sum()
                    divergences.append((p * np.log(p / q)).sum())
    return np.mean(divergences)


def spread(model):
    """The model with weights so large that its relations are far from uniform."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def inputs(tiny_classifier, tiny_data, tmp_path_factory):
    """Inputs of a stage that learns from a teacher whose queries, keys and values are kept."""
    root = tmp_path_factory.mktemp("relations")
    teacher, out = root / "teacher", root / "outputs"
    loading.save_model(spread(loading.load_classifier(tiny_classifier)), teacher)
    loading.save_tokenizer(loading.load_tokenizer(tiny_classifier), teacher)
    out.mkdir()
    given = {"teacher": teacher, "data": tiny_data}
    context = StageContext(out, root, LogReporter(), seed=0, threads=1)
    teacher_outputs.run(given, OutputsConfig(hidden=False, relations=True, student=None), context)
    return given | {"outputs": out}


def fit(model, inputs, config, context, **options):
    return loop.fit(
        model,
        loading.load_tokenizer(inputs["teacher"]),
        inputs["data"],
        config,
        context,
        what="steps",
        loss=DistillationLoss.from_config(config),
        outputs=TeacherOutputs.open(inputs["outputs"]),
        **options,
    )


def apart(model, inputs, count=64):
    """The relation loss of `model` on the first sentences, without dropout."""
    outputs = TeacherOutputs.open(inputs["outputs"])
    texts = sentences.load_split(inputs["data"], "train")["text"][:count]
    encoded = loading.load_tokenizer(inputs["teacher"])(texts, padding=True, return_tensors="pt")
    batch = outputs.batch(list(range(count)), encoded["input_ids"].shape[1])
    model.eval()
    with torch.no_grad(), relations.captured(model) as seen:
        model(**encoded)
    found = relations.stacked(seen)
    return float(relations.loss(found, batch["teacher_relations"], encoded["attention_mask"]))


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


# The loss.


@pytest.mark.parametrize(("width", "heads"), [(24, 4), (24, 8), (48, 12), (20, 4), (24, 1)])
def test_the_loss_is_what_the_paper_writes(width, heads):
    student, teacher = vectors(3, 6, 3, width, seed=1), vectors(3, 6, 3, 12 * heads, seed=2)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5])
    found = relations.loss(student, teacher, mask, heads)
    assert float(found) == pytest.approx(plainly(student, teacher, mask, heads), rel=1e-5)
    assert found > 0.01


def test_a_model_does_not_differ_from_itself_and_differs_from_another():
    one, other, mask = vectors(2, 5, 3, 32), vectors(2, 5, 3, 32, seed=3), torch.ones(2, 5)
    assert float(relations.loss(one, one, mask)) == pytest.approx(0, abs=1e-6)
    assert float(relations.loss(one, other, mask)) > 0.1


def test_padding_counts_neither_as_row_nor_as_column():
    student, teacher = vectors(2, 4, 3, 32, seed=1), vectors(2, 4, 3, 64, seed=2)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    expected = relations.loss(student, teacher, mask)
    student[1, 2:], teacher[1, 2:] = 1e3, vectors(2, 3, 64, seed=4)
    longer = [torch.cat([each, vectors(2, 3, *each.shape[2:], seed=5)], dim=1) for each in (student, teacher)]
    padded = torch.cat([mask, torch.zeros(2, 3, dtype=mask.dtype)], dim=1)
    student = longer[0].requires_grad_()
    found = relations.loss(student, longer[1], padded)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert student.grad[padded.bool()].abs().min() > 0
    assert not student.grad[~padded.bool()].any()


def test_autocast_does_not_round_it():
    student, teacher, mask = vectors(2, 5, 3, 32, seed=1), vectors(2, 5, 3, 32, seed=2), torch.ones(2, 5)
    expected = relations.loss(student, teacher, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(relations.loss(student, teacher, mask), expected, rtol=0, atol=0)
    assert relations.loss(student.bfloat16(), teacher.half(), mask).dtype == torch.float32


@pytest.mark.parametrize(
    ("teacher", "student", "asked", "expected"),
    [
        (768, 768, None, 48),  # the paper's numbers
        (1024, 1024, None, 64),
        (768, 384, None, 48),
        (384, 384, None, 24),
        (384, 256, None, 16),  # 8 of 12 heads are left
        (384, 160, None, 16),
        (384, 77, None, 1),
        (8, 8, None, 1),
        (384, 256, 128, 128),
        (384, 288, 12, 12),
    ],
)
def test_relation_heads_divide_both_widths(teacher, student, asked, expected):
    assert relations.count_heads(teacher, student, asked) == expected


def test_relation_heads_that_do_not_fit_are_refused_with_those_that_do():
    with pytest.raises(RecipeError, match=r"12 does not .* 384 in the teacher and 256 .*; 1, 2, 4, 8, 16,"):
        relations.count_heads(384, 256, 12)


def test_it_is_added_to_the_other_losses_by_its_weight():
    logits, labels = torch.tensor([[1.0, -1.0]]), torch.tensor([1])
    student, teacher, mask = vectors(1, 4, 3, 16), vectors(1, 4, 3, 32, seed=2), torch.ones(1, 4)
    plain = DistillationLoss(2.0, 0.5, 0.0)
    config = DistillConfig(alpha=0.5, hidden_weight=0, relation_weight=3, relation_heads=4)
    found = DistillationLoss.from_config(config)(
        logits, labels, logits, mask=mask, vectors=student, teacher_vectors=teacher
    )
    expected = plain(logits, labels, logits) + 3 * relations.loss(student, teacher, mask, 4)
    torch.testing.assert_close(found, expected)


def test_the_gradient_reaches_what_makes_the_students_queries_keys_and_values_and_nothing_else(inputs):
    student = loading.load_classifier(inputs["teacher"])
    teacher = vectors(1, 5, 3, 32, seed=2).requires_grad_()
    with relations.captured(student) as seen:
        student(input_ids=torch.arange(5, 10)[None])
    relations.loss(relations.stacked(seen), teacher, torch.ones(1, 5)).backward()
    assert teacher.grad is None
    reached = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    last = {name for name in reached if ".layer.3." in name}
    parts = ("query", "key", "value")
    projections = {f"bert.encoder.layer.3.attention.self.{p}.{k}" for p in parts for k in ("weight", "bias")}
    assert last == projections
    assert all(parameter.grad.any() for n, parameter in student.named_parameters() if n in projections)
    assert any(".layer.0." in name for name in reached)
    assert not any(name.startswith(("classifier", "bert.pooler")) for name in reached)


# What of the teacher is kept.


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_kept_are_the_last_layers_queries_keys_and_values(family, tiny_bert, tiny_data, tmp_path, context):
    sizes = {"vocab_size": 40, "max_position_embeddings": 66, "pad_token_id": 0, **LABELS}
    wide = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = {
        "bert": lambda: BertConfig(**sizes, **wide),
        "distilbert": lambda: DistilBertConfig(**sizes, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
        "roberta": lambda: RobertaConfig(**sizes, **wide),
    }[family]()
    model = spread(loading.new_classifier(config))
    model.prune_heads({1: [0, 2]})  # a teacher may have been pruned
    loading.save_model(model, tmp_path / "teacher")
    tokenizer = loading.load_tokenizer(tiny_bert)
    tokenizer.save_pretrained(tmp_path / "teacher")
    inputs = {"teacher": tmp_path / "teacher", "data": tiny_data}
    teacher_outputs.run(inputs, OutputsConfig(hidden=False, relations=True, student=None), context)

    outputs = TeacherOutputs.open(context.out_dir)
    assert outputs.hidden is None
    assert outputs.relations.shape == (outputs.offsets[-1], 3, 16)
    assert outputs.relations.dtype == np.float16
    last, names = encoder_layers(model)[-1], architecture_of(model)
    texts = sentences.load_split(tiny_data, "train")["text"][:]
    for row in (0, 7, len(texts) - 1):
        ids = torch.tensor([tokenizer(texts[row])["input_ids"]])
        batch = outputs.batch([row], ids.shape[1] + 2)["teacher_relations"]
        with torch.no_grad():
            entering = model(input_ids=ids, output_hidden_states=True).hidden_states[-2][0]
            for index, path in enumerate((names.query, names.key, names.value)):
                expected = last.get_submodule(path)(entering)
                found = batch[0, :-2, index].float()
                torch.testing.assert_close(found, expected, atol=5e-3, rtol=2e-3)
        assert not batch[0, -2:].any()


def test_nothing_is_kept_unless_asked_and_the_rest_is_the_same_to_the_byte(inputs, context):
    held = {}
    for asked in (False, True):
        out = context.out_dir / str(asked)
        out.mkdir()
        config = OutputsConfig(hidden=True, relations=asked, student=StudentConfig(layers=2))
        teacher_outputs.run(inputs, config, dataclasses.replace(context, out_dir=out))
        held[asked] = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(held[False]) == {"logits.npy", "offsets.npy", "hidden.npy"}
    assert held[True].pop("relations.npy")
    assert held[True] == held[False]


def test_they_are_asked_for_by_whoever_learns_from_them():
    from pressoir.pipeline.chain import outputs_config
    from pressoir.recipe.recipe import Recipe

    def asked(**sections):
        return outputs_config(Recipe.from_dict(sections)).relations

    plain, weighted = {"epochs": 1}, {"epochs": 1, "relation_weight": 0.5}
    assert not asked(distill=plain, prune=plain)
    assert asked(distill=weighted, prune=plain)
    assert asked(distill=plain, prune=weighted)
    assert not asked(distill=plain, prune={**weighted, "epochs": 0})


# Training.


def test_a_narrower_student_is_distilled_without_a_projection(inputs, context):
    smaller = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 1, "intermediate_size": 32}
    found = {}
    for weight in (0.0, 100.0):
        out, work = context.out_dir / str(weight), context.work_dir / str(weight)
        out.mkdir()
        config = DistillConfig(**INTENSE, student=StudentConfig(config=smaller), relation_weight=weight)
        distill.run(inputs, config, dataclasses.replace(context, out_dir=out, work_dir=work))
        model = loading.load_classifier(out)
        assert not any(PROJECTION in name for name in model.state_dict())
        found[weight] = apart(model, inputs)
    assert found[100.0] < 0.9 * found[0.0]
    assert any("relations of the last layer in 2 heads" in line for line in context.reporter.messages)


@pytest.mark.parametrize(
    "options", [{}, {"quantization_aware": "int8"}, {"precision": "bfloat16"}, {"relation_heads": 8}]
)
def test_a_model_whose_heads_were_pruned_learns_the_relations(inputs, context, options):
    torch.manual_seed(0)
    teacher, fresh = (
        loading.load_classifier(inputs["teacher"]),
        StudentConfig(config={"num_hidden_layers": 1}),
    )
    model = make_student(teacher, fresh, None, print)
    model.prune_heads({0: [1]})
    before = apart(model, inputs)
    config = PruneConfig(**INTENSE, relation_weight=100, **options)
    fit(model, inputs, config, context)
    assert relations.width(model) == 24
    assert apart(model, inputs) < 0.9 * before


@pytest.mark.parametrize(("weight", "count"), [(0.0, 0), (1.0, 3)])
def test_hooks_are_there_while_it_trains_if_at_all(inputs, context, weight, count):
    model, counted = loading.load_classifier(inputs["teacher"]), []
    names = set(model.state_dict())
    config = DistillConfig(**BRIEF, relation_weight=weight)
    fit(model, inputs, config, context, after_step=lambda: counted.append(hooks(model)))
    assert counted == [count] * 10
    assert hooks(model) == 0
    assert set(model.state_dict()) == names


def test_of_weight_zero_nothing_is_read_even_where_it_is_kept(inputs, context, tiny_classifier):
    """Another stage may have asked for it; this one's tokens may even be different ones."""
    folder = inputs["outputs"]
    outputs = TeacherOutputs.open(folder)
    given = dataclasses.replace(outputs, relations=outputs.relations[:0])
    loss = DistillationLoss(2.0, 0.5, 0.0)
    config, model = DistillConfig(**BRIEF), loading.load_classifier(tiny_classifier)
    tokenizer = loading.load_tokenizer(tiny_classifier)
    history = loop.fit(
        model, tokenizer, inputs["data"], config, context, what="steps", loss=loss, outputs=given
    )
    assert len(history) == 1


def test_a_run_that_was_cut_off_goes_on_to_the_same_weights(inputs, context):
    config = DistillConfig(**BRIEF, relation_weight=1, checkpoint_every_steps=3)
    steps = []

    def failing():
        steps.append(None)
        if len(steps) == 8:
            raise KeyboardInterrupt

    def student():
        torch.manual_seed(0)
        model = loading.load_classifier(inputs["teacher"])
        model.prune_heads({3: [0]})
        return model

    whole, cut = student(), student()
    fit(whole, inputs, config, dataclasses.replace(context, work_dir=context.work_dir / "whole"))
    own = dataclasses.replace(context, work_dir=context.work_dir / "cut")
    with pytest.raises(KeyboardInterrupt):
        fit(cut, inputs, config, own, after_step=failing)
    assert hooks(cut) == 0
    again = student()
    fit(again, inputs, config, own)
    assert "steps: resuming from checkpoint-6" in context.reporter.messages
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, msg=name)


# Errors.


def test_heads_that_do_not_fit_are_refused_before_the_first_step(inputs, context):
    model, config = loading.load_classifier(inputs["teacher"]), DistillConfig(**BRIEF, relation_weight=1)
    model.prune_heads({3: [0]})
    with pytest.raises(RecipeError, match=r"relation_heads: 16 .* 32 in the teacher and 24 in the student"):
        fit(model, inputs, config.model_copy(update={"relation_heads": 16}), context)
    assert not context.reporter.progressed


def test_other_tokens_than_the_teachers_are_refused(inputs, context):
    outputs = TeacherOutputs.open(inputs["outputs"])
    shifted = dataclasses.replace(outputs, offsets=outputs.offsets[::-1].copy())
    config, model = DistillConfig(**BRIEF, relation_weight=1), loading.load_classifier(inputs["teacher"])
    tokenizer, loss = loading.load_tokenizer(inputs["teacher"]), DistillationLoss.from_config(config)
    with pytest.raises(RecipeError, match=r"attention relations cannot .* distill\.relation_weight"):
        loop.fit(model, tokenizer, inputs["data"], config, context, what="s", loss=loss, outputs=shifted)


def test_outputs_without_relations_are_refused(inputs, context):
    outputs = context.out_dir / "plain"
    outputs.mkdir()
    plain = OutputsConfig(hidden=False, student=None)
    teacher_outputs.run(inputs, plain, dataclasses.replace(context, out_dir=outputs))
    config, model = DistillConfig(**BRIEF, relation_weight=1), loading.load_classifier(inputs["teacher"])
    with pytest.raises(RecipeError, match="no queries, keys and values"):
        fit(model, inputs | {"outputs": outputs}, config, context)
