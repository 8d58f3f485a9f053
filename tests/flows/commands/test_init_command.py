"""`pressoir init` on files as users have them: what it prints, and recipes that a dry run takes unchanged."""

import csv
import json
import math
import random
import re
import shutil
from pathlib import Path

import datasets
import numpy
import pandas
import pytest
import yaml
from click.testing import CliRunner

from pressoir.data import layout, sentences
from pressoir.pipeline.checks import check_inputs
from pressoir.pipeline.sources import Sources
from pressoir.recipe.recipe import Recipe
from pressoir.store.store import Store

WORDS = "le film était très bien mais la fin fut longue et déçoit un peu".split()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, home):
    """An empty folder to work in."""
    del home
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    return tmp_path / "data"


def run(*words):
    from pressoir.flows.cli import main

    return CliRunner().invoke(main, [str(word) for word in words])


def texts(count, seed=0):
    """Different texts."""
    rng = random.Random(seed)
    return [" ".join([*rng.choices(WORDS, k=rng.randint(2, 20)), str(i)]) for i in range(count)]


def rows(count=300, labels=("neg", "pos"), seed=0):
    return [(text, labels[i % len(labels)]) for i, text in enumerate(texts(count, seed))]


def lines(pairs, separator="\t", header=("text", "label")):
    records = [header, *pairs] if header else pairs
    return "".join(separator.join(map(str, record)) + "\n" for record in records)


def accepted(*words, output="recipe.yaml"):
    """What the command prints, in one line, and the recipe that it writes, after the checks of a dry run."""
    result = run("init", *words)
    assert result.exit_code == 0, result.output
    recipe = Recipe.from_yaml(output)
    assert check_inputs(recipe, Sources(Store())) > 0
    return " ".join(result.output.split()), recipe


def refused(*words):
    """The message, in one line; nothing is written."""
    result = run("init", *words)
    assert (type(result.exception), result.exit_code) == (SystemExit, 2), result.output
    assert not list(Store().home.parent.rglob("*.yaml"))
    return " ".join(result.stderr.split())


def read(recipe):
    """All texts and labels of the recipe's splits."""
    corpus = sentences.load(recipe.data, recipe.seed)
    return {(row["text"], corpus.labels[row["label"]]) for split in corpus.splits.values() for row in split}


# --- files that are read ---


def test_semicolons_and_latin_1(folder):
    path = folder / "avis.csv"
    path.write_bytes(lines(rows(), ";", ("avis", "note")).encode("latin-1"))
    told, recipe = accepted("avis.csv")
    assert re.search(
        r"cp1252 \(a guess, as it is not UTF-8: check that '(était|très|déçoit)' reads right\)", told
    )
    assert "columns separated by a semicolon" in told
    assert "text column 'avis' (the longest texts" in told
    assert "label column 'note' (2 different values in 300 rows" in told
    assert (recipe.data.delimiter, recipe.data.encoding) == (";", "cp1252")
    frame = pandas.read_csv(path, sep=";", encoding="latin-1")
    assert read(recipe) == set(frame.itertuples(index=False, name=None))


def test_no_header_and_the_label_first(folder):
    (folder / "sms.txt").write_text(lines([(label, text) for text, label in rows()], header=None))
    told, recipe = accepted("sms.txt")
    assert "header no: the first line has 'neg' where other lines have it too" in told
    data = recipe.data
    assert (data.header, data.text_column, data.label_column) == (False, 1, 0)
    frame = pandas.read_csv(folder / "sms.txt", sep="\t", header=None)
    assert read(recipe) == set(frame[[1, 0]].itertuples(index=False, name=None))


@pytest.mark.parametrize("header", [("Klasse", "Satz"), ("label", "text"), None])
def test_numbers_as_labels_with_and_without_a_header(header, folder):
    pairs = [(label, text) for text, label in rows(labels=(0, 1, 2))]
    (folder / "a.tsv").write_text(lines(pairs, header=header))
    _, recipe = accepted("a.tsv")
    assert recipe.data.header == (header is not None)
    assert read(recipe) == {(text, str(label)) for label, text in pairs}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig", "utf-32"])
def test_an_encoding_that_is_recognised_needs_no_setting(encoding, folder):
    (folder / "a.tsv").write_bytes(lines(rows()).encode(encoding))
    told, recipe = accepted("a.tsv")
    assert encoding.upper() in told
    assert recipe.data.encoding is None
    assert read(recipe) == set(rows())


