"""Pictures of an evaluation are drawn without a warning, and show what they are given."""

import itertools

import pytest
from fake_results import GB, PLAN, RESULTS, batch_line, make_result, sample_line, session_line, write_log
from matplotlib.figure import Figure

from pressoir.evaluation.report import plots, write
from pressoir.evaluation.report.results import EvaluationRow

ROWS = [EvaluationRow(write._result(one), write._measured(one)) for one in RESULTS]


def make_rows(*results):
    return [EvaluationRow(write._result(one), write._measured(one)) for one in results]


MANY = make_rows(
    *(
        make_result(f"a-model-of-a-family-number-{i}-in-a-folder.texts", "texts", peaks=(i + 0.5, i + 0.7))
        for i in range(20)
    )
)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, as objects."""
    saved, save = [], Figure.savefig

    def record(self, path, **options):
        saved.append(self)
        return save(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    return saved


@pytest.fixture
def panels(figures, tmp_path):
    """Draws, and gives the axes by their titles."""

    def draw(plot, *args):
        plot(*args, tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
        return {axes.get_title(loc="left"): axes for axes in figures[-1].axes}

    return draw


def names(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def notes(axes):
    return [text.get_text() for text in axes.texts]


def widths(axes):
    return [bar.get_width() for bar in axes.patches]


def test_models_are_compared_within_their_task_and_data(panels):
    found = panels(plots.metrics, ROWS)
    assert list(found) == [
        *("Accuracy, %: reviews", "WER, %: digits", "BLEU: captions", "Perplexity: texts", "Spearman: pairs")
    ]
    assert names(found["WER, %: digits"]) == ["whisper", "away"]
    assert widths(found["Accuracy, %: reviews"]) == pytest.approx([95, 95])
    assert "higher is better; error bars: 95 % confidence intervals" in notes(found["Accuracy, %: reviews"])
    assert "lower is better" in notes(found["Perplexity: texts"])


def test_who_has_no_score_stands_there_with_the_reason(panels):
    axes = panels(plots.metrics, ROWS)["Perplexity: texts"]
    assert names(axes) == ["gpt2", "broken", "huge", "raises"]
    assert len(axes.patches) == 1
    assert {f"no result: {verdict}" for verdict in ("damaged", "skipped_memory", "exception")} <= set(
        notes(axes)
    )


def test_a_score_of_a_part_of_the_samples_is_pale_and_last(panels):
    axes = panels(plots.metrics, [ROWS[5], ROWS[4]])["BLEU: captions"]
    assert names(axes) == ["marian", "slow"]
    assert [bar.get_alpha() for bar in axes.patches] == [None, 0.35]
    assert "100.0   2 of 4: timeout" in notes(axes)


@pytest.mark.parametrize(("name", "best"), [("texts", "low"), ("captions", "high")])
def test_the_best_is_on_top(panels, name, best):
    metric = {"texts": "perplexity", "captions": "bleu"}[name]
    rows = make_rows(*(make_result(n, name, metrics={metric: v}) for n, v in (("high", 90.0), ("low", 3.0))))
    (axes,) = panels(plots.metrics, rows).values()
    assert names(axes)[0] == best


def test_a_negative_correlation_has_its_bar_on_the_page(panels):
    rows = make_rows(make_result("upside-down", "pairs", metrics={"spearman": -0.8}))
    (axes,) = panels(plots.metrics, rows).values()
    assert widths(axes) == [-0.8]
    assert axes.get_xlim()[0] < -0.8


def test_speed_is_in_the_samples_of_the_task_and_for_speech_in_real_time_too(panels):
    found = panels(plots.speed, ROWS)
    assert list(found) == [
        *("Sentences per second: reviews", "Recordings per second: digits", "Real-time factor: digits"),
        *("Sentences per second: captions", "Windows per second: texts", "Pairs per second: pairs"),
    ]
    axes = found["Sentences per second: reviews"]
    assert names(axes) == ["student", "teacher"]
    assert widths(axes) == pytest.approx([500, 100])
    assert "500   batches of 4" in notes(axes)
    assert "0.200   5.0× as fast as speech" in notes(found["Real-time factor: digits"])


def test_slower_than_real_time_is_seen_against_a_line(panels):
    rows = make_rows(make_result("slow", "digits", seconds=5.0))
    axes = panels(plots.speed, rows)["Real-time factor: digits"]
    assert [list(line.get_xdata()) for line in axes.lines] == [[1, 1]]


def test_peaks_show_both_figures_and_who_was_underestimated(panels):
    axes = panels(plots.peaks, ROWS, PLAN.budget_bytes)
    (title,) = axes
    assert title == "Peak memory: prediction sufficient in 7 of 8"
    axes = axes[title]
    assert "predicted / measured: 1.20× (median)" in notes(axes)
    assert "0.50 GB   predicted 0.80×" in notes(axes)
    assert "skipped_memory; predicted 40.00 GB" in notes(axes)
    assert max(widths(axes)) == 1.0
    assert axes.get_xlim()[1] < 4, "what never ran does not make the others small"
    red = [bar for bar in axes.patches if bar.get_facecolor()[0] > 0.7]
    assert [bar.get_width() for bar in red] == [0.5]


def test_memory_over_time_has_batches_budget_and_alerts(panels, figures, tmp_path):
    log = write_log(tmp_path)
    panels(plots.memory, log, 3 * GB)
    children, ram = figures[-1].axes
    assert children.get_title(loc="left") == "Memory of model processes: at most 1.60 GB at once"
    assert {"large", "batch-1"} <= set(notes(children))
    _, labels = children.get_legend_handles_labels()
    assert labels == ["teacher  1.10 GB", "student  0.50 GB", "minilm  0.90 GB", "budget  3.00 GB"]
    assert [4.0, 4.0] in [list(line.get_xdata()) for line in children.lines]
    assert list(ram.lines[0].get_ydata()) == [50, 90, 95, 50]
    assert "alert, 85 %" in notes(ram)
    assert any(patch.get_x() == 2 and patch.get_width() == 1 for patch in ram.patches)


def test_a_budget_far_above_is_said_and_makes_nothing_small(panels, figures, tmp_path):
    panels(plots.memory, write_log(tmp_path), 100 * GB)
    children = figures[-1].axes[0]
    assert "the budget of 100.00 GB is above the visible range" in notes(children)
    assert children.get_ylim()[1] < 2


def test_a_run_whose_children_were_never_seen_is_drawn_too(panels, figures, tmp_path):
    panels(plots.memory, write_log(tmp_path, [session_line(0), sample_line(1), sample_line(1)]), GB)
    assert len(figures[-1].axes) == 2


def test_a_resumed_run_has_its_seams_and_long_runs_their_unit(panels, figures, tmp_path):
    lines = [session_line(0), sample_line(1), sample_line(900), session_line(9000), sample_line(9060)]
    panels(plots.memory, write_log(tmp_path, lines), GB)
    assert figures[-1].axes[1].get_xlabel() == "running time, minutes (dotted: resumed)"


def test_names_of_many_short_batches_do_not_run_into_each_other(panels, figures, tmp_path):
    lines = [session_line(0), *(batch_line(i, f"batch-{i}") for i in range(40)), sample_line(40, {"m": 1})]
    panels(plots.memory, write_log(tmp_path, [*lines, sample_line(41, {"m": 1})]), GB)
    shown = [text for text in figures[-1].axes[0].texts if text.get_text().startswith("batch-")]
    boxes = sorted((text.get_window_extent() for text in shown), key=lambda box: box.x0)
    assert len(boxes) > 5
    assert all(one.x1 <= other.x0 for one, other in itertools.pairwise(boxes))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [ROWS, MANY, MANY[:1]], ids=["mixed", "many", "one"])
def test_nothing_is_written_beyond_the_page(rows, figures, tmp_path):
    plots.metrics(rows, tmp_path / "a.png")
    plots.speed(rows, tmp_path / "b.png")
    plots.peaks(rows, PLAN.budget_bytes, tmp_path / "c.png")
    children = {f"a-model-of-a-family-number-{i}-in-a-folder.texts": 0.2 for i in range(20)}
    lines = [session_line(0), *(sample_line(i, children) for i in range(1, 4))]
    plots.memory(write_log(tmp_path, lines), 5 * GB, tmp_path / "d.png")
    for figure in figures:
        page = figure.bbox
        shown = [
            text for axes in figure.axes for text in (*axes.texts, *axes.get_yticklabels(), axes._left_title)
        ]
        shown += [text for legend in figure.legends for text in legend.get_texts()]
        for text in shown:
            box = text.get_window_extent()
            assert page.x0 <= box.x0, text
            assert box.x1 <= page.x1, text
            assert page.y0 <= box.y0, text
            assert box.y1 <= page.y1, text
