"""A page that is one HTML file: it holds everything that it shows, and loads nothing.

Its template is Jinja's. Every value is escaped, also within attributes; `{{ value | tojson }}` is safe within
a script element. What a page may load, its Content-Security-Policy says to the browser.

Reports extend `layout.html` (the frame, colours for light and dark, widths down to a phone's) and import from
`parts.html` (tables that scroll by themselves, plots).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_CHARACTERS = 1000


@dataclass(frozen=True)
class Table:
    """A table; cells are text as it is to be read."""

    columns: tuple[str, ...]
    texts: int
    """So many columns at the left are text, the others figures."""
    rows: tuple[tuple[str, ...], ...]


def render(template: Path, **values: object) -> str:
    """The page of a template, which must name only these values."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "ensure_ascii": False}
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def shortened(text: str) -> str:
    """The beginning of a text that is too long for a page, and how much is left out."""
    more = len(text) - _CHARACTERS
    return text if more <= 0 else f"{text[:_CHARACTERS]}… ({more:,} more characters)"
