"""Typed configuration: frozen values, read from YAML, with all errors reported at once.

Recipes, evaluation and serving configurations are all of these types. A field of the YAML file can be set
from the command line (`--set quantize.scheme=q4`); an unknown field is an error that names the nearest one.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pressoir.errors import RecipeError
from pressoir.system import reader
from pressoir.system.reader import shown

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
PositiveReal = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_EXAMPLES = Path(__file__).with_name("configs")
_MOST_ERRORS = 50  # that one message lists
_KINDS = ("evaluation", "search", "serving")  # how examples begin that are no recipes


class Config(BaseModel):
    """A frozen value; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="after")
    def _paths_can_exist(self) -> Self:
        """Whoever looks for a file would otherwise stumble over its name."""
        for name, value in self:
            for path in value.values() if isinstance(value, dict) else (value,):
                if isinstance(path, Path) and not reader.can_exist(path):
                    raise ValueError(
                        f"`{name}` is {shown(str(path))}, but no file can have that name: at most "
                        f"{reader.MAX_COMPONENT} bytes between two slashes, {reader.MAX_PATH} in all, no NUL"
                    )
        return self


Section = TypeVar("Section", bound=Config)


def checked(section: Section, problems: list[str]) -> Section:
    """`section`, unless there are `problems`: then a ValueError that lists them."""
    if problems:
        raise ValueError("; ".join(problems))
    return section


def examples(label: str) -> dict[str, Path]:
    """The configurations of a kind (a `Document.LABEL`) that come with Pressoir, by name."""
    files = {path.stem: path for path in sorted(_EXAMPLES.glob("*.yaml"))}
    kinds = {name: name.partition("-")[0] for name in files}
    return {
        name: files[name] for name, kind in kinds.items() if (kind if kind in _KINDS else "recipe") == label
    }


def read_yaml(path: Path, instead: Collection[str] = ()) -> Any:
    """The content of a YAML file; an empty one is an empty mapping.

    Raises:
        RecipeError: it is missing, or not valid YAML within the limits of `pressoir.system.reader`; what may
            be given `instead` is listed.
    """
    names = f", or the name of an example: {', '.join(instead)}" if instead else ""
    advice = f"specify the path of a YAML file{names}"
    text = reader.read_text(path, RecipeError, advice, "valid YAML", reader.YAML_BYTES)
    raw = reader.parse_yaml(text, str(path), RecipeError)
    return raw if raw is not None else {}


def plain(raw: Any, overrides: Sequence[str], source: str) -> dict[str, Any]:
    """A copy of a mapping as JSON has it, with the overrides (`key.path=value`, values in YAML) put in.

    Raises:
        RecipeError: it is not a mapping, or an override is malformed.
    """
    if not isinstance(raw, dict):
        raise RecipeError(f"{source}: expected a mapping of fields, not a {type(raw).__name__}")
    result: dict[str, Any] = _plain(raw, source)
    for override in overrides:
        _apply_override(result, override)
    return result


def validate(cls: type[Section], raw: dict[str, Any], source: str, *, strict: bool = False) -> Section:
    """Make a `cls` of a plain mapping; if `strict`, of JSON whose values have the fields' own types.

    Raises:
        RecipeError: fields are wrong; all are listed.
    """
    try:
        if strict:
            return cls.model_validate_json(json.dumps(raw), strict=True)
        return cls.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(_all_errors(cls, error, source)) from None


