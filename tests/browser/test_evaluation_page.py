"""An evaluation's page in a browser: readable at any width, light and dark; it loads and runs nothing."""

from pathlib import Path

import pytest
from fake_results import CONTEXT, PLAN, RESULTS, hostile_results, write_log
from page_actions import HOSTILE

from pressoir.evaluation.report import write

CONTRASTS = Path(__file__).parent / "contrasts.js"
TEXTS = (HOSTILE, "<script>document.title = 'taken over'</script>", "word " * 300, "x" * 400)

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write.write(folder, [*RESULTS, *hostile_results(TEXTS)], PLAN, write_log(folder), CONTEXT)
    return folder / "report.html"


@pytest.fixture(params=[(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")], ids=str)
def page(browser, report, request):
    """The page with all of it unfolded; it may ask for nothing but itself."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    yield page
    context.close()
    assert [url for url in asked if not url.startswith("data:image/png")] == [report.as_uri()]
    assert complaints == []


def test_all_is_readable_and_wide_parts_scroll_by_themselves(page):
    found = page.evaluate(CONTRASTS.read_text(encoding="utf-8"))
    assert len(found["text"]) > 200
    assert {name: ratio for name, ratio in found["text"] if ratio < 4.5} == {}
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "the page scrolls sideways"
    )
    inside = "[...document.querySelectorAll('table, img')].every((e) => e.closest('.scroll'))"
    assert page.evaluate(inside)


def test_pictures_are_drawn_and_hostile_texts_are_shown_as_they_are(page):
    widths = page.evaluate("[...document.images].map((image) => image.naturalWidth)")
    assert len(widths) == 4
    assert min(widths) > 1000
    assert page.title() == "demo"
    shown = page.inner_text("#samples ~ details:last-of-type")
    for text in TEXTS[:2]:
        assert text in shown
