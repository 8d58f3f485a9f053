"""Files as they come from elsewhere: quotes, encodings, malformed rows, and one file for everything."""

import csv
import io
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from pressoir.data import sentences, tables
from pressoir.errors import DataError
from pressoir.recipe.sections import DataConfig
from pressoir.reporting import Silent
from pressoir.stage import StageContext
from pressoir.stages import data as data_stage

ROWS = [("it was good", "positive"), ("so, so dull", "negative"), ("fine", "positive")]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def read(path, **config):
    """The rows, and the remarks."""
    table = tables.read(path, DataConfig(**config))
    tables.refuse(table.malformed)
    return table.rows, table.remarks


def refusal(path, **config):
    with pytest.raises(DataError) as caught:
        read(path, **config)
    return str(caught.value)


def tsv(rows, header="text\tlabel"):
    return "\n".join([header, *("\t".join(row) for row in rows)]) + "\n"


def csv_text(rows, **options):
    file = io.StringIO(newline="")
    csv.writer(file, **options).writerows([("text", "label"), *rows])
    return file.getvalue()


# --- quotes and delimiters ---


def test_a_sentence_that_begins_with_a_quote_swallows_no_rows(tmp_path):
    rows = [('"Good', "positive"), ("bad", "negative"), ('so "so', "negative")]
    assert read(write(tmp_path / "a.tsv", tsv(rows))) == (rows, [])


def test_a_tsv_with_quoting_is_what_pythons_own_reader_reads(tmp_path):
    rows = [('a "bad"\tone,\nin two lines', "negative"), ("good", "positive")]
    text = csv_text(rows, delimiter="\t")
    found, remarks = read(write(tmp_path / "a.tsv", text), quoting="csv")
    own = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t"))[1:]
    assert found == rows == [tuple(row) for row in own]
    assert remarks == []


def test_quotes_that_look_like_csv_are_told_but_not_those_of_a_sentence(tmp_path):
    rows = [('""', "a"), ('"Yes", he said, "no"', "b"), ('"a "" b"', "a"), ("plain", "b")]
    found, (remark,) = read(write(tmp_path / "a.tsv", tsv(rows)))
    assert found == rows
    assert "data.quoting: csv" in remark
    everywhere = [('"good"', "a"), ('"bad"', "b")]
    assert "2 of 2 texts" in read(write(tmp_path / "b.tsv", tsv(everywhere)))[1][0]
    assert read(write(tmp_path / "c.tsv", tsv([*everywhere[:1], *ROWS])))[1] == []


