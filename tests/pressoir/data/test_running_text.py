"""Running text: read, checked, cut into windows."""

import numpy as np
import pytest

from pressoir.data import running_text
from pressoir.errors import DataError
from pressoir.pipeline.keys import stage_key
from pressoir.recipe.sections import TextConfig


def test_a_text_folder_gives_back_what_went_in(tmp_path):
    (tmp_path / "c.txt").write_text("calibrate", encoding="utf-8")
    (tmp_path / "e.txt").write_text("évaluer\r\n", encoding="utf-8")
    config = TextConfig(calibration=tmp_path / "c.txt", evaluation={"wiki": tmp_path / "e.txt"}, window=64)
    (tmp_path / "out").mkdir()
    assert running_text.save(config, tmp_path / "out") == {"calibration": 9, "wiki": 8}
    assert running_text.load_calibration(tmp_path / "out") == "calibrate"
    assert running_text.load_evaluation(tmp_path / "out") == {"wiki": "évaluer\n"}
    assert running_text.info(tmp_path / "out").window == 64


def test_without_files_the_embedded_train_split_calibrates_and_test_evaluates(tmp_path):
    running_text.save(TextConfig(), tmp_path)
    calibration = set(running_text.load_calibration(tmp_path).splitlines())
    (evaluation,) = running_text.load_evaluation(tmp_path).values()
    assert len(calibration) > 1000
    assert not calibration & set(evaluation.splitlines())


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"\n \n", "is empty"), (b"abc\xff", "not UTF-8 .byte 3")]
)
def test_a_text_that_cannot_be_used_is_refused(content, message, tmp_path):
    (tmp_path / "c.txt").write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=message):
        running_text.save(TextConfig(calibration=tmp_path / "c.txt"), tmp_path / "out")


def test_all_missing_texts_are_named_before_any_work(tmp_path):
    config = TextConfig(calibration=tmp_path / "a.txt", evaluation={"b": tmp_path / "b.txt"})
    with pytest.raises(DataError, match=r"a\.txt, b .*b\.txt"):
        running_text.source_digest(config)


def test_the_key_follows_the_content_not_the_place(tmp_path):
    def key(name, content):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return stage_key("text", TextConfig(calibration=path), {}, 0).hash()

    assert key("a.txt", "same") == key("b.txt", "same")
    assert key("a.txt", "same") != key("a.txt", "other")


def test_windows_do_not_overlap_and_drop_the_rest():
    assert running_text.windows(range(10), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert running_text.windows(range(40), 4, 2).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    spread = running_text.windows(range(40), 4, 3, spread=True)
    assert spread[:, 0].tolist() == [0, 16, 36]
    assert np.array_equal(running_text.windows(range(40), 4, 99), running_text.windows(range(40), 4))


def test_a_text_shorter_than_one_window_is_refused():
    with pytest.raises(DataError, match="3 tokens, fewer than one window of 4"):
        running_text.windows(range(3), 4)
