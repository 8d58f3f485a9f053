"""Rows with any number of labels, or with a score, from every kind of file."""

import json

import datasets
import pandas as pd
import pytest

from pressoir.data import sentences
from pressoir.errors import DataError, RecipeError
from pressoir.recipe.recipe import Recipe
from pressoir.recipe.sections import DataConfig

SETS = [["joy", "anger"], ["joy"], [], ["fear"], ["anger"], ["fear", "joy"]]


def config(folder, problem="multi-label", kind="jsonl", **more):
    return DataConfig(
        source="files",
        train=folder / f"train.{kind}",
        test=folder / f"test.{kind}",
        problem=problem,
        validation_samples=4,
        **more,
    )


def write(folder, kind, labels, separator=","):
    """Train and test of different texts, as pandas or datasets writes them."""
    for split, rows in (("train", labels * 3), ("test", labels)):
        frame = pd.DataFrame({"text": [f"{split} text {i}" for i in range(len(rows))], "label": rows})
        path = folder / f"{split}.{kind}"
        if kind == "parquet":
            datasets.Dataset.from_pandas(frame).to_parquet(path)
        elif kind == "jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            frame["label"] = [separator.join(row) if isinstance(row, list) else row for row in rows]
            frame.to_csv(path, sep="," if kind == "csv" else "\t", index=False)


@pytest.mark.parametrize(
    ("kind", "separator"), [("jsonl", None), ("parquet", None), ("csv", ","), ("tsv", "|")]
)
def test_any_number_of_labels_is_read_from_every_kind_of_file(kind, separator, tmp_path):
    write(tmp_path, kind, SETS, separator or ",")
    corpus = sentences.load(config(tmp_path, kind=kind, label_separator=separator), seed=0)
    assert corpus.labels == ("anger", "fear", "joy")
    found = [[corpus.labels[index] for index in row["label"]] for row in corpus.splits["test"]]
    assert found == [sorted(row) for row in SETS]
    out = tmp_path / "out"
    out.mkdir()
    sentences.save(corpus, out, 32)
    moved = sentences.load_split(out, "test", ["joy", "fear", "anger"])["label"][:]
    assert moved == [[0, 2], [0], [], [1], [2], [0, 1]]
    assert sentences.problem_of(out).problem_type == "multi_label_classification"


def test_class_numbers_of_a_hub_data_set_are_its_names(tmp_path):
    names = datasets.Sequence(datasets.ClassLabel(names=["sad", "glad", "mad"]))
    features = datasets.Features({"text": datasets.Value("string"), "labels": names})
    for split, rows in (("train", [[0], [1, 2], [], [2]] * 3), ("validation", [[1]])):
        columns = {"text": [f"{split} {i}" for i in range(len(rows))], "labels": rows}
        datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / f"{split}.parquet")
    files = DataConfig(
        source="files",
        train=tmp_path / "train.parquet",
        test=tmp_path / "validation.parquet",
        problem="multi-label",
        label_column="labels",
        validation_samples=2,
    )
    corpus = sentences.load(files, seed=0)
    assert corpus.labels == ("sad", "glad", "mad")
    assert corpus.splits["test"]["label"][:] == [[1]]
    assert corpus.ordered


def test_scores_are_numbers_with_no_names(tmp_path):
    write(tmp_path, "csv", [0.5, 3, 4.75, 1e-3, -2.0])
    corpus = sentences.load(config(tmp_path, "regression", "csv"), seed=0)
    assert corpus.labels == ("score",)
    assert corpus.splits["test"]["label"][:] == [0.5, 3.0, 4.75, 0.001, -2.0]
    out = tmp_path / "out"
    out.mkdir()
    sentences.save(corpus, out, 32)
    assert sentences.label_places(out, ["LABEL_0"]) == [0]
    assert sentences.load_split(out, "test", ["LABEL_0"])["label"][2] == 4.75


@pytest.mark.parametrize(
    ("problem", "label", "reason"),
    [
        ("multi-label", None, "no label"),
        ("multi-label", [["a"]], "the label is a list"),
        ("multi-label", "['a', 'b']", "are not a list of JSON"),
        ("multi-label", {"a": 1}, "neither a list nor text"),
        ("multi-label", ["a", "  "], "no label"),
        ("regression", "high", "'high' is not a finite number"),
        ("regression", [1.5], "is not a finite number"),
        ("regression", True, "is not a finite number"),
        ("regression", "nan", "is not a finite number"),
        ("regression", 1e39, "is not a finite number"),
        ("regression", "", "no label"),
        ("single-label", ["a"], "unless data.problem is multi-label"),
        ("single-label", 1.5, "scores need data.problem: regression"),
    ],
)
def test_labels_of_another_kind_are_refused_with_their_line(problem, label, reason, tmp_path):
    good = {"multi-label": ["a"], "regression": 1.5}.get(problem, "a")
    rows = [{"text": "a good text", "label": good}, {"text": "a bad text", "label": label}]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=f"train.jsonl, line 2: .*{reason}"):
        sentences.load(config(tmp_path, problem), seed=0)


@pytest.mark.parametrize(
    ("problem", "section", "reason"),
    [
        ("multi-label", {"teacher": {"class_weights": "balanced"}}, "teacher.class_weights: not supported"),
        ("regression", {"distill": {"class_weights": {"a": 2}}}, "distill.class_weights: not supported"),
        ("multi-label", {"augment": {}}, "augment: not supported for data.problem 'multi-label'"),
        ("multi-label", {"prune": {"best_metric": "accuracy"}}, "choose auto, micro_f1 or macro_f1"),
        ("single-label", {"teacher": {"best_metric": "pearson"}}, "choose auto, accuracy or macro_f1"),
        ("regression", {"registry": {"criterion": {"metric": "accuracy"}}}, "choose pearson"),
    ],
)
def test_what_a_problem_lacks_is_refused_by_name_before_any_work(problem, section, reason):
    files = {"source": "files", "train": "a.csv", "test": "b.csv", "problem": problem}
    with pytest.raises(RecipeError, match=reason):
        Recipe.from_dict({"data": files, **section}, source="a recipe")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"problem": "multi-label"}, "embedded reviews have one label each"),
        ({"label_separator": "|"}, "`label_separator` is for `problem: multi-label` only"),
        ({"thresholds": "per-label"}, "`thresholds` is for `problem: multi-label` only"),
        (
            {"source": "files", "train": "a", "test": "b", "problem": "regression", "labels": ["a", "b"]},
            "a regression has none",
        ),
    ],
)
def test_fields_of_another_problem_are_refused(fields, reason):
    with pytest.raises(RecipeError, match=reason):
        Recipe.from_dict({"data": fields}, source="a recipe")
