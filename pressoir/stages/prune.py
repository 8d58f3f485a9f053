"""Prune: remove weights that matter least, then recover under the teacher.

`unstructured` sets the smallest weights of each matrix to zero (magnitude pruning). The matrices stay dense,
so dense runtimes compute every zero: the file compresses better, but nothing gets faster. It is here as the
classic reference.

`structured` removes whole attention heads and feed-forward neurons PHYSICALLY: the matrices are smaller, the
file is smaller, and every runtime is faster. Importance is the first-order Taylor expansion of the loss,
|activation × gradient| summed over a head or neuron, or the mean absolute activation (no backward pass).
Costs one pass over the calibration sentences, plus recovery epochs.

With `allocation: uniform` every layer keeps the same number of heads and neurons, and plain `from_pretrained`
reloads the result (heads through the config's `pruned_heads`). With `global` the layers differ: heads still
reload, but different feed-forward widths need `pressoir.models.load_classifier`, which reads
`intermediate_sizes` in the config.

Sources: S. Han et al. 2015 (arXiv:1506.02626), magnitude; P. Molchanov et al. 2019 (arXiv:1906.10771), Taylor
importance; P. Michel et al. 2019, "Are Sixteen Heads Really Better than One?" (arXiv:1905.10650), heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pressoir import data, models, training
from pressoir.inference.engines import accepted_inputs
from pressoir.reporting import track
from pressoir.sections import PruneConfig
from pressoir.stages import StageContext

NAME, VERSION, KIND = "prune", 1, "model"
FFN_MULTIPLE = 16  # widths that fill the vector registers of int8 kernels
DEFAULT_SPARSITY, DEFAULT_HEAD_SPARSITY, DEFAULT_FFN_SPARSITY = 0.3, 0.25, 0.5


def run(inputs: Mapping[str, Path], config: PruneConfig, context: StageContext) -> dict[str, float]:
    """Write the pruned model; return validation accuracy before, right after, and after recovery, and what is
    left.

    Inputs: `model`, `data`, and, for recovery epochs, `outputs` (of `teacher_outputs`).
    """
    torch.manual_seed(context.seed)
    model, tokenizer = models.load_classifier(inputs["model"]), models.load_tokenizer(inputs["model"])
    figures = {"accuracy_before": training.evaluate(model, tokenizer, inputs["data"])["validation_accuracy"]}
    parameters = models.count_parameters(model)
    after_step: Callable[[], None] | None = None
    if config.granularity == "unstructured":
        sparsity = DEFAULT_SPARSITY if config.sparsity is None else config.sparsity
        after_step = prune_unstructured(model, sparsity)
        context.reporter.message(
            f"prune: {sparsity:.0%} of the weights are zero; the matrices stay dense, so no runtime for "
            "dense matrices gains speed from it"
        )
    else:
        heads, neurons = importance(model, tokenizer, inputs["data"], config, context)
        prune_structured(model, heads, neurons, config)
    figures["accuracy_after_pruning"] = training.evaluate(model, tokenizer, inputs["data"])[
        "validation_accuracy"
    ]
    if config.epochs:
        loss = training.DistillationLoss(config.temperature, config.alpha, config.hidden_weight)
        outputs = training.TeacherOutputs.open(inputs["outputs"])
        history = training.fit(
            model,
            tokenizer,
            inputs["data"],
            config,
            context,
            what="prune: recovery steps",
            loss=loss,
            outputs=outputs,
            after_step=after_step,
        )
        training.save_history(history, context, NAME)
        if after_step is not None:
            after_step()
    models.save_model(model, context.out_dir)
    models.save_tokenizer(tokenizer, context.out_dir)
    matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    zeros = sum(int((weight == 0).sum()) for weight in matrices) / sum(weight.numel() for weight in matrices)
    return figures | {
        **training.evaluate(model, tokenizer, inputs["data"]),
        "parameters": models.count_parameters(model),
        "parameters_kept": models.count_parameters(model) / parameters,
        "zero_weights": zeros,
    }


def prune_unstructured(model: PreTrainedModel, sparsity: float) -> Callable[[], None]:
    """Zero the `sparsity` smallest weights of each encoder matrix; return what zeroes them again."""
    masks: list[tuple[Tensor, Tensor]] = []
    for module in models.encoder_layers(model).modules():
        if isinstance(module, nn.Linear):
            count = int(sparsity * module.weight.numel())
            smallest = module.weight.detach().abs().flatten().argsort()[:count]
            mask = torch.ones(module.weight.numel(), dtype=torch.bool)
            mask[smallest] = False
            masks.append((module.weight, mask.view_as(module.weight)))

    @torch.no_grad()
    def apply() -> None:
        for weight, mask in masks:
            weight.mul_(mask)

    apply()
    return apply


def importance(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    config: PruneConfig,
    context: StageContext,
) -> tuple[list[Tensor], list[Tensor]]:
    """Importance of each layer's heads (heads,) and neurons (neurons,), from calibration sentences.

    `taylor`: sum over sentences of |Σ over tokens of activation × ∂cross-entropy/∂activation|;
    `activation`: mean over tokens of |activation|. Both look at what enters the block's output projection.
    """
    parts, layers = models.layout(model), models.encoder_layers(model)
    rows = data.load_split(folder, "train").shuffle(seed=context.seed)
    rows = rows.select(range(min(config.calibration_samples, len(rows))))
    taylor = config.importance == "taylor"
    seen: dict[tuple[str, int], Tensor] = {}
    hooks = []
    for index, layer in enumerate(layers):
        for part in ("attention_output", "ffn_out"):

            def keep(
                module: nn.Module, args: tuple[Tensor, ...], place: tuple[str, int] = (part, index)
            ) -> None:
                seen[place] = args[0]
                if taylor:
                    args[0].retain_grad()

            hooks.append(layer.get_submodule(parts[part]).register_forward_pre_hook(keep))
    scores = {
        (part, index): torch.zeros(int(layer.get_submodule(parts[part]).in_features))  # type: ignore[arg-type]
        for index, layer in enumerate(layers)
        for part in ("attention_output", "ffn_out")
    }
    head_size = model.config.hidden_size // model.config.num_attention_heads
    head_scores = [
        torch.zeros(len(scores["attention_output", index]) // head_size) for index in range(len(layers))
    ]
    names = accepted_inputs(model)
    batches = [rows[start : start + 16] for start in range(0, len(rows), 16)]
    for batch in track(batches, len(batches), "prune: calibration batches", context.reporter):
        encoded = tokenizer(batch["text"], padding=True, truncation=True, return_tensors="pt")
        mask = encoded["attention_mask"][..., None]
        with torch.set_grad_enabled(taylor):
            logits = model(**{name: encoded[name] for name in names if name in encoded}).logits
            if taylor:
                F.cross_entropy(logits, torch.tensor(batch["label"]), reduction="sum").backward()
        for (part, index), activation in seen.items():  # activation: (batch, seq, units)
            if taylor:
                assert activation.grad is not None
                effect = (activation.detach() * activation.grad * mask).sum(dim=1)  # (batch, units)
                if part == "attention_output":
                    per_head = effect.view(len(effect), -1, head_size).sum(dim=2).abs().sum(dim=0)
                    head_scores[index] += per_head
                else:
                    scores[part, index] += effect.abs().sum(dim=0)
            else:
                size = (activation.detach().abs() * mask).sum(dim=(0, 1)) / mask.sum()
                if part == "attention_output":
                    head_scores[index] += size.view(-1, head_size).sum(dim=1)
                else:
                    scores[part, index] += size
        model.zero_grad(set_to_none=True)
        seen.clear()
    for hook in hooks:
        hook.remove()
    return head_scores, [scores["ffn_out", index] for index in range(len(layers))]


def prune_structured(
    model: PreTrainedModel, heads: list[Tensor], neurons: list[Tensor], config: PruneConfig
) -> None:
    """Remove the least important heads and neurons, in place; the new sizes go into the config."""
    head_sparsity = DEFAULT_HEAD_SPARSITY if config.head_sparsity is None else config.head_sparsity
    ffn_sparsity = DEFAULT_FFN_SPARSITY if config.ffn_sparsity is None else config.ffn_sparsity
    uniform = config.allocation == "uniform"
    kept_heads = choose(heads, head_sparsity, uniform)
    kept_neurons = choose(neurons, ffn_sparsity, uniform, FFN_MULTIPLE)
    parts = models.layout(model)
    already = {int(k): set(v) for k, v in (getattr(model.config, "pruned_heads", None) or {}).items()}
    total = model.config.num_attention_heads
    remove: dict[int, list[int]] = {}
    for index, kept in enumerate(kept_heads):
        present = [head for head in range(total) if head not in already.get(index, set())]
        gone = [head for place, head in enumerate(present) if place not in set(kept.tolist())]
        if gone:
            remove[index] = gone
    if remove:
        model.prune_heads(remove)
    for layer, kept in zip(models.encoder_layers(model), kept_neurons, strict=True):
        models.resize_ffn(layer, parts, kept)
    widths = [len(kept) for kept in kept_neurons]
    field = "hidden_dim" if model.config.model_type == "distilbert" else "intermediate_size"
    if len(set(widths)) == 1:
        setattr(model.config, field, widths[0])
    else:
        model.config.intermediate_sizes = widths


def choose(scores: list[Tensor], sparsity: float, uniform: bool, multiple: int = 1) -> list[Tensor]:
    """Indices of the units to keep in each layer, ascending; at least one (or `multiple`) stays in every
    layer.

    `uniform` keeps the same part of every layer; otherwise units of all layers compete, each layer's scores
    being normalised by their L2 norm first (Molchanov et al.).
    """
    if uniform:
        counts = [len(layer) * (1 - sparsity) for layer in scores]
    else:
        normal = torch.cat([layer / (layer.norm() + 1e-12) for layer in scores])
        owners = torch.cat([torch.full((len(layer),), index) for index, layer in enumerate(scores)])
        winners = normal.argsort(descending=True)[: round(len(normal) * (1 - sparsity))]
        counts = [float((owners[winners] == index).sum()) for index in range(len(scores))]
    kept = []
    for layer, count in zip(scores, counts, strict=True):
        step = min(multiple, len(layer))
        size = min(len(layer), max(step, round(count / step) * step))
        kept.append(layer.argsort(descending=True)[:size].sort().values)
    return kept
