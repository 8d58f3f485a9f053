"""Students: made from a teacher's layers, a checkpoint or a configuration, and trained on its outputs.

Why and at what cost: `pressoir.stages.distill`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pressoir.errors import RecipeError
from pressoir.formats.folder import is_token_classifier
from pressoir.formats.problems import problem_of
from pressoir.models import loading
from pressoir.models.layouts import (
    architecture_of,
    class_names,
    count_parameters,
    encoder_layers,
    replace_layers,
)
from pressoir.recipe.sections import DistillConfig, StudentConfig
from pressoir.stage import StageContext
from pressoir.system.files import write_text_atomic
from pressoir.training import balance, heads, loop
from pressoir.training.distillation import DistillationLoss, TeacherOutputs
from pressoir.training.factorized import with_embedding_size
from pressoir.training.teacher_outputs import matched_layers

SCORES = "scores.json"  # of a seed; written last


def distill(inputs: Mapping[str, Path], config: DistillConfig, context: StageContext) -> dict[str, float]:
    """Write the student; return its validation accuracy and F1, and its size relative to the teacher's.

    Inputs: `teacher`, `outputs` (of `teacher_outputs`), `data`, and `student` where it is a checkpoint of its
    own.

    Raises:
        RecipeError: the student cannot be made from this teacher.
    """
    words = is_token_classifier(inputs["teacher"])
    tokenizer = loading.load_tokenizer(inputs.get("student", inputs["teacher"]), words)
    tokenizer.model_max_length = loading.load_tokenizer(inputs["teacher"]).model_max_length
    tried, chosen_by = dict[int, dict[str, float]](), balance.best_metric(config, inputs["data"])
    for seed in range(context.seed, context.seed + config.seeds):
        tried[seed] = _train(inputs, config, context, seed, tokenizer)
        if config.seeds > 1:
            summary = f"validation {chosen_by.replace('_', ' ')} {tried[seed][f'validation_{chosen_by}']:.4f}"
            context.reporter.message(f"distill: seed {seed}: {summary}")
    best = max(tried, key=lambda seed: tried[seed][f"validation_{chosen_by}"])  # of equals, the first
    for path in _finished(context, best).iterdir():
        if path.name != SCORES:
            shutil.copy2(path, context.out_dir)
    loading.save_tokenizer(tokenizer, context.out_dir)
    return tried[best] | ({"seed": float(best)} if config.seeds > 1 else {})


def _finished(context: StageContext, seed: int) -> Path:
    """Folder of a seed's student; whole where it has `SCORES`."""
    return context.work_dir / f"seed-{seed}" / "student"


def _train(
    inputs: Mapping[str, Path],
    config: DistillConfig,
    context: StageContext,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, float]:
    """Train a student with a seed, unless that was done before, and return its scores."""
    done = _finished(context, seed)
    if (done / SCORES).exists():
        scores: dict[str, float] = json.loads((done / SCORES).read_text(encoding="utf-8"))
        return scores
    shutil.rmtree(done, ignore_errors=True)
    done.mkdir(parents=True)
    torch.manual_seed(seed)
    teacher = loading.load_classifier(inputs["teacher"])
    student = make_student(teacher, config.student, inputs.get("student"), context.reporter.message)
    if config.student.embedding_size is not None:
        student = with_embedding_size(student, config.student.embedding_size, seed)
    heads.mark_pairs(student, inputs["data"])
    ratio = count_parameters(student) / count_parameters(teacher)
    del teacher
    loss = DistillationLoss.from_config(config)
    own = replace(context, out_dir=done, work_dir=done.parent, seed=seed)
    history = loop.fit(
        student,
        tokenizer,
        inputs["data"],
        config,
        own,
        what="distill: steps" if config.seeds == 1 else f"distill, seed {seed}: steps",
        loss=loss,
        outputs=TeacherOutputs.open(inputs["outputs"]),
    )
    loop.save_history(history, own, "distill")
    loading.save_model(student, done)
    scores = loop.evaluate(student, tokenizer, inputs["data"])
    scores |= {"parameters": count_parameters(student), "parameters_of_teacher": ratio}
    write_text_atomic(done / SCORES, json.dumps(scores))  # last: it says that the rest is whole
    return scores


def make_student(
    teacher: PreTrainedModel, config: StudentConfig, folder: Path | None, tell: Callable[[str], None]
) -> PreTrainedModel:
    """The untrained student: teacher layers, a checkpoint (`folder`, see `heads.to_distill`), or a smaller
    random model. Its classes are the teacher's, in the same order.

    Raises:
        RecipeError: a field of `config.config` does not exist in the architecture, or the sizes do not fit
        together.
    """
    if folder is not None:
        problem = problem_of(teacher.config.to_dict(), "the teacher")
        return heads.to_distill(folder, class_names(teacher), tell, problem)
    if config.config is not None:
        unknown = [name for name in config.config if not hasattr(teacher.config, name)]
        if unknown:
            raise RecipeError(
                f"distill.student.config: a {teacher.config.model_type} model has no field {unknown}"
            )
        try:
            return loading.new_classifier(
                type(teacher.config)(**{**teacher.config.to_dict(), **config.config})
            )
        except ValueError as error:
            raise RecipeError(f"distill.student.config: {error}") from error
    keep = matched_layers(config, teacher.config.num_hidden_layers)
    layers, names = encoder_layers(teacher), architecture_of(teacher)
    if names.shared_layers:
        tell(
            f"distill: all layers of the teacher ({teacher.config.model_type}) are one, repeated; the "
            f"student repeats it {len(keep)} times instead of {teacher.config.num_hidden_layers}"
        )
    else:
        replace_layers(teacher, nn.ModuleList(layers[index] for index in keep))
    shrunk = teacher.config.to_dict() | {names.layer_count_field: len(keep)}
    student = loading.new_classifier(type(teacher.config)(**shrunk))
    first = f"{teacher.base_model_prefix}.{names.layers}.0"
    absent = tuple(f"{first}.{part}." for part in names.absent_in_first_layer)
    state = teacher.state_dict()
    for part in [name for name in state if name.startswith(absent)]:
        del state[part]
    student.load_state_dict(state)
    replace_layers(teacher, layers)
    return student
