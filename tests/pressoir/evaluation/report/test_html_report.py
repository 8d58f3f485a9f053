"""`report.html`: one file that loads nothing and runs nothing, whatever models and data have written."""

import base64
import re
from html.parser import HTMLParser

import pytest
from fake_results import CONTEXT, PLAN, RESULTS, hostile_results, samples, write_log

from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.journal import Prediction
from pressoir.evaluation.memory_log import MemoryStats
from pressoir.evaluation.records import RunOutcome
from pressoir.evaluation.report import worst, write
from pressoir.evaluation.report.results import EvaluationOutcome
from pressoir.evaluation.report.scoring import score
from pressoir.plots.standalone_page import render

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "</details></table>")


class Page(HTMLParser):
    """Every element with its attributes, and the text of each kind of element."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.texts.append(text)

    def text(self):
        return " ".join("".join(self.texts).split())

    def attributes(self):
        return [(name, value) for _, found in self.elements for name, value in found.items()]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Pictures take a second each, and are not what is tested."""
    monkeypatch.setattr(write, "_draw_atomic", lambda path, draw: path.write_bytes(b"\x89PNG"))


@pytest.fixture
def written(tmp_path):
    """Writes a report, and gives its page."""

    def of(results, log=None, context=CONTEXT):
        found = write.write(tmp_path, results, PLAN, log or write_log(tmp_path), context)
        assert tmp_path / "report.html" in found.paths
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return of


def run(data, raw, run_id="m", detail=""):
    """A model that ended well with these raw predictions."""
    found = score(data, raw)
    ended = RunOutcome(model=run_id, verdict="ok", detail=detail, metrics=found.metrics, notes=found.notes)
    predictions = [Prediction(sample, value, 0.01, 4) for sample, value in raw.items()]
    return EvaluationOutcome(run_id, run_id, "data", data, ended, predictions, found)


def speech(references, answers):
    data = DataSet(
        "automatic-speech-recognition",
        samples(len(references), lambda i: references[i], "/machine/a.wav", "{}.wav"),
        "f",
    )
    return data, {f"{i}.wav": {"text": t, "audio_s": 1.0} for i, t in enumerate(answers) if t is not None}


def test_it_loads_nothing_and_runs_nothing(written):
    text = written(RESULTS)
    page = Page(text)
    assert {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "base", "form"} == set()
    assert not [name for name, _ in page.attributes() if name.startswith("on") or name == "style"]
    addresses = [value for name, value in page.attributes() if name in ("src", "href", "srcset", "action")]
    assert addresses
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in addresses)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text


def test_it_says_what_the_markdown_says(written, tmp_path):
    shown = Page(written(RESULTS)).text()
    for line in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines():
        for part in re.split(r"(?<!\\)\|", line):
            plain = re.sub(r"!\[.*|[*`]|^#+ |^- |^\s*-+:?$", "", part.replace("\\|", "|")).strip()
            assert " ".join(plain.split()) in shown, line


def test_links_within_it_lead_somewhere(written):
    page = Page(written(RESULTS))
    ids = {value for name, value in page.attributes() if name == "id"}
    assert {value[1:] for name, value in page.attributes() if name == "href"} == ids


def test_pictures_are_in_it(written, tmp_path):
    sources = [found["src"] for tag, found in Page(written(RESULTS)).elements if tag == "img"]
    assert len(sources) == 4
    assert base64.b64decode(sources[0].partition(",")[2]) == (tmp_path / "metrics.png").read_bytes()


def test_what_others_wrote_is_shown_as_text(written):
    plain, page = Page(written(RESULTS)), Page(written(hostile_results(HOSTILE), context={"cpu": HOSTILE[0]}))
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements} | {
        "pre",
        "b",
        "del",
        "ins",
    }
    assert not [name for name, _ in page.attributes() if name.startswith("on")]
    for text in HOSTILE:
        found = [one for one in page.texts if text in one]
        assert len(found) >= 4, f"{text}: as input, reference, prediction and reason"
    assert not any(one == "49" for one in page.texts)


def test_a_value_does_not_end_an_attribute_or_a_script(tmp_path):
    template = tmp_path / "page.html"
    template.write_text('<p title="{{ value }}"></p><script>{{ value | tojson }}</script>')
    page = Page(render(template, value="\"><img src=x></script>'"))
    assert page.elements == [("p", {"title": "\"><img src=x></script>'"}), ("script", {})]


def test_a_page_that_lacks_a_value_is_not_written(tmp_path):
    template = tmp_path / "page.html"
    template.write_text("{{ known }} {{ forgotten }}")
    with pytest.raises(Exception, match="'forgotten' is undefined"):
        render(template, known=1)


