"""Whether a new version takes over the alias from the one that has it."""

from __future__ import annotations

from collections.abc import Mapping

from pressoir.errors import RegistryError
from pressoir.formats.problems import MAIN_METRICS
from pressoir.recipe.sections import Criterion


def promotion(
    candidate: Mapping[str, float], holder: Mapping[str, float] | None, criterion: Criterion
) -> tuple[bool, str]:
    """Whether `candidate` takes over from `holder`, and why; both are figures of a benchmark's last row.

    A classifier has an `accuracy_delta` (multi-label: `micro_f1_delta`, regression: `pearson_delta`), a
    language model a `perplexity_increase`, against the first row.

    Raises:
        RegistryError: the candidate lacks `criterion.metric`, or both of those.
    """
    metric = criterion.metric
    if metric not in candidate:
        raise RegistryError(
            f"registry.criterion.metric is {metric!r}, but this model only has "
            f"{', '.join(sorted(candidate))}; choose one of them"
        )
    keeps, change = _quality(candidate, criterion)
    if not keeps:
        return False, change
    if holder is None:
        return True, f"no version holds it, and {change}"
    if metric not in holder:
        return True, f"the current holder has no {metric} to compare with"
    value, held = candidate[metric], holder[metric]
    less_is_better = metric == "perplexity"
    better = value < held if less_is_better else value > held
    word = "lower" if less_is_better else "higher"
    return better, f"{metric} {value:.4g} is {'' if better else 'not '}{word} than {held:.4g}"


def _quality(candidate: Mapping[str, float], criterion: Criterion) -> tuple[bool, str]:
    """Whether the candidate lost no more quality than the criterion allows, and what became of it."""
    if (metric := next((name for name in MAIN_METRICS if f"{name}_delta" in candidate), None)) is not None:
        delta, least = candidate[f"{metric}_delta"], criterion.min_accuracy_delta
        change = f"{metric.replace('_', ' ')} changed by {delta:+.4f}"
        keeps = delta >= least
        return keeps, change if keeps else f"{change}, below the minimum of {least:+.4f}"
    if "perplexity_increase" in candidate:
        increase, most = candidate["perplexity_increase"], criterion.max_perplexity_increase
        change = f"perplexity changed by {100 * increase:+.1f} %"
        keeps = increase <= most
        return keeps, change if keeps else f"{change}, above the maximum of {100 * most:+.1f} %"
    raise RegistryError(
        "a model is promoted by its accuracy_delta or its perplexity_increase, but this one has "
        f"{', '.join(sorted(candidate))} alone"
    )
