"""Pictures are drawn without a warning (warnings are errors here) and show what they are given."""

import itertools
import json
import random
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from pressoir.benchmark import classifier_plots
from pressoir.benchmark.classifier_report import BenchmarkRow
from pressoir.metrics import wilson_interval
from pressoir.plots.label_placement import place_labels
from pressoir.training.curves import training_curves

# stage, runtime, accuracy, size, median latency: what a run on SST-2 looks like
FIGURES = [
    ("teacher", "pytorch", 0.889, 91.6, 15.2),
    ("teacher", "onnxruntime", 0.889, 91.4, 4.3),
    ("distill", "pytorch", 0.868, 70.3, 8.1),
    ("prune", "pytorch", 0.862, 52.4, 6.9),
    ("quantize", "pytorch", 0.860, 13.9, 9.4),
    ("export", "onnxruntime", 0.861, 14.0, 1.27),
    ("shard", "onnxruntime", 0.861, 14.0, 1.29),
]


def make_row(stage, runtime, accuracy, size_mb, latency_ms, sentences=872):
    correct = round(accuracy * sentences)
    low, high = wilson_interval(correct, sentences)
    return BenchmarkRow(
        stage=stage,
        runtime=runtime,
        accuracy=correct / sentences,
        accuracy_ci_low=low,
        accuracy_ci_high=high,
        f1=accuracy,
        agreement=1.0,
        size_mb=size_mb,
        parameters=1000,
        latency_ms_p50=latency_ms,
        latency_ms_p95=1.5 * latency_ms,
        throughput_per_s=1000 / latency_ms,
        baseline_rss_mb=400,
        peak_rss_mb=500,
        load_s=0.1,
        speedup=15.2 / latency_ms,
        compression=91.6 / size_mb,
        accuracy_delta=accuracy - 0.889,
    )


