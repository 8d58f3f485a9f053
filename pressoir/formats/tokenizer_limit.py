"""How many tokens a model takes at most, and where its positions begin."""

from __future__ import annotations

from pathlib import Path

from pressoir.formats.folder import read_json

MAX_TOKENS = 512  # where the model's own limit is not given


def most_tokens(folder: Path) -> int:
    """Tokens that the model of a folder has positions for, `MAX_TOKENS` at most and where it does not say."""
    path = folder / "config.json"
    config = read_json(path) if path.exists() else {}
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int):
        return MAX_TOKENS
    return min(positions - first_position(config.get("pad_token_id")), MAX_TOKENS)


def first_position(pad_token_id: int | None) -> int:
    """Where a sentence's positions begin: RoBERTa's, whose padding is token 1, at 2; others' at 0."""
    return 2 if pad_token_id == 1 else 0