def test_a_csv_without_quoting_is_split_at_every_comma(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\n"good,positive\n')
    assert read(path, quoting="none") == ([('"good', "positive")], [])


@pytest.mark.parametrize("delimiter", [";", "|", "\t"])
def test_any_delimiter_can_be_given(tmp_path, delimiter):
    rows = [(f"so{delimiter} so", "negative"), ("good", "positive")]
    path = write(tmp_path / "a.csv", csv_text(rows, delimiter=delimiter))
    assert read(path, delimiter=delimiter) == (rows, [])
    assert "data.delimiter" in refusal(path)


# --- encodings ---


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl"])
@pytest.mark.parametrize(
    ("encoding", "told"),
    [
        ("utf-8", False),
        ("utf-8-sig", False),
        ("utf-16", True),
        ("utf-16-le", True),
        ("utf-16-be", True),
        ("utf-32", True),
    ],
)
def test_unicode_encodings_are_recognised_and_told(tmp_path, suffix, encoding, told):
    rows = [("très bien 👍", "positive"), *ROWS]
    texts = {
        "tsv": tsv(rows),
        "csv": csv_text(rows),
        "jsonl": "".join(json.dumps({"text": t, "label": one}, ensure_ascii=False) + "\n" for t, one in rows),
    }
    found, remarks = read(write(tmp_path / f"a.{suffix}", texts[suffix], encoding))
    assert found == rows
    assert [("UTF-" in remark and "data.encoding" in remark) for remark in remarks] == [True] * told


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8-sig", "utf-8"])
def test_an_encoding_that_is_given_is_taken_with_or_without_its_mark(tmp_path, encoding):
    rows = [("très bien", "positive"), *ROWS]
    assert read(write(tmp_path / "a.csv", csv_text(rows), encoding), encoding=encoding) == (rows, [])
    marked = write(tmp_path / "b.csv", csv_text(rows), "utf-8-sig")
    assert read(marked, encoding="utf-8") == (rows, [])


def test_text_of_another_encoding_is_refused_with_its_line_and_what_it_may_be(tmp_path):
    path = write(tmp_path / "a.tsv", tsv([*ROWS, ("très bien", "positive")]), "cp1252")
    message = refusal(path)
    assert "a.tsv, line 5: not UTF-8 text" in message
    assert "data.encoding (as cp1252, of Windows in Western Europe, it reads 'très bien" in message
    assert "not utf-16 text" in refusal(write(tmp_path / "b.tsv", b"text\tl"), encoding="utf-16")


def test_the_unlabelled_text_has_the_same_encodings(tmp_path):
    text = write(tmp_path / "more.txt", "très bien\nune autre\n", "utf-16")
    assert list(sentences.load(DataConfig(unlabelled=text), 0).splits["unlabelled"]["text"]) == [
        "très bien",
        "une autre",
    ]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_line_breaks_end_a_line(tmp_path, separator):
    rows = [(f"one{separator}two", "positive"), *ROWS]
    lines = "".join(json.dumps({"text": t, "label": one}, ensure_ascii=False) + "\n" for t, one in rows)
    for path in (
        write(tmp_path / "a.tsv", tsv(rows)),
        write(tmp_path / "a.csv", csv_text(rows)),
        write(tmp_path / "a.jsonl", lines if separator > "\x1f" else lines.encode()),
    ):
        assert read(path)[0] == rows


# --- malformed rows ---

BROKEN = [
    ("", "positive", "no text (column 'text')"),
    ("no label", " ", "no label (column 'label')"),
    ("nul\0l", "positive", "the text contains a NUL character"),
]


@pytest.mark.parametrize("suffix", ["tsv", "csv"])
def test_all_malformed_rows_of_all_files_are_listed_at_once(tmp_path, suffix):
    make = tsv if suffix == "tsv" else csv_text
    broken = make([*ROWS, *((text, label) for text, label, _ in BROKEN)])
    paths = {name: write(tmp_path / f"{name}.{suffix}", broken) for name in ("train", "test")}
    with pytest.raises(DataError) as caught:
        sentences.load(DataConfig(source="files", **paths), 0)
    message = str(caught.value)
    assert message.startswith("6 malformed rows; fix them, or set data.on_bad_row: drop")
    for name in paths:
        for line, (_, _, problem) in enumerate(BROKEN, 5):
            assert f"{name}.{suffix}, line {line}: {problem}" in message


def test_a_long_list_of_malformed_rows_is_cut_and_counted(tmp_path):
    message = refusal(write(tmp_path / "a.tsv", tsv([("text", "")] * 50)))
    assert message.startswith("50 malformed rows")
    assert message.count("no label") == tables.LISTED
    assert message.endswith("and 30 more")


def test_malformed_rows_can_be_left_out_and_are_told_and_counted(tmp_path, context):
    rows = [(f"sentence {i}", "ab"[i % 2]) for i in range(8)]
    train = write(tmp_path / "train.tsv", tsv([*rows, ("", "a"), ("x", "")]))
    test = write(tmp_path / "test.tsv", tsv([("y", "a"), ("z", "b")]))
    config = DataConfig(source="files", train=train, test=test, validation_samples=2, on_bad_row="drop")
    metrics = data_stage.run({}, config, context)
    assert metrics["train_bad_rows_dropped"] == 2.0
    assert metrics["train_rows"] == 6.0
    assert "test_bad_rows_dropped" not in metrics
    told = "\n".join(context.reporter.messages)
    assert "line 10: no text" in told
    assert "line 11: no label" in told


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "a", "text": "b", "label": "x"}', "the key 'text' is given 2 times"),
        ('{"text": "a", "label": "x", "label": "x"}', "the key 'label' is given 2 times"),
        ('{"text": "a", "label": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"text": "a", "label": ' + "1" * 5_000 + "}", "not JSON (Exceeds the limit"),
        ('{"text": "a", "label": NaN}', "no label"),
        ('{"text": NaN, "label": "x"}', "no text"),
        ('{"text": "a\\u0000b", "label": "x"}', "the text contains a NUL character"),
        ('{"text": "a", "label": ["x", "y"]}', "the label is a list; a text has one label"),
        ('{"text": "a", "label": [0, 1, 0]}', "unless data.problem is multi-label (one per word: set"),
        ('{"text": "a", "label": 0.25}', "label '0.25' is a number that is not whole"),
    ],
)
def test_json_that_no_row_can_be_made_of_is_refused_by_what_it_is(tmp_path, line, problem):
    message = refusal(write(tmp_path / "a.jsonl", '{"text": "b", "label": "x"}\n' + line + "\n"))
    assert "a.jsonl, line 2: " in message
    assert problem in message
    assert len(message) < 600