def test_quotes_and_line_breaks_of_csv(folder):
    pairs = [(f'He said "{text}",\nand left', label) for text, label in rows()]
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("review", "stars"), *pairs])
    told, recipe = accepted("a.csv")
    assert "fields quoted as in CSV" in told
    assert "quoting" not in yaml.safe_load((folder / "recipe.yaml").read_text())["data"]
    assert read(recipe) == set(pairs)


def test_a_tsv_with_line_breaks_in_quotes(folder):
    pairs = [(f"{text}\nand more" if i % 9 == 0 else text, label) for i, (text, label) in enumerate(rows())]
    pandas.DataFrame(pairs, columns=["text", "label"]).to_csv(folder / "a.tsv", sep="\t", index=False)
    _, recipe = accepted("a.tsv")
    assert recipe.data.quoting == "csv"
    assert read(recipe) == set(pairs)


def test_texts_of_a_tsv_that_begin_with_a_quote(folder):
    pairs = [(f'"{text}' if i % 3 else f'"{text}" he said', label) for i, (text, label) in enumerate(rows())]
    (folder / "a.tsv").write_text(lines(pairs))
    told, recipe = accepted("a.tsv")
    assert "quotes are part of the text" in told
    assert recipe.data.quoting is None
    assert read(recipe) == set(pairs)


def test_class_names_of_a_parquet_file(folder):
    names = ["zebra", "ant"]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    columns = {"text": texts(200), "label": [i % 2 for i in range(200)]}
    datasets.Dataset.from_dict(columns, features).to_parquet(folder / "train-00000-of-00001.parquet")
    told, recipe = accepted("train-00000-of-00001.parquet")
    assert "'zebra' 100 (50.0%)" in told
    assert {label for _, label in read(recipe)} == set(names)
    assert recipe.name == "data"


def test_empty_columns_and_labels_that_are_sorted(folder, monkeypatch):
    monkeypatch.setattr(layout, "SAMPLE", 100)
    pairs = sorted((label, text, "and so on" * (i == 3), "") for i, (text, label) in enumerate(rows()))
    (folder / "spam.csv").write_text(lines(pairs, ",", ("v1", "v2", "", "")))
    _, recipe = accepted("spam.csv")
    assert (recipe.data.text_column, recipe.data.label_column) == ("v2", "v1")
    assert read(recipe) == set(rows())


def test_jsonl_with_other_columns(folder):
    records = [{"id": i, "title": "A note", "body": t, "category": c} for i, (t, c) in enumerate(rows())]
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    told, recipe = accepted("a.jsonl")
    assert "not read 'id', 'title'" in told
    assert (recipe.data.text_column, recipe.data.label_column) == ("body", "category")


# --- what they hold ---


def test_rare_labels_are_weighed_and_the_epoch_is_chosen_by_f1(folder):
    pairs = [(text, int(i % 20 == 0)) for i, text in enumerate(texts(400))]
    (folder / "a.csv").write_text(lines(pairs, ","))
    told, recipe = accepted("a.csv")
    assert "'0' 380 (95.0%) '1' 20 (5.0%)" in told
    assert "always the most frequent label is right in 95.0%" in told
    assert (recipe.teacher.class_weights, recipe.teacher.best_metric) == ("balanced", "macro_f1")
    assert "'0' has 19 times as many rows as '1'" in (folder / "recipe.yaml").read_text()


def test_balanced_labels_are_not_weighed(folder):
    (folder / "a.tsv").write_text(lines(rows()))
    _, recipe = accepted("a.tsv")
    assert (recipe.teacher.class_weights, recipe.teacher.best_metric) == (None, "auto")


