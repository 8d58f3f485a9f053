"""The page of a compression run in a browser: readable at any width; its plots answer the pointer."""

from pathlib import Path

import pytest
from fake_runs import HOSTILE, generation_benchmark, hostile_run, write_run

from pressoir.publishing import run_report

CONTRASTS = Path(__file__).parent / "contrasts.js"
INSIDE = """(spot) => {
  const [tip, all] = [spot.querySelector('.tip rect'), spot.closest('svg')]
    .map((e) => e.getBoundingClientRect());
  return tip.left >= all.left && tip.right <= all.right && tip.top >= all.top && tip.bottom <= all.bottom;
}"""
SHOWN = """[...document.querySelectorAll('.tip')]
  .filter((e) => getComputedStyle(e).visibility === 'visible').length"""
TEXTS_INSIDE = """(picture) => {
  const box = picture.getBoundingClientRect();
  return [...picture.querySelectorAll(':scope > g > text')].map((e) => e.getBoundingClientRect())
    .every((e) => e.left >= box.left - 1 && e.right <= box.right + 1 && e.bottom <= box.bottom + 1);
}"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    language_models = write_run(folder / "language models", generation_benchmark())
    return [run_report.write(hostile_run(folder / "classifiers")), run_report.write(language_models)]


@pytest.fixture(params=[(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")], ids=str)
def visit(browser, request):
    """Open a page with all of it unfolded; it may ask for nothing but itself."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked, complaints, opened = [], [], []

    def visit(report):
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda said: complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        opened.append(report.as_uri())
        page.goto(report.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        return page

    yield visit
    context.close()
    assert asked == opened
    assert complaints == []


def test_all_is_readable_and_wide_parts_scroll_by_themselves(visit, reports):
    for report in reports:
        page = visit(report)
        found = page.evaluate(CONTRASTS.read_text(encoding="utf-8"))
        assert len(found["text"]) > 60
        assert {name: ratio for name, ratio in found["text"] if ratio < 4.5} == {}
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
            "the page scrolls sideways"
        )
        inside = "[...document.querySelectorAll('table, svg.picture')].every((e) => e.closest('.scroll'))"
        assert page.evaluate(inside)
        assert all(picture.evaluate(TEXTS_INSIDE) for picture in page.locator("svg.picture").all())


def test_a_mark_shows_its_figures_to_the_pointer_and_to_the_keyboard(visit, reports):
    for report in reports:
        page = visit(report)
        assert page.evaluate(SHOWN) == 0
        for picture in page.locator("svg.picture").all():
            for spot in picture.locator(".spot").all():
                spot.focus()
                assert page.evaluate(SHOWN) == 1
                assert spot.evaluate(INSIDE)
                told = spot.locator(".tip text").all_text_contents()
                assert all(text.rstrip("…") in spot.get_attribute("aria-label") for text in told)
        page.locator(".spot > path").last.hover()
        assert page.evaluate(SHOWN) == 1
        page.evaluate("document.activeElement.blur()")
        page.mouse.move(1, 1)
        assert page.evaluate(SHOWN) == 0


def test_hostile_texts_are_shown_as_they_are(visit, reports):
    page = visit(reports[0])
    assert page.title() == "tiny"
    assert page.locator("img, script, iframe").count() == 0
    articles = page.locator("article").all_inner_texts()
    for text in HOSTILE:
        assert any(text in article for article in articles)
