"""Words with tags: files of each kind give the same rows, and what is wrong with a row is said."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from pressoir.data import sentences
from pressoir.data.texts import texts_of
from pressoir.errors import DataError
from pressoir.recipe.recipe import Recipe
from pressoir.recipe.sections import DataConfig

ROWS = [
    (["Peter", "Blackburn", "flew", "."], ["B-PER", "I-PER", "O", "O"]),
    (["Mary", "Paris", "London"], ["B-PER", "B-LOC", "B-LOC"]),
    (["New", "York", "won"], ["B-LOC", "I-LOC", "O"]),
    (["nobody", "came"], ["O", "O"]),
]
NAMES = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def written(folder, kind, rows):
    path = folder / f"data.{kind}"
    if kind == "jsonl":
        lines = [json.dumps({"tokens": words, "tags": tags}) for words, tags in rows]
        path.write_text("\n".join(lines) + "\n")
    elif kind == "parquet":
        table = pyarrow.table({"tokens": [w for w, _ in rows], "tags": [t for _, t in rows]})
        pyarrow.parquet.write_table(table, path)
    elif kind == "tsv":
        path.write_text("tokens\ttags\n" + "".join(f"{' '.join(w)}\t{' '.join(t)}\n" for w, t in rows))
    else:
        blocks = ["\n".join(f"{w} NN {t}" for w, t in zip(*row, strict=True)) for row in rows]
        path.write_text("-DOCSTART- -X- O\n\n" + "\n\n".join(blocks) + "\n")
    return path


def config(path, **more):
    columns = {"text_column": "tokens", "label_column": "tags", "problem": "tags"}
    fractions = {"test_fraction": 0.25, "validation_samples": 1}
    return DataConfig(**{"source": "files", "train": path, **columns, **fractions, **more})


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tsv", "conll"])
def test_every_kind_of_file_gives_the_same_rows(kind, tmp_path):
    path = written(tmp_path, kind, ROWS)
    rest = tmp_path / "rest.jsonl"
    words = {"tokens": ["he", "came"], "tags": ["B-PER", "B-LOC"]}
    rest.write_text(json.dumps({**words, "tags": ["I-PER", "I-LOC"]}) + "\n" + json.dumps(words) + "\n")
    given = {"train": rest, "test": path, "test_fraction": None, "validation_samples": 1}
    labels, rows = sentences.test_rows(config(path, **given), 0)
    assert labels == NAMES
    assert [(row["text"], [labels[index] for index in row["label"]]) for row in rows] == ROWS


def test_a_saved_folder_has_words_and_the_scheme_is_said(tmp_path):
    corpus = sentences.load(config(written(tmp_path, "jsonl", ROWS)), seed=0)
    assert any("IOB2" in remark for remark in corpus.remarks)
    sentences.save(corpus, tmp_path, 32)
    found = [text for split in sentences.SPLITS for text in texts_of(sentences.load_split(tmp_path, split))]
    assert sorted(found) == sorted(tuple(words) for words, _ in ROWS)
    assert sentences.problem_of(tmp_path).name == "tags"


def test_iob1_is_converted(tmp_path):
    rows = [(words, [tag.replace("B-", "I-") for tag in tags]) for words, tags in ROWS if "Mary" not in words]
    corpus = sentences.load(config(written(tmp_path, "conll", [*rows, (["a", "b"], ["I-PER", "B-PER"])])), 0)
    assert any("IOB1" in remark and "converted" in remark for remark in corpus.remarks)
    assert corpus.labels == NAMES


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 words, but 1 tags"),
        ({"tokens": [], "tags": []}, "no words"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "word 2 of 2 is empty"),
        ({"tokens": {"a": 1}, "tags": ["O"]}, "words are not a list"),
        ({"tokens": ["a"]}, "no label"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_its_line(row, message, tmp_path):
    path = written(tmp_path, "jsonl", ROWS)
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"line 5: .*{message}"):
        sentences.load(config(path), 0)


def test_a_line_without_a_tag_is_said_with_its_number(tmp_path):
    path = written(tmp_path, "conll", ROWS)
    path.write_text(path.read_text() + "\nalone\n")
    with pytest.raises(DataError, match="1 columns; a word and its tag are expected"):
        sentences.load(config(path), 0)


def test_numbers_are_indices_into_the_labels(tmp_path):
    rows = [(words, [NAMES.index(tag) for tag in tags]) for words, tags in ROWS]
    corpus = sentences.load(config(written(tmp_path, "jsonl", rows), labels=NAMES), 0)
    assert corpus.labels == NAMES
    assert (
        sentences.load(config(written(tmp_path, "jsonl", ROWS)), 0).splits["test"][0]
        == corpus.splits["test"][0]
    )


def test_a_recipe_s_task_and_its_data_go_together():
    data = {"source": "files", "train": "a.jsonl", "test": "b.jsonl"}
    recipe = Recipe.model_validate({"task": "token-classification", "data": data})
    assert (recipe.data.problem, recipe.data.text_column, recipe.data.label_column) == (
        "tags",
        "tokens",
        "tags",
    )
    with pytest.raises(ValueError, match="set task: token-classification"):
        Recipe.model_validate({"data": {**data, "problem": "tags"}})
    with pytest.raises(ValueError, match="set task: token-classification"):
        Recipe.model_validate({"task": "token-classification"})
