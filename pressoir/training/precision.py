"""Which number type a training computes in: `auto` is bfloat16 where the CPU multiplies it, else float32.

Without such instructions autocast to bfloat16 is emulated: see `benchmarks/cpu_settings.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from pressoir.recipe.sections import TrainingConfig
from pressoir.system import runtime


def resolved(config: TrainingConfig) -> Literal["float32", "bfloat16"]:
    """The precision that `config` means on this machine."""
    if config.precision != "auto":
        return config.precision
    return "bfloat16" if runtime.has_bfloat16() else "float32"


def key_values(config: TrainingConfig) -> dict[str, Any]:
    """All fields of `config`, with the precision of this machine: it decides the result."""
    return {**config.model_dump(mode="json"), "precision": resolved(config)}


def warning(config: TrainingConfig) -> str | None:
    """What to say before a training in bfloat16 on a CPU without the instructions."""
    if resolved(config) == "float32" or runtime.has_bfloat16():
        return None
    return (
        "WARNING: this CPU has no bfloat16 instructions, and trains several times slower with precision "
        "bfloat16; use `precision: auto`"
    )
