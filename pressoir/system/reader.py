"""Text that others wrote, read within limits; whatever is wrong with it is one of the product's own errors.

Configurations, values of `--set`, the registry, manifests, indexes, headers and settings of models all pass
through here before anything looks at them. Parsers alone do not suffice: a YAML file of 400 bytes can stand
for gigabytes, and brackets nested deeply enough exhaust the stack of code that walks over the value later.

A value that leaves this module has at most `MAX_DEPTH` levels, numbers of at most `MAX_DIGITS` characters,
keys that occur once and have at most `MAX_NAME` characters, and texts that can be written as UTF-8 and passed
to the operating system: no surrogates, no NUL.

Sources. JSON: RFC 8259 (section 4 on repeated keys, 6 on numbers, 8.2 on surrogates). YAML:
https://yaml.org/spec/1.1/, as PyYAML reads it.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import yaml

from pressoir.errors import PressoirError

MAX_DEPTH = 64
"""Levels of lists and mappings."""
MAX_DIGITS = 100
"""Characters of a number. Tokenizers have numbers of 31, 64-bit floats print as 24."""
MAX_NAME = 1000
"""Characters of a key."""
JSON_BYTES = 32_000_000
"""Bytes of a JSON text; as Python objects they take up to 25 times as much."""
YAML_BYTES = 1_000_000
"""Bytes of a YAML text: its parser, in Python, reads some 100 kB a second."""
YAML_WEIGHT = 2_000_000
"""Characters of a YAML document's scalars, and `NODE_WEIGHT` more for each node, with aliases expanded."""
NODE_WEIGHT = 10
MAX_COMPONENT = 255
"""Bytes of a file's name."""
MAX_PATH = 4096
"""Bytes of a path."""

Kind = type[PressoirError]
"""The error that a caller wants."""

_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
_ESCAPED = re.compile(r"\\u(?:0000|d[89a-f])", re.IGNORECASE)
_WHOLE = re.compile(r"[0-9]{1,19}", re.ASCII)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


class _FaultError(Exception):
    """What is wrong with a text, without its place."""


