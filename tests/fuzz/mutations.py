"""Valid files, changed so that they reach past a parser: in structure, text, bytes, or what they are."""

import copy
import json
import os
import re
import shutil

PATHS = ". .. ../outside ../../outside/file /etc/passwd /proc/self/mem a/b a\\b ~nobody/x config.json".split()
REFERENCES = "store:../.. hub:a/b@c https://127.0.0.1:1/x package:os".split()
WORDS = "null true -1 1.0 1e999 NaN 2026-02-30 {0} %s ${HOME}".split()
CHARACTERS = [
    "",
    " ",
    "a\0b",
    "a\nb\r\x1b[2J",
    "\ufeffa",
    "é" * 200,
    "x" * 300,
    "x" * 5000,
    "y/" * 3000,
    "9" * 30,
]
STRINGS = [*PATHS, *REFERENCES, *WORDS, *CHARACTERS]
WHOLE = [0, 1, 2, 7, 255, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**18, 10**30, 10**99]
NUMBERS = [*WHOLE, *(-number for number in WHOLE), 0.0, -0.0, 0.5, 1.5, 1e-320, 1e308, -1e308]
DEEP = ["[" * 1000 + "]" * 1000, '{"a":' * 1000 + "1" + "}" * 1000, "[" * 60 + "]" * 60]
LONG = ["9" * 5000, "-" + "9" * 300, "0." + "3" * 2000]
RAW = [*DEEP, *LONG, *'1e999 NaN -Infinity "\\ud800" "\\u0000" "\\udfff\\ud800" \' [1,]'.split(), ""]
"""JSON, or almost."""
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in ("ab", "bc", "cd", "de", "ef", "fg", "gh", "hi")
)
TOKENS = r"""
? [a, b]\n: c\n|&a |*a|<<: *a\n|!!int x|!!binary xx|!!set {a, b}|!!omap [a: 1]|!!python/name:os.system |---\n
...\n|%YAML 9.9\n|\t|>-\n|- |[|{|}|]|'|"|: |? |"\ud800"|"\0"|2026-02-30|2001-12-14t21:59:43.10-99:99|1:2:3:4
.nan|-.inf|~|yes|0o9|=|#
"""
YAML = [BOMB, "0x" + "f" * 200]
YAML += re.split(r"[|\n]", TOKENS.strip())
YAML = [token.replace(r"\n", "\n").replace(r"\t", "\t") for token in YAML]


class Raw(str):
    """Text that stands in a JSON file as it is."""


def any_value(rng, depth=2):
    """A value of any type; most are small."""
    kind = rng.randrange(9 if depth else 6)
    if kind < 2:
        return rng.choice(STRINGS)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind == 4:
        return rng.choice([None, True, False])
    if kind == 5:
        return Raw(rng.choice(RAW))
    if kind == 6:
        return [any_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {rng.choice(STRINGS): any_value(rng, depth - 1) for _ in range(rng.randrange(4))}
    return [any_value(rng, depth - 1)] * rng.choice([1, 2, 300])


def places(tree, path=()):
    """The path of everything in a tree of lists and mappings."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(rng, tree, times=None):
    """A copy of a tree with a few changes, of which each leaves most of it valid."""
    tree = copy.deepcopy(tree)
    for _ in range(times or rng.choice([1, 1, 1, 2, 4])):
        found = list(places(tree))
        if not found:
            return any_value(rng)
        *above, key = rng.choice(found)
        parent = tree
        for step in above:
            parent = parent[step]
        _change(rng, parent, key, tree, found)
    return tree


def _change(rng, parent, key, tree, found):
    value, kind = parent[key], rng.randrange(8)
    if kind == 0:
        del parent[key]
    elif kind == 1:
        other = tree
        for step in rng.choice(found):
            other = other[step]
        parent[key] = copy.deepcopy(other)
    elif kind == 2 and isinstance(parent, dict):
        parent[rng.choice([*STRINGS, str(key).upper(), f"{key}_"])] = parent.pop(key)
    elif kind == 3:
        parent[key] = rng.choice([[value], {"a": value}, str(value), [value, value], {str(value)[:20]: 1}])
    elif kind == 4 and isinstance(value, int | float):
        parent[key] = rng.choice(
            [value + 1, value - 1, -value, value * 2, value + 0.5, value * 10**12, str(value)]
        )
    elif kind == 4 and isinstance(value, list):
        parent[key] = rng.choice([value[:-1], value * 2, value[::-1], value * 50])
    elif kind == 5 and isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(value))
    else:
        parent[key] = any_value(rng)


def to_json(tree):
    """JSON text, with what is `Raw` as it is."""
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, dict):
        return "{" + ",".join(f"{json.dumps(str(key))}:{to_json(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, list | tuple):
        return "[" + ",".join(map(to_json, tree)) + "]"
    return json.dumps(tree)


def json_text(rng, tree):
    """The bytes of a JSON file that differs from `tree`; one in four in its text instead."""
    if rng.randrange(4):
        return to_json(changed(rng, tree)).encode("utf-8", "surrogatepass")
    text = to_json(tree)
    pairs = list(re.finditer(r'"[^"]*":(?:"[^"]*"|[-\d.]+|\[\]|\{\})', text))
    if pairs and rng.randrange(2):
        pair = rng.choice(pairs)
        return (text[: pair.end()] + "," + pair[0] + text[pair.end() :]).encode()
    return damaged(rng, text.encode())


def yaml_text(rng, text):
    """The bytes of a YAML file that differs from `text` in its tokens."""
    for _ in range(rng.choice([1, 1, 2, 5])):
        marks = [match.end() for match in re.finditer(r": |\n|- |\[|\{|, ", text)] or [0]
        at = rng.choice(marks)
        end = at if rng.randrange(2) else min((mark for mark in marks if mark > at), default=len(text))
        text = text[:at] + rng.choice([*YAML, *RAW, *STRINGS]) + text[end:]
    return text.encode("utf-8", "surrogatepass")


def damaged(rng, content):
    """Bytes with a few of them flipped, gone, doubled, put in, or cut off."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(data) + 1)
        length = rng.choice([1, 2, 8, 100])
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length]
        elif kind == 3:
            data[at:at] = rng.choice(
                [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b"\n", bytes(length)]
            )
        elif kind == 4:
            data[at : at + length] = rng.randbytes(length)
        else:
            del data[at:]
    return bytes(data)


def other_file(rng, path, outside):
    """Put something that is no such file in the place of `path`."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    kind = rng.randrange(7)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.symlink_to(path.name)
    elif kind == 2:
        path.symlink_to(outside)
    elif kind == 3:
        os.mkfifo(path)
    elif kind == 4:
        path.touch()
    elif kind == 5:
        with path.open("wb") as file:
            file.truncate(4 * 10**7)  # sparse: takes no room on the disk
