"""What an evaluation leaves: complete, the same after a resume, and readable."""

import dataclasses
import errno
import json
import re

import pytest
from fake_results import CONTEXT, DATA, GB, PLAN, RESULTS, make_result, write_log

from pressoir.errors import PressoirError, StoreError
from pressoir.evaluation.memory_log import MemoryStats, stats
from pressoir.evaluation.planner import EvaluationPlan
from pressoir.evaluation.report import content, write
from pressoir.evaluation.report import page as report_page
from pressoir.evaluation.report.results import Consolidated, EvaluationRow

FILES = {
    *(
        "consolidated_results.json",
        "consolidated_detailed.jsonl",
        "memory_stats.json",
        "report.md",
        "report.html",
    ),
    *("batch_1_results.json", "batch_2_results.json"),
    *("metrics.png", "speed.png", "peaks.png", "memory.png"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a report, and what `write` said of it."""
    folder = tmp_path_factory.mktemp("runs") / "demo-20260102-030405"
    folder.mkdir()
    return folder, write.write(folder, RESULTS, PLAN, write_log(folder), CONTEXT)


@pytest.fixture
def page(written):
    return (written[0] / "report.md").read_text(encoding="utf-8")


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures take a second each, and are not what is tested."""
    monkeypatch.setattr(write, "_draw_atomic", lambda path, draw: path.write_bytes(b"PNG"))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def details(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_file_is_there_and_nothing_else(written):
    folder, found = written
    assert {path.name for path in folder.iterdir()} == FILES | {"memory_samples.jsonl"}
    assert {path.name for path in found.paths} == FILES
    assert all(path.parent == folder for path in found.paths)


def test_the_consolidated_file_is_its_type(written):
    folder, found = written
    stored = write.read(folder / "consolidated_results.json")
    assert isinstance(stored, Consolidated)
    raw = read(folder / "consolidated_results.json")
    assert list(raw) == ["schema", "run", "name", "models", "comparisons", "measured", "context"]
    assert (raw["schema"], raw["run"], raw["name"]) == (1, "demo-20260102-030405", "demo")
    assert [model["id"] for model in raw["models"]] == [one.run_id for one in RESULTS]
    assert raw["context"] == CONTEXT
    assert [row.result for row in found.rows] == list(stored.models)


def test_what_was_predicted_stands_apart_from_what_was_measured(written):
    raw = read(written[0] / "consolidated_results.json")
    model = next(one for one in raw["models"] if one["id"] == "slow")
    assert {name: model[name] for name in ("task", "verdict", "samples", "total", "success_rate")} == {
        "task": "translation",
        "verdict": "timeout",
        "samples": 2,
        "total": 4,
        "success_rate": 0.5,
    }
    assert "only 2 of 4 sentences have predictions" in model["notes"]
    measured = raw["measured"]["whisper"]
    assert measured == pytest.approx(
        {
            "seconds": 2.0,
            "load_s": 1.5,
            "samples_per_s": 2.0,
            "batch_size": 4,
            "predicted_peak_bytes": round(1.2 * GB),
            "measured_peak_bytes": GB,
            "real_time_factor": 2.0 / 10.0,
        }
    )
    assert raw["measured"]["teacher"]["real_time_factor"] is None
    assert raw["measured"]["broken"]["samples_per_s"] is None
    assert not set(measured) & set(model)


def test_each_sample_has_its_line_in_the_data_s_order(written):
    lines = details(written[0] / "consolidated_detailed.jsonl")
    teacher = [line for line in lines if line["run"] == "teacher"]
    assert [line["sample"] for line in teacher] == [str(i) for i in range(20)]
    assert teacher[3] == {
        "run": "teacher",
        "sample": "3",
        "input": "what?",
        "reference": 1,
        "prediction": {"label": 1, "logits": [0.123456, -0.2]},
    }
    slow = [line["prediction"] is None for line in lines if line["run"] == "slow"]
    assert slow == [False, False, True, True]
    windows = [line["sample"] for line in lines if line["run"] == "gpt2.texts"]
    assert windows == [f"{text}:{i}" for text in ("wiki", "news") for i in range(11)]


def test_paths_of_this_machine_are_not_in_the_samples(written):
    assert "/machine/" not in (written[0] / "consolidated_detailed.jsonl").read_text()


def test_a_resumed_run_leaves_the_same_results_byte_by_byte(written, tmp_path, no_pictures):
    """Other times, other peaks, other batches, predictions in another order, noise in the last bits."""
    folder = tmp_path / "demo-20260102-030405"
    folder.mkdir()

    def again(one):
        part = len(one.predictions) / (22 if one.data.task == "causal-lm" else len(one.data.samples))
        other = make_result(
            one.run_id,
            one.data_name,
            one.outcome.verdict,
            part=part,
            detail=one.outcome.detail,
            runtime=one.outcome.runtime,
            seconds=7.7,
            noise=1e-10,
            peaks=(3.3, 2.2),
            load_s=99.0,
            batch_size=1,
        )
        return dataclasses.replace(other, predictions=other.predictions[::-1])

    plan = PLAN.model_copy(update={"batches": PLAN.batches[::-1], "budget_bytes": GB})
    write.write(folder, [again(one) for one in RESULTS], plan, MemoryStats(), {"name": "demo"})
    name = "consolidated_detailed.jsonl"
    assert (folder / name).read_bytes() == (written[0] / name).read_bytes()

    def models(path):
        text = (path / "consolidated_results.json").read_text(encoding="utf-8")
        return text[: text.index('  "measured"')]

    assert models(folder) == models(written[0])
    assert read(folder / "consolidated_results.json") != read(written[0] / "consolidated_results.json")


def test_writing_again_changes_nothing(written, tmp_path, no_pictures):
    folder = tmp_path / "run"
    folder.mkdir()
    contents = []
    for _ in range(2):
        write.write(folder, RESULTS, PLAN, write_log(folder), CONTEXT)
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]


def test_files_of_an_earlier_plan_are_taken_away(tmp_path, no_pictures):
    write.write(tmp_path, RESULTS, PLAN, write_log(tmp_path), CONTEXT)
    plan = PLAN.model_copy(update={"batches": PLAN.batches[:1]})
    write.write(tmp_path, RESULTS[:1], plan, MemoryStats(), CONTEXT)
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"batch_2_results.json", "memory.png"} | {
        "memory_samples.jsonl"
    }


def test_a_batch_says_who_ran_together_and_what_they_took_at_once(written):
    raw = read(written[0] / "batch_1_results.json")
    assert (raw["schema"], raw["batch"], raw["name"]) == (1, 1, "large")
    assert [one["model"] for one in raw["placements"]] == ["teacher", "student"]
    assert raw["predicted_peak_bytes"] == 2.5 * GB
    assert raw["measured_peak_bytes"] == 1.6 * GB
    assert [(one["model"], one["verdict"]) for one in raw["outcomes"]] == [
        ("teacher", "ok"),
        ("student", "ok"),
    ]
    assert raw["outcomes"][0]["metrics"]["accuracy"] == 0.95
    assert read(written[0] / "batch_2_results.json")["measured_peak_bytes"] == 0.9 * GB


def test_the_memory_s_file_is_what_the_log_read(written):
    raw = read(written[0] / "memory_stats.json")
    assert MemoryStats.model_validate(raw) == stats(written[0])
    assert len(raw["samples"]) == 4


def test_a_full_disk_is_told_as_such_and_leaves_no_half_file(tmp_path, monkeypatch, no_pictures):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "write_text_atomic", full)
    with pytest.raises(StoreError, match="no space left"):
        write.write(tmp_path, RESULTS, PLAN, MemoryStats(), CONTEXT)
    assert not list(tmp_path.iterdir())


