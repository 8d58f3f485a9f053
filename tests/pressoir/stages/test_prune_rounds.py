"""Pruning in rounds, and to a target, of a tiny random BERT: 4 layers of 4 heads and 64 neurons."""

import dataclasses
import json
import shutil

import pytest
import torch
from pydantic import ValidationError
from stopping import StoppedError, StopsAt

from pressoir.errors import RecipeError
from pressoir.models import loading
from pressoir.models.layouts import count_parameters, encoder_layers
from pressoir.pruning import rounds, target, units
from pressoir.pruning.target import MOST_CANDIDATES, smallest_removal
from pressoir.recipe.sections import OutputsConfig, PruneConfig, PruneTarget
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext
from pressoir.stages import prune, teacher_outputs
from pressoir.training import loop

QUICK = {"epochs": 0, "calibration_samples": 32}
BRIEF = {"batch_size": 16, "learning_rate": 3e-4, "hidden_weight": 0, "calibration_samples": 32}


@pytest.fixture(scope="module")
def inputs(tiny_classifier, tiny_data, tmp_path_factory):
    """A model to prune, which recovers under its own outputs."""
    root = tmp_path_factory.mktemp("itself")
    context = StageContext(root, root, LogReporter(), seed=0, threads=1)
    teacher = {"teacher": tiny_classifier, "data": tiny_data}
    teacher_outputs.run(teacher, OutputsConfig(hidden=False, student=None), context)
    return {"model": tiny_classifier, "outputs": root, "data": tiny_data}


def loaded(folder):
    return loading.load_classifier(folder)


def candidates(inputs, config, context):
    """The plans that a target is searched among, and the model that each one leaves."""
    model, tokenizer = loaded(inputs["model"]), loading.load_tokenizer(inputs["model"])
    scores = units.importance(model, tokenizer, inputs["data"], config, context)
    found = target.candidates(scores, config.allocation == "uniform", units.units(model))
    left = [loaded(inputs["model"]) for _ in found]
    for copy, plan in zip(left, found, strict=True):
        units.remove(copy, plan)
    return found, left


