"""The plan is a pure function: it fits, it is the same every time, and it says what it leaves out."""

import random

import pytest

from pressoir.evaluation.planner import largest_batch, pick_strategy, plan
from pressoir.evaluation.records import Estimate

GB = 10**9


def estimate(model, fixed, per_sample=0):
    return Estimate(model=model, fixed_bytes=fixed, per_sample_bytes=per_sample, origin="formula")


def shape(made):
    return {batch.name: [one.model for one in batch.placements] for batch in made.batches}


def test_the_largest_go_first_each_into_the_first_batch_with_room():
    models = [estimate(name, size) for name, size in {"a": 4, "b": 7, "c": 3, "d": 6, "e": 1}.items()]
    made = plan(models, dict.fromkeys("abcde", 1), 10, 4)
    assert shape(made) == {"batch-1": ["b", "c"], "batch-2": ["d", "a"], "batch-3": ["e"]}


def test_no_batch_ever_exceeds_the_budget_and_every_model_is_placed_or_skipped_once():
    rng = random.Random(0)
    for _ in range(200):
        models = [estimate(str(i), rng.randint(1, 12), rng.randint(0, 3)) for i in range(rng.randint(1, 12))]
        parallel = rng.randint(1, 4)
        made = plan(models, {m.model: rng.randint(1, 8) for m in models}, 10, parallel)
        assert all(batch.peak_bytes <= 10 and len(batch.placements) <= parallel for batch in made.batches)
        placed = [one.model for batch in made.batches for one in batch.placements]
        assert sorted(placed + [one.model for one in made.skipped]) == sorted(m.model for m in models)


def test_the_order_of_the_models_does_not_matter():
    models = [estimate(str(i), 3 + i % 3) for i in range(8)]
    wanted = {m.model: 1 for m in models}
    assert plan(models, wanted, 10, 4) == plan(models[::-1], wanted, 10, 4)


def test_a_model_gets_the_batch_size_that_fits():
    made = plan([estimate("m", 4, 2)], {"m": 16}, 10, 1)
    (placement,) = made.batches[0].placements
    assert (placement.batch_size, placement.peak_bytes) == (3, 10)


def test_a_model_that_can_never_fit_is_skipped_with_its_numbers():
    made = plan([estimate("big", 9, 2), estimate("small", 1)], {"big": 4, "small": 4}, 10, 1)
    (skipped,) = made.skipped
    assert (skipped.model, skipped.peak_bytes, skipped.budget_bytes) == ("big", 11, 10)
    assert shape(made) == {"batch-1": ["small"]}


def test_named_batches_stay_together_unless_they_do_not_fit():
    models = [estimate(name, size) for name, size in {"a": 2, "b": 2, "c": 6, "d": 6}.items()]
    made = plan(models, dict.fromkeys("abcd", 1), 10, 4, {"small": ["b", "a"], "big": ["c", "d"]})
    assert shape(made) == {"small": ["a", "b"], "big-1": ["c"], "big-2": ["d"]}


@pytest.mark.parametrize(
    ("available", "strategy"),
    [(16 * GB, "aggressive"), (15 * GB, "moderate"), (8 * GB, "moderate"), (8 * GB - 1, "conservative")],
)
def test_the_strategy_follows_what_is_really_available(available, strategy):
    assert pick_strategy(available) == strategy


def test_the_largest_batch_within_an_allowance():
    assert largest_batch(estimate("m", 4, 2), 16, 10) == 3
    assert largest_batch(estimate("m", 4, 2), 2, 10) == 2
    assert largest_batch(estimate("m", 4, 0), 16, 10) == 16
    assert largest_batch(estimate("m", 11, 0), 16, 10) == 0
    assert largest_batch(estimate("m", 9, 2), 16, 10) == 0
