"""Pruning in rounds: measure importance, remove a part, recover; a killed run continues in its round.

Why and at what cost: `pressoir.stages.prune`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pressoir.config import Config
from pressoir.data.sentences import problem_of
from pressoir.models import loading
from pressoir.models.layouts import count_parameters
from pressoir.pruning import units
from pressoir.pruning.target import at_level, candidates, reach
from pressoir.pruning.units import Level, PruningPlan, Units
from pressoir.recipe.sections import PruneConfig
from pressoir.reporting import Forwarding, Reporter
from pressoir.stage import StageContext
from pressoir.system.files import write_text_atomic
from pressoir.training import loop
from pressoir.training.distillation import DistillationLoss, TeacherOutputs

DEFAULT_SPARSITY, DEFAULT_HEAD_SPARSITY, DEFAULT_FFN_SPARSITY = 0.3, 0.25, 0.5
Measure = Callable[
    [PreTrainedModel, PreTrainedTokenizerBase, Path, PruneConfig, StageContext], Mapping[str, float]
]
"""What a model, its tokenizer and a data folder cost once compressed: figures by the fields of a target."""
REPORT = "rounds.json"  # of rounds, or a target
PLAN, DONE = "kept.json", "round.json"  # of a round, in the work folder; the latter is written last


class Round(Config):
    """What a finished round found, did and left."""

    before: Units
    """Heads and neurons of each layer at its beginning."""
    after: Units
    """Those that are left."""
    parameters_before: int
    epochs: int
    """Of recovery, at most."""
    level: Level
    """Pruning level after the last round, as far as is known in this one; null without a target."""
    figures: dict[str, float]
    """Validation accuracy before, right after, and after recovery, and what is left."""
    measured: dict[str, float]
    """Size and latency of the int8 graph, where a target asked for it."""
    history: list[dict[str, float]]
    """Figures of each epoch; epochs are counted over all rounds."""


def prune(
    inputs: Mapping[str, Path], config: PruneConfig, context: StageContext, measure: Measure
) -> dict[str, float]:
    """Write the pruned model; return validation accuracy before, right after (in the last round), and after
    recovery, what is left, and with a target what was measured of the int8 graph.

    Inputs: `model`, `data`, and, for recovery epochs, `outputs` (of `teacher_outputs`). A target of size or
    latency is compared with what `measure` returns.

    Raises:
        RecipeError: the target cannot be reached, however much is removed.
    """
    rounds: list[Round] = []
    for epochs in epochs_of_rounds(config.epochs, config.rounds):
        rounds.append(_round(inputs, config.model_copy(update={"epochs": epochs}), context, rounds, measure))
    for path in _model(context, config.rounds).iterdir():
        shutil.copy2(path, context.out_dir)
    if config.epochs:
        history = [epoch for finished in rounds for epoch in finished.history]
        loop.save_history(history, context, "prune")
    first, last = rounds[0], rounds[-1]
    if config.rounds > 1 or config.target is not None:
        report = [each.model_dump(exclude={"history", "parameters_before"}, by_alias=True) for each in rounds]
        (context.out_dir / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    measured = next((finished.measured for finished in reversed(rounds) if finished.measured), {})
    return {
        **last.figures,
        **{name: value for name, value in first.figures.items() if name.endswith("_before")},
        "parameters_kept": last.figures["parameters"] / first.parameters_before,
        **{f"int8_{name}": value for name, value in measured.items() if name != "parameters"},
    }


def epochs_of_rounds(epochs: int, rounds: int) -> list[int]:
    """Recovery epochs of each round: as many each, and the last also those left over."""
    each = epochs // rounds
    return [each] * (rounds - 1) + [epochs - each * (rounds - 1)]


def cumulative_fraction(number: int, rounds: int) -> float:
    """Fraction of all that is to be removed that is gone after round `number`, from 1 (Zhu & Gupta)."""
    return 1 - (1 - number / rounds) ** 3


def _model(context: StageContext, number: int) -> Path:
    """Folder of the model that a round leaves."""
    return context.work_dir / f"round-{number}" / "model"


def _round(
    inputs: Mapping[str, Path],
    config: PruneConfig,
    context: StageContext,
    earlier: list[Round],
    measure: Measure,
) -> Round:
    """The next round, with `config.epochs` of its own, unless it was finished before."""
    number, sentences = len(earlier) + 1, inputs["data"]
    metric = problem_of(sentences).metric
    out = _model(context, number)
    folder, log = out.parent, context.reporter.message
    if (folder / DONE).exists():
        done = Round.model_validate_json((folder / DONE).read_text(encoding="utf-8"))
        loop.report_epochs(done.history, context.reporter)
        return done
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    title = "prune" if config.rounds == 1 else f"prune, round {number} of {config.rounds}"
    past = sum(finished.epochs for finished in earlier)
    own = StageContext(
        out, folder, _Later(context.reporter, past), context.seed + number - 1, context.threads
    )

    torch.manual_seed(own.seed)
    model = loading.load_classifier(_model(context, number - 1) if earlier else inputs["model"])
    tokenizer = loading.load_tokenizer(inputs["model"])
    if earlier:
        metrics = {f"{metric}_before": earlier[-1].figures[f"validation_{metric}"]}
    else:
        metrics = {f"{metric}_before": _score(model, tokenizer, sentences)}
    before, parameters = units.units(model), count_parameters(model)
    after_step: Callable[[], None] | None = None
    level, measured = None, dict[str, float]()
    if config.granularity == "unstructured":
        sparsity = DEFAULT_SPARSITY if config.sparsity is None else config.sparsity
        sparsity *= cumulative_fraction(number, config.rounds)
        after_step = units.zero_smallest(model, sparsity)
        log(
            f"{title}: {sparsity:.0%} of the weights are zero; the matrices stay dense, so dense runtimes "
            "are not faster"
        )
    else:
        plan = _plan(model, tokenizer, sentences, config, own, earlier, measure)
        units.remove(model, plan)
        level, measured = plan.level, plan.measured
        log(f"{title}: {_describe(plan.units)}")
    metrics[f"{metric}_after_pruning"] = _score(model, tokenizer, sentences)
    shown = metric.replace("_", " ")
    log(f"{title}: {shown} {metrics[f'{metric}_before']:.4f} → {metrics[f'{metric}_after_pruning']:.4f}")
    history: list[dict[str, float]] = []
    if config.epochs:
        history = loop.fit(
            model,
            tokenizer,
            sentences,
            config,
            own,
            what=f"{title}: recovery steps",
            loss=DistillationLoss.from_config(config),
            outputs=TeacherOutputs.open(inputs["outputs"]),
            after_step=after_step,
        )
        if after_step is not None:
            after_step()
    loading.save_model(model, out)
    loading.save_tokenizer(tokenizer, out)
    metrics |= loop.evaluate(model, tokenizer, sentences)
    metrics |= {"parameters": count_parameters(model), "zero_weights": _zeros(model)}
    if config.epochs:
        log(f"{title}: recovered to {metrics[f'validation_{metric}']:.4f}")
    done = Round(
        before=before,
        after=units.units(model),
        parameters_before=parameters,
        epochs=config.epochs,
        level=level,
        figures=metrics,
        measured=measured,
        history=[{**epoch, "epoch": past + epoch["epoch"]} for epoch in history],
    )
    write_text_atomic(folder / DONE, done.model_dump_json(by_alias=True))  # last: the rest is whole
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if earlier:
        shutil.rmtree(_model(context, number - 1), ignore_errors=True)
    return done


def _plan(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Path,
    config: PruneConfig,
    context: StageContext,
    earlier: list[Round],
    measure: Measure,
) -> PruningPlan:
    """The units that this round keeps; saved in its folder, since its checkpoints fit no other plan."""
    path = context.work_dir / PLAN
    if path.exists():
        return PruningPlan.model_validate_json(path.read_text(encoding="utf-8"))
    number = len(earlier) + 1
    scores = units.importance(model, tokenizer, sentences, config, context)
    whole = earlier[0].before if earlier else units.units(model)
    uniform, fraction = config.allocation == "uniform", cumulative_fraction(number, config.rounds)
    if (target := config.target) is not None:

        def cost(candidate: PreTrainedModel) -> Mapping[str, float]:
            if target.parameters is not None:
                return {"parameters": count_parameters(candidate)}
            return measure(candidate, tokenizer, sentences, config, context)

        # With `global` the new importance has moved units between layers, and the shape with them.
        last = number == config.rounds
        if not earlier or (last and not uniform):
            found = reach(model, candidates(scores, uniform, whole), target, cost, context)
            level, measured = found.level, found.measured
        else:
            level, measured = earlier[0].level, {}
        assert level is not None
        plan = at_level(scores, level * fraction, uniform, whole)
        plan = plan.model_copy(update={"level": level, "measured": measured})
    else:
        heads = DEFAULT_HEAD_SPARSITY if config.head_sparsity is None else config.head_sparsity
        neurons = DEFAULT_FFN_SPARSITY if config.ffn_sparsity is None else config.ffn_sparsity
        plan = units.plan_pruning(scores, heads * fraction, neurons * fraction, uniform, whole)
    write_text_atomic(path, plan.model_dump_json(by_alias=True))
    return plan


def _score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: Path) -> float:
    return loop.evaluate(model, tokenizer, sentences)[f"validation_{problem_of(sentences).metric}"]


def _zeros(model: PreTrainedModel) -> float:
    """Fraction of the weights of all linear layers that is zero."""
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(int((weight == 0).sum()) for weight in matrices) / sum(weight.numel() for weight in matrices)


def _describe(left: Units) -> str:
    """`heads a layer 9, neurons a layer 768`; of layers that differ, each one's number."""

    def numbers(of: tuple[int, ...]) -> str:
        return " ".join(map(str, of if len(set(of)) > 1 else of[:1]))

    return f"heads per layer {numbers(left.heads)}, neurons per layer {numbers(left.neurons)}"


class _Later(Forwarding):
    """Passes on what a round reports; its epochs come after the `past` ones of earlier rounds."""

    def __init__(self, reporter: Reporter, past: int) -> None:
        super().__init__(reporter)
        self._past = past

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """See `Reporter.metric`."""
        super().metric(name, value, None if step is None else self._past + step)
