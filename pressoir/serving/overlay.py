"""A tier's settings laid over a request's.

Of a limit (`config.LIMITS`) a request gets what the tier says, unless it asks for less; asking for more is
refused, not cut down in silence: who asked for 1,000 tokens should not take 128 for all there is. A limit
that the tier leaves open is the request's own choice, up to `MOST_TOKENS`: a step of a translation cannot be
interrupted. Of anything else (languages, sampling) the request's value wins.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from pressoir.serving.config import LIMITS, TierSettings
from pressoir.serving.errors import RequestError

MOST_TOKENS = 4096
"""Most that a request may ask for, in or out, where its tier does not say."""
_OPEN = {"max_length": MOST_TOKENS, "max_new_tokens": MOST_TOKENS}


def overlaid(settings: TierSettings, asked: dict[str, Any], tier: str) -> TierSettings:
    """What counts for a request that asks for `asked`; None is what it does not ask for.

    Raises:
        RequestError: a value is out of range, or above the tier's limit; all are listed.
    """
    asked = {name: value for name, value in asked.items() if value is not None}
    if not asked:
        return settings
    try:
        result = TierSettings.model_validate({**settings.model_dump(), **asked})
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
        if name in asked
        and (value := getattr(result, name)) > (limit := getattr(settings, name) or _OPEN[name])
    ]
    if above:
        raise RequestError(f"{'; '.join(above)}; request less, or use another tier")
    return result
