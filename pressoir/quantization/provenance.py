"""Which package declares the algorithm: part of the store's key, since its code decides the result."""

from __future__ import annotations

from pressoir.extensions import loader, quantizer
from pressoir.recipe.sections import QuantizeConfig


def key_extras(config: QuantizeConfig) -> dict[str, str]:
    """What goes into the stage's key beside its configuration; nothing for Pressoir's own algorithms."""
    origin = loader.origin(quantizer.GROUP, config.algorithm)
    return {} if origin is None else {"algorithm_package": str(origin)}
