"""The study: what is proposed, that nothing is tried twice, and what is left after a kill."""

import itertools

import pytest

from pressoir.benchmark.cost import Cost
from pressoir.recipe_search.budget import SearchLimits
from pressoir.recipe_search.config import Range
from pressoir.recipe_search.records import Figures, TrialOutcome
from pressoir.recipe_search.study import Study

SPACE = {
    "distill.student.layers": (1, 2, 3),
    "prune.ffn_sparsity": Range(low=0.0, high=0.75, step=0.25),
    "quantize": (None, {"scheme": "int8"}),
}
LIMITS = SearchLimits(max_size_mb=5.0, max_latency_ms=None, min_accuracy=0.6)


def outcome_of(values):
    """A made-up world: layers cost size and give accuracy, sparsity the other way round."""
    layers, sparsity = values["distill.student.layers"], values["prune.ffn_sparsity"]
    size = layers * (2 - sparsity)
    if size > LIMITS.max_size_mb:
        return TrialOutcome(state="cut", reason="too large", predicted=Cost(size_mb=size, latency_ms=size))
    figures = Figures(size_mb=size, latency_ms=size, accuracy=0.5 + 0.1 * layers - 0.1 * sparsity)
    return TrialOutcome(state="finished", figures=figures, digest="0")


def carry_out(study, limit, stop_after=None):
    """Run trials; stop, as if killed, in the midst of one."""
    for done in itertools.count():
        asked = study.ask(limit)
        if asked is None:
            return
        if done == stop_after:
            return
        study.tell(asked, outcome_of(asked.values), LIMITS)


def test_the_seed_decides_what_is_tried(tmp_path):
    tried = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        study = Study(tmp_path / f"{name}.db", SPACE, seed)
        carry_out(study, 7)
        tried.append([one.values for one in study.trials()])
    assert tried[0] == tried[1]
    assert tried[0] != tried[2]
    assert len({str(values) for values in tried[0]}) == 7


@pytest.mark.parametrize("stop_after", [0, 3, 8])
def test_killed_and_opened_again_it_tries_what_an_undisturbed_study_tries(tmp_path, stop_after):
    whole = Study(tmp_path / "whole.db", SPACE, 1)
    carry_out(whole, 10)
    carry_out(Study(tmp_path / "killed.db", SPACE, 1), 10, stop_after)
    resumed = Study(tmp_path / "killed.db", SPACE, 1)
    assert len(resumed.trials()) == stop_after
    carry_out(resumed, 10)
    assert [(one.values, one.outcome) for one in resumed.trials()] == [
        (one.values, one.outcome) for one in whole.trials()
    ]


def test_nothing_is_tried_twice_and_a_space_that_is_used_up_ends_the_search(tmp_path):
    study = Study(tmp_path / "study.db", {key: SPACE[key] for key in list(SPACE)[:2]}, 3)
    carry_out(study, 1000)
    tried = [str(one.values) for one in study.trials()]
    assert len(tried) == len(set(tried)) == study.combinations == 3 * 4
    assert study.ask(1000) is None


def test_a_study_goes_on_where_more_trials_are_allowed(tmp_path):
    carry_out(Study(tmp_path / "study.db", SPACE, 1), 4)
    study = Study(tmp_path / "study.db", SPACE, 1)
    assert study.ask(4) is None
    carry_out(study, 6)
    assert len(study.trials()) == 6


FIRST = [
    {"quantize": None, "prune.ffn_sparsity": 0.5, "distill.student.layers": 3},
    {"quantize": {"scheme": "int8"}, "prune.ffn_sparsity": 0.75, "distill.student.layers": 1},
    {"quantize": None, "prune.ffn_sparsity": 0.0, "distill.student.layers": 2},
]


@pytest.mark.parametrize("stop_after", [0, 1, 2, 4])
def test_recipes_to_try_first_come_first_in_their_order_and_after_a_kill_too(tmp_path, stop_after):
    carry_out(Study(tmp_path / "study.db", SPACE, 1, FIRST), 5, stop_after)
    carry_out(Study(tmp_path / "study.db", SPACE, 1, FIRST), 5)
    tried = [one.values for one in Study(tmp_path / "study.db", SPACE, 1, FIRST).trials()]
    assert tried[:3] == FIRST
    assert len({str(values) for values in tried}) == 5


def test_several_trials_may_run_at_once(tmp_path):
    study = Study(tmp_path / "study.db", SPACE, 1)
    first, second = study.ask(3), study.ask(3)
    assert first.values != second.values
    study.tell(second, outcome_of(second.values), LIMITS)
    third = study.ask(3)
    assert study.ask(3) is None
    for one in (third, first):
        study.tell(one, outcome_of(one.values), LIMITS)
    assert {one.number for one in study.trials()} == {first.number, second.number, third.number}


def test_choices_come_back_with_their_types(tmp_path):
    study = Study(tmp_path / "study.db", SPACE, 1)
    carry_out(study, 12)
    values = [one.values for one in study.trials()]
    assert {type(one["distill.student.layers"]) for one in values} == {int}
    assert {one["prune.ffn_sparsity"] for one in values} <= {0.0, 0.25, 0.5, 0.75}
    assert {str(one["quantize"]) for one in values} == {"None", "{'scheme': 'int8'}"}


def test_cut_and_failed_trials_are_kept_with_their_reasons(tmp_path):
    study = Study(tmp_path / "study.db", SPACE, 1)
    cut = TrialOutcome(state="cut", reason="too large", predicted=Cost(size_mb=9, latency_ms=1))
    failed = TrialOutcome(state="failed", reason="ParityError: no")
    for outcome in (cut, failed):
        study.tell(study.ask(5), outcome, LIMITS)
    kept = Study(tmp_path / "study.db", SPACE, 1).trials()
    assert [one.outcome for one in kept] == [cut, failed]


def test_the_sampler_is_told_of_objectives_and_of_the_budget(tmp_path):
    import optuna

    study = Study(tmp_path / "study.db", SPACE, 1)
    met = TrialOutcome(state="finished", figures=Figures(size_mb=4, latency_ms=2, accuracy=0.75), digest="0")
    large = TrialOutcome(state="cut", predicted=Cost(size_mb=6, latency_ms=3))
    weak = TrialOutcome(state="cut", predicted=Cost(size_mb=4, latency_ms=2), short_accuracy=0.3)
    for outcome in (met, large, weak):
        study.tell(study.ask(5), outcome, LIMITS)
    stored = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [one.name for one in stored.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    first, second, third = stored.trials
    assert (first.state.name, first.values) == ("COMPLETE", [0.75, 4.0, 2.0])
    assert first.constraints == pytest.approx({"max_size_mb": -0.2, "min_accuracy": -0.25})
    assert (second.state.name, second.constraints) == ("PRUNED", pytest.approx({"max_size_mb": 0.2}))
    assert third.constraints == pytest.approx({"max_size_mb": -0.2, "min_accuracy": 0.5})
    assert isinstance(study._study.sampler, optuna.samplers.TPESampler)