def test_of_many_samples_only_the_worst_are_in_it(written):
    words = "one two three four five six".split()
    references = [" ".join(words[: i % 5 + 1]) for i in range(10_000)]
    answers = [text if i % 7 else "nothing" for i, text in enumerate(references)]
    text = written([run(*speech(references, answers))])
    assert len(re.findall("<article>", text)) == worst.SHOWN
    assert len(text) < 60_000
    assert "20 of 10000 scored recordings" in text


def test_words_are_aligned_the_worst_first():
    data, raw = speech(
        ["one two three", "four five", "six seven eight nine", "ten"],
        ["one too three four", "four five", "six nine", "ten ten ten"],
    )
    found = score(data, raw).worst
    assert [(one.sample, one.figure) for one in found] == [
        *(("3.wav", "WER 200.0 %"), ("0.wav", "WER 66.7 %"), ("2.wav", "WER 50.0 %"))
    ]
    assert found[1].words == (("one", "one"), ("two", "too"), ("three", "three"), ("", "four"))
    assert found[2].words == (("six", "six"), ("seven", ""), ("eight", ""), ("nine", "nine"))


def test_the_aligned_words_are_as_many_errors_as_were_counted():
    import jiwer

    data, raw = speech(["a b c d e f g", "h i j k"], ["b c x d f f h g", "i k l m"])
    for one in score(data, raw).worst:
        wrong = sum(expected != heard for expected, heard in one.words)
        words = sum(bool(expected) for expected, _ in one.words)
        assert wrong / words == pytest.approx(jiwer.wer(one.reference, one.prediction))


def test_translations_of_the_lowest_chrf_come_first_with_their_source():
    import sacrebleu

    expected = [f"a dog runs over the grass number {i}" for i in range(40)]
    answers = [text[: 40 - i] or "x" for i, text in enumerate(expected)]
    data = DataSet("translation", samples(40, lambda i: expected[i], "ein Hund"), "f")
    found = score(data, {str(i): {"text": text} for i, text in enumerate(answers)}).worst
    scores = {str(i): sacrebleu.sentence_chrf(answers[i], [expected[i]]).score for i in range(40)}
    assert [one.sample for one in found] == sorted(scores, key=scores.get)[: worst.SHOWN]
    assert found[0].figure == f"chrF {scores[found[0].sample]:.1f}"
    assert (found[0].input, found[0].reference) == ("ein Hund", expected[int(found[0].sample)])


def test_wrong_labels_come_by_their_confidence():
    data = DataSet("text-classification", samples(4, lambda i: 0), "f", ("bad", "good"))
    logits = [[3.0, 0.0], [0.0, 1.0], [0.0, 5.0], [0.0, 2.0]]
    raw = {str(i): {"label": int(row[1] > row[0]), "logits": row} for i, row in enumerate(logits)}
    found = score(data, raw).worst
    assert [(one.sample, one.figure) for one in found] == [
        *(("2", "confidence 99.3 %"), ("3", "confidence 88.1 %"), ("1", "confidence 73.1 %"))
    ]
    assert (found[0].reference, found[0].prediction) == ("bad", "good")
    without = score(data, {name: {"label": value["label"]} for name, value in raw.items()}).worst
    assert [(one.sample, one.figure) for one in without] == [("1", ""), ("2", ""), ("3", "")]


def test_a_perfect_model_has_no_worst_samples(written):
    text = written([run(*speech(["one", "two"], ["one", "two"]))])
    assert "Worst samples" not in text


def test_samples_that_failed_are_there_with_the_reason(written):
    data, raw = speech(["one", "two", "three"], ["one", None, "three"])
    reason = "1 samples failed: 1.wav: DataError: no sound"
    shown = Page(written([run(data, raw, detail=reason)])).text()
    assert "0 of 2 scored recordings; 1 without a prediction" in shown
    assert f"{reason} 1.wav no prediction reference two" in shown
    assert "/machine/" not in shown


def test_a_model_that_repeats_itself_does_not_fill_the_page(written):
    data, raw = speech(["one"], ["one " * 100_000])
    text = written([run(data, raw)])
    assert len(text) < 80_000
    assert "more characters)" in score(data, raw).worst[0].prediction


def test_a_run_without_any_result_has_a_page(written):
    assert "No model could be run" not in written(RESULTS)
    failed = [one for one in RESULTS if one.run_id == "broken"]
    shown = Page(written(failed, MemoryStats(), {})).text()
    assert "header | too short" in shown
    assert "No memory samples were recorded." in shown


def test_a_resumed_run_s_samples_are_the_same():
    data, raw = speech(["one two", "three"], ["one", "free"])
    assert score(data, raw).worst == score(data, dict(reversed(raw.items()))).worst
