"""Gemma 3n without the tower that sees: fewer weights, and no need of timm or torchvision.

The tower is the model of `vision_config`, whatever that is: here one without layers. What else is configured
there (the table of its special tokens) stays.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import transformers  # which imports its classes when they are first asked for


def without_vision(config: Any) -> Any:
    """A Gemma 3n's configuration, changed in place so that its model is built without the tower."""
    config.vision_config = _blind()(**config.vision_config.to_dict())
    return config


@cache
def _blind() -> Any:
    """The class of the configuration of a tower without layers, which `AutoModel` then knows."""

    class BlindConfig(transformers.Gemma3nVisionConfig):
        model_type = "pressoir_blind"

    class Blind(transformers.PreTrainedModel):
        config_class = BlindConfig
        main_input_name = "pixel_values"

    transformers.AutoModel.register(BlindConfig, Blind)
    return BlindConfig
