"""A small request to a tier, whatever its task: a smoke test sends it, and the server's document shows it."""

from __future__ import annotations

from typing import Any

from pressoir.data.texts import PAIR
from pressoir.extensions.task import task
from pressoir.serving.config import TierConfig

_TEXT = "Good."
_TOKENS = 4
_SILENCE_S = 0.5


def example_requests(tier: TierConfig, sound_s: float = _SILENCE_S) -> list[dict[str, Any]]:
    """Bodies of a small request over KServe v2, the next where the server refuses the one before.

    A speech model gets `sound_s` seconds of silence, or less where its tier allows less.
    """
    settings = tier.settings
    declared = task(tier.task or "")
    if declared.sound:
        from pressoir.inference.audio import SAMPLING_RATE

        samples = int(min(sound_s, settings.max_audio_s) * SAMPLING_RATE)
        sound = {"name": "audio", "shape": [1, samples], "datatype": "FP32", "data": [0.0] * samples}
        return [{"inputs": [sound]}]
    text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [_TEXT]}
    request = {"inputs": [text]}
    if declared.pairs:  # the files of a model say whether it takes them
        return [request, {"inputs": [text, {**text, "name": PAIR}]}]
    short = {"max_new_tokens": min(settings.max_new_tokens or _TOKENS, _TOKENS)}
    if "target_language" in declared.parameters:  # a model of several language pairs needs both
        languages = {
            "source_language": settings.source_language or "en",
            "target_language": settings.target_language or "fr",
        }
        return [{**request, "parameters": short}, {**request, "parameters": {**short, **languages}}]
    return [{**request, "parameters": short} if "max_new_tokens" in declared.parameters else request]
