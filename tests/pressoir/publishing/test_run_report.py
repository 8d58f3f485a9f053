"""`report.html` of a compression run: one file that loads and runs nothing."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import yaml
from fake_runs import (
    BASELINE,
    HOSTILE,
    classifier_benchmark,
    classifier_row,
    fake_details,
    generation_benchmark,
    hostile_run,
    write_run,
)

from pressoir.benchmark import reports
from pressoir.errors import PressoirError
from pressoir.publishing import run_report
from pressoir.recipe.recipe import Recipe
from pressoir.system.files import folder_digest

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Elements with their attributes and the text within each, the page's text, the cells of its tables."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.tables, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])
        if tag not in VOID:
            self._open.append(self.elements[-1])
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])

    def handle_startendtag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        element = self._open.pop()
        assert element[0] == tag
        if tag in ("td", "th"):
            self.tables[-1][-1].append(" ".join(element[2].split()))

    def handle_data(self, text):
        self.texts.append(text)
        for element in self._open:
            element[2] += text

    def of(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [one for one in self.elements if one[0] == tag and wanted.items() <= one[1].items()]

    def text(self):
        return " ".join("".join(self.texts).split())

    def section(self, name):
        """The text below a heading, up to the next one."""
        names = [one[2] for one in self.of("h2")]
        text, place = self.text(), names.index(name)
        end = text.rindex(names[place + 1]) if place + 1 < len(names) else len(text)
        return text[text.rindex(name, 0, end) : end]


def page(folder):
    return Page(run_report.write(folder).read_text(encoding="utf-8"))


@pytest.fixture
def hostile(tmp_path):
    return hostile_run(tmp_path / "run")


def test_it_loads_nothing_and_runs_nothing(hostile):
    text = run_report.write(hostile).read_text(encoding="utf-8")
    found = Page(text)
    tags = {tag for tag, *_ in found.elements}
    assert not tags & {"script", "link", "iframe", "object", "base", "form", "img", "image", "use"}
    attributes = [(name, value) for _, given, _ in found.elements for name, value in given.items()]
    assert not [name for name, _ in attributes if name.startswith("on") or name == "style"]
    addresses = {value for name, value in attributes if name in ("src", "href", "xlink:href", "action")}
    assert addresses == {f"#{one[1]['id']}" for one in found.of("h2")}
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'; style-src 'unsafe-inline'" in text


def test_what_others_wrote_is_shown_as_text(hostile):
    found = page(hostile)
    for text in HOSTILE:
        assert any(text in one for one in found.texts), text
    assert HOSTILE[0] in found.section("Classes")
    assert HOSTILE[0] in found.section("Environment")
    assert HOSTILE[1] in found.section("Recipe")
    assert not any(one.strip() == "49" for one in found.texts)
    assert found.of("title")[0][2] == "tiny"


def test_it_has_a_language_one_title_headings_in_order_and_a_caption_for_each_table(hostile):
    found = page(hostile)
    assert found.of("html")[0][1]["lang"] == "en"
    levels = [int(tag[1]) for tag, *_ in found.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    captions = [one[2] for one in found.of("caption")]
    assert len(captions) == len(found.tables) == len(set(captions)) == 3
    assert len(found.of("th", scope="col")) == len(found.tables[0][0]) + len(found.tables[1][0])


@pytest.mark.parametrize("kind", ["classifiers", "language models"])
def test_the_table_and_the_words_are_those_of_the_markdown(kind, tmp_path):
    if kind == "classifiers":
        from pressoir.benchmark.classifier_report import to_markdown

        benchmark = classifier_benchmark(linear_baseline=BASELINE, tokens_truncated=17)
    else:
        from pressoir.benchmark.language_model_report import to_markdown

        benchmark = generation_benchmark()
    found = page(write_run(tmp_path / "run", benchmark))
    lines = to_markdown(benchmark).splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert found.tables[0] == rows
    shown = found.text()
    for line in lines:
        if line and not line.startswith(("|", "Measured on")):
            assert line.removeprefix("- ").strip("*") in shown


def test_every_plot_names_the_figures_of_every_model(hostile):
    found = page(hostile)
    pictures = found.of("svg", class_="picture")
    rows = reports.read(hostile / "benchmark.json").rows
    spots = [one[1]["aria-label"] for one in found.of("g", class_="spot")]
    assert (len(pictures), len(spots)) == (3, 3 * len(rows))
    for row in rows:
        told = [
            text
            for text in spots
            if f"accuracy {100 * row.accuracy:.1f} % (" in text
            and f"{row.size_mb:.1f} MB" in text
            and f"median {row.latency_ms_p50:.2f} ms" in text
        ]
        assert len(told) >= len(pictures)
    assert all(one[1].get("tabindex") == "0" for one in found.of("g", class_="spot"))


def test_marks_stand_in_the_order_of_their_figures_within_the_picture(hostile):
    found = page(hostile)
    rows = reports.read(hostile / "benchmark.json").rows
    places = sorted(
        float(re.match(r"M([\d.]+)", one[1]["d"])[1])
        for one in found.of("path", class_="centre")  # of the scatter plot alone
    )
    assert len(places) == len(rows)
    assert places == sorted(set(places))
    numbers = [
        float(value)
        for tag, given, _ in found.elements
        if tag in ("line", "rect", "text")
        for name, value in given.items()
        if name in ("x", "x1", "x2", "y", "y1", "y2")
    ]
    assert min(numbers) >= 0
    assert max(numbers) <= 760


def test_the_sentences_on_which_the_models_differ_are_there_the_most_different_first(hostile):
    details = json.loads((hostile / "report" / "details.json").read_text(encoding="utf-8"))
    found = page(hostile)
    articles = [" ".join(one[2].split()) for one in found.of("article")]
    assert len(articles) == len(details["differences"]) == 7
    for article, one in zip(articles, details["differences"], strict=True):
        assert " ".join(one["text"].split()) in article
        assert f"correct label {one['expected']} " in article
        for name, answer in (
            ("teacher (pytorch)", one["reference"]),
            ("shard (onnxruntime)", one["final"]),
        ):
            assert f"{name} {answer['label']} {100 * answer['probability']:.1f} %" in article
        assert f"(correct label: {100 * one['final']['expected_probability']:.1f} %)" in article
    summary = f"{details['only_reference_correct']} of 872 test sentences are labelled correctly by teacher"
    assert summary in found.section("Differences")
    assert [row[0] for row in found.tables[1][1:]] == [one["label"] for one in details["classes"]]


def test_what_was_cut_and_what_a_linear_classifier_reaches_is_said(hostile, tmp_path):
    found = page(hostile)
    assert "3 of 872 test sentences are longer than the models take and were truncated, which loses 17" in (
        found.section("Length limit")
    )
    assert "A linear classifier (TF-IDF of words" in found.section("Linear baseline")
    plain = page(write_run(tmp_path / "plain", classifier_benchmark(texts_truncated=0)))
    assert "None of the 872 test sentences is longer" in plain.section("Length limit")
    assert "No linear classifier was trained" in plain.section("Linear baseline")


def test_a_busy_machine_is_warned_of(tmp_path):
    found = page(write_run(tmp_path / "run", classifier_benchmark(free_cpus=0.4, drift=0.1)))
    assert (
        "The machine was busy: other programs left 0.4 CPUs to 2 threads."
        in found.of("p", class_="bad")[0][2]
    )
    assert ["CPUs that other programs left free", "0.4"] in found.tables[-1]


def test_the_recipe_is_the_whole_one_without_passwords(tmp_path):
    recipe = Recipe.from_dict(
        {"name": "tiny", "model": "https://me:s3cr3t@host/x?key=s3cr3t", "seed": 7, "description": "{{ 1 }}"}
    )
    folder = write_run(tmp_path / "run", classifier_benchmark(), fake_details(), recipe)
    text = run_report.write(folder).read_text(encoding="utf-8")
    assert "s3cr3t" not in text
    assert yaml.safe_load(Page(text).of("pre")[0][2]) == {
        **yaml.safe_load(recipe.to_yaml()),
        "model": "https://***@host/x?***",
    }


def test_a_recipe_of_another_version_is_shown_as_it_is(tmp_path):
    folder = write_run(tmp_path / "run", classifier_benchmark())
    (folder / "recipe.yaml").write_text("name: old\nforgotten_field: 1\n")
    found = page(folder)
    assert found.of("h1")[0][2] == "Compression run"
    assert "forgotten_field: 1" in found.of("pre")[0][2]


def test_a_run_that_kept_less_says_what_is_missing(tmp_path):
    old = {"texts_truncated": None, "tokenization_ms_p50": 0.1}
    found = page(write_run(tmp_path / "run", classifier_benchmark(**old)))
    assert "kept no figures of single classes" in found.section("Classes")
    assert "kept no sentences" in found.section("Differences")
    assert "did not count" in found.section("Length limit")
    assert "has no recipe.yaml" in found.section("Recipe")


def test_one_model_alone_is_compared_with_nothing(tmp_path):
    alone = classifier_benchmark(rows=[classifier_row("teacher", "pytorch")])
    found = page(write_run(tmp_path / "run", alone, fake_details()))
    assert "Differences" not in [one[2] for one in found.of("h2")]
    assert found.tables[1][0] == ["class", "test sentences", "precision", "recall", "F1"]


def test_language_models_have_their_own_figures_and_no_sections_of_classifiers(tmp_path):
    found = page(write_run(tmp_path / "run", generation_benchmark()))
    assert [one[2] for one in found.of("h2")] == ["Models", "Plots", "Environment", "Recipe"]
    spots = [one[1]["aria-label"] for one in found.of("g", class_="spot")]
    assert sum("perplexity 21.00, +5.0 %" in text for text in spots) == 3


@pytest.mark.parametrize("value", [1e-6, 1e6])
def test_extreme_figures_are_drawn(value, tmp_path):
    rows = [classifier_row("teacher", "pytorch"), classifier_row("x" * 300, "pytorch", latency_ms_p50=value)]
    text = run_report.write(write_run(tmp_path / "run", classifier_benchmark(rows=rows))).read_text()
    assert "nan" not in text.replace("onnx", "")
    assert len(Page(text).of("g", class_="spot")) == 6


def test_the_stores_folder_of_a_benchmark_will_do_and_stays_as_it_is(tmp_path):
    folder = write_run(tmp_path / "run", classifier_benchmark()) / "report"
    (folder / "artifact.json").write_text("{}")
    fake_details().write(folder / "details.json")
    before = folder_digest(folder)
    with pytest.raises(PressoirError, match=r"artifact of the store.* --output"):
        run_report.write(folder)
    written = run_report.write(folder, tmp_path / "new" / "page.html")
    assert len(Page(written.read_text(encoding="utf-8")).of("article")) == 7
    assert folder_digest(folder) == before


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is not the output of a compression run: it has no benchmark.json; specify the folder"),
        ({"consolidated_results.json": "{}"}, "is not the output of a compression run"),
        ({"benchmark.json": "{}"}, "is not a readable benchmark"),
        ({"benchmark.json": "not JSON"}, "not valid JSON"),
        ({"benchmark.json": None, "details.json": "{}"}, "is not readable as details"),
        ({"benchmark.json": None, "recipe.yaml": b"\xff"}, "not UTF-8"),
    ],
)
def test_a_folder_that_is_no_run_or_is_damaged_is_refused(files, message, tmp_path):
    for name, content in files.items():
        if content is None:
            classifier_benchmark().write(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PressoirError, match=message):
        run_report.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(PressoirError, match="is not a folder; specify the folder"):
        run_report.write(tmp_path / "nowhere")
