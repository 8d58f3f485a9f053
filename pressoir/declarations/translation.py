"""A text to the same in another language."""

from pressoir.extensions.task import TRUNCATED, Metric, Task, Tensor

TASK = Task(
    name="translation",
    position=3,
    heads=("ForConditionalGeneration", "MTModel", "ForTextToText", "SeamlessM4TModel", "SeamlessM4Tv2Model"),
    model_types=(
        *("m2m_100", "nllb-moe", "mbart", "marian", "t5", "mt5", "umt5", "bart", "pegasus", "fsmt", "plbart"),
        *("longt5", "led", "bigbird_pegasus", "pegasus_x", "mvp", "prophetnet", "xlm-prophetnet"),
        *("switch_transformers", "t5gemma", "blenderbot", "blenderbot-small"),
        *("seamless_m4t", "seamless_m4t_v2"),
    ),
    pytorch_only=("seamless_m4t", "seamless_m4t_v2"),
    evaluated_only=("seamless_m4t", "seamless_m4t_v2"),
    adapter="pressoir.inference.translation:Translator",
    export="pressoir.export.encoder_decoder:run",
    read_data="pressoir.evaluation.datasets:aligned_lines",
    required_data=("source", "reference"),
    languages=("source_language", "target_language"),
    generation=("max_new_tokens", "num_beams"),
    unit="sentences",
    predictor="pressoir.evaluation.child.predictors:translation",
    remote="pressoir.evaluation.child.remote.model:translation",
    estimate="pressoir.evaluation.estimates.sample_memory:TranslationMemory",
    score="pressoir.evaluation.report.scoring:translation",
    metrics=(Metric("bleu", "BLEU"), Metric("chrf", "chrF")),
    worker="pressoir.serving.worker.worker_model:open_translator",
    operations=("translate",),
    tier_settings=(
        *("max_length", "max_batch", "max_new_tokens", "num_beams"),
        *("source_language", "target_language"),
    ),
    kserve="pressoir.serving.http.kserve:translate",
    parameters=("source_language", "target_language", "max_length", "max_new_tokens", "num_beams"),
    outputs=(Tensor("text", "BYTES", ("rows",)), TRUNCATED),
)
