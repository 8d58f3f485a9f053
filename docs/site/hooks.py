"""What the site needs beyond `docs/`: pages from the repository's own files, links out of `docs/`, formulas.

- The changelog, the guide for contributors, the security policy and the recipe's reference stand where
  GitHub and the tests look for them, at the top of the repository. They become pages without being copied.
- A link that leads out of `docs/` leads to such a page where there is one. A link to any other file of the
  repository loses its target, because the site may be read without the repository. What leads nowhere stays,
  and MkDocs warns of it.
- Formulas become MathML, which browsers draw themselves: no script, no font.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "recipe.md",
    "SECURITY.md": "security.md",
}
"""Files at the top of the repository, and the pages that show them."""

_RECIPE = """# The recipe

A recipe is a YAML file; `configs/` has one for each use. Any field can be overridden on the command line:
`--set distill.epochs=3`. What the stages do is in [The stages](docs/stages.md).
"""

_LINK = re.compile(r"(\[[^\]\n]*\])\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add the pages that are made from files outside `docs/`."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        content = _recipe_reference(text) if page == "recipe.md" else text
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links that leave `docs/` to pages of the site, outside of code."""
    source = next((source for source, shown in PAGES.items() if shown == page.file.src_uri), None)
    place = source or f"docs/{page.file.src_uri}"
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_relink(markdown[end : fence.start()], place, page.file.src_uri), fence.group()]
        end = fence.end()
    return "".join([*parts, _relink(markdown[end:], place, page.file.src_uri)])


def on_page_content(content: str, **_: Any) -> str:
    """Draw formulas as MathML."""

    def drawn(match: re.Match[str]) -> str:
        tag, bracket, formula = match.groups()
        display = "block" if bracket == "[" else "inline"
        return f'<{tag} class="formula">{convert(html.unescape(formula).strip(), display=display)}</{tag}>'

    return _FORMULA.sub(drawn, content)


def _relink(text: str, place: str, shown_at: str) -> str:
    """`text`, which stands in the file `place` of the repository and is shown as the page `shown_at`."""

    def led(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
        if path in PAGES:
            page = PAGES[path]
        elif path.startswith("docs/"):
            page = path.removeprefix("docs/")
        elif (ROOT / path).exists():
            return label[1:-1]
        else:
            return match[0]  # MkDocs warns of it
        return f"{label}({posixpath.relpath(page, posixpath.dirname(shown_at) or '.')}{anchor})"

    return _LINK.sub(led, text)


def _recipe_reference(readme: str) -> str:
    """The page of the recipe, from the reference that the README holds."""
    fields = readme.split("<!-- recipe reference -->\n")[1].split("<!-- end of recipe reference -->")[0]
    sections = re.sub(r"^####", "##", fields, flags=re.MULTILINE)
    return f"{_RECIPE}\n{sections}"