ROWS = [make_row(*figures) for figures in FIGURES]
CROWDED = [row.model_copy(update={"latency_ms_p50": 5 + 0.1 * i}) for i, row in enumerate(ROWS)]
PERFECT = [make_row("teacher", "pytorch", 1.0, 90, 10), make_row("shard", "onnxruntime", 0.0, 10, 1)]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, as objects."""
    saved, save = [], Figure.savefig

    def record(self, path, **options):
        saved.append(self)
        return save(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    return saved


def samples(rows, count=50):
    rng = np.random.default_rng(0)
    return [
        {
            "stage": row.stage,
            "runtime": row.runtime,
            "latency_ms": sorted((row.latency_ms_p50 * np.exp(rng.normal(0, 0.3, count))).tolist()),
        }
        for row in rows
    ]


def texts_of(figure):
    """All texts that are drawn; ticks outside the limits are not."""
    figure.draw_without_rendering()
    axes = figure.axes[0]
    words = [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
    for axis, part in ((axes.xaxis, 0), (axes.yaxis, 1)):
        low, high = sorted(axis.get_view_interval())
        words += [label for label in axis.get_ticklabels() if low <= label.get_position()[part] <= high]
    return [text for text in words if text.get_visible() and text.get_text()]


@pytest.mark.parametrize(
    "rows", [ROWS, ROWS[:1], CROWDED, PERFECT], ids=["usual", "one", "crowded", "perfect"]
)
def test_every_picture_is_a_png_with_something_on_it(rows, tmp_path):
    classifier_plots.accuracy_latency(rows, tmp_path / "a.png")
    classifier_plots.sizes(rows, tmp_path / "s.png")
    classifier_plots.latency_distribution(samples(rows), tmp_path / "l.png")
    for name in "asl":
        pixels = imread(tmp_path / f"{name}.png")
        assert pixels.shape[1] == 1440
        assert np.ptp(pixels[..., :3]) == 1  # from black to white


@pytest.mark.parametrize("rows", [ROWS, CROWDED, ROWS[::-1]], ids=["usual", "crowded", "reversed"])
def test_labels_of_the_scatter_plot_cover_neither_each_other_nor_a_bubble(rows, figures, tmp_path):
    classifier_plots.accuracy_latency(rows, tmp_path / "a.png")
    axes = figures[0].axes[0]
    figures[0].draw_without_rendering()
    _subtitle, *labels = axes.texts
    facts = [f"{row.latency_ms_p50:.2f} ms, {row.size_mb:.1f} MB" for row in rows]
    assert sorted(text.get_text() for text in labels) == sorted([*(row.stage for row in rows), *facts])
    boxes = [text.get_window_extent() for text in labels]
    for a, b in itertools.combinations(boxes, 2):
        assert not a.padded(-1).overlaps(b.padded(-1))
    for box in boxes:
        assert axes.bbox.padded(1).contains(box.x0, box.y0)
        assert axes.bbox.padded(1).contains(box.x1, box.y1)
        for row in rows:
            centre = axes.transData.transform((row.latency_ms_p50, 100 * row.accuracy))
            assert not box.contains(*centre)


@pytest.mark.parametrize("draw", ["accuracy_latency", "sizes", "latency_distribution"])
def test_no_text_is_cut_off_at_the_edge(draw, figures, tmp_path):
    getattr(classifier_plots, draw)(
        samples(ROWS) if draw == "latency_distribution" else ROWS, tmp_path / "p.png"
    )
    [figure] = figures
    for text in texts_of(figure):
        box = text.get_window_extent()
        assert figure.bbox.contains(box.x0, box.y0), text.get_text()
        assert figure.bbox.contains(box.x1, box.y1), text.get_text()


def test_units_are_on_the_axes_and_the_title_says_the_change(figures, tmp_path):
    classifier_plots.accuracy_latency(ROWS, tmp_path / "a.png")
    axes = figures[0].axes[0]
    assert axes.get_title(loc="left") == "Accuracy against latency: 11.8× faster, 6.5× smaller, −2.8 points"
    assert ", ms" in axes.get_xlabel()
    assert "%" in axes.get_ylabel()
    assert axes.get_xscale() == "log"


def test_a_slower_result_is_not_called_faster(figures, tmp_path):
    classifier_plots.accuracy_latency(
        [ROWS[0], make_row("export", "onnxruntime", 0.889, 183.2, 30.4)], tmp_path / "a.png"
    )
    assert "2.0× slower, 2.0× larger, ±0.0 points" in figures[0].axes[0].get_title(loc="left")


def test_bars_are_as_long_as_the_files(figures, tmp_path):
    classifier_plots.sizes(ROWS, tmp_path / "s.png")
    axes = figures[0].axes[0]
    assert [bar.get_width() for bar in axes.patches] == [row.size_mb for row in ROWS]
    assert [text.get_text() for text in axes.texts][0::5] == ["91.6 MB", "14.0 MB   6.5× smaller"]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[:3] == ["teacher (PyTorch)", "teacher (ONNX Runtime)", "distill"]


def test_the_distribution_names_median_and_p95(figures, tmp_path):
    entry = {"stage": "teacher", "runtime": "pytorch", "latency_ms": [float(n) for n in range(1, 102)]}
    classifier_plots.latency_distribution([entry], tmp_path / "l.png")
    words = [text.get_text() for text in figures[0].axes[0].texts]
    assert words[:2] == ["51.00", "96.00"]


def test_equal_latencies_are_drawn_too(tmp_path):
    entry = {"stage": "teacher", "runtime": "pytorch", "latency_ms": [2.0] * 30}
    classifier_plots.latency_distribution([entry], tmp_path / "l.png")


def test_training_curves_show_what_was_measured_where_it_was(figures, tmp_path):
    history = [
        {"epoch": 0.5, "loss": 0.9, "accuracy": None},
        {"epoch": 1.0, "loss": 0.5, "accuracy": 0.8, "f1": 0.7},
        {"epoch": 2.0, "loss": 0.3, "accuracy": 0.9, "f1": 0.85},
        {"epoch": 3.0, "loss": None, "accuracy": 0.85, "f1": 0.9},
    ]
    training_curves(history, tmp_path / "t.png")
    loss, scores = figures[0].axes
    assert loss.lines[0].get_xydata().tolist() == [[0.5, 0.9], [1, 0.5], [2, 0.3]]
    curves = {line.get_label(): line.get_xydata() for line in scores.lines}
    np.testing.assert_allclose(curves["accuracy"], [[1, 80], [2, 90], [3, 85]])
    np.testing.assert_allclose(curves["F1"], [[1, 70], [2, 85], [3, 90]])
    assert scores.get_title(loc="left") == "Best accuracy: 90.0 % at epoch 2"


@pytest.mark.parametrize("entry", [{"epoch": 0.0, "accuracy": 0.5}, {"epoch": 1.0, "loss": 0.4}])
def test_one_measurement_is_enough_for_curves(entry, figures, tmp_path):
    training_curves([entry], tmp_path / "t.png")
    assert len(figures[0].axes) == 1


def test_the_pareto_front_is_what_no_other_row_beats_in_both():
    assert classifier_plots.pareto_front(ROWS) == [ROWS[5], ROWS[1]]
    slow_but_best = make_row("merge", "pytorch", 0.95, 90, 40)
    assert classifier_plots.pareto_front([slow_but_best, *ROWS]) == [ROWS[5], ROWS[1], slow_but_best]
    assert classifier_plots.pareto_front(ROWS[:1]) == ROWS[:1]


@pytest.mark.parametrize("seed", range(20))
def test_placed_labels_overlap_nothing_wherever_the_points_are(seed):
    rng = random.Random(seed)
    centres = [(rng.uniform(100, 900), rng.uniform(100, 500)) for _ in range(9)]
    radii, extents = [rng.uniform(4, 30) for _ in centres], [(rng.uniform(60, 130), 25) for _ in centres]
    bounds = (0, 0, 1000, 600)
    boxes = place_labels(centres, radii, extents, bounds)
    for (x0, y0, x1, y1), (width, height) in zip(boxes, extents, strict=True):
        assert (x1 - x0, y1 - y0) == pytest.approx((width, height))
        assert x0 >= 0
        assert y0 >= 0
        assert x1 <= 1000
        assert y1 <= 600
        for (x, y), radius in zip(centres, radii, strict=True):
            nearest = min(max(x, x0), x1), min(max(y, y0), y1)
            assert (nearest[0] - x) ** 2 + (nearest[1] - y) ** 2 >= radius**2 * 0.999
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_a_label_gives_way_to_an_obstacle():
    free = place_labels([(100, 100)], [10], [(60, 20)], (0, 0, 400, 400))[0]
    moved = place_labels([(100, 100)], [10], [(60, 20)], (0, 0, 400, 400), [free])[0]
    assert moved[2] <= free[0] or free[2] <= moved[0] or moved[3] <= free[1] or free[3] <= moved[1]


@pytest.mark.process
def test_drawing_needs_no_pyplot_and_leaves_the_settings_as_they_were(tmp_path):
    entry = json.dumps({"stage": "teacher", "runtime": "pytorch", "latency_ms": [1.0, 2.0, 3.0]})
    code = f"""
import pathlib, sys, matplotlib
from pressoir.benchmark import classifier_plots as plots
before = matplotlib.rcParams["font.size"]
plots.latency_distribution([{entry}], pathlib.Path({str(tmp_path / "l.png")!r}))
assert "matplotlib.pyplot" not in sys.modules
assert "torch" not in sys.modules
assert matplotlib.rcParams["font.size"] == before != plots.STYLE["font.size"]
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_linear_baseline_is_a_line_of_the_scatter_plot(figures, tmp_path):
    classifier_plots.accuracy_latency(ROWS, tmp_path / "a.png", 0.3)
    axes = figures[0].axes[0]
    assert any(set(line.get_ydata()) == {30.0} for line in axes.lines)
    assert axes.get_ylim()[0] < 30
