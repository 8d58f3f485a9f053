"""Everything that can be known to go wrong with a merge, found before any work, and reported together.

mergekit itself notices late or not at all: TIES and DARE skip a tensor whose shape differs, every method
takes one model's tokenizer without reading the others', and a model that is named twice counts once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pressoir.errors import MergeError, SourceError
from pressoir.merging import resources, settings
from pressoir.merging.checkpoint import Checkpoint, is_embedding, read_checkpoint, summary
from pressoir.merging.differences import Mismatch, compare
from pressoir.merging.settings import DEFAULT_DENSITY, TASK_VECTORS
from pressoir.recipe.sections import MergeConfig

STORED = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""mergekit's name of the type in which a tensor is stored, by safetensors' name of its source's."""


@dataclass(frozen=True)
class MergePlan:
    """Models that can be merged, and how."""

    config: MergeConfig
    parents: tuple[Checkpoint, ...]
    base: Checkpoint
    """Its configuration and tokenizer are the result's; ties and dare merge differences from it."""
    given_base: Checkpoint | None
    """The model given as base, whether or not the method needs one."""
    names: Mapping[str, Mapping[str, str]]
    """For each model but the base: what it calls each of the base's tensors that it fits."""
    notes: tuple[str, ...] = ()
    """What was decided without being asked for."""
    warnings: tuple[str, ...] = ()
    """What is probably wrong, but does not hinder the merge."""

    @property
    def models(self) -> tuple[Checkpoint, ...]:
        """Every model that mergekit is given: the base first."""
        return (self.base, *(model for model in self.parents if model is not self.base))

    @property
    def layers(self) -> int:
        """Number of layers of the result; 0 where the base has no one stack of layers."""
        if self.config.slices is None:
            return self.base.layers
        ranges = (layer_slice.sources[0].layer_range for layer_slice in self.config.slices)
        return sum(end - start for start, end in ranges)

    @property
    def ratios(self) -> tuple[float, ...]:
        """One weight a model; alike, with sum 1, where none are given."""
        return self.config.ratios or (1 / len(self.parents),) * len(self.parents)

    @property
    def out_dtype(self) -> str:
        """What the result is stored in."""
        return self.config.out_dtype or STORED[self.base.dtype]

    def misfits(self, model: Checkpoint) -> bool:
        """Whether some tensors of `model` do not fit, or it is of another architecture than the base."""
        return model is not self.base and (
            bool(self.unmerged(model)) or model.architecture != self.base.architecture
        )

    def unmerged(self, model: Checkpoint) -> list[str]:
        """The base's tensors that `model` has no part in."""
        names = self.base.tensors if model is self.base else self.names[model.name]
        return [name for name in self.base.tensors if name not in names]


def preflight(
    config: MergeConfig, inputs: Mapping[str, Path], output: Path, problems: Sequence[str] = ()
) -> MergePlan:
    """Check that the models in `inputs` (`parent_0`, `parent_1`, …, and perhaps `base`) can be merged.

    `problems` are what went wrong when the models were located; a model that was not found is missing from
    `inputs`, and the others are checked all the same.

    Raises:
        MergeError: they cannot; every finding is listed.
    """
    findings = [Mismatch(problem) for problem in problems]
    findings += map(Mismatch, settings.problems(config, has_base="base" in inputs or config.base is not None))
    if importlib.util.find_spec("mergekit") is None:
        findings.append(Mismatch("mergekit is not installed; run `pip install mergekit`"))
    found: dict[str, Checkpoint] = {}
    references = {f"parent_{i}": reference for i, reference in enumerate(config.models)}
    if config.base is not None or "base" in inputs:
        references["base"] = config.base or "base"
    for name, reference in references.items():
        if name in inputs:
            try:
                found[name] = read_checkpoint(inputs[name], name, reference)
            except SourceError as error:
                findings.append(Mismatch(str(error)))
        elif not problems:
            findings.append(Mismatch(f"{name} ({reference}) is not among the inputs"))
    given = found.pop("base", None)
    parents = tuple(found.values())
    base = next(iter(parents), given)
    if given is not None and config.method in TASK_VECTORS:
        base = next((m for m in parents if m.folder.samefile(given.folder)), given)
    if base is None:
        raise MergeError(_refusal(config, findings))

    plan = MergePlan(config, parents, base, given, {})
    findings += map(Mismatch, _same_folder(parents))
    for model in plan.models[1:]:
        names, differences = compare(base, model, aligned=config.tokenizer_source is not None)
        plan = replace(plan, names={**plan.names, model.name: names})
        findings += differences
    findings += [Mismatch(text, harmless=True) for model in plan.models for text in _vocabulary_rows(model)]
    findings += _left_out(plan)
    findings += map(Mismatch, _cannot_follow(plan))
    copies = sum(t.length for m in plan.models if plan.misfits(m) for t in m.tensors.values())
    result = resources.result_bytes(base, plan.out_dtype, plan.layers)
    findings += map(Mismatch, resources.problems(base, len(plan.models), result, copies, output))
    if fatal := [f for f in findings if not f.harmless and not (f.crime and config.allow_crimes)]:
        raise MergeError(_refusal(config, fatal))
    return replace(plan, notes=tuple(_notes(plan)), warnings=tuple(finding.text for finding in findings))


