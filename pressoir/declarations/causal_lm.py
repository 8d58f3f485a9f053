"""A text to its continuation, and to the likelihood of its tokens."""

from pressoir.extensions.task import Metric, Task

TASK = Task(
    name="causal-lm",
    hub_name="text-generation",
    position=2,
    heads=("ForCausalLM", "LMHeadModel"),
    kind="language model",
    adapter="pressoir.inference.text_generation:TextGenerator",
    try_out="pressoir.benchmark.probe:continue_text",
    table="pressoir.inference.predictor:continuations",
    compare="pressoir.benchmark.language_models:compare",
    export="pressoir.export.causal_lm:run",
    read_data="pressoir.evaluation.datasets:running_texts",
    generation=("window",),
    windows=True,
    unit="windows",
    predictor="pressoir.evaluation.child.predictors:perplexity",
    remote="pressoir.evaluation.child.remote.model:perplexity",
    protocols=("openai",),
    estimate="pressoir.evaluation.estimates.sample_memory:WindowMemory",
    score="pressoir.evaluation.report.scoring:perplexity",
    metrics=(Metric("perplexity", lower_is_better=True),),
    worker="pressoir.serving.worker.worker_model:open_generator",
    operations=("generate", "score"),
    tier_settings=("max_length", "max_new_tokens", "temperature", "top_k", "top_p", "stop", "seed"),
    kserve="pressoir.serving.http.kserve:generate",
    parameters=("max_length", "max_new_tokens", "temperature", "top_k", "top_p", "seed"),
)
