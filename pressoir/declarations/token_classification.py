"""The words of a sentence to a tag each, such as those of named entities."""

from pressoir.extensions.task import Metric, Task, Tensor

TASK = Task(
    name="token-classification",
    position=2,
    heads=("ForTokenClassification",),
    kind="classifier",
    problem="tags",
    adapter="pressoir.inference.token_classification:TokenClassifier",
    try_out="pressoir.benchmark.probe:tag",
    table="pressoir.inference.predictor:entities",
    compare="pressoir.benchmark.classifiers:compare",
    export="pressoir.export.classifier:run",
    read_data="pressoir.evaluation.datasets:labelled_sentences",
    unit="sentences",
    predictor="pressoir.evaluation.child.predictors:token_classification",
    remote="pressoir.evaluation.child.remote.model:token_classification",
    protocols=("kserve-v2",),
    estimate="pressoir.evaluation.estimates.sample_memory:ClassificationMemory",
    score="pressoir.evaluation.report.scoring:spans",
    metrics=(
        Metric("span_f1", "F1 of spans", form="percent"),
        Metric("span_precision", "precision", form="percent"),
        Metric("span_recall", "recall", form="percent"),
        Metric("macro_f1", "macro F1", form="percent"),
        Metric("tag_accuracy", "accuracy of tags", form="percent"),
    ),
    worker="pressoir.serving.worker.worker_model:open_token_classifier",
    operations=("tag",),
    tier_settings=("max_length", "max_batch"),
    kserve="pressoir.serving.http.kserve:tag",
    parameters=("max_length",),
    outputs=(Tensor("entities", "BYTES", ("rows",)), Tensor("tags", "BYTES", ("rows",))),
)
