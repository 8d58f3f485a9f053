"""What can be wrong with a merge's configuration alone, before any model is looked at."""

from __future__ import annotations

from collections.abc import Iterator

from pressoir.recipe.sections import FilteredValue, MergeConfig, Setting

TASK_VECTORS = ("ties", "dare_ties", "dare_linear")
"""Methods that merge the models' differences from a base."""
DEFAULT_DENSITY = 0.5

_BELONGS_TO = {
    "t": ("slerp",),
    "ratios": ("linear", "slerp", *TASK_VECTORS),
    "weight": ("linear", *TASK_VECTORS),
    "normalize": ("linear", *TASK_VECTORS),
    **dict.fromkeys(("density", "rescale", "scaling", "int8_mask"), TASK_VECTORS),
    "scale": ("passthrough",),
}


def problems(config: MergeConfig, has_base: bool) -> Iterator[str]:
    """Everything about `config` that no merge can follow; `has_base` says whether a base is given."""
    yield from _model_count(config, has_base)
    yield from _ratios(config)
    yield from _options(config)
    yield from _slices(config)


def numbers(setting: Setting) -> Iterator[float]:
    """Every number of a setting, whatever its form."""
    if isinstance(setting, tuple):
        for entry in setting:
            yield from numbers(entry.value if isinstance(entry, FilteredValue) else entry)
    else:
        yield float(setting)


def filters(setting: Setting) -> list[str | None]:
    """The filters of a setting that has a value for some tensors and another for others; else none."""
    entries = setting if isinstance(setting, tuple) else ()
    return [entry.filter for entry in entries if isinstance(entry, FilteredValue)]


def is_gradient(setting: Setting) -> bool:
    """Whether some value of a setting changes from layer to layer."""
    if not isinstance(setting, tuple):
        return False
    return any(
        isinstance(entry.value, tuple) if isinstance(entry, FilteredValue) else True for entry in setting
    )


def given_settings(config: MergeConfig) -> dict[str, Setting]:
    """Every setting that is given, by the path of its field."""
    every = {"t": config.t, "density": config.density}
    for i, own in enumerate(config.parameters or ()):
        every |= {f"parameters[{i}].{name}": setting for name, setting in own}
    return {path: setting for path, setting in every.items() if setting is not None}


def _model_count(config: MergeConfig, has_base: bool) -> Iterator[str]:
    method, count = config.method, len(config.models)
    if method == "slerp" and count != 2:
        yield f"models: slerp needs exactly two, not {count}; use linear, ties or dare_ties for more"
    if method == "linear" and count < 2:
        yield "models: linear needs at least two, not 1"
    if method in TASK_VECTORS and count < 2 and not has_base:
        yield f"models: {method} needs a base and at least one other model; specify --base or two models"
    if method == "passthrough" and count > 1 and config.slices is None:
        yield (
            "slices: required for passthrough, to specify which layers to take from which model; for "
            "example, --slices 0:0-4 1:2-6 takes layers 0 to 3 of the first model, then 2 to 5 of the "
            "second"
        )


def _ratios(config: MergeConfig) -> Iterator[str]:
    ratios, count = config.ratios, len(config.models)
    if ratios is None:
        return
    if len(ratios) != count:
        yield f"ratios: {len(ratios)} given for {count} models; specify one per model"
    if min(ratios) < 0:
        yield f"ratios: {min(ratios):g} is negative; specify 0 or more"
    elif sum(ratios) == 0:
        yield "ratios: their sum is 0; specify at least one above 0"
    if config.t is not None:
        yield (
            "t and ratios are both given; slerp's t is the second ratio over the sum, so specify only one "
            "of them"
        )
    if any(own.weight is not None for own in config.parameters or ()):
        yield "parameters.weight and ratios are both given; specify only one of them"


def _options(config: MergeConfig) -> Iterator[str]:
    count, parameters = len(config.models), config.parameters or ()
    if config.parameters is not None and len(parameters) != count:
        yield (
            f"parameters: {len(parameters)} entries for {count} models; specify one per model ({{}} for none)"
        )
    for name, methods in _BELONGS_TO.items():
        given = getattr(config, name, None) not in (None, False)
        given |= any(getattr(own, name, None) is not None for own in parameters)
        if given and config.method not in methods:
            yield f"{name}: not supported by {config.method}, only by {', '.join(methods)}"
    for path, setting in given_settings(config).items():
        found = list(numbers(setting))
        if path.endswith("density") and not all(0 < number <= 1 for number in found):
            yield f"{path}: {found} must be greater than 0 and at most 1"
        if path == "t" and not all(0 <= number <= 1 for number in found):
            yield f"{path}: {found} must be between 0 and 1"
        if (filter_names := filters(setting)) and (
            filter_names.count(None) != 1 or filter_names[-1] is not None
        ):
            yield (
                f"{path}: the last entry, and no other, must have no filter; it applies to all other tensors"
            )
    if isinstance(config.tokenizer_source, int) and config.tokenizer_source >= count:
        yield f"tokenizer_source: there is no model {config.tokenizer_source}; valid are 0 to {count - 1}"


def _slices(config: MergeConfig) -> Iterator[str]:
    wanted = {"passthrough": 1, "slerp": 2}.get(config.method)
    for i, layer_slice in enumerate(config.slices or ()):
        used = [source.model for source in layer_slice.sources]
        lengths = {source.layer_range[1] - source.layer_range[0] for source in layer_slice.sources}
        if min(lengths) < 1:
            yield f"slices[{i}]: the end of a layer range must be after its start"
        elif len(lengths) > 1:
            yield f"slices[{i}]: its sources have {sorted(lengths)} layers; they must have the same number"
        if max(used) >= len(config.models):
            yield f"slices[{i}]: there is no model {max(used)}; valid are 0 to {len(config.models) - 1}"
        if len(set(used)) < len(used):
            yield f"slices[{i}]: specifies a model twice; mergekit would use it once"
        if wanted is not None and len(used) != wanted:
            yield f"slices[{i}]: {len(used)} sources, but {config.method} needs {wanted}"
