"""Teacher: fine-tune the base model on the training split, or take a finished checkpoint as it is.

The teacher sets the accuracy that every later stage is measured against, and its outputs are what the student
learns. It costs the most time of all stages: three passes over the data with the full model.

Source: J. Devlin et al. 2019, "BERT" (arXiv:1810.04805), appendix A.3 for the fine-tuning settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pressoir.data import sentences
from pressoir.errors import SourceError
from pressoir.recipe.sections import TeacherConfig
from pressoir.stage import ModelSize, Stage, StageContext, StageKeyParts, two_models
from pressoir.training.memory import training_bytes


def run(inputs: Mapping[str, Path], config: TeacherConfig, context: StageContext) -> dict[str, float]:
    """Write the fine-tuned classifier; return validation accuracy, F1 and the number of parameters.

    Inputs: `model` (the base model, or the checkpoint), `data`.

    Raises:
        SourceError: the checkpoint classifies into other labels than the data's.
    """
    import torch

    from pressoir.models import loading
    from pressoir.models.layouts import count_parameters
    from pressoir.training import loop

    torch.manual_seed(context.seed)
    facts = sentences.info(inputs["data"])
    labels = facts["labels"]
    tokenizer = loading.load_tokenizer(inputs["model"])
    if config.checkpoint is not None:
        model = loading.load_classifier(inputs["model"])
        if model.config.num_labels != len(labels):
            raise SourceError(
                f"checkpoint {config.checkpoint!r} has {model.config.num_labels} classes, but the data has "
                f"{labels}"
            )
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
        history = []
    else:
        model = loading.load_classifier(inputs["model"], labels=labels)
        tokenizer.model_max_length = min(tokenizer.model_max_length, facts["max_tokens"])
        history = loop.fit(model, tokenizer, inputs["data"], config, context, what="teacher: steps")
    loop.save_history(history, context, "teacher")
    loading.save_model(model, context.out_dir)
    loading.save_tokenizer(tokenizer, context.out_dir)
    return loop.evaluate(model, tokenizer, inputs["data"]) | {"parameters": count_parameters(model)}


def key(config: TeacherConfig) -> StageKeyParts:
    """Of a finished checkpoint only that it is one: its digest is among the inputs."""
    values = config.model_dump(mode="json")
    values["checkpoint"] = config.checkpoint is not None
    return StageKeyParts(values)


def memory(config: TeacherConfig, size: ModelSize) -> int:
    """That of training, but for a finished checkpoint."""
    return training_bytes(config, size) if config.checkpoint is None else two_models(config, size)


STAGE = Stage(name="teacher", version=1, kind="model", config=TeacherConfig, run=run, key=key, memory=memory)
