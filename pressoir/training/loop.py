"""One training loop for every stage that trains: transformers' `Trainer`, made quiet and resumable.

Batches are grouped by length, the best epoch on the validation split is kept, and a killed run goes on from
its last whole checkpoint. The distillation loss (soft and hard labels, hidden states, attention relations)
stands here because both distilling and recovering from pruning use it.

Sources: G. Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531) for the
soft-label loss; X. Jiao et al. 2020, "TinyBERT" (arXiv:1909.10351) for the hidden-state loss; for that of
relations see `pressoir.training.relations`.
"""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from pressoir.data import sentences
from pressoir.data.texts import Text, Words, texts_of
from pressoir.errors import RecipeError
from pressoir.formats.problems import (
    MULTI_LABEL,
    NO_WORD,
    PROBLEMS,
    SINGLE_LABEL,
    THRESHOLDS,
    TOKENS,
    Problem,
    choose_thresholds,
    thresholds_of,
)
from pressoir.inference.engines.classifier import TorchEngine
from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.token_alignment import flat
from pressoir.models import loading
from pressoir.models.layouts import accepted_inputs, class_names
from pressoir.recipe.sections import LearnerConfig, QuantizeConfig, TrainingConfig
from pressoir.reporting import Reporter, track
from pressoir.stage import StageContext
from pressoir.system import runtime
from pressoir.training import balance, precision, quantization_aware, relations, word_labels
from pressoir.training.curves import training_curves
from pressoir.training.distillation import PROJECTION, DistillationLoss, TeacherOutputs
from pressoir.training.losses import LOSSES

_EPOCH = "epoch.npz"
SCORES = tuple(dict.fromkeys(score for problem in PROBLEMS.values() for score in problem.scores))
"""Metrics of an epoch, each of some kind of problem."""


