"""References of configuration files, generated from the types, so that they cannot fall behind them."""

from __future__ import annotations

import json
import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from pressoir.extensions.declared_name import DeclaredName

FILES = ("recipe", "evaluation", "serving", "search")
"""The kinds of configuration files."""


def reference(of: str) -> str:
    """Markdown of a kind of file; a search's without the recipe in it."""
    from pressoir.evaluation.config import EvaluationConfig
    from pressoir.recipe.recipe import Recipe
    from pressoir.recipe_search.config import SearchConfig
    from pressoir.serving.config import ServingConfig

    types: tuple[type[BaseModel], ...] = (Recipe, EvaluationConfig, ServingConfig, SearchConfig)
    return markdown(dict(zip(FILES, types, strict=True))[of], without="recipe")


def markdown(model: type[BaseModel], without: str | None = None) -> str:
    """One table a section: field, type, default, meaning; `without` is the path of a section left out."""
    sections: list[str] = []
    _section(model, "", without, sections)
    return "\n".join(sections)


def _section(model: type[BaseModel], path: str, without: str | None, sections: list[str]) -> None:
    title = f"`{path}`" if path else "top level"
    summary = " ".join((model.__doc__ or "").split())
    lines = [f"#### {title}\n\n{summary}\n", "| field | type | default | meaning |", "|---|---|---|---|"]
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        inner = _nested(field.annotation)
        if inner is not None:
            kind, suffix, section = inner
            nested.append((f"{path}.{name}{suffix}".strip("."), section))
            optional = " or null" if type(None) in _parts(field.annotation) else ""
            lines.append(f"| `{name}` | {kind}{optional} | see below | {meaning} |")
        else:
            default = (
                "required" if field.is_required() else _plain(field.get_default(call_default_factory=True))
            )
            kind = _declared(field.metadata) or _type_name(field.annotation)
            lines.append(f"| `{name}` | {kind} | {default} | {meaning} |")
    sections.append("\n".join(lines) + "\n")
    for nested_path, nested_model in nested:
        if nested_path != without:
            _section(nested_model, nested_path, without, sections)


def _nested(annotation: Any) -> tuple[str, str, type[BaseModel]] | None:
    """The section that a field is, or has one or more of: how many, what follows its path, its type."""
    for part in _parts(annotation):
        elements = {tuple: ("list of sections", "[]"), dict: ("mapping of sections", ".NAME")}
        kind, suffix = elements.get(get_origin(part), ("section", ""))
        for inner in get_args(part) if suffix else (part,):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                return kind, suffix, inner
    return None


def _parts(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _declared(metadata: Iterable[Any]) -> str:
    """The names that a field of declared names accepts; empty for any other field."""
    names = [name for mark in metadata if isinstance(mark, DeclaredName) for name in mark.choices]
    return ", ".join(f"`{name}`" for name in names)


def _type_name(annotation: Any) -> str:
    names = []
    for part in _parts(annotation):
        origin = get_origin(part)
        if part is type(None):
            names.append("null")
        elif origin is Literal:
            names.append(", ".join(f"`{value}`" for value in get_args(part)))
        elif origin in (tuple, list):
            names.append("list")
        elif origin is dict:
            names.append("mapping")
        elif hasattr(part, "__metadata__"):
            names.append(_declared(part.__metadata__) or _type_name(part.__origin__))
        else:
            names.append(
                getattr(part, "__name__", str(part)).lower().replace("str", "text").replace("bool", "yes/no")
            )
    return " or ".join(dict.fromkeys(names))


def _plain(value: Any) -> str:
    if value == "" or value is None:
        return "" if value == "" else "null"
    return f"`{json.dumps(value, default=str)}`".replace('"', "")
