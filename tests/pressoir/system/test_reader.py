"""The guarded reader: what is within its limits stays as it was, all else is one error that says where."""

import json
import os
from itertools import count
from pathlib import Path

import pytest
import yaml

from pressoir.errors import RecipeError, SourceError
from pressoir.system import reader

BOMB = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
)


def read_yaml(text):
    return reader.parse_yaml(text, "some.yaml", RecipeError)


def read_json(text, **options):
    return reader.parse_json(text, "some.json", SourceError, "make it again", **options)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: " + "[" * 1000, "more than 64 levels"),
        ("- " * 1000, "more than 64 levels"),
        ("[" * 65 + "]" * 65, "more than 64 levels"),
        ("name: 2026-02-30", "line 1, column 7"),
        ("name: 2026-02-30", "'2026-02-30' is not a valid timestamp; quote it if it is text"),
        ("seed: " + "9" * 5000, "more than 100 characters"),
        ("seed: 0x" + "f" * 5000, "more than 100 characters"),
        ("seed: !!int many", "'many' is not a valid int"),
        ("seed: !!bool maybe", "'maybe' is not a valid bool"),
        ("? [a, b]\n: c", "a key is a list or a mapping"),
        ("? {a: b}\n: c", "a key is a list or a mapping"),
        ("a: 1\nb: 2\na: 3", "'a' is specified twice"),
        ("k" * 1001 + ": 1", "longer than 1000 characters"),
        ('"' + "k" * 1001 + '": 1', "longer than 1000 characters"),
        (BOMB, "too large, with what the aliases refer to"),
        ("a: &a [*a]", r"*a stands inside of what it refers to"),
        ("a: " + "b" * 1_100_000, "1 million characters"),
        ('name: "\\ud800"', r"'\ud800' has a character that no file name or text may have"),
        ('name: "\\0"', r"'\x00' has a character that no file name or text may have"),
        ("name: a\0b", "special characters are not allowed"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: *nobody", "undefined alias"),
    ],
    ids=count(),
)
def test_yaml_beyond_the_limits_is_one_error(text, told):
    with pytest.raises(RecipeError) as caught:
        read_yaml(text)
    message = str(caught.value)
    assert message.startswith("some.yaml ")
    assert told in message
    assert len(message) < 800
    message.encode()


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("[a, a, a]", 4 * 10 + 3),
        ("x: &x aaaaa\ny: [*x, *x]", 5 * 10 + 1 + 5 + 1 + 2 * 15),
        ("x: &x [a, b]\ny: &y [*x, *x]\nz: [*y]", 10 + 11 + 32 + 11 + 74 + 11 + 10 + 74),
    ],
    ids=count(),
)
def test_what_yaml_stands_for_is_weighed_with_its_aliases(text, weight, monkeypatch):
    monkeypatch.setattr(reader, "YAML_WEIGHT", weight)
    read_yaml(text)
    monkeypatch.setattr(reader, "YAML_WEIGHT", weight - 1)
    with pytest.raises(RecipeError, match="too large, with what the aliases refer to"):
        read_yaml(text)


def test_the_alias_bomb_is_small_and_would_have_been_large():
    assert len(BOMB) < 450
    leaves = read_yaml("\n".join(BOMB.splitlines()[:4]))
    assert len(json.dumps(leaves["d"])) > 9**4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 2026-02-28",
        "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}",
        "a: {inner: &i {<<: &base {x: 1}, y: 2}}\nb: {<<: *i}",
        "a: [1, 0x1f, 1.5, .inf, ~, yes, 1:30, 'text']",
        "a: |\n  two\n  lines\n",
        "yes: 1\nno: 2",
        "[" * 64 + "]" * 64,
        "a: " + "9" * 100,
    ],
    ids=count(),
)
def test_yaml_within_the_limits_is_what_the_safe_loader_makes_of_it(text):
    assert read_yaml(text) == yaml.safe_load(text)


def test_a_mapping_that_others_merge_may_set_what_it_merges_itself():
    """PyYAML writes merged fields into the mapping, where the own field looked like a second one."""
    text = "a: {inner: &i {<<: &base {x: 1}, x: 2}}\nb: {<<: *i}"
    assert read_yaml(text) == {"a": {"inner": {"x": 2}}, "b": {"x": 2}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "more than 64 levels"),
        ("[" * 65 + "]" * 65, "more than 64 levels"),
        ('{"a":' * 500 + "1" + "}" * 500, "more than 64 levels"),
        ("[" + "9" * 5000 + "]", "has more than 100 characters"),
        ("[0." + "9" * 5000 + "]", "has more than 100 characters"),
        ("[1e999]", "1e999 is not a finite number"),
        ("[NaN]", "NaN is not a finite number"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is specified twice"),
        ('{"' + "k" * 1001 + '": 1}', "longer than 1000 characters"),
        ('{"a": ["\\ud800"]}', r"'\ud800' has a character"),
        ('{"\\uDC00": 1}', r"'\udc00' has a character"),
        ('"a\\u0000b"', r"'a\x00b' has a character"),
        ('{\n"a": 1,\n}', ", line 3: not valid JSON"),
        ("", ", line 1: not valid JSON"),
    ],
    ids=count(),
)
def test_json_beyond_the_limits_is_one_error(text, told):
    with pytest.raises(SourceError) as caught:
        read_json(text)
    message = str(caught.value)
    assert message.startswith("some.json")
    assert message.endswith("; make it again")
    assert told in message
    assert len(message) < 400
    message.encode()


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1, -2.5, 1e30, true, null, "\\ud83d\\ude00", "\\\\u0000"]}',
        "1000000000000000019884624838656",
        "[" * 64 + "]" * 64,
        '"text"',
    ],
    ids=count(),
)
def test_json_within_the_limits_is_what_the_standard_library_makes_of_it(text):
    assert read_json(text) == json.loads(text)


