"""A text to one of some labels."""

from pressoir.extensions.task import TRUNCATED, Metric, Task, Tensor

TASK = Task(
    name="text-classification",
    position=1,
    heads=("ForSequenceClassification",),
    kind="classifier",
    adapter="pressoir.inference.text_classification:TextClassifier",
    try_out="pressoir.benchmark.probe:classify",
    table="pressoir.inference.predictor:probabilities",
    compare="pressoir.benchmark.classifiers:compare",
    export="pressoir.export.classifier:run",
    read_data="pressoir.evaluation.datasets:labelled_sentences",
    unit="sentences",
    predictor="pressoir.evaluation.child.predictors:classification",
    remote="pressoir.evaluation.child.remote.model:classification",
    estimate="pressoir.evaluation.estimates.sample_memory:ClassificationMemory",
    score="pressoir.evaluation.report.scoring:classification",
    metrics=(
        Metric("accuracy", form="percent"),
        Metric("f1", "F1", form="percent"),
        Metric("macro_f1", "macro F1", form="percent"),
        Metric("accuracy_ci_low", form="percent"),
        Metric("accuracy_ci_high", form="percent"),
    ),
    worker="pressoir.serving.worker.worker_model:open_classifier",
    operations=("classify",),
    tier_settings=("max_length", "max_batch"),
    kserve="pressoir.serving.http.kserve:classify",
    pairs=True,
    parameters=("max_length",),
    outputs=(
        Tensor("probabilities", "FP32", ("rows", "labels")),
        Tensor("label", "BYTES", ("rows",)),
        TRUNCATED,
    ),
)
