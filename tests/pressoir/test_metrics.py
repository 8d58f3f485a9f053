import pytest

from pressoir import metrics


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_gives_the_published_values(correct, total, low, high):
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    assert metrics.wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_of_all_or_nothing_stays_inside_the_unit_interval():
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)
    low, high = metrics.wilson_interval(50, 50)
    assert 0.9 < low < 1
    assert high == 1.0


def test_accuracy_is_the_part_of_equal_labels():
    assert metrics.accuracy([0, 1, 1, 2], [0, 1, 0, 0]) == 0.5


def test_f1_of_two_classes_is_that_of_the_second_and_the_macro_average_that_of_both():
    # 2 true positives, 1 false positive, 1 false negative
    predicted, expected = [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]
    assert metrics.f1(predicted, expected, 2) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert metrics.macro_f1(predicted, expected) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_f1_of_more_classes_is_the_macro_average_even_where_two_of_them_occur():
    # class 0: 1; class 1: 2/3 (one of two found); class 2: 2/3 (one wrongly claimed)
    assert metrics.f1([0, 1, 2, 2], [0, 1, 1, 2], 3) == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert metrics.f1([0, 0, 1, 1], [0, 0, 0, 1], 3) == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_f1_with_the_number_of_classes_counts_an_answer_that_is_none_as_wrong():
    # class 1: 1 true positive, 1 missed by an answer that is no label
    assert metrics.f1([1, -1, 0], [1, 1, 0], classes=2) == pytest.approx(2 / 3)
    # classes 0 and 2 occur, 1 does not: each found once of twice
    assert metrics.f1([0, -1, 2, -1], [0, 0, 2, 2], classes=3) == pytest.approx(2 / 3)


def test_f1_without_any_positive_is_zero_and_warns_nobody():
    assert metrics.f1([0, 0], [0, 0], 2) == 0.0