def test_numbers_that_are_not_finite_are_read_where_models_have_them():
    assert read_json("[Infinity, -1e999]", finite=False) == [float("inf"), float("-inf")]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.write_bytes(b'"\xff"'), "is not valid JSON: byte 1 is not UTF-8"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (lambda path: path.write_text("[1]"), "is not a JSON object, but [1]"),
    ],
    ids=count(),
)
def test_a_file_that_cannot_be_read_is_named(make, told, tmp_path):
    path = tmp_path / "a.json"
    make(path)
    with pytest.raises(SourceError) as caught:
        reader.read_object(path, SourceError, "make it again")
    assert str(caught.value) == f"{path} {told}; make it again"


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(10**12)  # sparse: takes no room
    with pytest.raises(SourceError, match="larger than the 32 MB"):
        reader.read_json(path, SourceError, "make it again")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a",
        "/etc/passwd",
        "a/b",
        "a/",
        "./a",
        "a\0b",
        "\ud800",
        "a" * 256,
        "ä" * 128,
        1,
        None,
        ["a"],
    ],
    ids=count(),
)
def test_a_name_that_is_not_one_of_the_folder_is_refused(name, tmp_path):
    with pytest.raises(SourceError, match="some manifest"):
        reader.file_in(tmp_path, name, "some manifest", SourceError, "make it again")


@pytest.mark.parametrize("name", ["a", "shard_00.safetensors", "..a", "a" * 255, "é.onnx"], ids=count())
def test_a_name_of_the_folder_is_its_file(name, tmp_path):
    assert reader.file_in(tmp_path, name, "x", SourceError, "y") == tmp_path / name


@pytest.mark.parametrize("text", ["1.0", "-1", "", " 1", "1e3", "0x1", "٣", "1_0", "9" * 20], ids=count())
def test_text_that_is_no_whole_number_is_refused(text):
    with pytest.raises(SourceError, match="not a whole number of bytes"):
        reader.whole_number(text, "the offset", SourceError, "export again")


@pytest.mark.parametrize("path", ["a" * 300, "a\0b", "\ud800", "", "nowhere"], ids=count())
def test_a_path_that_cannot_be_is_not_there(path):
    assert not reader.exists(path)
    assert not reader.is_file(path)
    assert not reader.is_folder(path)


def test_what_is_there_is_told_by_its_kind(tmp_path):
    (tmp_path / "a").touch()
    assert (reader.is_file(tmp_path), reader.is_folder(tmp_path)) == (False, True)
    assert (reader.is_file(tmp_path / "a"), reader.is_folder(tmp_path / "a")) == (True, False)


@pytest.mark.parametrize(
    "value",
    ["x" * 9999, [1] * 9999, {i: i for i in range(9999)}, 10**5000, b"x" * 9999],
    ids=count(),
)
def test_a_value_in_a_message_is_short(value):
    assert len(reader.shown(value)) <= 100


def test_lines_come_without_carriage_returns_and_byte_order_marks(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert reader.read_text(tmp_path / "a.txt", SourceError, "") == "a\nb\rc\n"
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert reader.read_json(tmp_path / "a.json", SourceError, "") == {"a": 1}


def test_text_may_come_from_a_pipe(tmp_path):
    """A configuration may be what another command writes: `pressoir compress <(command)`."""
    reading, writing = os.pipe()
    os.write(writing, b"seed: 1")
    os.close(writing)
    assert reader.read_text(Path(f"/dev/fd/{reading}"), SourceError, "") == "seed: 1"
    os.close(reading)


@pytest.mark.parametrize("path", [".", "", "a", "/", "a" * 255, "../é/b", "/a" * 2000], ids=count())
def test_a_path_that_can_be_is_let_through(path):
    assert reader.can_exist(Path(path))


@pytest.mark.parametrize("path", ["a" * 256, "é" * 128, "a\0b", "\udcff", "/a" * 2048], ids=count())
def test_a_path_that_can_not_be_is_told_from_its_name(path):
    assert not reader.can_exist(Path(path))
