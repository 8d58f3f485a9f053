"""What a comparison of parents and child says, for scores of which more, or less, is better."""

import pytest

from pressoir.merging.evaluation import MergeReport, MergeRow


def report(measure, *scores):
    roles = ["parent"] * (len(scores) - 1) + ["result"]
    rows = [
        MergeRow(
            name=f"model_{i}",
            reference="x",
            role=role,
            scores=score,
            reason=None if score else "no tokenizer",
        )
        for i, (role, score) in enumerate(zip(roles, scores, strict=True))
    ]
    samples = dict.fromkeys(scores[-1], 100)
    return MergeReport(method="ties", measure=measure, samples=samples, rows=tuple(rows))


@pytest.mark.parametrize(
    ("measure", "parents", "child", "worse"),
    [
        ("perplexity", (10.0, 12.0), 12.5, True),
        ("perplexity", (10.0, 12.0), 11.0, False),
        ("perplexity", (10.0, 12.0), 9.0, False),
        ("accuracy", (0.8, 0.9), 0.79, True),
        ("accuracy", (0.8, 0.9), 0.85, False),
        ("accuracy", (0.8, 0.8), 0.8, False),
    ],
)
def test_worse_is_worse_than_every_parent_whichever_way_is_up(measure, parents, child, worse):
    found = report(measure, *({"a": score} for score in parents), {"a": child})
    assert bool(found.worse) is worse
    assert found.metrics()["worse_than_both_parents"] == worse
    assert ("WORSE than all its parents" in found.headline()) is worse


def test_of_two_texts_one_lost_is_enough_to_say_so():
    found = report("perplexity", {"a": 5.0, "b": 9.0}, {"a": 6.0, "b": 7.0}, {"a": 4.0, "b": 9.5})
    assert found.worse == ("b",)
    assert found.headline() == "WORSE than all its parents on b. Better than all its parents on a."


def test_a_parent_that_could_not_be_measured_is_left_out_and_told():
    found = report("perplexity", {}, {"a": 6.0}, {"a": 5.0})
    assert found.best_parent("a") == 6.0
    assert "model_0: no tokenizer" in found.markdown()
    assert not report("perplexity", {}, {}, {"a": 5.0}).worse


def test_the_base_is_shown_but_is_no_parent():
    rows = report("accuracy", {"validation": 0.7}, {"validation": 0.75}).rows
    base = MergeRow(name="base", reference="x", role="base", scores={"validation": 0.9})
    found = MergeReport(method="ties", measure="accuracy", samples={"validation": 10}, rows=(base, *rows))
    assert found.metrics()["parents_best_accuracy"] == 0.7
    assert "| base: x | 90.0% |" in found.markdown()
    assert found.headline() == "Better than all its parents on validation. Worse than the base on validation."


def test_it_is_read_back_as_it_was_written():
    found = report("perplexity", {"a": 1.5}, {"a": 2.5})
    assert MergeReport.model_validate_json(found.model_dump_json()) == found