class Document(Config):
    """A configuration that a file holds."""

    LABEL: ClassVar[str] = "configuration"
    """What it is called where no file is named."""

    @classmethod
    def from_yaml(cls, path: Path | str, overrides: Sequence[str] = ()) -> Self:
        """Read a file and apply `key.path=value` overrides (values are YAML).

        Where there is no such file, `path` may be the name of an example that comes with Pressoir (`demo`).
        Relative paths in it are looked up in the current directory, then in the file's folder.

        Raises:
            RecipeError: the file is missing or not YAML, or has wrong fields; all are listed at once.
        """
        path, raw = cls.read(path)
        return cls.from_dict(raw, overrides, source=str(path), folder=path.parent)

    @classmethod
    def read(cls, path: Path | str) -> tuple[Path, Any]:
        """The file, or the example, that `path` names, and its content, unchecked; raises as `from_yaml`."""
        shipped = examples(cls.LABEL)
        path = Path(path) if reader.is_file(path) else shipped.get(str(path), Path(path))
        return path, read_yaml(path, shipped)

    @classmethod
    def from_dict(
        cls, raw: Any, overrides: Sequence[str] = (), *, source: str = "", folder: Path | None = None
    ) -> Self:
        """Validate a plain mapping; see `from_yaml`."""
        source = source or cls.LABEL
        values = plain(raw, overrides, source)
        if folder is not None:
            cls._look_beside(values, folder)
        return validate(cls, values, source)

    @classmethod
    def load(cls, value: Any) -> Any:
        """Take such a configuration, a path to one, or a mapping; leave anything else to the validator."""
        if isinstance(value, (str, Path)):
            return cls.from_yaml(value)
        return cls.from_dict(value) if isinstance(value, dict) else value

    @classmethod
    def _look_beside(cls, raw: dict[str, Any], folder: Path) -> None:
        """Make paths that do not exist here, but do in the file's `folder`, point there."""


def look_beside(folder: Path, section: Any, fields: Sequence[str] | None = None) -> None:
    """Make those paths of a section, or all, that do not exist here, but do in `folder`, point there.

    What is not a mapping is left to the validator.
    """
    if not isinstance(section, dict):
        return
    for field in tuple(section) if fields is None else fields:
        value = section.get(field)
        if isinstance(value, str) and not reader.exists(value) and reader.exists(folder / value):
            section[field] = str(folder / value)


def _plain(value: Any, source: str) -> Any:
    """A copy of `value` as JSON has it: YAML's dates become strings again."""
    try:
        text = json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"{source}: {error}") from error
    return reader.parse_json(text, source, RecipeError, "specify something else", finite=False)


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    name = f"--set {shown(override)}"
    if not separator or not key:
        raise RecipeError(f"{name}: expected field=value, such as distill.epochs=3")
    node: dict[str, Any] = raw
    *parents, last = key.split(".")
    if len(parents) >= reader.MAX_DEPTH:
        raise RecipeError(f"{name}: a field has at most {reader.MAX_DEPTH} parts")
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise RecipeError(f"{name}: {shown(parent)} is a value, not a section")
        node = child
    node[last] = _plain(reader.parse_yaml(text, f"{name}: the value", RecipeError), name)


def _all_errors(model: type[BaseModel], error: ValidationError, source: str) -> str:
    found: dict[str, list[str]] = {}
    for problem in error.errors(include_url=False)[:_MOST_ERRORS]:
        path, siblings = _locate(model, problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(problem["loc"][-1]), siblings, n=1)
            text = "unknown field" + (f"; did you mean `{near[0]}`?" if near else "")
        else:
            given = problem["input"]
            value = "" if isinstance(given, dict) else f" (got {shown(given)})"
            text = problem["msg"].removeprefix("Value error, ") + value
        found.setdefault(path, []).append(text)
    more = error.error_count() - _MOST_ERRORS
    title = f"{source} has {len(found)} error{'s' if len(found) > 1 else ''}:"
    lines = [f"  {path}: {'; or: '.join(texts)}" for path, texts in found.items()]
    return "\n".join([title, *lines, *([f"  and {more} more"] if more > 0 else [])])


def _locate(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """The path of a field as the recipe's author would write it, and the names of the fields beside it.

    Where a field takes one of several types, pydantic reports an error for each and puts the type's name into
    the path; the path given here ends at the field.
    """
    path: list[str] = []
    section: type[BaseModel] | None = model
    inside: Any = None  # what a list's or a mapping's elements are
    for part in loc:
        path.append(shown(str(part))[1:-1])
        if inside is not None:
            section, inside = _as_model(inside), None
            continue
        field = section.model_fields.get(str(part)) if section else None
        if field is None:
            continue
        types = (
            get_args(field.annotation)
            if get_origin(field.annotation) in (Union, UnionType)
            else [field.annotation]
        )
        types = [type_ for type_ in types if type_ is not NoneType]
        if len(types) > 1:
            break
        section = _as_model(types[0])
        if get_origin(types[0]) in (tuple, dict):
            inside = [type_ for type_ in get_args(types[0]) if type_ is not Ellipsis][-1]
    return ".".join(path) or "(recipe)", list(section.model_fields) if section else []


def _as_model(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
