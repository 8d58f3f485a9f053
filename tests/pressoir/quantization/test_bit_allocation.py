"""Bits chosen by layer: the knapsack against brute force, the bisection, and whole models."""

import itertools
import json

import pytest

from pressoir.errors import DataError, QuantizationError
from pressoir.formats import packed_checkpoint
from pressoir.quantization import allocation, weight_only
from pressoir.quantization.allocation import Knapsack
from pressoir.recipe.sections import QuantizeConfig

BITS = (2, 3, 4, 8)
LOSS = {
    "a": {2: 9.0, 3: 4.0, 4: 1.0, 8: 0.0},
    "b": {2: 1.0, 3: 0.5, 4: 0.25, 8: 0.0},
    "c": {2: 3.0, 3: 2.9, 4: 0.1, 8: 0.05},
    "d": {2: 0.2, 3: 0.3, 4: 0.1, 8: 0.0},  # measured, so not always in order
}
WEIGHTS = {"a": 64, "b": 128, "c": 192, "d": 64}


def cost(levels):
    return sum(bits * WEIGHTS[name] for name, bits in levels.items())


def loss(levels):
    return sum(LOSS[name][bits] for name, bits in levels.items())


def every_choice():
    return [dict(zip(LOSS, bits, strict=True)) for bits in itertools.product(BITS, repeat=len(LOSS))]


@pytest.mark.parametrize("target", [2, 2.3, 2.5, 3, 3.1, 4, 5.5, 7.9, 8])
def test_no_choice_within_the_budget_loses_less(target):
    knapsack = Knapsack(LOSS, WEIGHTS)
    levels = knapsack.choose(knapsack.budget(target))
    allowed = [other for other in every_choice() if cost(other) <= target * sum(WEIGHTS.values())]
    assert levels in allowed
    assert loss(levels) == pytest.approx(min(loss(other) for other in allowed))


@pytest.mark.parametrize("limit", [0.0, 0.31, 1.01, 3.01, 7.01, 99.0])
def test_no_cheaper_choice_keeps_the_loss(limit):
    knapsack = Knapsack(LOSS, WEIGHTS)
    budget = knapsack.within(limit)
    fitting = [cost(other) for other in every_choice() if loss(other) <= limit + 1e-12]
    if not fitting:
        assert budget == knapsack.largest
    else:
        assert cost(knapsack.choose(budget)) == min(fitting)
        assert knapsack.mean_bits(budget) == pytest.approx(min(fitting) / sum(WEIGHTS.values()))


@pytest.mark.parametrize("target", [2.0, 2.6, 3.0, 5.0])
def test_a_coarse_unit_never_breaks_the_budget(target, monkeypatch):
    monkeypatch.setattr(allocation, "_CELLS", 37)
    weights = {"a": 61, "b": 127, "c": 193, "d": 67}  # no common divisor
    knapsack = Knapsack(LOSS, weights)
    levels = knapsack.choose(knapsack.budget(target))
    assert sum(bits * weights[name] for name, bits in levels.items()) <= target * sum(weights.values())
    if target >= 3:
        assert loss(levels) < loss(dict.fromkeys(LOSS, 2))


def test_the_bisection_finds_the_fewest_bits_that_keep_the_limit():
    """Losses that do not add up: the truth is three times the prediction."""
    knapsack, seen = Knapsack(LOSS, WEIGHTS), []

    def measure(levels):
        seen.append(levels)
        return 10 * (1 + 0.03 * loss(levels))

    levels, measured = allocation.cheapest_within(knapsack, 0.05, 10, measure)
    assert levels in seen
    assert measure(levels) <= 10.5
    fitting = [cost(other) for other in every_choice() if 0.03 * loss(other) <= 0.05]
    assert cost(levels) <= min(fitting) + 0.06 * sum(WEIGHTS.values())
    assert [entry["perplexity"] for entry in measured] == [10 * (1 + 0.03 * loss(s)) for s in seen[:-1]]
    assert len(measured) <= 10


def test_the_fewest_bits_are_taken_where_they_are_good_enough():
    levels, _ = allocation.cheapest_within(Knapsack(LOSS, WEIGHTS), 0.05, 10, lambda levels: 10.0)
    assert loss(levels) == pytest.approx(loss(dict.fromkeys(LOSS, 2)))


