"""Merge fine-tunes of one model into one that has something of each, without training.

**What.** The weights of several checkpoints become one checkpoint of the same size:

- `linear`: the weighted mean of each tensor (model soups).
- `slerp`: the point between two models on the arc between them, tensor by tensor, so that the norm is kept.
- `ties`: each model's difference from the base is trimmed to its largest values, the sign of every element
  is elected, and what agrees with it is averaged.
- `dare_ties`, `dare_linear`: the differences are thinned at random, scaled up to make good for it, and
  combined with, or without, the election of signs.
- `passthrough`: layers are copied from one model or another, unchanged.

**Why.** Two fine-tunes for two subjects become one model, in minutes, on a CPU, without their data. It works
because fine-tunes of one base stay close to it; of models without a common base it makes noise.

**Cost.** Reading every model once and writing one, a tensor at a time: the memory of one file of the result,
not of a model. mergekit does it, in a process of its own. Then parents and result are measured on the same
data, which takes as long as so many inferences; a merge that is worse than all its parents says so.

**Sources.** Wortsman et al. 2022 (arXiv:2203.05482); Shoemake 1985 (doi:10.1145/325334.325242); Yadav et al.
2023 (arXiv:2306.01708); Yu et al. 2023 (arXiv:2311.03099); Goddard et al. 2024, mergekit (arXiv:2403.13257).
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import yaml

from pressoir import __version__
from pressoir.errors import MergeError
from pressoir.formats.tensor_bytes import INDEX, checkpoint_tensors
from pressoir.merging import configuration
from pressoir.merging.checkpoint import Checkpoint
from pressoir.merging.evaluation import MergeReport, evaluate
from pressoir.merging.preflight import MergePlan, preflight
from pressoir.merging.process import prepare, run_mergekit
from pressoir.recipe.sections import MergeConfig
from pressoir.sources import resolve
from pressoir.stage import Stage, StageContext, StageKeyParts

CONFIG = configuration.CONFIG
METADATA = "metadata.json"
REPORT = "merge_report.json"
_PACKAGES = ("mergekit", "torch", "transformers", "safetensors", "numpy")
# Files of the base that mergekit leaves behind; all but the last belong to its tokenizer.
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    "chat_template.jinja",
)


def run(inputs: Mapping[str, Path], config: MergeConfig, context: StageContext) -> dict[str, float]:
    """Merge the model folders `inputs["parent_0"]`, `["parent_1"]`, …; return scores, sizes and counts.

    `inputs["base"]` is the model given as base, if any; `inputs["data"]` what parents and result are measured
    on (see `pressoir.merging.evaluation.evaluate`).

    Raises:
        MergeError: the models cannot be merged as asked (every finding at once, before any work), or mergekit
            failed.
    """
    models = {name: folder for name, folder in inputs.items() if name != "data"}
    plan = preflight(config, models, context.out_dir)
    for note in plan.notes:
        context.reporter.message(note)
    for warning in plan.warnings:
        context.reporter.message(f"WARNING: {warning}")
    digests = {
        name: context.digests.get(name) or resolve.resolve(str(folder)).digest
        for name, folder in models.items()
    }
    settings = configuration.mergekit_yaml(plan, digests)
    folder = context.work_dir / "mergekit"
    try:
        prepare(plan, settings, folder)
        run_mergekit(folder, context.out_dir, seed=context.seed, reporter=context.reporter)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _complete(plan, context.out_dir)
    tensors = _check(plan, context.out_dir)
    (context.out_dir / CONFIG).write_text(settings, encoding="utf-8")
    report = evaluate(
        plan, context.out_dir, inputs.get("data"), threads=context.threads, reporter=context.reporter
    )
    context.reporter.message(f"{'WARNING: ' if report.worse else ''}merge: {report.headline()}")
    _write_texts(plan, settings, digests, report, context)
    metrics = {**report.metrics(), "tensors": float(tensors)}
    metrics["unmerged_tensors"] = float(sum(len(plan.unmerged(model)) for model in plan.models))
    metrics["size_mb"] = sum(path.stat().st_size for path in context.out_dir.glob("*.safetensors")) / 1e6
    for name, value in metrics.items():
        context.reporter.metric(name, value)
    return metrics


def _complete(plan: MergePlan, out: Path) -> None:
    """Add the base's tokenizer, unless mergekit made one, and its settings of generation."""
    source = plan.base.folder
    for name in ("generation_config.json", *_TOKENIZER):
        if (source / name).exists() and not (out / name).exists():
            shutil.copyfile(source / name, out / name)
    if (out / "tokenizer.json").exists() or not any((out / name).exists() for name in _TOKENIZER):
        return
    from pressoir.models.loading import load_tokenizer, save_tokenizer

    with tempfile.TemporaryDirectory() as folder:  # a fast tokenizer, made from the slow one's files
        save_tokenizer(load_tokenizer(out), Path(folder))
        if (Path(folder) / "tokenizer.json").exists():
            shutil.copyfile(Path(folder) / "tokenizer.json", out / "tokenizer.json")