def test_a_huge_text_is_read(tmp_path):
    text = "good " * 200_000
    path = write(tmp_path / "a.jsonl", json.dumps({"text": text, "label": "x"}) + "\n")
    assert read(path)[0] == [(text.strip(), "x")]


@pytest.mark.parametrize("suffix", ["tsv", "csv"])
def test_a_column_that_the_header_has_twice_is_refused_if_it_is_wanted(tmp_path, suffix):
    make = {"tsv": "\t", "csv": ","}[suffix]
    lines = make.join(["text", "label", "text", "x", "x"]) + "\n" + make.join("abcde") + "\n"
    path = write(tmp_path / f"a.{suffix}", lines)
    assert "the header has the column 'text' 2 times" in refusal(path)
    assert read(path, text_column=2, label_column=1)[0] == [("c", "b")]


def test_a_column_that_a_parquet_file_has_twice_is_refused(tmp_path):
    table = pyarrow.Table.from_arrays([["a"], ["b"], ["x"]], names=["text", "text", "label"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "a.parquet has the column 'text' more than once" in refusal(tmp_path / "a.parquet")


def test_bytes_are_no_text(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": [b"a"], "label": ["x"]}), tmp_path / "a.parquet")
    assert "line 1: no text" in refusal(tmp_path / "a.parquet")


# --- labels ---


def labels_of(tmp_path, train, **config):
    lines = "".join(json.dumps({"text": f"t{i}", "label": label}) + "\n" for i, label in enumerate(train))
    test = json.dumps({"text": "other", "label": train[0]}) + "\n"
    paths = {"train": write(tmp_path / "a.jsonl", lines), "test": write(tmp_path / "b.jsonl", test)}
    options = {"validation": write(tmp_path / "c.jsonl", test.replace("other", "third")), **config}
    return sentences.load(DataConfig(source="files", **paths, **options), 0).labels


@pytest.mark.parametrize(
    ("found", "labels"),
    [
        ([str(number) for number in range(12)], tuple(map(str, range(12)))),
        (list(range(12)), tuple(map(str, range(12)))),
        ([10, 9, -1], ("-1", "9", "10")),
        ([0.0, 1.0, 2.0], ("0", "1", "2")),
        (["0.0", "1.0"], ("0", "1")),
        ([1, 1.0, "1", "1.0", "1.", 0], ("0", "1")),
        (["b", "a", "10", "9"], ("10", "9", "a", "b")),
        ([True, False], ("False", "True")),
        (["v1.2.3", "2.0.1"], ("2.0.1", "v1.2.3")),
    ],
)
def test_numbers_stand_in_numeric_order_and_whole_ones_are_one_class(tmp_path, found, labels):
    assert labels_of(tmp_path, found) == labels


@pytest.mark.parametrize(
    ("found", "alike"),
    [
        ([True, 1, 0], "'1' and 'True'"),
        (["true", "1", "0"], "'1' and 'true'"),
        (["false", 0, 1], "'0' and 'false'"),
        (["1", "01", "2"], "'01' and '1'"),
        (["Spam", "spam", "ham"], "'Spam' and 'spam'"),
    ],
)
def test_one_class_in_two_spellings_is_refused_by_name(tmp_path, found, alike):
    with pytest.raises(DataError, match="differ only in how they are written: ") as caught:
        labels_of(tmp_path, found)
    assert alike in str(caught.value)
    named = tuple(dict.fromkeys(map(str, found)))
    assert labels_of(tmp_path, found, labels=named) == named


def test_a_spelling_that_only_another_split_has_is_refused_by_name_too(tmp_path):
    other = write(tmp_path / "other.jsonl", '{"text": "x", "label": "Spam"}\n')
    with pytest.raises(DataError, match="'Spam' and 'spam'"):
        labels_of(tmp_path, ["spam", "ham"], validation=other)


def test_scores_are_no_classes_unless_they_are_listed(tmp_path):
    scores = [f"{index / 25:.2f}" for index in range(26)]
    with pytest.raises(DataError, match="24 malformed rows") as caught:  # 0.00 and 1.00 are whole
        labels_of(tmp_path, scores)
    assert "scores need data.problem: regression" in str(caught.value)
    assert labels_of(tmp_path, ["1.5", "2.5"], labels=("2.5", "1.5")) == ("2.5", "1.5")


@pytest.fixture
def features():
    names = ["zebra", "ant", "1.5"]
    return datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})


@pytest.mark.parametrize("source", ["files", "hub"])
def test_the_class_names_of_a_data_set_keep_their_order(tmp_path, features, source, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder, paths = tmp_path / "hub", {}
    folder.mkdir()
    for split in sentences.SPLITS:
        rows = {"text": [f"{split} {i}" for i in range(3)], "label": [1, 0, 2]}
        paths[split] = folder / f"{split}.parquet"
        datasets.Dataset.from_dict(rows, features).to_parquet(paths[split])
    where = paths if source == "files" else {"hub_id": str(folder), "hub_splits": sentences.SPLITS}
    corpus = sentences.load(DataConfig(source=source, **where), 0)
    assert corpus.labels == tuple(features["label"].names)
    own = datasets.load_dataset("parquet", data_files={"test": str(paths["test"])}, split="test")
    assert corpus.splits["test"]["label"][:] == own["label"][:]
    assert corpus.ordered
    sentences.save(corpus, tmp_path, 64)
    assert sentences.info(tmp_path)["labels_ordered"] is True
    assert sentences.label_places(tmp_path, ["LABEL_0", "LABEL_1", "LABEL_2"]) == [0, 1, 2]


def test_a_column_of_several_labels_is_refused_by_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    for split in ("train", "validation"):
        rows = {"text": ["a", "b"], "label": [[0, 1], [1]]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "hub" / f"{split}.parquet")
    config = DataConfig(source="hub", hub_id=str(tmp_path / "hub"))
    with pytest.raises(DataError, match=r"row 1: the label is a list; a text has one label"):
        sentences.load(config, 0)


# --- one file for everything, and contradictions ---


def test_one_file_gives_all_three_splits(tmp_path):
    rows = [(f"sentence {i}", "a" if i % 4 else "b") for i in range(400)]
    path = write(tmp_path / "all.tsv", tsv([*rows, *rows[:5]]))
    config = DataConfig(source="files", train=path, test_fraction=0.2, validation_samples=80)
    splits = sentences.load(config, 0).splits
    texts = {split: set(splits[split]["text"]) for split in sentences.SPLITS}
    assert {split: len(found) for split, found in texts.items()} == {
        "train": 240,
        "validation": 80,
        "test": 80,
    }
    assert set().union(*texts.values()) == {text for text, _ in rows}
    assert splits["test"]["label"][:].count(1) == 20
    assert sentences.load(config, 0).splits["test"].to_list() == splits["test"].to_list()
    assert sentences.load(config, 1).splits["test"].to_list() != splits["test"].to_list()
    assert sentences.test_rows(config, 0)[1] == splits["test"].to_list()


def test_a_test_split_that_cannot_be_held_out_names_its_field(tmp_path):
    path = write(tmp_path / "all.tsv", tsv([*ROWS, ("bad", "negative")]))
    with pytest.raises(DataError, match=r"data\.test_fraction = 0\.1 cannot be held out"):
        sentences.load(DataConfig(source="files", train=path, test_fraction=0.1), 0)


def test_the_same_text_with_another_label_is_counted_apart_from_copies(tmp_path, context):
    train = [("good", "a"), ("Good", "a"), ("good", "b"), ("bad", "b"), ("x", "b"), ("y", "a")]
    test = [("x", "a"), ("z", "a"), ("Z", "b"), ("w", "b")]
    paths = {"train": train, "validation": [("v", "a"), ("y", "b")], "test": test}
    files = {name: write(tmp_path / f"{name}.tsv", tsv(rows)) for name, rows in paths.items()}
    metrics = data_stage.run({}, DataConfig(source="files", **files), context)
    assert metrics["train_copies_dropped"] == 4  # Good, good, x, y
    assert metrics["train_label_conflicts"] == 3  # good: b, x: b, y: a
    assert metrics["test_label_conflicts"] == 1  # Z: b
    assert "validation_label_conflicts" not in metrics
    assert "the same text also has another label" in "\n".join(context.reporter.messages)


def test_nothing_is_said_of_plain_data(tmp_path):
    out = tmp_path / "out"
    out.mkdir()

    class Quiet(Silent):
        def message(self, text):
            raise AssertionError(text)

    context = StageContext(out, tmp_path, Quiet(), seed=0, threads=1)
    files = {
        split: write(tmp_path / f"{split}.tsv", tsv([(split, "a"), (f"{split} 2", "b")]))
        for split in sentences.SPLITS
    }
    data_stage.run({}, DataConfig(source="files", **files), context)
