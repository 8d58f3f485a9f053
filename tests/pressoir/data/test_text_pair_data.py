"""Data of two texts per row, from each kind of file."""

import json

import pandas as pd
import pytest

from pressoir.benchmark import linear_baseline
from pressoir.data import sentences
from pressoir.data.texts import texts_of
from pressoir.errors import DataError, RecipeError
from pressoir.recipe.recipe import Recipe
from pressoir.recipe.sections import DataConfig

COLUMNS = {"text_column": "a", "text_pair_column": "b", "label_column": "y"}
ROWS = [
    ("one", "two", "no"),
    ("one", "three", "no"),  # another pair: the first text alone makes no copy
    ("two", "one", "no"),  # nor does the other order
    ("One ", "TWO", "no"),  # a copy
    ("four", "five", "yes"),
    ("six", "seven", "yes"),
]


def config_of(folder, kind, rows=ROWS, **options):
    table = pd.DataFrame(rows, columns=["a", "b", "y"])
    paths = {}
    for split, part in (("train", table), ("test", table.tail(1))):
        paths[split] = path = folder / f"{split}.{kind}"
        if kind in ("tsv", "csv"):
            part.to_csv(path, sep="\t" if kind == "tsv" else ",", index=False)
        elif kind == "jsonl":
            part.to_json(path, orient="records", lines=True)
        else:
            part.to_parquet(path)
    paths["validation"] = paths["test"]
    return DataConfig(source="files", **paths, **COLUMNS, **options)


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "parquet"])
def test_two_columns_become_pairs_without_copies(tmp_path, kind):
    rows = [*ROWS, ("eight", "nine", "yes"), ("ten", "eleven", "no")]
    config = config_of(tmp_path, kind, rows)
    (tmp_path / f"validation.{kind}").write_bytes((tmp_path / f"test.{kind}").read_bytes())
    config = config.model_copy(update={"validation": None, "validation_samples": 2})
    corpus = sentences.load(config, seed=0)
    found = texts_of(corpus.splits["train"]) + texts_of(corpus.splits["validation"])
    assert sorted(found) == sorted({(a, b) for a, b, _ in rows} - {("One ", "TWO"), ("ten", "eleven")})
    assert texts_of(corpus.splits["test"]) == [("ten", "eleven")]
    assert corpus.counts["train_copies_dropped"] == 2

    out = tmp_path / "out"
    out.mkdir()
    sentences.save(corpus, out, max_tokens=16)
    assert sentences.info(out)["text_pair"] is True
    assert texts_of(sentences.load_split(out, "test")) == [("ten", "eleven")]
    assert json.loads((out / "test.jsonl").read_text()) == {"text": "ten", "text_pair": "eleven", "label": 0}


def test_a_data_set_of_the_hub_has_pairs(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    table = pd.DataFrame([*ROWS[:3], *ROWS[4:]], columns=["a", "b", "y"])
    table.to_parquet(folder / "train.parquet")
    pd.DataFrame([("p", "q", "no")], columns=["a", "b", "y"]).to_parquet(folder / "validation.parquet")
    config = DataConfig(source="hub", hub_id=str(folder), validation_samples=2, **COLUMNS)
    corpus = sentences.load(config, seed=0)
    assert texts_of(corpus.splits["test"]) == [("p", "q")]


def test_a_row_without_its_second_text_is_named(tmp_path):
    config = config_of(tmp_path, "jsonl", [*ROWS, ("seven", " ", "yes")])
    with pytest.raises(DataError, match=r"train.jsonl, line 7: no text \(column 'b'\).*text_pair_column"):
        sentences.load(config, seed=0)


def test_a_column_of_second_texts_that_is_missing_is_named(tmp_path):
    config = config_of(tmp_path, "tsv").model_copy(update={"text_pair_column": "c"})
    with pytest.raises(DataError, match="no column 'c'"):
        sentences.load(config, seed=0)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"data": {"text_pair_column": "b"}}, "demo reviews are single"),
        ({"data": {"text_pair_column": "text"}}, "another column"),
        ({"data": {"text_pair_column": "b", "unlabelled": "a.txt"}}, "`unlabelled` holds single sentences"),
        (
            {"data": {"source": "hub", "hub_id": "a/b", "text_pair_column": "b"}, "augment": {}},
            "augment: pairs of texts",
        ),
    ],
)
def test_what_is_not_done_with_pairs_is_refused_by_the_recipe(tmp_path, recipe, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    with pytest.raises(RecipeError, match=message):
        Recipe.from_yaml(path)


def test_the_linear_baseline_of_pairs_sees_how_alike_they_are(pair_data):
    """Words alone do not tell whether two texts have the same ones; scikit-learn on joined text is worse."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, test = (sentences.load_split(pair_data, split) for split in ("train", "test"))
    found = linear_baseline.measure(pair_data, test, texts_of(test), seed=0)
    joined = make_pipeline(TfidfVectorizer(ngram_range=(1, 3)), LogisticRegression(C=10, max_iter=1000))
    joined.fit([" ".join(pair) for pair in texts_of(train)], train["label"])
    assert found.accuracy > joined.score([" ".join(pair) for pair in texts_of(test)], test["label"])
    assert "both texts joined" in found.ngrams