def test_lengths_are_numpys_percentiles_and_max_tokens_holds_them(folder):
    pairs = [(" ".join(["word"] * (1 + i * i // 300)) + f" {i}", "ab"[i % 2]) for i in range(200)]
    (folder / "a.tsv").write_text(lines(pairs))
    told, recipe = accepted("a.tsv")
    words = [len(text.split()) for text, _ in pairs]
    p50, p95 = (int(numpy.percentile(words, q, method="inverted_cdf")) for q in (50, 95))
    assert f"train 200 {p50} {p95} {max(words)} 0 0 0" in told
    assert recipe.data.max_tokens == 256 >= math.ceil(1.5 * p95) + 2 > 128


def test_texts_without_spaces_have_a_token_a_character(folder):
    pairs = [("很好看的电影" * 15 + str(i), "ab"[i % 2]) for i in range(100)]
    (folder / "a.tsv").write_text(lines(pairs))
    assert accepted("a.tsv")[1].data.max_tokens == 128


def test_copies_and_conflicts_are_told_apart(folder):
    (first, label), *_ = own = rows()
    pairs = [*own, (first.upper(), label), (own[3][0], "neg"), (own[5][0], "neg")]
    (folder / "train.tsv").write_text(lines(pairs))
    (folder / "test.tsv").write_text(lines([*own[10:14], *rows(50, seed=1)]))
    told, recipe = accepted("train.tsv", "test.tsv")
    assert "train: rows that repeat a text with the same label: 1" in told
    assert "train: texts with more than one label, to be corrected: 2" in told
    assert "texts of train that are also in test, dropped from train: 4" in told
    counts = sentences.load(recipe.data, recipe.seed).counts
    assert counts["train_copies_dropped"] == 3 + 4
    assert counts["train_label_conflicts"] == 2


def test_rows_with_an_empty_field_are_counted_and_left_out(folder):
    pairs = [*rows(), ("", "pos"), ("no label", ""), ("none either", " ")]
    (folder / "a.tsv").write_text(lines(pairs))
    told, recipe = accepted("a.tsv")
    assert "no text (column 'text'), left out: 1 (line 302)" in told
    assert "no label (column 'label'), left out: 2 (line 303, 304)" in told
    assert recipe.data.on_bad_row == "drop"
    assert read(recipe) == set(rows())


# --- splits ---


def test_one_file_gives_all_three_splits(folder):
    (folder / "reviews.tsv").write_text(lines(rows(400)))
    told, recipe = accepted("reviews.tsv")
    data = recipe.data
    assert (recipe.name, data.test_fraction, data.validation_samples) == ("reviews", 0.2, 64)
    sizes = {split: len(kept) for split, kept in sentences.load(data, recipe.seed).splits.items()}
    assert sizes == {"train": 256, "validation": 64, "test": 80}
    held_out = "validation 64 rows (held out of train), test 80 rows (held out of train)"
    assert f"splits train 256 rows, {held_out}" in told


@pytest.mark.parametrize("names", [("train", "dev", "test"), ("a_training", "a_valid", "a-testing")])
def test_splits_are_recognised_by_their_names(names, folder):
    for seed, name in enumerate(names):
        (folder / f"{name}.tsv").write_text(lines(rows(100, seed=seed)))
    _, recipe = accepted(*(f"{name}.tsv" for name in reversed(names)))
    data = recipe.data
    assert [path.stem for path in (data.train, data.validation, data.test)] == list(names)
    assert data.test_fraction is None


def test_splits_can_be_named(folder):
    for seed, name in enumerate(("one", "two")):
        (folder / f"{name}.tsv").write_text(lines(rows(100, seed=seed)))
    assert "write train=one.tsv, validation=one.tsv or test=one.tsv" in refused("one.tsv", "two.tsv")
    _, recipe = accepted("train=one.tsv", "test=two.tsv")
    assert (recipe.data.train.name, recipe.data.test.name) == ("one.tsv", "two.tsv")


def test_two_files_of_one_split_and_none_for_training_are_refused(folder):
    for name in ("dev", "valid", "test"):
        (folder / f"{name}.tsv").write_text(lines(rows(20)))
    assert "dev.tsv and valid.tsv are both validation files" in refused("dev.tsv", "valid.tsv")
    assert "no file is for training" in refused("dev.tsv", "test.tsv")
    assert "nowhere.tsv is not a file" in refused("nowhere.tsv")


@pytest.mark.parametrize(
    ("test", "told"),
    [
        ("text\nwhat is it?\n", "test left out: the file has no column 'label'"),
        ("text\tlabel\nwhat is it?\t\n", "test left out: the file has no row that can be used (no label"),
        ("text\tlabel\nwhat is it?\t-1\n", "test left out: the file has no label of the training file"),
    ],
    ids=["no column", "empty", "hidden"],
)
def test_a_test_file_without_labels_is_left_out(test, told, folder):
    (folder / "train.tsv").write_text(lines(rows()))
    (folder / "test.tsv").write_text(test)
    output, recipe = accepted("train.tsv", "test.tsv")
    assert told in output
    assert (recipe.data.test, recipe.data.test_fraction) == (None, 0.2)


# --- what is not supported ---


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def words_and_tags(i):
    words = WORDS[: 3 + i % 7]
    return words, ["O" if j % 3 else "B-PER" for j in range(len(words))]


PROBLEMS = {
    "scores": (
        "a.csv",
        lines([(text, f"{i / 7:.3f}") for i, text in enumerate(texts(60))], ","),
        {"problem": "regression"},
        "train: from 0 to 8.429",
    ),
    "scores of pairs": (
        "a.jsonl",
        jsonl(*({"sentence1": t, "sentence2": t[::-1], "score": i / 7} for i, t in enumerate(texts(60)))),
        {"problem": "regression", "text_pair_column": "sentence2", "label_column": "score"},
        "a text has a score",
    ),
    "lists": (
        "a.jsonl",
        jsonl(*({"text": t, "labels": [["joy"], ["joy", "anger"]][i % 2]} for i, t in enumerate(texts(60)))),
        {"problem": "multi-label", "label_column": "labels"},
        "60 (100.0%)",
    ),
    "lists by another name": (
        "a.jsonl",
        jsonl(*({"text": t, "felt": [["joy"], [], ["anger"]][i % 3]} for i, t in enumerate(texts(60)))),
        {"problem": "multi-label", "label_column": "felt"},
        "lists, as several labels per text are",
    ),
    "joined": (
        "a.tsv",
        lines(rows(60, ("joy", "anger", "joy|anger"))),
        {"problem": "multi-label", "label_separator": "|"},
        "a text has any number of labels",
    ),
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_several_labels_and_scores_are_recognised(kind, folder, tiny_bert):
    name, content, settings, told = PROBLEMS[kind]
    (folder / name).write_text(content, encoding="utf-8")
    output, recipe = accepted(name, "--model", tiny_bert)
    assert told in output
    for field, value in settings.items():
        assert getattr(recipe.data, field) == value
    corpus = sentences.load(recipe.data, recipe.seed)
    kinds = {"regression": "Value", "multi-label": ("List", "LargeList", "Sequence")}
    assert type(corpus.splits["train"].features["label"]).__name__ in kinds[settings["problem"]]
    from pressoir.flows.cli import main

    plan = CliRunner().invoke(main, ["compress", "recipe.yaml", "--dry-run"])
    assert plan.exit_code == 0, plan.output
    assert "benchmark" in plan.output


def test_a_column_of_classes_is_taken_before_one_of_scores(folder):
    found = [(t, f"{i / 7:.3f}", "ab"[i % 2]) for i, t in enumerate(texts(60))]
    (folder / "a.csv").write_text(lines(found, ",", ("text", "score", "emotion")))
    _, recipe = accepted("a.csv")
    assert (recipe.data.label_column, recipe.data.problem) == ("emotion", "single-label")


NOT_SUPPORTED = {
    "one column each": (
        "a.csv",
        lines([(t, i % 2, i // 2 % 2) for i, t in enumerate(texts(60))], ",", ("comment", "toxic", "rude")),
        ["columns 'toxic', 'rude' hold 0 or 1 each", "multi-label", "--label-column"],
    ),
    "tags": (
        "a.jsonl",
        jsonl(*(dict(zip(("tokens", "ner_tags"), words_and_tags(i), strict=True)) for i in range(40))),
        ["column 'ner_tags' holds a label per word", "token classification"],
    ),
    "tag numbers": (
        "a.jsonl",
        jsonl(*({"text": t, "tags": [j % 3 for j in range(len(t.split()))]} for t in texts(40))),
        ["column 'tags' holds a label per word", "token classification"],
    ),
    "tags as text": (
        "a.tsv",
        lines([tuple(map(" ".join, words_and_tags(i))) for i in range(40)], header=("sentence", "labels")),
        ["column 'labels' holds a label per word", "token classification"],
    ),
    "a word a line": (
        "a.txt",
        "\n".join(lines(zip(*words_and_tags(i), strict=True), header=None) for i in range(40)),
        ["column 1 holds a label per word", "token classification"],
    ),
    "pairs without names": (
        "a.tsv",
        lines([(t, t[::-1], "ab"[i % 2]) for i, t in enumerate(texts(60))], header=None),
        ["are two texts per row", "--text-column"],
    ),
    "one column": ("a.csv", "just a text\n" * 9, ["neither a tab nor a comma", "separates its lines"]),
    "two possible labels": (
        "a.tsv",
        lines(
            [(t, "abc"[i % 3], "xy"[i % 2]) for i, t in enumerate(texts(60))], header=("text", "kind", "side")
        ),
        ["several columns could be the label: 'kind' (3 different values), 'side' (2 different values)"],
    ),
    "no label": (
        "a.tsv",
        lines([(t, f"name {i}") for i, t in enumerate(texts(60))], header=("text", "author")),
        ["no column besides the text has few values that repeat", "'author'"],
    ),
    "a label that is a text": (
        "a.tsv",
        lines([(t, f"name {i}") for i, t in enumerate(texts(60))]),
        ["column 'label' has 60 different values in 60 rows"],
    ),
    "one spelling too many": ("a.tsv", lines(rows(90, ("Spam", "spam", "ham"))), ["'Spam' and 'spam'"]),
    "one label": ("a.tsv", lines(rows(90, ("spam",))), ["only the label 'spam'"]),
    "a label of one row": (
        "a.tsv",
        lines([*rows(60), ("x y z", "rare")]),
        ["cannot be held out", "give a file for each split (train=FILE"],
    ),
    "no rows": ("a.tsv", "text\tlabel\n", ["a.tsv has no rows below its header"]),
    "nothing": ("a.jsonl", "", ["a.jsonl has no records"]),
    "not JSON": ("a.jsonl", "text,label\n", ["the first is not JSON"]),
    "another type": ("a.xlsx", "x", ["unsupported file type '.xlsx'"]),
}


@pytest.mark.parametrize("kind", NOT_SUPPORTED)
def test_what_is_not_supported_is_said_and_no_recipe_is_written(kind, folder):
    name, content, told = NOT_SUPPORTED[kind]
    (folder / name).write_text(content, encoding="utf-8")
    message = refused(name)
    assert all(part in message for part in told), message
    assert len(message) < 700


def test_a_column_can_be_chosen_where_several_are_possible(folder):
    pairs = [(t, t[::-1], i % 2, i // 2 % 2) for i, t in enumerate(texts(200))]
    (folder / "a.csv").write_text(lines(pairs, ",", ("premise", "hypothesis", "toxic", "rude")))
    words = ("a.csv", "--text-column", "hypothesis", "--label-column", "2")
    told, recipe = accepted(*words)
    assert "text column 'hypothesis' (as specified)" in told
    assert (recipe.data.text_column, recipe.data.label_column) == ("hypothesis", "toxic")
    assert "no column 'none'" in run("init", "a.csv", "--label-column", "none", "--force").stderr


@pytest.mark.parametrize(
    ("header", "second"),
    [
        (("sentence1", "sentence2", "label"), "sentence2"),
        (("Hypothesis", "premise", "gold_label"), "Hypothesis"),
        (("question", "answer", "label"), "answer"),
    ],
)
def test_two_columns_of_texts_are_recognised_as_pairs(header, second, folder):
    pairs = [(t, t[::-1], "ab"[i % 2]) for i, t in enumerate(texts(200))]
    (folder / "a.tsv").write_text(lines(pairs, header=header))
    told, recipe = accepted("a.tsv")
    assert f"text pair column {second!r} (by its name)" in " ".join(told.split())
    assert recipe.data.text_pair_column == second
    assert {recipe.data.text_column, second, recipe.data.label_column} == set(header)


def test_pairs_without_names_are_taken_where_both_columns_are_named(folder):
    pairs = [(t, t[::-1], "ab"[i % 2]) for i, t in enumerate(texts(200))]
    (folder / "a.tsv").write_text(lines(pairs, header=None))
    _, recipe = accepted("a.tsv", "--text-column", "1", "--text-pair-column", "0")
    data = recipe.data
    assert (data.text_column, data.text_pair_column, data.label_column) == (1, 0, 2)
    assert (
        "both the second text and the text"
        in run("init", "a.tsv", "--text-column", "1", "--text-pair-column", "1", "--force").stderr
    )


def test_cyrillic_that_is_not_utf_8_is_refused_unless_its_encoding_is_given(folder):
    pairs = [(f"фильм был хорош {i}", ("да", "нет")[i % 2]) for i in range(100)]
    (folder / "a.csv").write_bytes(lines(pairs, ",").encode("cp1251"))
    assert "line 2: not UTF-8 text" in refused("a.csv")
    assert "--encoding" in refused("a.csv")
    assert "`encoding` 'klingon' is unknown" in refused("a.csv", "--encoding", "klingon")
    assert read(accepted("a.csv", "--encoding", "cp1251")[1]) == set(pairs)


def test_a_utf_8_file_with_one_bad_line_is_not_taken_for_another_encoding(folder):
    content = lines(rows()).encode() + "très mal\tneg\n".encode("latin-1")
    (folder / "a.tsv").write_bytes(content)
    assert "a.tsv, line 302: not UTF-8 text" in refused("a.tsv")


def test_a_broken_csv_is_refused_by_its_line_and_not_split_at_every_comma(folder):
    pairs = [(f'"so, {text}"', label) for text, label in rows()]
    pairs[7] = ('"so, \\"good\\", he said"', "pos")
    (folder / "a.csv").write_text(lines(pairs, ","))
    assert "a.csv, line 9: ',' expected after '\"'" in refused("a.csv")


# --- the recipe ---


def test_the_documentation_shows_what_is_printed_of_the_embedded_reviews(folder):
    for split in sentences.SPLITS:
        shutil.copy(sentences.DEMO / f"{split}.tsv", folder)
    result = run("init", *(f"{split}.tsv" for split in sentences.SPLITS))
    page = (Path(__file__).parents[3] / "docs" / "init.md").read_text(encoding="utf-8")
    shown = page.split("<!-- init output -->\n```\n")[1].split("```\n<!-- end of init output -->")[0]
    assert [line.rstrip() for line in result.stdout.splitlines()] == shown.splitlines()


def test_every_setting_has_a_comment(folder):
    pairs = [(label, text) for text, label in rows(labels=(0, 0, 0, 0, 0, 0, 0, 0, 1))]
    (folder / "a.csv").write_bytes((lines(pairs, ";", None) + "1;\n").encode("latin-1"))
    accepted("a.csv")
    text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 110
    before = ""
    for line in text.splitlines():
        setting = re.match(r" *\w+: \S", line)
        assert not setting or " # " in line or before.strip().startswith("#"), line
        before = line
    settings = yaml.safe_load(text)["data"]
    assert {"encoding", "delimiter", "header", "on_bad_row", "test_fraction"} < set(settings)


def test_names_that_yaml_would_take_for_something_else_are_quoted(folder):
    header = ('te#xt: "x"\n', "no")
    pairs = [(text, ("yes", "a: #b\n")[i % 2]) for i, text in enumerate(texts(100))]
    with (folder / "it's: a #1.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *pairs])
    _, recipe = accepted("it's: a #1.csv")
    assert (recipe.data.text_column, recipe.data.label_column) == header
    assert recipe.name == "it-s-a-1"


def test_an_existing_recipe_is_kept_unless_it_may_be_replaced(folder, tiny_bert):
    (folder / "a.tsv").write_text(lines(rows()))
    (folder / "recipe.yaml").write_text("mine")
    result = run("init", "a.tsv")
    assert (result.exit_code, (folder / "recipe.yaml").read_text()) == (2, "mine")
    assert "recipe.yaml exists; specify another --output, or --force" in result.stderr
    _, recipe = accepted("a.tsv", "--force", "--name", "mine", "--model", tiny_bert)
    assert (recipe.name, recipe.model) == ("mine", str(tiny_bert))
    assert "name: String should match pattern" in run("init", "a.tsv", "--force", "--name", "Mine").stderr
    assert "exists" in run("init", "a.tsv", "--force", "--output", folder).stderr
    assert "cannot be written: File name too long" in run("init", "a.tsv", "--output", "a" * 300).stderr


def test_a_recipe_elsewhere_finds_the_data_from_everywhere(folder, tmp_path, monkeypatch):
    (folder / "a.tsv").write_text(lines(rows()))
    accepted("a.tsv", "--output", "../recipes/mine.yaml", output=tmp_path / "recipes" / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.from_yaml("recipes/mine.yaml")
    assert recipe.data.train.samefile(folder / "a.tsv")
    assert check_inputs(recipe, Sources(Store())) > 0


def test_the_dry_run_takes_the_recipe_as_it_is_written(folder, tiny_bert):
    (folder / "train.tsv").write_text(lines(rows()))
    (folder / "dev.tsv").write_text(lines(rows(60, seed=1)))
    accepted("train.tsv", "dev.tsv", "--model", tiny_bert)
    result = run("compress", "recipe.yaml", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "0 of 10 steps are in the store" in result.output
