"""Which trials meet a budget, which is best, which is nearest, and which are hopeless."""

import pytest

from pressoir.benchmark.cost import Cost
from pressoir.recipe_search import budget
from pressoir.recipe_search.budget import SearchLimits
from pressoir.recipe_search.config import Budget
from pressoir.recipe_search.records import Figures, Trial, TrialOutcome

LIMITS = SearchLimits(max_size_mb=10.0, max_latency_ms=4.0, min_accuracy=0.8)


def finished(number, accuracy, size, latency):
    figures = Figures(accuracy=accuracy, size_mb=size, latency_ms=latency)
    return Trial(number=number, values={"n": number}, outcome=TrialOutcome(state="finished", figures=figures))


def cut(number, size, latency, short=None):
    predicted = Cost(size_mb=size, latency_ms=latency)
    outcome = TrialOutcome(state="cut", reason="r", predicted=predicted, short_accuracy=short)
    return Trial(number=number, values={"n": number}, outcome=outcome)


def test_a_drop_is_against_the_teacher():
    teacher = Figures(accuracy=0.9, size_mb=90, latency_ms=20)
    assert SearchLimits.from_budget(Budget(max_accuracy_drop=0.05), teacher).min_accuracy == pytest.approx(
        0.85
    )
    assert SearchLimits.from_budget(Budget(min_accuracy=0.7), teacher).min_accuracy == 0.7
    # a drop that is just allowed is allowed, whatever its last bit
    exact = Figures(accuracy=0.9 - 0.05, size_mb=1, latency_ms=1)
    assert budget.meets(exact, SearchLimits.from_budget(Budget(max_accuracy_drop=0.05), teacher))


def test_what_meets_the_budget_and_is_preferred_wins():
    trials = [
        finished(0, 0.95, 11, 1),  # too large
        finished(1, 0.90, 9, 3),
        finished(2, 0.85, 5, 3.5),
        finished(3, 0.81, 8, 1),
        finished(4, 0.90, 8, 3),
        cut(5, 1, 1),
    ]
    assert budget.winner(trials, LIMITS, "accuracy").number == 4, "of two as accurate, the smaller"
    assert budget.winner(trials, LIMITS, "size").number == 2
    assert budget.winner(trials, LIMITS, "latency").number == 3
    assert budget.winner(trials[:1], LIMITS, "accuracy") is None


def test_the_nearest_says_which_constraint_fails_by_how_much():
    trials = [finished(0, 0.85, 12, 3), finished(1, 0.78, 10.5, 4), cut(2, 30, 9)]
    near, misses = budget.nearest(trials, LIMITS)
    assert near.number == 1
    assert [(miss.constraint, miss.value) for miss in misses] == [
        ("max_size_mb", 10.5),
        ("min_accuracy", 0.78),
    ]
    assert str(misses[0]) == "10.50 MB, 0.50 MB above max_size_mb 10"
    assert str(misses[1]) == "accuracy 78.0 %, 2.0 points below the minimum of 80.0 %"
    assert budget.nearest([], LIMITS) is None


def test_a_prediction_over_budget_is_hopeless_a_latency_only_beyond_its_tolerance():
    assert budget.cannot_cost(Cost(size_mb=10.01, latency_ms=1), LIMITS, 0.1) != ""
    assert budget.cannot_cost(Cost(size_mb=9.99, latency_ms=4.3), LIMITS, 0.1) == ""
    assert "4.50 ms, 0.50 ms above max_latency_ms 4" in budget.cannot_cost(
        Cost(size_mb=9, latency_ms=4.5), LIMITS, 0.1
    )


def test_a_short_accuracy_is_hopeless_below_the_floor_or_behind_a_rival():
    predicted = Cost(size_mb=9, latency_ms=3)
    assert budget.cannot_reach(0.75, predicted, LIMITS, 0.05, ()) == ""
    assert "below the minimum" in budget.cannot_reach(0.74, predicted, LIMITS, 0.05, ())
    rival = Figures(size_mb=9, latency_ms=3, accuracy=0.9)
    assert "but a model with" in budget.cannot_reach(0.8, predicted, LIMITS, 0.05, [rival])
    larger = rival.model_copy(update={"size_mb": 9.5})
    assert budget.cannot_reach(0.8, predicted, LIMITS, 0.05, [larger]) == ""
    assert budget.cannot_reach(0.86, predicted, LIMITS, 0.05, [rival]) == ""


def test_the_front_is_what_nothing_beats_in_everything():
    trials = [
        finished(0, 0.9, 9, 3),
        finished(1, 0.9, 10, 3),  # larger than the first, else the same
        finished(2, 0.8, 5, 5),
        finished(3, 0.7, 6, 2),
        finished(4, 0.6, 6, 6),
        cut(5, 1, 1),
    ]
    assert [one.number for one in budget.pareto_front(trials)] == [2, 3, 0]
