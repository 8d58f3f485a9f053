"""A teacher's logits, hidden states and attention projections of every training sentence, on disk.

Why and at what cost: `pressoir.stages.teacher_outputs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import DataCollatorWithPadding

from pressoir.data import sentences
from pressoir.data.texts import Words, characters, texts_of
from pressoir.errors import RecipeError
from pressoir.formats.problems import NO_WORD, thresholds_of
from pressoir.inference.token_alignment import padded as padded_words
from pressoir.models import loading
from pressoir.models.layouts import class_names
from pressoir.recipe.sections import OutputsConfig, StudentConfig
from pressoir.reporting import track
from pressoir.stage import StageContext
from pressoir.training import loop, relations


def compute(inputs: Mapping[str, Path], config: OutputsConfig, context: StageContext) -> dict[str, float]:
    """Write `logits.npy`, `offsets.npy` and, where asked, `hidden.npy` and `relations.npy`.

    See `pressoir.training.distillation.TeacherOutputs`.

    Inputs: `teacher`, `data`, and `student` where the student is a checkpoint of its own. Where `teacher` is
    one of fewer word pieces, `reference` is the whole one: the logits are its, sentence by sentence.
    """
    model = loading.load_classifier(inputs["teacher"])
    tokenizer = loading.load_tokenizer(inputs["teacher"])
    rows = loop.tokenize(inputs["data"], "train", tokenizer, model)
    lengths = np.asarray(rows["length"][:], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    texts = texts_of(sentences.load_split(inputs["data"], "train"))
    by_word = "words" in rows.column_names
    count = sum(map(len, texts)) if by_word else len(rows)
    logits = np.zeros((count, model.config.num_labels), dtype=np.float32)
    teacher_layers = model.config.num_hidden_layers
    if config.student is None:
        matched = list(range(teacher_layers))
    else:
        matched = matched_layers(config.student, teacher_layers, inputs.get("student"))
    shapes = {}
    if config.hidden:
        shapes["hidden"] = (int(offsets[-1]), len(matched), model.config.hidden_size)
    if config.relations:
        shapes["relations"] = (int(offsets[-1]), len(relations.PROJECTIONS), relations.width(model))
    kept: dict[str, np.memmap[Any, np.dtype[np.float16]]] = {
        name: np.lib.format.open_memmap(
            context.out_dir / f"{name}.npy", mode="w+", dtype=np.float16, shape=shape
        )
        for name, shape in shapes.items()
    }
    order = np.argsort(lengths, kind="stable")
    batches = [order[start : start + 64].tolist() for start in range(0, len(order), 64)]
    reference = inputs.get("reference")
    if reference is not None and not kept:
        batches = []  # nothing of this model is needed but how it splits words
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in rows.column_names]
    pad, pad_left = DataCollatorWithPadding(tokenizer), tokenizer.padding_side == "left"
    captured: AbstractContextManager[dict[str, torch.Tensor]] = nullcontext({})
    if config.relations:
        captured = relations.captured(model)
    with captured as seen:
        for batch in track(batches, len(batches), "teacher outputs: batches", context.reporter):
            padded = pad([{name: rows[row][name] for name in names} for row in batch])
            with torch.inference_mode():
                outputs = model(**padded, output_hidden_states=config.hidden)
            if by_word:
                for row, own in zip(batch, outputs.logits.numpy(), strict=True):
                    begin = padded["input_ids"].shape[1] - lengths[row] if pad_left else 0
                    places = np.flatnonzero(np.asarray(rows[row]["labels"]) != NO_WORD) + begin
                    logits[rows[row]["words"]] = own[places]
            else:
                logits[batch] = outputs.logits.numpy()
            found = {}
            if config.hidden:
                found["hidden"] = torch.stack([outputs.hidden_states[layer + 1] for layer in matched], dim=2)
            if config.relations:
                found["relations"] = relations.stacked(seen)
            for name, states in found.items():  # (batch, seq, …)
                chosen = states.half().numpy()
                for index, row in enumerate(batch):
                    kept[name][offsets[row] : offsets[row + 1]] = chosen[index, : lengths[row]]
    for array in kept.values():
        array.flush()
    if reference is not None:
        ascending = list(range(len(texts)))
        if not by_word:
            ascending.sort(key=lambda row: characters(texts[row]))
        whole = loop.logits_of(
            reference,
            [texts[row] for row in ascending],
            "teacher outputs: logits",
            context.reporter,
        )
        logits[slice(None) if by_word else ascending] = whole
    np.save(context.out_dir / "logits.npy", logits)
    np.save(context.out_dir / "offsets.npy", offsets)
    problem = sentences.problem_of(inputs["data"]).of(class_names(model))
    if by_word:
        logits = padded_words(logits, cast("list[Words]", texts))
        own = sentences.load_split(inputs["data"], "train", class_names(model))["label"][:]
        labels = problem.targets(own, logits.shape[-1])
    else:
        labels = np.asarray(rows["labels"][:])
    predicted = problem.decide(logits, thresholds_of(model.config.to_dict()))
    score = problem.score(predicted, labels, logits.shape[-1])[problem.metric]
    return {f"train_{problem.metric}": score, "tokens": float(offsets[-1])}


def matched_layers(
    student: StudentConfig, teacher_layers: int, student_folder: Path | None = None
) -> list[int]:
    """The teacher layer (from 0) that each student layer learns from; the last is always matched with the
    last.

    Raises:
        RecipeError: a layer does not exist, or more are asked for than there are.
    """
    if isinstance(student.layers, tuple):
        wrong = [layer for layer in student.layers if layer >= teacher_layers]
        if wrong:
            raise RecipeError(
                f"distill.student.layers: the teacher has layers 0–{teacher_layers - 1}, not {wrong}"
            )
        return sorted(student.layers)
    if student.layers is not None:
        count = student.layers
    elif student.config is not None:
        count = student.config.get("num_hidden_layers", teacher_layers)
    elif student_folder is not None:
        count = loading.load_config(student_folder).num_hidden_layers
    else:
        count = max(1, teacher_layers // 2)
    if count > teacher_layers:
        raise RecipeError(
            f"distill.student: {count} layers are specified, but the teacher has {teacher_layers}"
        )
    return [(index + 1) * teacher_layers // count - 1 for index in range(count)]
