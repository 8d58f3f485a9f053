"""A text to a vector, by an encoder without a head; what is measured is the similarity of two sentences."""

from pressoir.extensions.task import TRUNCATED, Metric, Task, Tensor

TASK = Task(
    name="feature-extraction",
    position=5,
    heads=("",),  # whatever has no other task's head
    kind="sentence encoder",
    adapter="pressoir.inference.feature_extraction:SentenceEncoder",
    export="pressoir.export.embedder:run",
    read_data="pressoir.evaluation.datasets:graded_pairs",
    unit="pairs",
    most_together=8,  # a pair is two sentences, and larger batches gain no speed on a CPU
    predictor="pressoir.evaluation.child.predictors:similarity",
    remote="pressoir.evaluation.child.remote.model:similarity",
    estimate="pressoir.evaluation.estimates.sample_memory:EncoderMemory",
    score="pressoir.evaluation.report.scoring:correlation",
    metrics=(Metric("spearman", "Spearman", form="correlation"),),
    worker="pressoir.serving.worker.worker_model:open_encoder",
    operations=("embed",),
    tier_settings=("max_length", "max_batch"),
    kserve="pressoir.serving.http.kserve:embed",
    parameters=("max_length",),
    outputs=(Tensor("embedding", "FP32", ("rows", -1)), TRUNCATED),
)
