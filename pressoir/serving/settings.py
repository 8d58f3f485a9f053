"""Merges the settings of a request into those of its tier.

A limit (`config.LIMITS`) defaults to the tier's value and may be lowered by a request. A higher value is
refused rather than silently reduced: a client that requested 1,000 tokens should not mistake 128 for the
whole answer. A limit that the tier leaves open may be set up to `MOST_TOKENS`, because a step of a
translation cannot be interrupted. For all other settings (languages, sampling) the request's value wins.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from pressoir.serving.config import LIMITS, TierSettings
from pressoir.serving.errors import RequestError

MOST_TOKENS = 4096
"""Maximum number of input or output tokens per request where the tier sets no limit."""
_OPEN = {"max_length": MOST_TOKENS, "max_new_tokens": MOST_TOKENS}


def merge_settings(settings: TierSettings, overrides: dict[str, Any], tier: str) -> TierSettings:
    """The settings of a request: the tier's, with the request's `overrides`; None overrides nothing.

    Raises:
        RequestError: a value is out of range, or above the tier's limit; all are listed.
    """
    overrides = {name: value for name, value in overrides.items() if value is not None}
    if not overrides:
        return settings
    try:
        result = TierSettings.model_validate({**settings.model_dump(), **overrides})
    except ValidationError as error:
        raise RequestError(
            "; ".join(
                f"{'.'.join(map(str, problem['loc']))}: {problem['msg']} (got {problem['input']!r})"
                for problem in error.errors(include_url=False)
            )
        ) from None
    above = [
        f"{name} is {value}, but tier {tier!r} allows {limit}"
        for name in LIMITS
        if name in overrides
        and (value := getattr(result, name)) > (limit := getattr(settings, name) or _OPEN[name])
    ]
    if above:
        raise RequestError(f"{'; '.join(above)}; request less, or use another tier")
    return result