def test_a_limit_that_no_choice_keeps_is_refused():
    with pytest.raises(QuantizationError, match=r"8 bits .* from 10\.000 to 11\.000.*more than 5 %"):
        allocation.cheapest_within(Knapsack(LOSS, WEIGHTS), 0.05, 10, lambda levels: 11.0)


def test_target_bits_are_kept_and_spent_where_they_matter(tiny_lm, tiny_text, context, reporter):
    config = QuantizeConfig(scheme="q4", algorithm="gptq", target_bits=3.0)
    figures = weight_only.run({"model": tiny_lm, "data": tiny_text}, config, context)
    packed = packed_checkpoint.open_packed(context.out_dir)
    products = {name: layer for name, layer in packed.layers.items() if layer.role == "matmul"}
    weights = {name: layer.shape[0] * layer.shape[1] for name, layer in products.items()}
    mean = sum(products[name].bits * weights[name] for name in products) / sum(weights.values())
    assert figures["mean_bits"] == pytest.approx(mean)
    assert 2.5 < mean <= 3.0
    assert figures["perplexity"] > 0

    description = packed.description
    assert description["scheme"] == "mixed"
    chosen = description["allocation"]["layers"]
    assert chosen.keys() == products.keys()
    for name, entry in chosen.items():
        assert entry["level"] == f"q{products[name].bits}"
        assert entry["bytes"] == products[name].stored_bytes
        assert set(entry["sensitivity"]) == {"q2", "q3", "q4", "q8"}
        assert entry["sensitivity"]["q8"] < 0.01 * entry["sensitivity"]["q2"]

    def total(level):
        return sum(entry["sensitivity"][level or entry["level"]] for entry in chosen.values())

    assert total(None) <= total("q3")
    assert (context.out_dir / "allocation.png").stat().st_size > 10_000
    assert (4 * len(products), 4 * len(products), "sensitivities measured") in reporter.progressed


def test_a_limit_on_perplexity_holds_on_held_out_text(tiny_llama, tiny_text, context):
    config = QuantizeConfig(scheme="q4", algorithm="rtn", max_perplexity_increase="20%")
    figures = weight_only.run({"model": tiny_llama, "data": tiny_text}, config, context)
    assert figures["perplexity"] <= 1.2 * figures["float_perplexity"]
    assert 2 <= figures["mean_bits"] < 8
    told = json.loads((context.out_dir / "quantization.json").read_text())["allocation"]
    assert told["max_perplexity_increase"] == 0.2
    kept = [entry for entry in told["measured"] if entry["perplexity"] <= 1.2 * told["float_perplexity"]]
    assert figures["perplexity"] in [entry["perplexity"] for entry in kept]


def test_sensitivities_do_not_depend_on_how_many_are_measured_at_once(
    tiny_llama, tiny_text, context, monkeypatch, tmp_path
):
    config = QuantizeConfig(scheme="q4", algorithm="rtn", target_bits=3.0)
    weight_only.run({"model": tiny_llama, "data": tiny_text}, config, context)
    together = json.loads((context.out_dir / "quantization.json").read_text())["allocation"]["layers"]
    monkeypatch.setattr("pressoir.quantization.sensitivity._PENDING_BYTES", 1)
    weight_only.run({"model": tiny_llama, "data": tiny_text}, config, context)
    apart = json.loads((context.out_dir / "quantization.json").read_text())["allocation"]["layers"]
    for name, entry in together.items():
        assert entry["sensitivity"] == pytest.approx(apart[name]["sensitivity"], rel=1e-4, abs=1e-7)


def test_one_window_cannot_both_calibrate_and_measure(tiny_llama, tiny_text, tmp_path, context):
    import shutil

    folder = shutil.copytree(tiny_text, tmp_path / "short")
    text = (folder / "calibration.txt").read_text()
    (folder / "calibration.txt").write_text(text[:120])
    config = QuantizeConfig(scheme="q4", algorithm="hqq", target_bits=3.0)
    with pytest.raises(DataError, match="one window of 32 tokens"):
        weight_only.run({"model": tiny_llama, "data": folder}, config, context)
