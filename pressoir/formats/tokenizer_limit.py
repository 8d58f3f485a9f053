"""How many tokens a model takes at most, and where its positions begin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pressoir.formats.folder import read_json

MAX_TOKENS = 512  # where the model's own limit is not given
# Where configurations say how many positions the model was built for.
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
_NO_LIMIT = 10**6  # tokenizers state one of 1e30 where there is none


def most_tokens(folder: Path) -> int:
    """Tokens that the model of a folder has positions for, `MAX_TOKENS` at most and where it does not say."""
    path = folder / "config.json"
    config = read_json(path) if path.exists() else {}
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int):
        return MAX_TOKENS
    return min(positions - first_position(config.get("pad_token_id")), MAX_TOKENS)


def most_source_tokens(config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> int:
    """Tokens of a text that a translation model takes, by its configuration and its tokenizer's; `MAX_TOKENS`
    where neither says."""
    stated = config.get("max_position_embeddings"), tokenizer.get("model_max_length")
    limits = [limit for limit in stated if isinstance(limit, int) and 0 < limit < _NO_LIMIT]
    return min(limits, default=MAX_TOKENS)


def first_position(pad_token_id: int | None) -> int:
    """Where a sentence's positions begin: RoBERTa's, whose padding is token 1, at 2; others' at 0."""
    return 2 if pad_token_id == 1 else 0
