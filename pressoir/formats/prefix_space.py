"""Byte-level tokenizers, for texts that are split into words: each word as one that follows a space."""

from __future__ import annotations

import json
from typing import Any


def with_prefix_space(tokenizer: Any) -> Any:
    """A `tokenizers.Tokenizer` that takes no word that is given by itself for the rest of another one, as
    byte-level ones otherwise do; others as they are.
    """
    content = json.loads(tokenizer.to_str())
    changed = _set_prefix_space(content["pre_tokenizer"])
    return type(tokenizer).from_str(json.dumps(content)) if changed else tokenizer


def lacks_prefix_space(tokenizer: Any) -> bool:
    """Whether `with_prefix_space` changes a tokenizer."""
    return _set_prefix_space(json.loads(tokenizer.to_str())["pre_tokenizer"])


def _set_prefix_space(step: Any) -> bool:
    if not isinstance(step, dict):
        return False
    changed = [_set_prefix_space(inner) for inner in step.get("pretokenizers", ())]
    if step.get("type") == "ByteLevel" and step.get("add_prefix_space") is False:
        step["add_prefix_space"] = True
        return True
    return any(changed)
