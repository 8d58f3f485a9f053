"""The page's files: nothing from elsewhere, nothing inline, and no way for a text to become HTML."""

import re
from pathlib import Path

import pytest

import pressoir.serving

PAGE = Path(pressoir.serving.__file__).parent / "page"
SCRIPTS = sorted(PAGE.glob("*.js"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_makes_no_html_of_text(path):
    text = path.read_text(encoding="utf-8")
    makers = "innerHTML outerHTML insertAdjacentHTML document.write DOMParser srcdoc setHTML eval( Function("
    assert [maker for maker in makers.split() if maker in text] == []


@pytest.mark.parametrize("path", sorted(PAGE.iterdir()), ids=lambda path: path.name)
def test_a_file_names_no_other_server(path):
    addresses = re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"//\s.*", "", path.read_text(encoding="utf-8")))
    assert set(addresses) <= {"http://www.w3.org"}  # the name space of SVG


def test_the_document_has_no_inline_script_style_or_handler():
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", text) == []
    assert re.findall(r"<script(?![^>]*\ssrc=)", text) == []


def test_every_file_that_is_named_is_there():
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    named = set(re.findall(r'(?:src|href)="static/([^"]+)"', text))
    imported = {
        name for path in SCRIPTS for name in re.findall(r'from "\./([^"]+)"', path.read_text("utf-8"))
    }
    assert named | imported == {path.name for path in PAGE.iterdir()} - {"index.html"}
