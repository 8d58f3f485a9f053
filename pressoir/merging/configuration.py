"""What mergekit is given: its YAML configuration, and the definition of the architecture it works on.

mergekit comes with definitions of many architectures. But a tensor that a definition does not name is left
out of the result without a word (the biases of a Llama's attention), and some definitions do not work in
0.1.4 (BERT without a head). So it is given one that names exactly the tensors that are there. Where its own
works, the result is the same, bit for bit.

Models are `./parent_0`, `./base` and so on, links in the folder in which mergekit runs. So the configuration
is the very text that mergekit read and yet names no place of this machine; and a path with a `+` or an `@` in
it, which mergekit would take apart, does no harm.

Sources: mergekit 0.1.4, docs/merge_methods.md and mergekit/_data/architectures.
"""

from __future__ import annotations

from typing import Any

import yaml

from pressoir.merging.checkpoint import Checkpoint, is_embedding, layer_of
from pressoir.merging.preflight import MergePlan
from pressoir.merging.settings import DEFAULT_DENSITY, TASK_VECTORS
from pressoir.recipe.sections import FilteredValue, ModelParameters, Setting

CONFIG = "mergekit_config.yml"


def mergekit_yaml(plan: MergePlan, digests: dict[str, str]) -> str:
    """The whole configuration file; its first lines say which model is which."""
    lines = [f"# ./{m.name}: {m.public_reference}, SHA-256 {digests[m.name]}" for m in plan.models]
    content = yaml.safe_dump(mergekit_config(plan), sort_keys=False, allow_unicode=True, width=110)
    return "\n".join([*lines, content])


def mergekit_config(plan: MergePlan) -> dict[str, Any]:
    """The configuration as mergekit reads it."""
    config = plan.config
    common = {
        "t": _t(plan),
        "normalize": config.normalize,
        "rescale": config.rescale,
        "lambda": config.scaling,
        "int8_mask": config.int8_mask or None,
    }
    source = config.tokenizer_source
    result: dict[str, Any] = {
        "merge_method": config.method,
        "base_model": f"./{plan.base.name}",
        "dtype": config.dtype,
        "out_dtype": plan.out_dtype,
        "tokenizer_source": f"./parent_{source}" if isinstance(source, int) else source,
        "parameters": {name: _plain(value) for name, value in common.items() if value is not None},
    }
    if config.slices is None:
        merged = plan.parents if config.method not in TASK_VECTORS else plan.models[1:]
        result["models"] = [_model(plan, model) for model in merged]
    else:
        result["slices"] = []
        for layer_slice in config.slices:
            sources = [
                {**_model(plan, plan.parents[source.model]), "layer_range": list(source.layer_range)}
                for source in layer_slice.sources
            ]
            base = {"model": f"./{plan.base.name}", "layer_range": list(layer_slice.sources[0].layer_range)}
            if config.method in TASK_VECTORS and all(s["model"] != base["model"] for s in sources):
                sources.append(base)
            result["slices"].append({"sources": sources})
    return {name: value for name, value in result.items() if value not in (None, {})}


def architecture(plan: MergePlan) -> dict[str, Any]:
    """The definition of the base's architecture, in the form of mergekit's own.

    Embeddings are taken from the first slice's models, all other tensors outside the layers from the last's;
    where there is no single stack of layers, every tensor is listed by itself.
    """
    base = plan.base
    before, layers, after = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
    for name, tensor in base.tensors.items():
        layer = layer_of(name) if base.layers else None
        if layer and layer[1] > 0:
            continue
        others = {plan.names[m.name][name] for m in plan.models[1:] if not plan.misfits(m)} - {name}
        weight: dict[str, Any] = {"name": name, "aliases": sorted(others)}
        weight["is_embed"] = is_embedding(name, tensor, base.vocabulary)
        if layer:
            weight["name"] = _template(name)
            weight["aliases"] = [_template(other) for other in sorted(others)]
        first = any(substring in name for substring in ("embed", "wte", "wpe"))
        (layers if layer else before if first else after).append(weight)
    return {
        "model_type": base.config.get("model_type", ""),
        "architectures": [base.architecture],
        "pre_weights": before,
        "layer_templates": {"weights": layers},
        "post_weights": after,
        "num_layers_config_key": "num_hidden_layers",  # transformers knows it by this name in every model
        "override_num_layers": None if base.layers else 0,
    }


def expected_tensors(plan: MergePlan) -> set[str]:
    """Names of the tensors that the result must have."""
    names = set()
    for name in plan.base.tensors:
        layer = layer_of(name) if plan.base.layers else None
        if layer is None:
            names.add(name)
        elif layer[1] == 0:
            names |= {_layer(name, str(index)) for index in range(plan.layers)}
    return names


def _template(name: str) -> str:
    return _layer(name, "${layer_index}")


def _layer(name: str, index: str) -> str:
    """The name that a tensor of layer 0 has in another layer."""
    stack = (layer_of(name) or ("", 0))[0]
    return name.replace(f"{stack}.0.", f"{stack}.{index}.", 1)


def _model(plan: MergePlan, model: Checkpoint) -> dict[str, Any]:
    config, index = plan.config, plan.parents.index(model)
    own = config.parameters[index] if config.parameters else ModelParameters()
    parameters: dict[str, Setting | None] = {"scale": own.scale}
    if config.method in ("linear", *TASK_VECTORS):
        parameters["weight"] = plan.ratios[index] if own.weight is None else own.weight
    if config.method in TASK_VECTORS:
        common = DEFAULT_DENSITY if config.density is None else config.density
        parameters["density"] = common if own.density is None else own.density
    given = {name: _plain(value) for name, value in parameters.items() if value is not None}
    return {"model": f"./{model.name}", **({"parameters": given} if given else {})}


def _t(plan: MergePlan) -> Setting | None:
    if plan.config.method != "slerp":
        return None
    return plan.ratios[1] / sum(plan.ratios) if plan.config.t is None else plan.config.t


def _plain(setting: Setting | FilteredValue) -> Any:
    if isinstance(setting, FilteredValue):
        filtered = {} if setting.filter is None else {"filter": setting.filter}
        return {**filtered, "value": _plain(setting.value)}
    return [_plain(entry) for entry in setting] if isinstance(setting, tuple) else setting