def _refusal(config: MergeConfig, findings: Sequence[Mismatch]) -> str:
    lines = [f"these models cannot be merged by {config.method} with this configuration:"]
    lines += [f"  - {finding.text}" for finding in findings]
    if any(finding.crime for finding in findings):
        lines.append(
            "Weights can only be averaged if they have the same meaning: merge models fine-tuned from the "
            "same base. --allow-crimes (allow_crimes: true) merges anyway; incompatible tensors are taken "
            "from the base."
        )
    return "\n".join(lines)


def _left_out(plan: MergePlan) -> Iterator[Mismatch]:
    for model in plan.models[1:]:
        if left := plan.unmerged(model):
            yield Mismatch(
                f"not merged from {model.label}, those of {plan.base.label} are kept: {len(left)} of "
                f"{len(plan.base.tensors)} tensors: {summary(left)}",
                harmless=True,
            )


def _same_folder(parents: Sequence[Checkpoint]) -> Iterator[str]:
    seen: dict[Path, Checkpoint] = {}
    for model in parents:
        first = seen.setdefault(model.folder.resolve(), model)
        if first is not model:
            yield f"models: {first.label} and {model.label} are the same folder; specify it once"


def _vocabulary_rows(model: Checkpoint) -> Iterator[str]:
    rows = model.vocabulary
    if rows and not any(is_embedding(name, tensor, rows) for name, tensor in model.tensors.items()):
        yield f"{model.label}: no tensor has the {rows} rows of config.json's vocab_size"
    highest = max(model.tokenizer.ids.values(), default=0) if model.tokenizer else 0
    if rows and highest >= rows:
        yield f"{model.label}: its tokenizer has ids up to {highest}, but its embedding {rows} rows"


def _cannot_follow(plan: MergePlan) -> Iterator[str]:
    """What the configuration asks of these models that they, or mergekit with them, cannot do."""
    config, base = plan.config, plan.base
    if not base.architecture:
        yield (
            f"{base.label}: config.json must specify one class in `architectures`, such as "
            f'["LlamaForCausalLM"], not {base.config.get("architectures")}'
        )
    by_name = {model.name: model for model in plan.parents}
    for i, layer_slice in enumerate(config.slices or ()):
        for source in layer_slice.sources:
            model = by_name.get(f"parent_{source.model}")
            if model and source.layer_range[1] > model.layers:
                asked = f"{source.layer_range[0]} to {source.layer_range[1] - 1}"
                yield f"slices[{i}]: layers {asked} of {model.label}, which has {model.layers}"
    given = settings.given_settings(config)
    if not base.layers and any(map(settings.is_gradient, given.values())):
        yield f"lists of values are interpolated over layers, but {base.label} has no single stack of layers"
    densities = [setting for path, setting in given.items() if path.endswith("density")] or [DEFAULT_DENSITY]
    lowest = min(number for setting in densities for number in settings.numbers(setting))
    name, smallest = min(base.tensors.items(), key=lambda item: item[1].elements)
    if (
        config.method == "ties"
        and lowest * smallest.elements < 1
        and not any(map(settings.filters, densities))
    ):
        yield (
            f"density: {lowest:g} of the {smallest.elements} elements of {name} is less than one, which "
            f"mergekit does not support; keep it whole: [{{filter: {name}, value: 1}}, {{value: "
            f"{lowest:g}}}]"
        )
    if config.tokenizer_source is not None:
        for name in (name for name, t in base.tensors.items() if t.shape == (base.vocabulary,)):
            yield f"tokenizer_source: mergekit does not align {name}, which has one element per token"


def _notes(plan: MergePlan) -> Iterator[str]:
    config, base, total = plan.config, plan.base, sum(plan.ratios)
    if config.method in TASK_VECTORS:
        if plan.given_base is None:
            yield f"{config.method}: no base is given, so the first model is it: {base.label}"
        if base in plan.parents and config.ratios is not None:
            yield f"{config.method}: the ratio of {base.label} is not used, since it is the base"
        if not any(path.endswith("density") for path in settings.given_settings(config)):
            yield f"{config.method}: no density is given; {DEFAULT_DENSITY:g} of each model's changes is kept"
    elif plan.given_base is not None:
        yield f"{config.method} takes no base; {plan.given_base.label} is only measured beside the others"
    if config.method == "slerp" and config.t is None:
        said = "" if abs(total - 1) < 1e-6 else f" (the ratios sum to {total:g})"
        yield f"slerp: t = {plan.ratios[1] / total:g}{said}, from {base.label} to {plan.parents[1].label}"
    if config.method == "linear" and abs(total - 1) > 1e-6:
        shares = ", ".join(f"{ratio / total:g}" for ratio in plan.ratios)
        kept = "and are not normalised (normalize: false)"
        said = kept if config.normalize is False else f"and are normalised to {shares}"
        yield f"linear: the ratios sum to {total:g} {said}"
    if len({tensor.dtype for model in plan.models for tensor in model.tensors.values()}) > 1:
        types = ", ".join(f"{model.label} {STORED[model.dtype]}" for model in plan.models)
        yield f"types differ ({types}): computed in {config.dtype}, stored as {plan.out_dtype}"