def weights_of(made):
    return {name: tensor.clone() for name, tensor in made.state_dict().items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


# Rounds.


def test_after_each_round_the_cubic_share_of_the_units_is_gone(inputs, context):
    config = PruneConfig(rounds=3, head_sparsity=0.5, ffn_sparsity=0.75, **QUICK)
    figures = prune.run(inputs, config, context)
    # Gone are 19/27, 26/27 and all of it: 2.6, 2.1 and 2 of 4 heads, 30.2, 17.8 and 16 of 64 neurons.
    expected = units.Units((2,) * 4, (16,) * 4)
    assert units.units(loaded(context.out_dir)) == expected
    report = json.loads((context.out_dir / rounds.REPORT).read_text())
    after = [each["after"] for each in report]
    assert after == [[[3] * 4, [32] * 4], [[2] * 4, [16] * 4], [[2] * 4, [16] * 4]]
    assert [each["before"] for each in report][1:] == after[:-1]
    assert figures["parameters_kept"] == pytest.approx(
        count_parameters(loaded(context.out_dir)) / count_parameters(loaded(inputs["model"]))
    )


def test_each_round_measures_importance_anew(inputs, context, monkeypatch):
    measured, importance = [], units.importance

    def counted(model, *args):
        measured.append(units.units(model).neurons[0])
        return importance(model, *args)

    monkeypatch.setattr(units, "importance", counted)
    prune.run(inputs, PruneConfig(rounds=2, head_sparsity=0.0, ffn_sparsity=0.5, **QUICK), context)
    assert measured == [64, 32]


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_one_round_removes_what_importance_says_and_leaves_no_other_files(inputs, context, allocation):
    config = PruneConfig(allocation=allocation, head_sparsity=0.5, ffn_sparsity=0.5, **QUICK)
    prune.run(inputs, config, context)
    model, tokenizer = loaded(inputs["model"]), loading.load_tokenizer(inputs["model"])
    scores = units.importance(model, tokenizer, inputs["data"], config, context)
    whole = units.units(model)
    units.remove(model, units.plan_pruning(scores, 0.5, 0.5, allocation == "uniform", whole))
    assert same(weights_of(loaded(context.out_dir)), weights_of(model))
    assert not (context.out_dir / rounds.REPORT).exists()


def test_unstructured_rounds_end_at_the_sparsity_asked_for(inputs, context):
    config = PruneConfig(granularity="unstructured", sparsity=0.4, rounds=2, **QUICK)
    prune.run(inputs, config, context)
    for module in encoder_layers(loaded(context.out_dir)).modules():
        if isinstance(module, torch.nn.Linear):
            assert (module.weight == 0).float().mean() == pytest.approx(0.4, abs=0.001)


def test_the_last_round_has_the_epochs_left_over_and_the_epochs_add_up():
    assert rounds.epochs_of_rounds(7, 3) == [2, 2, 3]
    assert rounds.epochs_of_rounds(6, 3) == [2, 2, 2]
    assert rounds.epochs_of_rounds(1, 4) == [0, 0, 0, 1]  # a search shortens a recipe's epochs
    assert rounds.epochs_of_rounds(5, 1) == [5]
    assert [rounds.cumulative_fraction(number, 2) for number in (1, 2)] == [0.875, 1.0]


# Targets.


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_number_of_parameters_is_reached_by_the_first_candidate_that_does(inputs, context, allocation):
    config = PruneConfig(allocation=allocation, **QUICK)
    found, left = candidates(inputs, config, context)
    counts = [count_parameters(each) for each in left]
    assert counts == sorted(counts, reverse=True)
    index = len(counts) // 2
    for limit in (counts[index], counts[index - 1] - 1):  # exactly there, and just not the candidate before
        own = dataclasses.replace(context, work_dir=context.work_dir / str(limit))
        own.work_dir.mkdir()
        given = config.model_copy(update={"target": PruneTarget(parameters=limit)})
        figures = prune.run(inputs, given, own)
        assert figures["parameters"] == counts[index]
        assert units.units(loaded(context.out_dir)) == found[index].units


def test_a_target_that_the_model_meets_as_it_is_removes_nothing(inputs, context):
    target = PruneTarget(parameters=count_parameters(loaded(inputs["model"])))
    prune.run(inputs, PruneConfig(target=target, **QUICK), context)
    assert same(weights_of(loaded(context.out_dir)), weights_of(loaded(inputs["model"])))


def test_a_size_is_that_of_the_int8_graph_that_is_really_made(inputs, context):
    config = PruneConfig(**QUICK)
    tokenizer = loading.load_tokenizer(inputs["model"])
    _, left = candidates(inputs, config, context)
    sizes = [
        prune.int8_cost(each, tokenizer, inputs["data"], config, context)["size_mb"] for each in left[1:3]
    ]
    assert sizes[0] > sizes[1]
    given = config.model_copy(update={"target": PruneTarget(size_mb=sum(sizes) / 2)})
    figures = prune.run(inputs, given, context)
    assert figures["parameters"] == count_parameters(left[2])
    assert figures["int8_size_mb"] == pytest.approx(sizes[1], abs=1e-4)
    assert figures["int8_latency_ms"] > 0


def test_four_bit_word_pieces_are_in_the_size_where_training_was_for_them(inputs, context):
    model, tokenizer = loaded(inputs["model"]), loading.load_tokenizer(inputs["model"])
    plain, packed = (
        prune.int8_cost(model, tokenizer, inputs["data"], PruneConfig(quantization_aware=words), context)
        for words in (None, "int8_q4")
    )
    assert packed["size_mb"] != plain["size_mb"]


def slow_heads(model, *_):
    """A made-up cost: 1 ms a head, 0.01 ms a neuron."""
    left = units.units(model)
    return {"size_mb": 1.0, "latency_ms": sum(left.heads) + 0.01 * sum(left.neurons)}


def test_a_latency_is_reached_as_measured_and_the_measure_is_told(inputs, context, monkeypatch):
    monkeypatch.setattr(prune, "int8_cost", slow_heads)
    config = PruneConfig(target=PruneTarget(latency_ms=10), **QUICK)
    figures = prune.run(inputs, config, context)
    # A step takes a head and 16 neurons of each of 4 layers, 4.64 ms; from 18.56 ms two are needed.
    assert units.units(loaded(context.out_dir)) == units.Units((2,) * 4, (32,) * 4)
    assert figures["int8_latency_ms"] == pytest.approx(9.28)
    assert any("9.280 ms (target 10.000 ms)" in text for text in context.reporter.messages)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_rounds_end_where_the_target_is_reached(inputs, context, monkeypatch, allocation):
    monkeypatch.setattr(prune, "int8_cost", slow_heads)
    target = PruneTarget(latency_ms=10)
    figures = prune.run(inputs, PruneConfig(rounds=2, allocation=allocation, target=target, **QUICK), context)
    left = slow_heads(loaded(context.out_dir))["latency_ms"]
    assert left <= 10
    assert figures["int8_latency_ms"] == pytest.approx(left)
    first, last = json.loads((context.out_dir / rounds.REPORT).read_text())
    assert 0 < first["dial"] < 1  # the name of a level in what is published
    assert last["dial"] == first["dial"] or allocation == "global"
    assert sum(first["after"][0]) >= sum(units.units(loaded(context.out_dir)).heads)
    assert sum(first["before"][0]) == 16


def test_a_target_out_of_reach_says_by_how_much(inputs, context, monkeypatch):
    monkeypatch.setattr(prune, "int8_cost", slow_heads)
    with pytest.raises(RecipeError, match=r"still has 4\.640 ms, 0\.640 ms \(16\.0%\) too much"):
        prune.run(inputs, PruneConfig(target=PruneTarget(latency_ms=4), **QUICK), context)


def test_bisection_finds_the_first_candidate_that_meets_in_few_measurements():
    for last in (0, 1, 2, 7, MOST_CANDIDATES - 1):
        for first in range(last + 1):
            asked = []

            def meets(step, first=first, asked=asked):
                asked.append(step)
                return step >= first

            assert smallest_removal(meets, last) == first
            assert len(asked) <= 8


def test_of_many_candidates_an_even_selection_is_searched():
    torch.manual_seed(0)
    scores = units.Importance(list(torch.rand(12, 12)), list(torch.rand(12, 768)))
    found = target.candidates(scores, False, units.Units((12,) * 12, (768,) * 12))
    assert 200 < len(found) <= MOST_CANDIDATES
    assert found[0].units == ((12,) * 12, (768,) * 12)
    assert found[-1].units == ((1,) * 12, (16,) * 12)


# Going on after a kill.


def test_a_killed_run_keeps_finished_rounds_and_their_target_and_resumes_the_one_it_was_in(
    inputs, context, monkeypatch
):
    target = PruneTarget(parameters=30000)
    config = PruneConfig(rounds=2, epochs=2, target=target, checkpoint_every_steps=5, **BRIEF)
    figures = prune.run(inputs, config, context)
    whole = weights_of(loaded(context.out_dir))
    history = json.loads((context.out_dir / "history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    steps_told = [step for name, _, step in context.reporter.metrics if name == "validation_accuracy"]
    assert steps_told == [1, 2]

    for folder in (context.out_dir, context.work_dir):
        shutil.rmtree(folder)
        folder.mkdir()
    stopped = dataclasses.replace(context, reporter=StopsAt(12, "round 2"))
    with pytest.raises(StoppedError):
        prune.run(inputs, config, stopped)
    fits, fit = [], loop.fit

    def counted(*args, **kwargs):
        fits.append(kwargs["what"])
        return fit(*args, **kwargs)

    def never(*args):
        raise AssertionError("the choice of units was made before")

    monkeypatch.setattr(loop, "fit", counted)
    monkeypatch.setattr(units, "importance", never)
    monkeypatch.setattr(rounds, "reach", never)
    again = dataclasses.replace(context, reporter=StopsAt(None, "round 2"))
    assert prune.run(inputs, config, again) == pytest.approx(figures)
    assert fits == ["prune, round 2 of 2: recovery steps"]
    assert any("resuming from checkpoint-10" in text for text in again.reporter.messages)
    ours = weights_of(loaded(context.out_dir))
    for name in whole:
        torch.testing.assert_close(ours[name], whole[name], msg=name)


# What a recipe may say.


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"rounds": 3, "epochs": 2}, "3 rounds need at least as many recovery epochs"),
        ({"rounds": 0}, "greater than or equal to 1"),
        ({"target": {}}, "none is specified"),
        ({"target": {"size_mb": 5, "latency_ms": 1}}, "size_mb and latency_ms are given"),
        ({"target": {"size_mb": 5}, "granularity": "unstructured"}, "does not reduce the size"),
        ({"target": {"size_mb": 5}, "head_sparsity": 0.5}, "omit head_sparsity"),
        ({"target": {"parameters": 0}}, "greater than 0"),
    ],
)
def test_what_contradicts_itself_is_refused(fields, match):
    with pytest.raises(ValidationError, match=match):
        PruneConfig(**fields)


def test_rounds_without_recovery_are_allowed():
    assert PruneConfig(rounds=4, epochs=0).rounds == 4