def _check(plan: MergePlan, out: Path) -> int:
    """Check that the result has the tensors that it must have, in the base's shapes; return how many.

    Raises:
        MergeError: it has not.
    """
    written = checkpoint_tensors(out) if any(out.glob("*.safetensors")) else []
    found = {tensor.name: tensor for tensor in written}
    expected = configuration.expected_tensors(plan)
    if found.keys() != expected:
        raise MergeError(
            f"the result of mergekit has unexpected or missing tensors: {sorted(found.keys() ^ expected)}"
        )
    aligned = plan.config.tokenizer_source is not None
    for name in found.keys() & plan.base.tensors.keys():
        shape, wanted = found[name].shape, plan.base.tensors[name].shape
        if shape != wanted and not (aligned and shape[1:] == wanted[1:]):
            raise MergeError(f"the result of mergekit has {name} {list(shape)}, not {list(wanted)}")
    return len(found)


def _write_texts(
    plan: MergePlan, settings: str, digests: Mapping[str, str], report: MergeReport, context: StageContext
) -> None:
    out, config = context.out_dir, plan.config
    given = config.model_dump(mode="json", exclude={"models", "base"}, exclude_defaults=True)
    content = {
        "format_version": 1,
        "stage": "merge",
        "method": config.method,
        "models": [_described(model, digests) for model in plan.parents],
        "base": _described(plan.base, digests),
        "given_base": plan.given_base and _described(plan.given_base, digests),
        "settings": {"method": config.method, **given},
        "ratios": list(plan.ratios),
        "seed": context.seed,
        "versions": {package: _version(package) for package in _PACKAGES} | {"pressoir": __version__},
        "notes": list(plan.notes),
        "warnings": list(plan.warnings),
        "unmerged": {model.name: plan.unmerged(model) for model in plan.models if plan.unmerged(model)},
        "sharded": (out / INDEX).exists(),
    }
    (out / METADATA).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (out / "merge_report.md").write_text(f"# Merge: {config.method}\n\n{report.markdown()}", encoding="utf-8")
    (out / "README.md").write_text(_card(plan, settings, report, context.seed), encoding="utf-8")


def _described(model: Checkpoint, digests: Mapping[str, str]) -> dict[str, str]:
    return {"name": model.name, "reference": model.public_reference, "digest": digests[model.name]}


def _card(plan: MergePlan, settings: str, report: MergeReport, seed: int) -> str:
    """The model card: what was merged, how, and what came of it."""
    names = (model.public_reference.removeprefix("hub:").partition("@")[0] for model in plan.models)
    hub = [name for name in names if re.fullmatch(r"[\w.-]+/[\w.-]+", name)]
    front = {
        "library_name": "transformers",
        "tags": ["mergekit", "merge"],
        **({"base_model": hub} if hub else {}),
    }
    models = [f"- `{m.name}`: {m.public_reference}" for m in plan.parents]
    models.append(f"- base (its configuration and tokenizer are the result's): {plan.base.public_reference}")
    cautions = [f"- {text}" for text in (*plan.notes, *plan.warnings)]
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# Merge of {len(plan.parents)} models by {plan.config.method}",
        "\n".join(models),
        *(["## To be known", "\n".join(cautions)] if cautions else []),
        f"## How\n\nmergekit {_version('mergekit')}, seed {seed}, with this configuration (`{CONFIG}`):",
        f"```yaml\n{settings}```",
        f"## What came of it\n\n{report.markdown()}",
    ]
    return "\n\n".join(sections)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def key(config: MergeConfig) -> StageKeyParts:
    """Of the models how many, and whether there is a base: their digests are among the inputs."""
    values = config.model_dump(mode="json")
    values["models"], values["base"] = len(config.models), config.base is not None
    return StageKeyParts(values)


STAGE = Stage(name="merge", version=1, kind="model", config=MergeConfig, run=run, key=key)