def shown(value: object) -> str:
    """A value as an error message shows it: its `repr`, at most 80 characters, 6 elements, 6 levels of it."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python does not convert numbers of more than 4,300 digits
        return f"a {type(value).__name__} that is too long to show"


def named(path: Path) -> str:
    """A path as an error message names it: whole, unless it is absurdly long or cannot be printed."""
    text = str(path)
    return text if len(text) <= MAX_NAME and text.isprintable() else shown(text)


def can_exist(path: Path) -> bool:
    """Whether the system lets a file have that name, wherever it is (Linux: NAME_MAX, PATH_MAX)."""
    if _UNWRITABLE.search(str(path)):
        return False
    sizes = [len(component.encode()) for component in path.parts]
    return max(sizes, default=0) <= MAX_COMPONENT and sum(sizes) + len(sizes) < MAX_PATH


def exists(path: Path | str, kind: Callable[[int], bool] = lambda mode: True) -> bool:
    """Whether something of that kind (`stat.S_ISDIR`) is there; a name that no file can have is not."""
    try:
        return kind(os.stat(path).st_mode)  # noqa: PTH116 -- pathlib's tests raise for such names
    except (OSError, ValueError):
        return False


def is_file(path: Path | str) -> bool:
    """Whether a regular file is there."""
    return exists(path, stat.S_ISREG)


def is_folder(path: Path | str) -> bool:
    """Whether a folder is there."""
    return exists(path, stat.S_ISDIR)


def read_text(
    path: Path, error: Kind, advice: str, what: str = "valid text", most: int | None = JSON_BYTES
) -> str:
    """The UTF-8 text of a file of at most `most` bytes, its lines ended by `\\n`; None sets no limit.

    A byte order mark is left out, and a carriage return before a line's end.

    Raises:
        error: it cannot be read, is larger, or is not UTF-8; the message ends with the `advice`.
    """
    text = _decode(_read(path, error, advice, most), named(path), error, advice, what)
    return text.replace("\r\n", "\n")


def read_bytes(path: Path, error: Kind, advice: str) -> bytes:
    """The content of a regular file of at most `JSON_BYTES`.

    Raises:
        error: it cannot be read, is larger, or is no regular file.
    """
    if not is_file(path) and exists(path):  # a pipe that nobody writes to would be waited for
        raise error(f"{named(path)} is not a regular file; {advice}")
    return _read(path, error, advice, JSON_BYTES)


def read_json(path: Path, error: Kind, advice: str, *, finite: bool = True) -> Any:
    """The value of a JSON file of at most `JSON_BYTES`; see `parse_json`.

    Raises:
        error: it cannot be read, or is not JSON within the limits.
    """
    return parse_json(read_bytes(path, error, advice), named(path), error, advice, finite=finite)


def read_object(path: Path, error: Kind, advice: str, *, finite: bool = True) -> dict[str, Any]:
    """As `read_json`, of a file that holds an object.

    Raises:
        error: as `read_json`, or it holds something else.
    """
    content = read_json(path, error, advice, finite=finite)
    if not isinstance(content, dict):
        raise error(f"{path} is not a JSON object, but {shown(content)}; {advice}")
    return content


def parse_json(text: str | bytes, where: str, error: Kind, advice: str, *, finite: bool = True) -> Any:
    """The value of a JSON text, whose bytes are UTF-8.

    Without `finite` it may have the numbers NaN and Infinity, as the configurations of some models do.

    Raises:
        error: it is not JSON within the limits (see the module); the message begins with `where`, and ends
            with the `advice`.
    """

    def number(convert: type[int] | type[float], digits: str) -> int | float:
        if len(digits) > MAX_DIGITS:
            raise _FaultError(f"the number {digits[:20]}… has more than {MAX_DIGITS} characters")
        value = convert(digits)
        if finite and not math.isfinite(value):
            raise _FaultError(f"{digits} is not a finite number")
        return value

    if isinstance(text, bytes):
        text = _decode(text, where, error, advice, "valid JSON")
    try:
        real = partial(number, float)
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=partial(number, int),
            parse_float=real,
            parse_constant=real,
        )
        _check_depth(value)
        if _ESCAPED.search(text):
            _check_texts(value)
    except json.JSONDecodeError as fault:
        raise error(f"{where}, line {fault.lineno}: not valid JSON ({fault.msg}); {advice}") from fault
    except RecursionError as fault:
        raise error(f"{where} has more than {MAX_DEPTH} levels; {advice}") from fault
    except _FaultError as fault:
        raise error(f"{where}: {fault}; {advice}") from fault
    return value


def parse_yaml(text: str, where: str, error: Kind) -> Any:
    """The value of a YAML document: what YAML's safe types are in Python.

    Raises:
        error: it is not YAML within the limits (see the module); the message begins with `where`, and names
            the line.
    """
    if len(text) > YAML_BYTES:
        raise error(f"{where} has more than {YAML_BYTES / 1e6:g} million characters, too many for YAML")
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as fault:
        message = str(fault).replace('"<unicode string>", ', "")
        raise error(f"{where} is not valid YAML: {message[:600]}{'…' * (len(message) > 600)}") from fault


def file_in(folder: Path, name: object, where: str, error: Kind, advice: str) -> Path:
    """The file of a folder that a manifest, an index or a graph names, which need not exist.

    Raises:
        error: the name leads out of the folder, or no file can have it.
    """
    text = name if isinstance(name, str) else ""
    if text in ("", ".", "..") or _UNWRITABLE.search(text) or Path(text).name != text:
        raise error(f"{where} refers to a file outside its folder: {shown(name)}; {advice}")
    if len(text.encode()) > MAX_COMPONENT:
        raise error(f"{where} names the file {shown(name)}, longer than {MAX_COMPONENT} bytes; {advice}")
    return folder / text


def whole_number(text: str, where: str, error: Kind, advice: str) -> int:
    """A number that is given as text: decimal digits, below 10^19.

    Raises:
        error: it is anything else.
    """
    if not _WHOLE.fullmatch(text):
        raise error(f"{where} is {shown(text)}, not a whole number of bytes; {advice}")
    return int(text)


def _read(path: Path, error: Kind, advice: str, most: int | None) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(-1 if most is None else most + 1)
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise error(f"{named(path)} cannot be read: {reason}; {advice}") from fault
    if most is not None and len(content) > most:
        raise error(
            f"{named(path)} is larger than the {most / 1e6:g} MB that are read of such a file; {advice}"
        )
    return content


def _decode(content: bytes, where: str, error: Kind, advice: str, what: str) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as fault:
        raise error(f"{where} is not {what}: byte {fault.start} is not UTF-8; {advice}") from fault


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key given twice, one value would silently be lost."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _FaultError(f"the key {shown(key)} is specified twice")
        if len(key) > MAX_NAME:
            raise _FaultError(f"the key {shown(key)} is longer than {MAX_NAME} characters")
        result[key] = value
    return result


def _check_depth(value: Any) -> None:
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise RecursionError


def _check_texts(value: Any) -> None:
    if isinstance(value, str) and _UNWRITABLE.search(value):
        raise _FaultError(f"{shown(value)} has a character that no file name or text may have")
    if isinstance(value, dict | list):
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_texts(inner)


class _Loader(yaml.SafeLoader):
    """Composes nodes within limits that the parser itself lacks; values are made of the nodes afterwards."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._weight = 0
        self._weights: dict[str, int] = {}  # of what each anchor stands for

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        before, anchor = self._weight, getattr(event, "anchor", None) or ""
        if self._depth >= MAX_DEPTH and isinstance(event, yaml.CollectionStartEvent):
            self._refuse(f"there are more than {MAX_DEPTH} levels", event)
        if isinstance(event, yaml.AliasEvent) and anchor in self.anchors and anchor not in self._weights:
            self._refuse(f"*{anchor} stands inside of what it refers to", event)
        self._weight += self._weights.get(anchor, 0) if isinstance(event, yaml.AliasEvent) else NODE_WEIGHT
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and not isinstance(event, yaml.AliasEvent):
            self._weight += len(node.value)
        if self._weight > YAML_WEIGHT:
            self._refuse("the content is too large, with what the aliases refer to", event)
        if anchor and not isinstance(event, yaml.AliasEvent):
            self._weights[anchor] = self._weight - before
        return node

    def compose_scalar_node(self, anchor: dict[Any, yaml.Node]) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if _UNWRITABLE.search(node.value):
            self._refuse(f"{shown(node.value)} has a character that no file name or text may have", node)
        if node.tag.endswith((":int", ":float")) and len(node.value) > MAX_DIGITS:
            self._refuse(f"the number {node.value[:20]}… has more than {MAX_DIGITS} characters", node)
        return node

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """Refuses a section or field that is written twice; YAML alone would silently take the last."""
        node, seen = super().compose_mapping_node(anchor), set[str]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._refuse("a key is a list or a mapping; write a name", key)
            if len(key.value) > MAX_NAME:
                self._refuse(f"the key {shown(key.value)} is longer than {MAX_NAME} characters", key)
            if key.value in seen:
                self._refuse(f"{shown(key.value)} is specified twice", key)
            seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # whatever the conversion of a date or a number stumbles over
            kind = node.tag.rpartition(":")[2]
            self._refuse(f"{shown(node.value)} is not a valid {kind}; quote it if it is text", node, error)

    def _refuse(self, what: str, where: yaml.Event | yaml.Node, cause: Exception | None = None) -> NoReturn:
        raise yaml.MarkedYAMLError(None, None, what, where.start_mark) from cause  # type: ignore[arg-type]
