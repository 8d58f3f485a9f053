"""What once was a traceback, or took minutes, is one error and exit code 2 at the command line."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from pressoir.errors import StoreError
from pressoir.flows import cli
from pressoir.flows.output import check_output

LONG = "a" * 300
BOMB = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
)


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """`refused(*words)`: the one message with which the command line refuses them; nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRESSOIR_HOME", str(tmp_path / "home"))

    def refused(*words):
        before = sorted(tmp_path.rglob("*"))
        result = CliRunner().invoke(cli.main, [str(word) for word in words])
        assert (type(result.exception), result.exit_code) == (SystemExit, 2), result.exception
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("error: ") == 1
        assert len(result.stderr) < 2000
        assert sorted(tmp_path.rglob("*")) == before
        return result.stderr

    return refused


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("name: " + "[" * 1000, "more than 64 levels"),
        ("name: 2026-02-30", "'2026-02-30' is not a valid timestamp"),
        ("seed: " + "9" * 5000, "more than 100 characters"),
        ("? [a, b]: c", "a key is a list or a mapping"),
        ("text: {evaluation: 3}", "text.evaluation: Input should be a valid dictionary (got 3)"),
        (f"name: {LONG}", "name: String should match pattern"),
        (f"data: {{source: files, train: {LONG}, test: b}}", "data: `train` is 'aaa"),
        (f"text: {{evaluation: {{a: {LONG}}}}}", "text: `evaluation` is 'aaa"),
        (f"{LONG}: 1", "unknown field"),
        (BOMB, "too large, with what the aliases refer to"),
        ('description: "\\ud800"', "has a character that no file name or text may have"),
        ("name: a\nname: b", "'name' is specified twice"),
        ("[]", "expected a mapping of fields, not a list"),
    ],
    ids="levels date digits key evaluation name train texts field bomb surrogate twice list".split(),
)
def test_a_recipe_is_refused(recipe, told, refused, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    message = refused("compress", "recipe.yaml")
    assert message.startswith("error: recipe.yaml")
    assert told in message


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["compress", LONG], "cannot be read: File name too long"),
        (["compress", "demo", "--set", "seed=" + "9" * 5000], "more than 100 characters"),
        (["compress", "demo", "--set", "seed=" + "[" * 1000], "more than 64 levels"),
        (["compress", "demo", "--set", "a." * 5000 + "b=1"], "a field has at most 64 parts"),
        (["compress", "demo", "--set", "name=2026-02-30"], "is not a valid timestamp"),
        (["compress", "demo", "--set", "description=\udcff"], "special characters are not allowed"),
        (["serve", LONG], "no deployed configuration"),
        (["verify", LONG], "is not a folder"),
        (["registry", "add", "x", "--path", LONG], "no such folder"),
        (["shard", "--model", LONG, "--output", "x"], "no such folder"),
        (["unshard", "--model", ".", "--output", "/proc/x"], "cannot be made: No such file or directory"),
        (["unshard", "--model", ".", "--output", LONG], "cannot be made: File name too long"),
    ],
    ids="path digits levels parts date surrogate serve verify add shard proc output".split(),
)
def test_an_option_is_refused(words, told, refused):
    assert told in refused(*words)


@pytest.mark.parametrize(
    "registry", ['{"models":' * 5000, '{"models": {"a": "\\ud800"}}', "[NaN]", '{"a":1,"a":2}']
)
def test_a_registry_is_refused(registry, refused, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "models.json").write_text(registry, encoding="utf-8")
    assert "models.json" in refused("registry", "list")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("models: 3\ndata: [1]", "data: Input should be a valid dictionary (got [1])"),
        (
            f"models: [{{id: a, model: m, data: d}}]\ndata: {{d: {{task: causal-lm, text: {LONG}}}}}",
            "data.d: `text` is '",
        ),
        (
            "models: [{id: a, model: m, data: d}]\ndata: {d: {task: causal-lm}}\nresults: " + "b/" * 3000,
            "`results` is 'b/b",
        ),
    ],
    ids="types text results".split(),
)
def test_the_configuration_of_an_evaluation_is_refused(config, told, refused, tmp_path):
    (tmp_path / "evaluation.yaml").write_text(config, encoding="utf-8")
    assert told in refused("evaluate", "evaluation.yaml")


def test_an_output_that_cannot_be_made_is_refused():
    with pytest.raises(StoreError, match="/proc/x cannot be made: No such file or directory"):
        check_output(Path("/proc/x"))
