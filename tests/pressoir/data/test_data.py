"""Data: every kind of file, what is refused and where, and three splits that share no sentence."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from pressoir.data import sentences
from pressoir.errors import DataError, SourceError
from pressoir.recipe.sections import DataConfig

ROWS = [
    ("it was good", "positive"),
    ('a "bad" one', "negative"),
    ("fine", "positive"),
    ("so, so dull", "negative"),
]
TEST_ROWS = [("lovely", "positive"), ("grim", "negative")]
KINDS = ("tsv", "csv", "jsonl", "parquet")


def write(path, rows, header=("text", "label")):
    """Write rows in the kind of file that the suffix says; without a header where that is None."""
    match path.suffix:
        case ".tsv" | ".txt":
            lines = ["\t".join(row) for row in ([header] if header else []) + list(rows)]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        case ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(([header] if header else []) + list(rows))
        case ".jsonl" | ".ndjson":
            lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        case ".parquet":
            columns = {name: [row[index] for row in rows] for index, name in enumerate(header)}
            pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def config_of(
    folder, kind="tsv", train=ROWS, validation=ROWS[:0], test=TEST_ROWS, header=("text", "label"), **rest
):
    """A configuration over files just written; without a validation file where its rows are None."""
    validation = [("so-so", "negative"), ("nice", "positive")] if validation == [] else validation
    splits = {"train": train, "validation": validation, "test": test}
    paths = {
        split: rows if isinstance(rows, Path) else write(folder / f"{split}.{kind}", rows, header)
        for split, rows in splits.items()
        if rows is not None
    }
    return DataConfig(source="files", **paths, **rest)


def pairs(splits, split):
    names = splits[split].features["label"].names
    return [(row["text"], names[row["label"]]) for row in splits[split]]


def many(count, classes=("a", "b")):
    return [(f"sentence number {index}", classes[index % len(classes)]) for index in range(count)]


def loaded(config, seed):
    """The splits, and the counts."""
    corpus = sentences.load(config, seed)
    return corpus.splits, corpus.counts


def refusal(config):
    with pytest.raises(DataError) as caught:
        sentences.load(config, seed=0)
    return str(caught.value)


# --- kinds of files ---


@pytest.mark.parametrize("kind", [*KINDS, "txt", "ndjson"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    splits, _ = loaded(config_of(tmp_path, kind), seed=0)
    assert list(splits) == ["train", "validation", "test"]
    assert pairs(splits, "train") == ROWS
    assert pairs(splits, "test") == TEST_ROWS
    assert splits["train"].features["label"].names == ["negative", "positive"]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_found_by_the_names_the_recipe_gives(tmp_path, kind):
    config = config_of(tmp_path, kind, header=("phrase", "class"), text_column="phrase", label_column="class")
    assert pairs(loaded(config, seed=0)[0], "train") == ROWS


@pytest.mark.parametrize("kind", ["tsv", "csv"])
def test_files_without_a_header_are_read_by_position(tmp_path, kind):
    rows, test = ([(label, "x", text) for text, label in part] for part in (ROWS, TEST_ROWS))
    config = DataConfig(
        source="files",
        train=write(tmp_path / f"train.{kind}", rows, None),
        test=write(tmp_path / f"test.{kind}", test, None),
        validation_samples=2,
        header=False,
        text_column=2,
        label_column=0,
    )
    splits, _ = loaded(config, seed=0)
    assert sorted([*pairs(splits, "train"), *pairs(splits, "validation")]) == sorted(ROWS)


@pytest.mark.parametrize("kind", ["tsv", "csv"])
def test_positions_work_beside_a_header_too(tmp_path, kind):
    config = config_of(tmp_path, kind, header=("x", "y"), text_column=0, label_column=1)
    assert pairs(loaded(config, seed=0)[0], "train") == ROWS


@pytest.mark.parametrize("kind", ["tsv", "csv"])
def test_names_without_a_header_are_refused_with_what_to_write(tmp_path, kind):
    message = refusal(config_of(tmp_path, kind, header=None).model_copy(update={"header": False}))
    assert "has no header" in message
    assert "zero-based indices" in message


def test_quotes_in_a_tsv_are_part_of_the_sentence(tmp_path):
    rows = [('"Good', "positive"), ('bad", he said', "negative"), ('""', "negative")]
    assert pairs(loaded(config_of(tmp_path, "tsv", rows), seed=0)[0], "train") == rows


def test_a_csv_keeps_line_breaks_commas_and_doubled_quotes_within_quotes(tmp_path):
    rows = [('first line\nsecond, "quoted" line', "positive"), ("bad", "negative")]
    assert pairs(loaded(config_of(tmp_path, "csv", rows), seed=0)[0], "train") == rows


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_data(tmp_path, kind):
    train = write(tmp_path / f"windows.{kind}", ROWS)
    text = train.read_text(encoding="utf-8").replace("\r\n", "\n").replace("\n", "\r\n")
    train.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert pairs(loaded(config_of(tmp_path, kind, train), seed=0)[0], "train") == ROWS


def test_blank_lines_and_surrounding_spaces_are_dropped(tmp_path):
    train = tmp_path / "t.tsv"
    train.write_text("text\tlabel\n\n  good  \tpositive \n\t\nbad\tnegative\n\n", encoding="utf-8")
    splits, _ = loaded(config_of(tmp_path, train=train), seed=0)
    assert pairs(splits, "train") == [("good", "positive"), ("bad", "negative")]


def test_sentences_in_any_script_survive(tmp_path):
    rows = [("C’était très bon 👍\u2028fin", "positive"), ("とても悪い", "negative")]
    for kind in KINDS:
        assert pairs(loaded(config_of(tmp_path, kind, rows), seed=0)[0], "train") == rows


def test_numbers_and_booleans_serve_as_labels(tmp_path):
    train = tmp_path / "train.jsonl"
    train.write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n', encoding="utf-8")
    config = config_of(tmp_path, train=train, validation=[("c", "0")], test=[("d", "1")])
    assert pairs(loaded(config, seed=0)[0], "train") == [("a", "0"), ("b", "1")]


# --- labels ---


def test_given_labels_decide_the_order_of_the_classes(tmp_path):
    splits, _ = loaded(config_of(tmp_path, labels=("positive", "negative", "neutral")), seed=0)
    assert splits["train"].features["label"].names == ["positive", "negative", "neutral"]
    assert splits["train"]["label"][:2] == [0, 1]
    assert pairs(splits, "train") == ROWS


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_that_was_not_given_is_named_with_its_line(tmp_path, kind):
    config = config_of(tmp_path, kind, [*ROWS, ("hm", "neutral")], labels=("negative", "positive"))
    line = len(ROWS) + (2 if kind in ("tsv", "csv") else 1)
    assert f"train.{kind}, line {line}: label 'neutral' is not one of ['negative', 'positive']" in refusal(
        config
    )


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_that_train_never_has_is_refused_and_makes_no_class_of_its_own(tmp_path, split):
    message = refusal(config_of(tmp_path, **{split: [("x", "positve"), ("y", "negative")]}))
    assert f"the {split} split has labels that do not occur in train: ['positve']" in message


def test_one_label_is_too_few(tmp_path):
    assert "train has only the label 'positive'" in refusal(config_of(tmp_path, train=ROWS[:1]))


# --- malformed files ---


@pytest.mark.parametrize("kind", ["tsv", "csv"])
@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (["only one column"], "no label (column 'label')"),
        (["", "positive"], "no text (column 'text')"),
        (["text", " "], "no label (column 'label')"),
        (["a", "positive", "left over"], "3 columns, but the header has 2"),
    ],
)
def test_a_malformed_row_of_a_table_is_named_with_file_and_line(tmp_path, kind, row, problem):
    message = refusal(config_of(tmp_path, kind, [*ROWS, row]))
    assert f"train.{kind}, line 6: " in message
    assert problem in message


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{'text': 'a'}", "not JSON"),
        ('["a", "positive"]', "not a JSON object"),
        ('{"text": "a"}', "no label (column 'label')"),
        ('{"text": null, "label": "positive"}', "no text (column 'text')"),
        ('{"text": ["a"], "label": "positive"}', "no text (column 'text')"),
        ('{"text": "\\ud83d", "label": "positive"}', "the text contains a lone surrogate"),
    ],
)
def test_a_malformed_row_of_a_jsonl_file_is_named_with_file_and_line(tmp_path, line, problem):
    train = write(tmp_path / "train.jsonl", ROWS)
    train.write_text(train.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    message = refusal(config_of(tmp_path, train=train))
    assert "train.jsonl, line 5: " in message
    assert problem in message


def test_a_malformed_row_of_a_parquet_file_is_named_with_file_and_row(tmp_path):
    assert "train.parquet, line 5: no text" in refusal(
        config_of(tmp_path, "parquet", [*ROWS, (None, "positive")])
    )


@pytest.mark.parametrize("kind", ["tsv", "csv"])
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path, kind):
    message = refusal(config_of(tmp_path, kind, header=("sentence", "label")))
    assert "no column 'text' in the header ['sentence', 'label']" in message
    assert "data.text_column" in message


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_missing_column_is_named_with_the_field_to_change(tmp_path, kind):
    message = refusal(config_of(tmp_path, kind, header=("sentence", "label")))
    assert "no text (column 'text')" in message
    assert "data.text_column" in message


def test_a_record_over_several_lines_of_a_csv_is_named_by_its_first(tmp_path):
    train = tmp_path / "train.csv"
    train.write_text('text,label\n"two\nlines",positive\n"three\nmore\nlines"\n', encoding="utf-8")
    assert "train.csv, line 4: no label" in refusal(config_of(tmp_path, train=train))


def test_a_quote_that_is_never_closed_is_named_by_the_line_it_opens_on(tmp_path):
    train = tmp_path / "train.csv"
    train.write_text('text,label\ngood,positive\n"never closed,negative\nbad,negative\n', encoding="utf-8")
    assert "train.csv, line 3: unexpected end of data" in refusal(config_of(tmp_path, train=train))


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_a_file_that_is_not_utf8_is_named_with_the_line(tmp_path, kind):
    train = write(tmp_path / f"train.{kind}", many(2000))
    lines = train.read_bytes().split(b"\n")
    lines[1499] = lines[1499].replace(b"sentence", b"caf\xe9")
    train.write_bytes(b"\n".join(lines))
    assert f"train.{kind}, line 1500: not UTF-8 text" in refusal(config_of(tmp_path, train=train))


def test_a_broken_parquet_file_is_refused(tmp_path):
    whole = write(tmp_path / "train.parquet", ROWS)
    whole.write_bytes(whole.read_bytes()[:-20])
    assert "train.parquet is not a readable Parquet file" in refusal(config_of(tmp_path, train=whole))


def test_an_unknown_kind_of_file_is_refused_with_the_known_ones(tmp_path):
    (tmp_path / "train.xlsx").touch()
    message = refusal(config_of(tmp_path, train=tmp_path / "train.xlsx"))
    assert "unsupported file type '.xlsx'" in message
    assert ".parquet" in message


def test_a_missing_file_is_refused_with_its_field_before_anything_is_read(tmp_path):
    config = config_of(tmp_path).model_copy(update={"test": tmp_path / "none.tsv"})
    for action in (sentences.source_digest, lambda c: sentences.load(c, 0)):
        with pytest.raises(DataError, match=r"data\.test: .*none\.tsv is not a file"):
            action(config)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_split_is_refused(tmp_path, split):
    empty = write(tmp_path / "empty.tsv", [])
    assert f"the {split} split is empty" in refusal(config_of(tmp_path, **{split: empty}))


def test_a_split_whose_rows_are_all_copies_is_refused(tmp_path):
    assert "the validation split is empty" in refusal(config_of(tmp_path, validation=TEST_ROWS))


# --- splits ---


def test_copies_are_dropped_from_the_larger_side_and_counted(tmp_path):
    train = [*ROWS, ("It  was GOOD", "positive"), ("Lovely ", "positive"), ("NICE", "positive")]
    validation = [("nice", "positive"), ("lovely", "positive"), ("so-so", "negative")]
    splits, dropped = loaded(config_of(tmp_path, train=train, validation=validation), seed=0)
    assert pairs(splits, "test") == TEST_ROWS
    assert pairs(splits, "validation") == [("nice", "positive"), ("so-so", "negative")]
    assert pairs(splits, "train") == ROWS
    assert dropped == {"train_copies_dropped": 3, "validation_copies_dropped": 1, "test_copies_dropped": 0}


def test_what_is_held_out_is_stratified_disjoint_and_drawn_by_the_seed(tmp_path):
    rows = [(f"sentence {index}", "a" if index % 4 else "b") for index in range(400)]
    test = [("x", "a"), ("y", "b")]
    config = config_of(tmp_path, train=rows, validation=None, test=test, validation_samples=100)
    splits, _ = loaded(config, seed=1)
    validation, train = pairs(splits, "validation"), pairs(splits, "train")
    assert Counter(label for _, label in validation) == {"a": 75, "b": 25}
    assert sorted(validation + train) == sorted(rows)
    assert pairs(loaded(config, seed=1)[0], "validation") == validation
    assert pairs(loaded(config, seed=2)[0], "validation") != validation


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (many(10), 10),
        (many(10), 1),
        ([*many(10, ("a",)), ("lonely", "b")], 4),
    ],
    ids=["as many as there are", "fewer than labels", "a label with one sentence"],
)
def test_a_hold_out_that_cannot_be_drawn_says_so(tmp_path, rows, wanted):
    test = [("x", "a"), ("y", "b")]
    message = refusal(config_of(tmp_path, train=rows, validation=None, test=test, validation_samples=wanted))
    assert (
        f"train has {len(rows)} rows, from which data.validation_samples = {wanted} cannot be held out"
        in message
    )


def test_a_given_label_without_a_sentence_does_not_hinder_the_hold_out(tmp_path):
    test = [("x", "a"), ("y", "b")]
    config = config_of(
        tmp_path, train=many(40), validation=None, test=test, validation_samples=10, labels=("a", "b", "c")
    )
    assert len(loaded(config, seed=0)[0]["validation"]) == 10


def test_sub_samples_are_drawn_by_the_seed(tmp_path):
    config = config_of(
        tmp_path,
        train=many(200),
        validation=[(f"v{i}", "ab"[i % 2]) for i in range(60)],
        test=[(f"t{i}", "ab"[i % 2]) for i in range(60)],
        train_samples=50,
        validation_samples=20,
        test_samples=10,
    )
    one, same, other = (loaded(config, seed=seed)[0] for seed in (1, 1, 2))
    assert {split: len(one[split]) for split in one} == {"train": 50, "validation": 20, "test": 10}
    for split in one:
        assert pairs(one, split) == pairs(same, split)
        assert pairs(one, split) != pairs(other, split)


# --- digests, and what is saved ---


def test_the_source_digest_changes_with_the_content_and_not_with_the_place(tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    digest = sentences.source_digest(config_of(tmp_path / "one"))
    assert sentences.source_digest(config_of(tmp_path / "two")) == digest
    assert sentences.source_digest(config_of(tmp_path / "three", train=ROWS[::-1])) != digest
    assert sentences.source_digest(config_of(tmp_path / "two", train=TEST_ROWS, test=ROWS)) != digest
    assert sentences.source_digest(config_of(tmp_path / "two", validation=None)) != digest
    assert sentences.source_digest(DataConfig()) != digest


def test_the_source_digest_of_a_hub_data_set_changes_with_its_id_configuration_and_revision():
    ids = [("a/b", None, None), ("a/c", None, None), ("a/b", "x", None), ("a/b", None, "x")]
    digests = {
        sentences.source_digest(DataConfig(source="hub", hub_id=i, hub_config=c, hub_revision=r))
        for i, c, r in ids
    }
    assert len(digests) == 4


def test_the_source_digest_of_a_hub_data_set_is_that_of_the_commit_its_branch_is_at(monkeypatch):
    """A branch moves: a server of the hub's form tells the real client of another commit."""
    import http.server
    import threading

    import huggingface_hub
    from huggingface_hub.utils._http import reset_sessions

    commits = {"main": "a" * 40, "old": "b" * 40}

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            revision = self.path.partition("?")[0].rpartition("/revision/")[2]
            commit = commits[revision] if revision in commits else commits["main"]
            body = json.dumps({"id": "org/name", "sha": commit, "siblings": []}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    def digest(revision=None):
        return sentences.source_digest(DataConfig(source="hub", hub_id="org/name", hub_revision=revision))

    offline = digest()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{hub.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        reset_sessions()
        first = digest()
        assert digest("main") == first not in (digest("old"), offline)
        commits["main"] = "c" * 40
        assert digest() != first
        hub.shutdown()
    reset_sessions()


def test_the_source_digest_of_a_local_hub_data_set_changes_with_content_and_file_names(tmp_path):
    def digest(name, files):
        (tmp_path / name).mkdir()
        for file, rows in files.items():
            write(tmp_path / name / file, rows)
        return sentences.source_digest(DataConfig(source="hub", hub_id=str(tmp_path / name)))

    one = digest("one", {"test.csv": TEST_ROWS, "train.csv": ROWS})
    assert digest("two", {"test.csv": TEST_ROWS, "train.csv": ROWS}) == one
    assert digest("three", {"test.csv": TEST_ROWS, "validation.csv": ROWS}) != one
    assert digest("four", {"test.csv": TEST_ROWS, "train.csv": ROWS[1:]}) != one


def test_what_is_saved_is_read_back(tmp_path):
    rows = [('a "quoted"\nline\u2028here', "positive"), ("très bien", "negative")]
    corpus = sentences.load(config_of(tmp_path, "jsonl", rows), seed=0)
    out = tmp_path / "out"
    out.mkdir()
    metrics = sentences.save(corpus, out, max_tokens=64)
    assert metrics["train_rows"] == 2.0
    assert metrics["train_copies_dropped"] == 0.0
    for split in sentences.SPLITS:
        assert sentences.load_split(out, split).to_list() == corpus.splits[split].to_list()
    facts = sentences.info(out)
    assert (facts["labels"], facts["max_tokens"]) == (["negative", "positive"], 64)
    assert sorted(path.name for path in out.iterdir()) == [
        "data.json",
        *sorted(f"{s}.jsonl" for s in sentences.SPLITS),
    ]


def test_the_same_data_is_saved_as_the_same_bytes(tmp_path):
    config = config_of(
        tmp_path, train=many(200), validation=None, test=[("x", "a"), ("y", "b")], validation_samples=20
    )
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        sentences.save(sentences.load(config, seed=3), tmp_path / name, max_tokens=64)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


# --- unlabelled sentences ---


def unlabelled_config(folder, lines, **rest):
    path = folder / "unlabelled.txt"
    path.write_bytes(lines if isinstance(lines, bytes) else "\n".join(lines).encode())
    return config_of(folder, unlabelled=path, **rest)


def test_unlabelled_sentences_are_a_split_of_their_own_without_blanks_copies_or_known_ones(tmp_path):
    own = ["a new one", "and another"]
    known = [ROWS[0][0].upper(), "So-so", TEST_ROWS[0][0], "A  NEW one"]
    config = unlabelled_config(tmp_path, ["", own[0], *known, "   ", f"  {own[1]} ", ""])
    splits, dropped = loaded(config, seed=0)
    assert splits["unlabelled"]["text"][:] == own
    assert splits["unlabelled"].column_names == ["text"]
    assert dropped["unlabelled_copies_dropped"] == 4
    assert pairs(splits, "train") == ROWS
    assert "unlabelled" not in loaded(config_of(tmp_path), seed=0)[0]


def test_unlabelled_text_may_have_a_byte_order_mark_windows_line_ends_and_any_script(tmp_path):
    content = b"\xef\xbb\xbf" + "C\u2019\u00e9tait bon\u2028fin\r\n\u3068\u3066\u3082\u60aa\u3044".encode()
    splits, _ = loaded(unlabelled_config(tmp_path, content), seed=0)
    assert splits["unlabelled"]["text"][:] == [
        "C\u2019\u00e9tait bon\u2028fin",
        "\u3068\u3066\u3082\u60aa\u3044",
    ]


def test_no_sentence_of_validation_or_test_comes_in_even_where_these_are_sub_sampled(tmp_path):
    held_out = {name: [(f"{name} {i}", "ab"[i % 2]) for i in range(20)] for name in ("validation", "test")}
    lines = [text for rows in held_out.values() for text, _ in rows]
    config = unlabelled_config(
        tmp_path,
        [*lines, "new", *(text for text, _ in many(40))],
        train=many(40),
        **held_out,
        train_samples=30,
        validation_samples=5,
        test_samples=5,
    )
    splits, dropped = loaded(config, seed=0)
    train = set(splits["train"]["text"])
    left_aside = [text for text, _ in many(40) if text not in train]
    assert len(left_aside) == 10
    assert splits["unlabelled"]["text"][:] == ["new", *left_aside]  # those of train may come back
    assert dropped["unlabelled_copies_dropped"] == 40 + 30


def test_no_sentence_of_a_validation_split_that_train_gave_comes_in(tmp_path):
    test = [("x", "a"), ("y", "b")]
    lines = [text for text, _ in many(40)]
    config = unlabelled_config(
        tmp_path, [*lines, "new"], train=many(40), validation=None, test=test, validation_samples=10
    )
    assert loaded(config, seed=0)[0]["unlabelled"]["text"][:] == ["new"]


def test_unlabelled_sentences_go_beside_any_source(tmp_path):
    (tmp_path / "more.txt").write_text("a sentence of mine\n", encoding="utf-8")
    config = DataConfig(unlabelled=tmp_path / "more.txt")
    assert loaded(config, seed=0)[0]["unlabelled"]["text"][:] == ["a sentence of mine"]
    assert sentences.source_digest(config) != sentences.source_digest(DataConfig())


def test_the_source_digest_follows_the_unlabelled_text_and_not_its_place(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    digest = sentences.source_digest(unlabelled_config(tmp_path / "one", ["a"]))
    assert sentences.source_digest(unlabelled_config(tmp_path / "two", ["a"])) == digest
    assert sentences.source_digest(unlabelled_config(tmp_path / "two", ["b"])) != digest
    assert sentences.source_digest(unlabelled_config(tmp_path / "one", ["a"], train=ROWS[::-1])) != digest
    assert sentences.source_digest(config_of(tmp_path / "one", train=ROWS)) != digest


def test_an_unlabelled_text_that_is_missing_is_refused_with_its_field(tmp_path):
    config = config_of(tmp_path, unlabelled=tmp_path / "none.txt")
    for action in (sentences.source_digest, lambda c: sentences.load(c, 0)):
        with pytest.raises(DataError, match=r"data\.unlabelled: .*none\.txt is not a file"):
            action(config)


def test_an_unlabelled_text_that_is_not_utf8_is_named_with_the_line(tmp_path):
    lines = [f"line {index}".encode() for index in range(3000)]
    lines[1999] = b"caf\xe9"
    message = refusal(unlabelled_config(tmp_path, b"\n".join(lines)))
    assert "unlabelled.txt, line 2000: not UTF-8 text" in message


@pytest.mark.parametrize("content", [b"", b"\n  \n\t\n"])
def test_an_unlabelled_text_without_a_sentence_is_refused(tmp_path, content):
    assert "unlabelled.txt has no sentence" in refusal(unlabelled_config(tmp_path, content))


def test_unlabelled_sentences_are_saved_counted_and_read_back(tmp_path):
    corpus = sentences.load(unlabelled_config(tmp_path, ["one \u2028 more", "two", "TWO"]), seed=0)
    out = tmp_path / "out"
    out.mkdir()
    metrics = sentences.save(corpus, out, max_tokens=64)
    assert (metrics["unlabelled_rows"], metrics["unlabelled_copies_dropped"]) == (2.0, 1.0)
    assert sentences.info(out)["unlabelled_rows"] == 2
    assert sentences.load_unlabelled(out) == ["one \u2028 more", "two"]
    sentences.save(sentences.load(config_of(tmp_path), seed=0), tmp_path, max_tokens=64)
    assert sentences.load_unlabelled(tmp_path) == []


def test_an_extended_folder_differs_in_its_training_split_alone(tmp_path):
    out, extended = tmp_path / "out", tmp_path / "extended"
    out.mkdir()
    extended.mkdir()
    sentences.save(sentences.load(unlabelled_config(tmp_path, ["one"]), seed=0), out, max_tokens=64)
    rows = [*sentences.load_split(out, "train"), {"text": "one", "label": 1}]
    sentences.save_extended(out, rows, extended)
    for split in ("validation", "test"):
        assert (extended / f"{split}.jsonl").read_bytes() == (out / f"{split}.jsonl").read_bytes()
    assert sentences.load_split(extended, "train").to_list() == rows
    assert sentences.load_unlabelled(extended) == []
    facts = sentences.info(extended)
    assert (facts["labels"], facts["max_tokens"]) == (["negative", "positive"], 64)
    assert facts["train_rows"] == len(ROWS) + 1
    assert "unlabelled_rows" not in facts


# --- hub data sets ---


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    """A folder of the form that the hub's data sets have; nothing is left in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(kind="parquet", **splits):
        folder = tmp_path / "hub"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for split, rows in ({"train": ROWS, "validation": TEST_ROWS} | splits).items():
            write(folder / f"{split}.{kind}", rows)
        return DataConfig(source="hub", hub_id=str(folder), validation_samples=2)

    return make


# datasets leaves the CSV files open that it has read.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_local_folder_of_the_hubs_form_is_a_data_set(local_hub, kind):
    splits, _ = loaded(local_hub(kind), seed=0)
    assert pairs(splits, "test") == TEST_ROWS
    assert sorted([*pairs(splits, "train"), *pairs(splits, "validation")]) == sorted(ROWS)


def labelled(folder, split, rows):
    """Write a Parquet file whose label column has class names, as the hub's data sets have them."""
    label = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    table = datasets.Dataset.from_list([{"text": text, "label": number} for text, number in rows], features)
    table.to_parquet(Path(folder) / f"{split}.parquet")


def test_the_class_names_of_a_hub_data_set_are_its_labels(local_hub):
    config = local_hub("parquet")
    labelled(config.hub_id, "train", [("a", 1), ("b", 0), ("c", 1), ("d", 0)])
    labelled(config.hub_id, "validation", [("e", 1), ("f", 0)])
    assert pairs(loaded(config, seed=0)[0], "test") == [("e", "good"), ("f", "bad")]


def test_hidden_labels_of_a_hub_data_set_are_refused_with_the_row(local_hub):
    config = local_hub("parquet")
    labelled(config.hub_id, "train", [("a", 1), ("b", 0), ("c", 1), ("d", 0)])
    labelled(config.hub_id, "validation", [("e", 1), ("f", -1)])
    assert "split 'validation', row 2: no label" in refusal(config)


def test_a_hub_data_set_is_checked_row_by_row_like_a_file(local_hub):
    assert "split 'train', row 5: no text" in refusal(local_hub("jsonl", train=[*ROWS, (None, "positive")]))
    config = local_hub("jsonl", train=[*ROWS, ("hm", "neutral")])
    message = refusal(config.model_copy(update={"labels": ("negative", "positive")}))
    assert "split 'train', row 5: label 'neutral' is not one of" in message


def test_a_column_that_a_hub_data_set_lacks_is_named_with_those_it_has(local_hub):
    message = refusal(local_hub().model_copy(update={"text_column": "sentence"}))
    assert "has columns ['text', 'label'], not 'sentence'" in message


def test_a_split_that_a_hub_data_set_lacks_is_named(local_hub):
    config = local_hub().model_copy(update={"hub_splits": ("train", None, "exam")})
    with pytest.raises(SourceError, match="split 'exam'"):
        sentences.load(config, seed=0)


def test_a_hub_data_set_that_cannot_be_fetched_offline_says_what_to_do(local_hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        SourceError, match=r"'nobody/nothing'.*HF_HUB_OFFLINE is set.*local folder.*`source: files`"
    ):
        sentences.load(DataConfig(source="hub", hub_id="nobody/nothing"), seed=0)


@pytest.mark.parametrize("options", [{}, {"test_samples": 5}, {"validation_samples": 10}])
def test_the_test_split_alone_is_that_of_all_splits(options):
    config = DataConfig(**options)
    splits, _ = loaded(config, 3)
    labels, rows = sentences.test_rows(config, 3)
    assert list(labels) == splits["test"].features["label"].names
    assert rows == list(splits["test"])