def test_a_picture_is_put_in_place_whole_or_not_at_all(tmp_path):
    (tmp_path / "a.png").write_bytes(b"before")

    def fail(path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write._draw_atomic(tmp_path / "a.png", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"before"


def test_reading_what_is_no_result_says_so(tmp_path):
    (tmp_path / "a.json").write_text('{"schema": 2}')
    for name, told in (("a.json", "is not a valid evaluation result"), ("missing.json", "cannot be read")):
        with pytest.raises(PressoirError, match=told):
            write.read(tmp_path / name)


class TestPage:
    """`report.md`."""

    @staticmethod
    def cells(page, name):
        row = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        return [cell.strip() for cell in row.strip("|").split(" | ")]

    def test_the_headline_counts_how_each_ended(self, written):
        assert written[1].headline == (
            "6 of 11 evaluated, 1 damaged, 1 exception, 1 skipped_memory, 1 timeout, 1 unreachable, "
            "peak 1.60 GB of a budget of 3.00 GB"
        )

    def test_every_row_has_all_columns(self, page):
        table = page[page.index("| model |") :].partition("\n\n")[0].splitlines()
        assert len(table) == 2 + len(RESULTS)
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {15}

    def test_a_row_shows_scores_in_their_own_units_and_memory_in_gb(self, page):
        assert self.cells(page, "student") == [
            *("student", "reviews", "text-classification", "onnxruntime", "ok"),
            *(
                "accuracy 95.0 % (76.4–99.1)",
                "F1 95.2 %, macro F1 95.0 %",
                "20",
                "0.0",
                "500",
                "4",
                "0.40",
                "0.50",
                "0.80×",
            ),
        ]
        whisper = self.cells(page, "whisper")
        assert whisper[5:7] == [*("WER 33.3 % (33.3–33.3)", "CER 46.2 % (46.2–46.2), real-time factor 0.200")]
        assert self.cells(page, "slow")[4:8] == [
            *("**timeout**", "BLEU 100.0 (100.00–100.00)", "chrF 100.0 (100.00–100.00)", "2/4")
        ]
        assert self.cells(page, "huge")[4:7] == ["**skipped_memory**", "–", "–"]

    def test_who_failed_is_explained_with_the_lines_that_tell_most(self, page):
        part = page.partition("## Failures")[2].partition("\n## ")[0]
        assert part.count("**: ") == 5
        assert "**broken: damaged**: its files are not usable.\n\n    header | too short\n" in part
        shown = part.partition("**raises: exception**")[2]
        assert "    Traceback:\n    …\n" in shown
        assert "    ValueError: the last word" in shown
        assert "line 2" not in shown

    def test_every_verdict_is_explained(self):
        from typing import get_args

        from pressoir.evaluation.records import Verdict

        assert set(content.VERDICTS) == set(get_args(Verdict))

    def test_predictions_of_memory_are_judged(self, page):
        assert (
            "The predicted peak was sufficient in 7 of 8 cases; the median of predicted / measured is 1.20×. "
            "Too low: student (0.80×)."
        ) in page

    def test_alerts_and_limits_are_told(self, page):
        assert "Alerts, above 85 %: 2–3 s (95 %)" in page
        assert "95 % of 4.00 GB (the machine's RAM)" in page

    def test_notes_stand_once_with_all_that_they_hold_for(self, page):
        assert "- F1 is that of class 'positive' (teacher, student)\n" in page
        assert len(re.findall(r"^- BLEU\|.*version:.*\(marian, slow\)$", page, flags=re.M)) == 1

    def test_conditions_are_shown_key_by_key(self, page):
        part = page.partition("## Conditions")[2]
        for line in ("| strategy | moderate |", "| budget | 3.00 GB |", "| versions | torch 2.13.0 |"):
            assert line in part

    def test_pictures_are_linked_where_there_are_any(self, page, tmp_path, no_pictures):
        assert set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)) == set(write.PICTURES)
        empty = EvaluationPlan(budget_bytes=GB, batches=(), skipped=())
        failed = make_result("m", "reviews", "damaged", part=0, peaks=(None, None))
        found = write.write(tmp_path, [failed], empty, MemoryStats(), {})
        assert "![" not in (tmp_path / "report.md").read_text()
        assert found.headline == "0 of 1 evaluated, 1 damaged"

    def test_what_others_wrote_stays_in_its_cell(self, tmp_path, no_pictures):
        write.write(tmp_path, RESULTS, PLAN, MemoryStats(), {"machine": {"cpu": "a | b\nc"}})
        assert "| machine | cpu a \\| b c |" in (tmp_path / "report.md").read_text()


