"""A page that is one HTML file: it holds everything that it shows, and loads nothing.

Its template is Jinja's. Every value is escaped, also within attributes; `{{ value | tojson }}` is safe within
a script element. What a page may load, its Content-Security-Policy says to the browser.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, StrictUndefined


def render(template: Path, **values: object) -> str:
    """The page of a template, which must name only these values."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "ensure_ascii": False}
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)
