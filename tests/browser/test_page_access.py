"""The page for everybody: by keyboard, by ear, in the dark, without motion, on a narrow screen."""

import re
from pathlib import Path

import pytest
from page_actions import ask, opened

CONTRASTS = Path(__file__).parent / "contrasts.js"

pytestmark = pytest.mark.browser


def test_all_of_it_can_be_done_by_keyboard(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.type("the film was good")
    page.keyboard.press("Enter")
    page.wait_for_selector("#history li")
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "() => { const e = document.activeElement, s = getComputedStyle(e);"
                "return [e.id || e.className || e.tagName, s.outlineStyle !== 'none'] }"
            )
        )
        if seen[-1][0] == "again":
            break
    names = [name for name, _ in seen]
    assert all(outlined for _, outlined in seen), seen
    wanted = ["submit", "BUTTON", "tier-a", "tier-b", "SUMMARY", "export", "clear", "again"]
    assert [name for name in dict.fromkeys(names) if name in wanted] == wanted
    page.keyboard.press("Enter")
    page.wait_for_selector("#history li:nth-child(2)")
    page.focus("summary")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("the meal was cold")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#batch-result table")


def test_every_control_has_a_name(page):
    page.click("#batch summary")
    ask(page, "the film was good")
    nameless = page.evaluate(
        "() => [...document.querySelectorAll('button, input, select, textarea, a, progress')]"
        ".filter(e => !(e.textContent.trim() && e.tagName !== 'SELECT' && e.tagName !== 'TEXTAREA'"
        " || e.labels?.length || e.getAttribute('aria-label'))).map(e => e.outerHTML)"
    )
    assert nameless == []
    assert page.get_attribute("#status", "role") == "status"
    assert page.get_attribute("#alert", "role") == "alert"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_a_contrast_of_4_5_and_fields_of_3(visit, scheme):
    page = opened(visit(color_scheme=scheme))
    page.click("#batch summary")
    page.fill("#lines", "the meal was cold\nthe film was good")
    page.click("text=Compare all")
    page.wait_for_selector("#batch-result table")
    ask(page, "the film was good")
    page.fill("#text", " ")
    page.click("#submit")
    page.wait_for_selector("#alert p")
    found = page.evaluate(CONTRASTS.read_text(encoding="utf-8"))
    assert len(found["text"]) > 60
    assert {name: ratio for name, ratio in found["text"] if ratio < 4.5} == {}
    assert {name: ratio for name, ratio in found["fields"] if ratio < 3} == {}


def test_dark_follows_the_system_until_the_button_says_otherwise_and_that_is_kept(visit):
    page = opened(visit(color_scheme="dark"))
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    assert page.get_attribute("#theme", "aria-pressed") == "true"
    page.click("#theme")
    light = page.evaluate(colour)
    assert page.get_attribute("#theme", "aria-pressed") == "false"
    page.reload()
    opened(page)
    assert page.evaluate(colour) == light
    assert opened(visit(color_scheme="light")).evaluate(colour) == light
    assert sum(map(int, re.findall(r"\d+", light))) > 700 > 100 > sum(map(int, re.findall(r"\d+", dark)))


def test_nothing_moves_for_those_who_ask_for_that(visit):
    moves = "parseFloat(getComputedStyle(document.querySelector('.bar i')).transitionDuration) > 0"
    for reduced, moving in (("reduce", False), ("no-preference", True)):
        page = opened(visit(reduced_motion=reduced))
        page.wait_for_selector(".bar i", state="attached")
        assert page.evaluate(moves) is moving


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_nothing_scrolls_sideways(visit, tmp_path, width):
    page = opened(visit(width=width))
    ask(page, "a" * 300)
    page.select_option("#tier-b", "hostile")
    ask(page, "the film was good")
    page.click("#batch summary")
    page.fill("#lines", "b" * 300 + "\nthe film was good")
    page.click("text=Compare all")
    page.wait_for_selector("#batch-result table")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.screenshot(path=tmp_path / f"classify-{width}.png", full_page=True)
    page.check("text=Generate")
    ask(page, "c" * 100)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.screenshot(path=tmp_path / f"generate-{width}.png", full_page=True)