class TestShortTable:
    """The table of a terminal."""

    def test_it_fits_a_hundred_columns(self, written):
        results = [
            make_result("a" * 40 + "-large.texts", "texts", "skipped_memory", part=0.5, peaks=(12.5, 100.1)),
            *RESULTS,
        ]
        rows = [EvaluationRow(write._result(one), write._measured(one)) for one in results]
        columns, cells = report_page.short_table(rows)
        widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
        assert sum(widths) + 2 * (len(widths) - 1) <= 100
        assert cells[0][0].startswith("aaa")
        assert cells[0][0].endswith("large.texts"[-10:])

    def test_it_says_what_matters_most(self, written):
        columns, cells = report_page.short_table(written[1].rows)
        shown = dict(zip(columns, cells[1], strict=True))
        assert shown == {
            "model": "student",
            "verdict": "ok",
            "score": "accuracy 95.0 %",
            "samples": "20",
            "per s": "500",
            "batch": "4",
            "GB": "0.50",
            "planned": "0.40",
        }

    def test_all_figures_of_a_row_go_by_their_names(self, written):
        figures = written[1].rows[2].figures()
        assert figures["real_time_factor"] == pytest.approx(0.2)
        assert figures["wer"] == pytest.approx(1 / 3, rel=1e-5)
        assert next(iter(figures)) == "wer"
        assert all(isinstance(value, float) for value in figures.values())


def test_more_in_the_journal_than_was_asked_for_does_not_count(tmp_path, no_pictures):
    data = DATA["reviews"]
    few = dataclasses.replace(data, samples=data.samples[:5])
    whole = make_result("m", "reviews", seconds=0.1)
    asked = dataclasses.replace(whole, data=few, predictions=whole.predictions[:5])
    found = write.write(tmp_path, [asked], PLAN, MemoryStats(), {}).rows[0]
    assert (found.result.samples, found.result.total) == (5, 5)
    assert found.measured.seconds == pytest.approx(0.5)
