"""Pictures of language models are drawn without a warning and show what they are given."""

import pytest
from matplotlib.figure import Figure

from pressoir.benchmark import language_model_plots
from pressoir.benchmark.language_model_report import GenerationRow

LEVELS = {"q8": (8.6, 8.6, 1.0), "q4": (4.56, 6.1, 1.02), "q3": (3.55, 5.5, 1.2), "q2": (2.4, 4.8, 4.0)}


def make_row(stage, runtime, perplexity, bits, size_mb, decode, ttft=40.0):
    return GenerationRow(
        stage=stage,
        runtime=runtime,
        perplexity=perplexity,
        perplexities={"wiki": perplexity},
        perplexity_increase=perplexity / 88.3 - 1,
        bits_per_weight=bits,
        parameters=6_500_000,
        size_mb=size_mb,
        compression=26.4 / size_mb,
        ttft_ms_p50=ttft,
        ttft_ms_p95=1.2 * ttft,
        prefill_tokens_per_s=64e3 / ttft,
        decode_tokens_per_s=decode,
        speedup=decode / 85,
        baseline_rss_mb=100,
        peak_rss_mb=200,
        load_s=0.3,
    )


PIPELINE = [
    make_row("source", "pytorch", 88.3, 32, 26.4, 85),
    make_row("source", "onnxruntime", 88.3, 32, 26.5, 150),
    make_row("quantize", "pytorch", 89.6, 4.56, 5.9, 84),
    make_row("export", "onnxruntime", 89.7, 4.56, 6.1, 255),
    make_row("shard", "onnxruntime", 89.7, 4.56, 6.1, 250),
]
LEVELS_BY_ALGORITHM = [
    *PIPELINE[:2],
    *(
        make_row(f"{level}-{algorithm}", "onnxruntime", 88.3 * factor ** (1.5 - 0.5 * i), bits, size_mb, 250)
        for level, (bits, size_mb, factor) in LEVELS.items()
        for i, algorithm in enumerate(("gptq", "hqq", "rtn"))
    ),
]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, as objects."""
    saved, save = [], Figure.savefig

    def record(self, path, **options):
        saved.append(self)
        return save(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    return saved


def words(figure):
    """Every text of a figure that is seen."""
    titles = {axes.get_title(loc="left") for axes in figure.axes}
    texts = (text for axes in figure.axes for text in (*axes.texts, *axes.get_yticklabels()))
    return titles | {text.get_text() for text in texts}


@pytest.mark.parametrize(
    "rows", [PIPELINE, LEVELS_BY_ALGORITHM, PIPELINE[:1]], ids=["pipeline", "levels", "one"]
)
def test_pictures_of_any_number_of_rows_are_drawn(rows, tmp_path):
    for draw in (language_model_plots.perplexity_size, language_model_plots.decode_speed):
        draw(rows, tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_mark_for_each_row_and_one_label_for_those_that_lie_together(figures, tmp_path):
    language_model_plots.perplexity_size(PIPELINE, tmp_path / "a.png")
    axes = figures[0].axes[0]
    places = [tuple(mark.get_offsets()[0]) for mark in axes.collections]
    assert places == [(row.size_mb, row.perplexity) for row in PIPELINE]
    filled = [len(mark.get_facecolor()) > 0 for mark in axes.collections]
    assert filled == [True, True, False, True, True]  # packed weights that run in float32 are hollow
    assert {
        "source",
        "88.30, 26.4–26.5 MB",
        "quantize, export, shard",
        "89.60–89.70, 5.9–6.1 MB",
        "Perplexity against size: 4.3× smaller, +1.6 % perplexity",
    } <= words(figures[0])


def test_labels_cover_no_other_label(figures, tmp_path):
    language_model_plots.perplexity_size(LEVELS_BY_ALGORITHM, tmp_path / "a.png")
    figure = figures[0]
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if "MB" in text.get_text()]
    assert len(boxes) >= 6
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_the_front_holds_what_nothing_beats_in_size_and_perplexity():
    worse = make_row("worse", "onnxruntime", 95.0, 4, 7.0, 250)
    assert language_model_plots.pareto_front([worse, *PIPELINE]) == [PIPELINE[2], PIPELINE[0]]
    assert language_model_plots.pareto_front(PIPELINE[:1]) == PIPELINE[:1]


def test_bars_are_tokens_a_second_and_time_to_the_first_token(figures, tmp_path):
    language_model_plots.decode_speed(PIPELINE, tmp_path / "a.png")
    decode, first_token = figures[0].axes
    assert [bar.get_width() for bar in decode.patches] == [row.decode_tokens_per_s for row in PIPELINE]
    assert [bar.get_width() for bar in first_token.patches] == [row.ttft_ms_p50 for row in PIPELINE]
    assert {"255.0   3.0× faster", "84.0   simulated", "source (PyTorch)", "shard"} <= words(figures[0])
    assert "Decoding: up to 255 tokens per second" in words(figures[0])


def test_nothing_is_written_beyond_the_picture(figures, tmp_path):
    language_model_plots.decode_speed(LEVELS_BY_ALGORITHM, tmp_path / "a.png")
    page = figures[0].bbox
    for axes in figures[0].axes:
        for text in (*axes.texts, axes._left_title, axes.xaxis.label):
            box = text.get_window_extent()
            assert page.x0 <= box.x0
            assert box.x1 <= page.x1