def tokenize(folder: Path, split: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Any:
    """A split as inputs that `model` takes, with `labels` (its own), `length` (tokens) and `row` (number).

    Of words with tags a row is a window of a sentence, see `pressoir.training.word_labels`.
    """
    rows, accepted = sentences.load_split(folder, split, class_names(model)), accepted_inputs(model)
    problem, texts = sentences.problem_of(folder), texts_of(rows)
    if problem.name == TOKENS.name:
        encoded = word_labels.encode(tokenizer, cast("list[Words]", texts), rows["label"][:])
        encoded = {name: encoded[name] for name in encoded if name in (*accepted, "labels", "words")}
    else:
        encoded = tokenizer(texts, truncation=True)
        encoded = {name: values for name, values in encoded.items() if name in accepted}
        encoded["labels"] = problem.targets(rows["label"][:], len(class_names(model))).tolist()
    encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
    encoded["row"] = list(range(len(encoded["length"])))
    return type(rows).from_dict(encoded)


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    config: TrainingConfig,
    context: StageContext,
    *,
    what: str,
    loss: DistillationLoss | None = None,
    outputs: TeacherOutputs | None = None,
    after_step: Callable[[], None] | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place on the saved data `folder`, keep its best epoch, and return the metrics of each
    epoch.

    With `loss` and `outputs` it learns from the teacher's outputs, else from the labels. `after_step` runs
    after every optimizer step (to keep pruned weights at zero). Checkpoints lie in `context.work_dir`; the
    last whole one is resumed. With `quantization_aware` in the configuration, training and the choice of the
    best epoch compute as int8 will; the model that is left is a float one all the same.

    Raises:
        RecipeError: what the teacher said cannot be compared with what this model says, or `class_weights`
            names a label that the data lack.
    """
    if config.epochs == 0:
        return []
    problem = sentences.problem_of(folder)
    model.config.problem_type = problem.problem_type  # as training leaves it, begun or only resumed
    if loss is not None:
        loss = replace(loss, problem=problem.name)
    train = tokenize(folder, "train", tokenizer, model)
    validation = tokenize(folder, "validation", tokenizer, model).remove_columns("row")
    problem = problem.of(class_names(model))
    if loss is not None and outputs is not None and outputs.hidden is not None:
        _check_matching(model, train, outputs)
        width = outputs.hidden.shape[2]
        if width != model.config.hidden_size:
            model.add_module(PROJECTION, nn.Linear(model.config.hidden_size, width))
    captured: AbstractContextManager[dict[str, Tensor] | None] = nullcontext()
    if loss is not None and outputs is not None and loss.relation_weight > 0:
        captured = relations.captured(model)
        heads = _check_relations(model, train, outputs, loss)
        context.reporter.message(f"{what}: attention relations of the last layer in {heads} heads")
    elif outputs is not None:
        outputs = replace(outputs, relations=None)  # stored for another stage
    checkpoints, chosen_by = context.work_dir / "checkpoints", balance.best_metric(config, folder)
    if chosen_by != "accuracy":
        context.reporter.message(f"{what}: the best epoch is that with the best {_CHOSEN_BY[chosen_by]}")
    if (slow := precision.warning(config)) is not None:
        context.reporter.message(slow)
    arguments = _arguments(config, checkpoints, chosen_by, context.seed)
    progress = _Progress(context.reporter, what, config.checkpoint_every_steps, after_step)
    callbacks: list[TrainerCallback] = [progress]
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=_Collator(tokenizer, outputs, words=problem.name == TOKENS.name),
        compute_metrics=partial(
            _scores, problem=problem, places=sentences.label_places(folder, class_names(model))
        ),
        callbacks=callbacks,
    )
    trainer.distillation, progress.trainer = loss, trainer
    trainer.class_weights = balance.class_weights(config, folder, class_names(model))
    if trainer.class_weights is not None:
        pairs = zip(class_names(model), trainer.class_weights.tolist(), strict=True)
        listed = ", ".join(f"{name} {weight:.3g}" for name, weight in pairs)
        context.reporter.message(f"{what}: weights of the labels: {listed}")
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_whole_checkpoint(checkpoints)
    if checkpoint is not None:
        context.reporter.message(f"{what}: resuming from {checkpoint.name}")
        with np.load(checkpoint / _EPOCH) as begun:
            progress.order = torch.from_numpy(begun["order"])
            trainer.losses, trainer.steps = torch.from_numpy(begun["losses"]), int(begun["steps"])
    with warnings.catch_warnings():
        # accelerate re-wraps the scheduler on resume, and torch warns of an order that Trainer keeps.
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        # Checkpoints of a small model follow each other within a second, which Trainer takes for a bad clock.
        warnings.filterwarnings("ignore", message="mtime may not be reliable")
        with _rounding(model, config), runtime.freed_blocks_kept(), captured as trainer.vectors:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model.forward = type(model).forward.__get__(model)  # drop accelerate's autocast wrapper
    if hasattr(model, PROJECTION):
        delattr(model, PROJECTION)
    model.eval()
    if problem is MULTI_LABEL:
        set_thresholds(model, tokenizer, folder, context.reporter)
    return _history(trainer.state.log_history)


_CHOSEN_BY = {
    "macro_f1": "macro-averaged F1",
    "micro_f1": "micro-averaged F1",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "span_f1": "F1 of the spans",
}


def set_thresholds(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, reporter: Reporter
) -> None:
    """Choose the thresholds of a multi-label model on the validation split, as `data.thresholds` says, and
    put them into its configuration.
    """
    labels, facts = class_names(model), sentences.info(folder)
    rows = sentences.load_split(folder, "validation", labels)
    logits = TextClassifier(TorchEngine(model), tokenizer, labels).logits(texts_of(rows), batch_size=64)
    expected = MULTI_LABEL.targets(rows["label"][:], len(labels))
    each = facts[sentences.THRESHOLDS] == "per-label"
    chosen = choose_thresholds(logits, expected, each)
    setattr(model.config, THRESHOLDS, chosen)
    listed = ", ".join(f"{name} {value:.3g}" for name, value in zip(labels, chosen, strict=True))
    reporter.message(f"threshold of the probability: {listed if each else f'{chosen[0]:.3g}'}")


def _arguments(config: TrainingConfig, checkpoints: Path, best_metric: str, seed: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_ratio=config.warmup_fraction,
        lr_scheduler_type="linear",
        group_by_length=True,
        length_column_name="length",
        bf16=precision.resolved(config) == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        restore_callback_states_from_checkpoint=True,  # the epochs without progress are counted on
        metric_for_best_model=best_metric,
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )


def _rounding(model: PreTrainedModel, config: TrainingConfig) -> AbstractContextManager[None]:
    """What is in force while `model` trains: simulated int8, where `config` asks for it."""
    if not isinstance(config, LearnerConfig) or config.quantization_aware is None:
        return nullcontext()
    embedding_bits = 4 if config.quantization_aware == "int8_q4" else 8
    return quantization_aware.simulated(
        model, embedding_bits, exclude=(*QuantizeConfig().exclude, PROJECTION)
    )


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, split: str = "validation"
) -> dict[str, float]:
    """The scores of `model` in float32 on a split, as `{split}_accuracy` and so on: see `Problem.scores`.

    Of two labels `f1` is that of the data's second. A multi-label model decides by its own thresholds.
    """
    problem, labels = sentences.problem_of(folder), class_names(model)
    rows = sentences.load_split(folder, split, labels if problem is MULTI_LABEL else None)
    classifier = TextClassifier(TorchEngine(model), tokenizer, labels)
    logits = classifier.logits(texts_of(rows), batch_size=64)
    if problem is not MULTI_LABEL:  # the scores of sets do not depend on the order of the labels
        logits = logits[..., sentences.label_places(folder, labels)]
    predicted = problem.decide(logits, thresholds_of(model.config.to_dict()))
    expected = problem.targets(rows["label"][:], len(labels))
    scores = problem.score(predicted, expected, len(labels))
    return {f"{split}_{name}": value for name, value in scores.items()}


def logits_of(folder: Path, texts: Sequence[Text], what: str, reporter: Reporter) -> NDArray[np.float32]:
    """Logits of the classifier in `folder` for `texts`, (sentences, labels), or (words of all, labels);
    progress per 1,024 sentences.
    """
    model = loading.load_classifier(folder)
    labels = class_names(model)
    classifier = TextClassifier(TorchEngine(model), loading.load_tokenizer(folder), labels)
    blocks = [texts[start : start + 1024] for start in range(0, len(texts), 1024)]
    tracked = track(blocks, len(blocks), f"{what}, blocks of sentences", reporter)
    found = [classifier.logits(block, batch_size=64) for block in tracked]
    if found and found[0].ndim == 3:
        found = [flat(own, cast("list[Words]", b)) for own, b in zip(found, blocks, strict=True)]
    return np.concatenate([np.zeros((0, len(labels)), dtype=np.float32), *found])


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; half-written ones are removed.

    `Trainer` writes `trainer_state.json` last, after what we know of the epoch: where both can be read, a
    checkpoint is whole.
    """
    found = sorted(
        folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True
    )
    for checkpoint in found:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            with (checkpoint / _EPOCH).open("rb") as file:  # which a broken one would leave open
                np.load(file).close()
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            shutil.rmtree(checkpoint, ignore_errors=True)
            continue
        return checkpoint
    return None


def save_history(history: list[dict[str, float]], context: StageContext, title: str) -> None:
    """Write the metrics of each epoch as `history.json` and their curves as a PNG."""

    (context.out_dir / "history.json").write_text(json.dumps(history, indent=2) + "\n", encoding="utf-8")
    if history:
        training_curves(history, context.out_dir / f"{title}_curves.png")


def report_epochs(history: list[dict[str, float]], reporter: Reporter) -> None:
    """Report the validation metrics of epochs, each at its number."""
    for epoch in history:
        for name in ("loss", *(score for score in SCORES if score in epoch)):
            reporter.metric(f"validation_{name}", epoch[name], step=round(epoch["epoch"]))


class _Trainer(Trainer):
    distillation: DistillationLoss | None = None
    vectors: dict[str, Tensor] | None = None
    class_weights: Tensor | None = None
    losses, steps = torch.zeros(()), 0
    """Sum of the losses since the last log, and of how many steps; `Trainer` forgets it at a checkpoint."""
    began: Tensor
    """State of torch's generator when the epoch began."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Note the loss of each step."""
        loss: Tensor = super().training_step(*args, **kwargs)
        self.losses, self.steps = self.losses + loss.detach().cpu(), self.steps + 1
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the mean loss of a whole epoch, even if it was resumed from a checkpoint within it."""
        if "loss" in logs:
            logs["loss"] = round(self.losses.item() / self.steps, 4)
            self.losses, self.steps = torch.zeros(()), 0
        super().log(logs, *args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        """Keep with a checkpoint what is known of its epoch: what its order is drawn from, and its losses.

        Here, so that `trainer_state.json` is still the file that a checkpoint ends with.
        """
        super()._save_rng_state(output_dir)  # type: ignore[no-untyped-call]
        order = torch.get_rng_state() if _ends_epoch(self.state) else self.began
        np.savez(
            Path(output_dir) / _EPOCH,
            order=order.numpy(),
            losses=self.losses.numpy(),
            steps=self.steps,
        )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The distillation loss while training, cross-entropy on the labels otherwise."""
        weights = None if self.class_weights is None else self.class_weights.to(inputs["labels"].device)
        if self.distillation is None or not model.training:
            outputs = model(**{k: v for k, v in inputs.items() if not k.startswith("teacher_")})
            loss = outputs.loss
            if weights is not None and model.training:
                loss = LOSSES[SINGLE_LABEL.name].hard(
                    outputs.logits.float(), inputs["labels"], weights, "mean"
                )
            return (loss, outputs) if return_outputs else loss
        teacher_logits = inputs.pop("teacher_logits")
        teacher_hidden = inputs.pop("teacher_hidden", None)
        teacher_vectors = inputs.pop("teacher_relations", None)
        labels = inputs.pop("labels")
        outputs = model(**inputs, output_hidden_states=teacher_hidden is not None)
        hidden = None
        if teacher_hidden is not None:
            hidden = outputs.hidden_states[1:]
            if (projection := getattr(model, PROJECTION, None)) is not None:
                hidden = tuple(projection(layer) for layer in hidden)
        logits = outputs.logits
        if logits.ndim == 3:  # of tokens: those that stand for a word
            first = labels != NO_WORD
            logits, labels = logits[first], labels[first]
        loss = self.distillation(
            logits,
            labels,
            teacher_logits,
            hidden,
            teacher_hidden,
            mask=inputs["attention_mask"],
            vectors=relations.stacked(self.vectors) if self.vectors is not None else None,
            teacher_vectors=teacher_vectors,
            class_weights=weights,
        )
        return (loss, outputs) if return_outputs else loss


class _Collator:
    """Pads a batch to its longest sentence; adds the teacher's outputs of its rows (validation has none)."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, outputs: TeacherOutputs | None, words: bool = False
    ) -> None:
        collator = DataCollatorForTokenClassification if words else DataCollatorWithPadding
        self.pad, self.outputs = collator(tokenizer), outputs

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        own = ("row", "length", "words")
        result = dict(self.pad([{k: v for k, v in f.items() if k not in own} for f in features]))
        if self.outputs is not None and "row" in features[0]:
            rows, length = [f["row"] for f in features], result["input_ids"].shape[1]
            words = [word for f in features for word in f["words"]] if "words" in features[0] else None
            result |= self.outputs.batch(rows, length, words)
        return result


class _Progress(TrainerCallback):
    """Forwards steps and epoch metrics to the reporter, and asks for checkpoints between epochs."""

    def __init__(
        self, reporter: Reporter, what: str, every: int | None, after_step: Callable[[], None] | None
    ) -> None:
        self.reporter, self.what, self.every, self.after_step = reporter, what, every, after_step
        self.trainer: _Trainer
        self.order: Tensor | None = None
        """State of torch's generator when the epoch began that is resumed."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep what must not change."""
        if self.after_step is not None:
            self.after_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the step; save where asked."""
        self.reporter.progress(state.global_step, state.max_steps, self.what)
        # The end of an epoch is saved after its evaluation, which one that is resumed there would leave out.
        if self.every is not None and state.global_step % self.every == 0 and not _ends_epoch(state):
            control.should_save = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the epochs before the checkpoint that is resumed."""
        report_epochs(_history(state.log_history), self.reporter)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the order of the batches that the interrupted epoch had."""
        if self.order is not None:
            torch.set_rng_state(self.order)
        self.order, self.trainer.began = None, torch.get_rng_state()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the epoch's metrics."""
        report_epochs(_history(state.log_history)[-1:], self.reporter)


def _ends_epoch(state: Any) -> bool:
    return bool(state.global_step % (state.max_steps // state.num_train_epochs) == 0)


def _scores(prediction: Any, problem: Problem, places: list[int]) -> dict[str, float]:
    """Of an evaluation of Trainer's; `places` are those of the data's labels among the model's.

    Several labels are decided by the one threshold that is best for these sentences.
    """
    logits = (
        prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    )
    expected, thresholds = prediction.label_ids, None
    if problem is MULTI_LABEL:
        thresholds = choose_thresholds(logits, expected, each=False)
    elif problem is SINGLE_LABEL:
        expected, logits = np.argsort(places)[expected], logits[:, places]  # of two labels F1 is the second's
    return problem.score(problem.decide(logits, thresholds), expected, len(places))


def _history(log: list[dict[str, Any]]) -> list[dict[str, float]]:
    epochs: dict[float, dict[str, float]] = {}
    for entry in log:
        row = epochs.setdefault(entry["epoch"], {"epoch": entry["epoch"]})
        names = {"loss": "train_loss", "eval_loss": "loss", **{f"eval_{name}": name for name in SCORES}}
        for source, name in names.items():
            if source in entry:
                row[name] = float(entry[source])
    return [row for row in epochs.values() if "loss" in row]


def _check_matching(model: PreTrainedModel, train: Any, outputs: TeacherOutputs) -> None:
    assert outputs.hidden is not None
    layers = model.config.num_hidden_layers
    if outputs.hidden.shape[1] != layers:
        raise RecipeError(
            f"the student has {layers} layers, but {outputs.hidden.shape[1]} teacher layers are to be matched"
        )
    _check_tokens(train, outputs, "hidden states", "hidden_weight")


def _check_relations(
    model: PreTrainedModel, train: Any, outputs: TeacherOutputs, loss: DistillationLoss
) -> int:
    """The number of relation heads, once it is sure that relations can be compared."""
    if outputs.relations is None:
        raise RecipeError(
            "relation_weight is above 0, but the teacher outputs have no queries, keys and values; "
            "compute them with `relations: true`"
        )
    _check_tokens(train, outputs, "attention relations", "relation_weight")
    return relations.count_heads(outputs.relations.shape[2], relations.width(model), loss.relation_heads)


def _check_tokens(train: Any, outputs: TeacherOutputs, what: str, field: str) -> None:
    if np.diff(outputs.offsets).tolist() != train["length"][:]:
        raise RecipeError(
            f"teacher and student tokenise the sentences differently, so their {what} cannot be compared; "
            f"set distill.{field} and prune.{field} to 0"
        )
