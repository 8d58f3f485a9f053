"""The measured metrics of the final model in the hub's form, its `model-index`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pressoir.benchmark.classifier_report import (
    Benchmark,
    BenchmarkRow,
    ClassifierRow,
    MultiLabelRow,
    RegressionRow,
    TokenRow,
)
from pressoir.benchmark.language_model_report import GenerationBenchmark
from pressoir.benchmark.reports import AnyBenchmark
from pressoir.recipe.recipe import Recipe
from pressoir.recipe.sections import DataConfig
from pressoir.sources.resolve import folder_of

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

DEMO = "Pressoir's embedded reviews"


class TestData(NamedTuple):
    """The data on which a classifier was measured."""

    id: str
    """Id of the hub; of other data, where it came from."""
    name: str
    config: str | None
    split: str
    revision: str | None

    @property
    def on_the_hub(self) -> bool:
        """Whether `id` is one of the hub."""
        return self.id not in ("demo", "files")


def test_data(data: DataConfig) -> TestData:
    """The test split of a recipe's data; of files the name, without their folder."""
    if data.source == "demo":
        return TestData("demo", DEMO, None, "test", None)
    if data.source == "files":
        if data.test is not None:
            return TestData("files", data.test.name, None, "test", None)
        return TestData("files", Path(data.train or "").name, None, _held_out(data, "train"), None)
    id = data.hub_id or ""
    local = folder_of(id)
    name = id if local is None else local.name
    split = data.hub_splits[2] or _held_out(data, data.hub_splits[0])
    return TestData("files" if local else id, name, data.hub_config, split, data.hub_revision)


def evaluation_results(recipe: Recipe, benchmark: AnyBenchmark, task: str) -> list[EvalResult]:
    """The metrics of the last row; `task` is the hub's name of it."""
    if isinstance(benchmark, GenerationBenchmark):
        return _perplexities(benchmark, task)
    return _accuracies(recipe, benchmark, task)


def _accuracies(recipe: Recipe, benchmark: Benchmark, task: str) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    row, data = benchmark.rows[-1], test_data(recipe.data)
    return [
        EvalResult(
            task_type=task,
            dataset_type=data.id,
            dataset_name=data.name,
            dataset_config=data.config,
            dataset_split=data.split,
            dataset_revision=data.revision,
            dataset_args={"num_samples": benchmark.test_sentences},
            metric_type=kind,
            metric_name=name,
            metric_value=value,
            metric_args=arguments,
        )
        for kind, name, value, arguments in _figures(row, benchmark.f1_label)
    ]


def _figures(row: ClassifierRow, label: str | None) -> list[tuple[str, str, float, dict[str, Any]]]:
    """Type, name, value and arguments of each metric."""
    interval = {"confidence_interval_95": list(row.score_interval)}
    if isinstance(row, MultiLabelRow):
        return [
            ("f1", "Micro-averaged F1", row.micro_f1, {"average": "micro", **interval}),
            ("f1", "Macro-averaged F1", row.macro_f1, {"average": "macro"}),
        ]
    if isinstance(row, TokenRow):
        return [
            ("f1", "F1 of the spans", row.span_f1, interval),
            ("precision", "Precision of the spans", row.span_precision, {}),
            ("recall", "Recall of the spans", row.span_recall, {}),
            ("accuracy", "Accuracy of the tags", row.tag_accuracy, {}),
        ]
    if isinstance(row, RegressionRow):
        return [
            ("pearsonr", "Pearson correlation", row.pearson, interval),
            ("spearmanr", "Spearman correlation", row.spearman, {}),
            ("mae", "Mean absolute error", row.mae, {}),
        ]
    assert isinstance(row, BenchmarkRow)
    found: list[tuple[str, str, float, dict[str, Any]]] = [("accuracy", "Accuracy", row.accuracy, interval)]
    if label is not None:
        found.append(("f1", f"F1 of {label}", row.f1, {"average": "binary", "pos_label": label}))
    macro = row.macro_f1 if label is not None else row.f1
    if macro is not None:
        found.append(("f1", "Macro-averaged F1", macro, {"average": "macro"}))
    return found


def _perplexities(benchmark: GenerationBenchmark, task: str) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=task,
            dataset_type=text,
            dataset_name=text,
            dataset_split="test",
            dataset_args={"num_tokens": benchmark.scored_tokens[text]},
            metric_type="perplexity",
            metric_name="Perplexity",
            metric_value=value,
            metric_args={"window": benchmark.window},
        )
        for text, value in benchmark.rows[-1].perplexities.items()
    ]


def _held_out(data: DataConfig, split: str) -> str:
    return f"{100 * (data.test_fraction or 0):g} % held out of {split}"
