"""Teacher: fine-tune the base model on the training split, or take a finished checkpoint as it is.

A finished checkpoint keeps its head and the order of its classes, which go with the labels of the data by
name; so does a base model that is trained further on the labels it has. Any other base model gets a new head.

The teacher sets the accuracy that every later stage is measured against, and its outputs are what the student
learns. It costs the most time of all stages: three passes over the data with the full model.

Source: J. Devlin et al. 2019, "BERT" (arXiv:1810.04805), appendix A.3 for the fine-tuning settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pressoir.data import sentences
from pressoir.data.texts import texts_of
from pressoir.formats.problems import MULTI_LABEL, THRESHOLDS, TOKENS
from pressoir.recipe.sections import TeacherConfig
from pressoir.stage import ModelSize, Stage, StageContext, StageKeyParts, two_models
from pressoir.training import precision
from pressoir.training.memory import training_bytes


def run(inputs: Mapping[str, Path], config: TeacherConfig, context: StageContext) -> dict[str, float]:
    """Write the fine-tuned classifier; return validation accuracy, F1 (of two labels, the second's), macro-
    averaged F1 (multi-label: micro- and macro-averaged F1; regression: correlations and mean absolute error),
    the number of parameters, and how many texts and tokens `data.max_tokens` cuts.

    Inputs: `model` (the base model, or the checkpoint), `data`.

    Raises:
        DataError: the checkpoint has other labels than the data.
        SourceError: the checkpoint decides something else than the data ask for.
    """
    import torch

    from pressoir.inference.tokenizers.tokenizers import truncation
    from pressoir.models import loading
    from pressoir.models.layouts import count_parameters
    from pressoir.training import heads, loop

    torch.manual_seed(context.seed)
    data = inputs["data"]
    tokenizer = loading.load_tokenizer(inputs["model"], words=sentences.problem_of(data).name == TOKENS.name)
    tokenizer.model_max_length = min(tokenizer.model_max_length, sentences.info(data)["max_tokens"])
    if config.checkpoint is not None:
        model = heads.finished(inputs["model"], data)
        if sentences.problem_of(data) is MULTI_LABEL and not hasattr(model.config, THRESHOLDS):
            loop.set_thresholds(model, tokenizer, data, context.reporter)
    else:
        model = heads.to_train(inputs["model"], data, context.reporter.message)
    heads.mark_pairs(model, data)
    history: list[dict[str, float]] = []
    if config.checkpoint is None:
        history = loop.fit(model, tokenizer, data, config, context, what="teacher: steps")
    loop.save_history(history, context, "teacher")
    loading.save_model(model, context.out_dir)
    loading.save_tokenizer(tokenizer, context.out_dir)
    metrics = loop.evaluate(model, tokenizer, data) | {"parameters": count_parameters(model)}
    if "validation_f1" in metrics and len(labels := sentences.info(data)["labels"]) == 2:
        context.reporter.message(f"teacher: validation_f1 is that of the label {labels[1]!r}")
    for split in ("train", "validation"):
        found = truncation(tokenizer, texts_of(sentences.load_split(data, split)))
        if found.cut or found.split:
            context.reporter.message(f"teacher: {split}: {found} (data.max_tokens)")
        metrics |= {f"{split}_texts_truncated": found.cut, f"{split}_tokens_truncated": found.lost}
    return metrics


def key(config: TeacherConfig) -> StageKeyParts:
    """Of a finished checkpoint only that it is one: its digest is among the inputs."""
    values = precision.key_values(config)
    values["checkpoint"] = config.checkpoint is not None
    return StageKeyParts(values)


def memory(config: TeacherConfig, size: ModelSize) -> int:
    """That of training, but for a finished checkpoint."""
    return training_bytes(config, size) if config.checkpoint is None else two_models(config, size)


STAGE = Stage(name="teacher", version=2, kind="model", config=TeacherConfig, run=run, key=key, memory=memory)
