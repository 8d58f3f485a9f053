"""Tokenise with the `tokenizers` library alone.

transformers' `AutoTokenizer` imports torch: hundreds of megabytes and seconds that a process which only runs
ONNX graphs does not need. The result is the same, array for array.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import SourceError

MAX_TOKENS = 512  # where the model's own limit is not given


class FastTokenizer:
    """The `tokenizer.json` of a model folder; pads to the longest sentence, cuts at `model_max_length`."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        try:
            settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises plain Exception
            raise SourceError(f"{folder} has no tokenizer that can be loaded: {error}") from error
        self.model_max_length = min(int(settings.get("model_max_length") or MAX_TOKENS), MAX_TOKENS)
        pad = settings.get("pad_token") or "[PAD]"
        pad = pad["content"] if isinstance(pad, dict) else pad
        self._tokenizer.enable_truncation(self.model_max_length)
        self._tokenizer.enable_padding(
            direction=settings.get("padding_side", "right"),
            pad_id=self._tokenizer.token_to_id(pad) or 0,
            pad_token=pad,
        )

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, NDArray[np.int64]]:
        """`input_ids`, `attention_mask` and `token_type_ids`, each (sentences, longest sentence)."""
        encodings = self._tokenizer.encode_batch(list(texts))
        return {
            "input_ids": np.asarray([encoding.ids for encoding in encodings], dtype=np.int64),
            "attention_mask": np.asarray([encoding.attention_mask for encoding in encodings], dtype=np.int64),
            "token_type_ids": np.asarray([encoding.type_ids for encoding in encodings], dtype=np.int64),
        }
