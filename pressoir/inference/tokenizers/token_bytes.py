"""The bytes that each token of a vocabulary stands for, as its tokenizer's decoder would write them.

Two kinds of vocabularies are read: byte-level BPE (GPT-2, Llama 3, Qwen), which writes each byte as a
printable character, and SentencePiece-like ones (Llama 2, Gemma, Mistral), which write a space as `▁` and a
byte without a token of its own as `<0x0A>`. Of others a token's bytes are those of its text alone.

Sources. https://github.com/openai/gpt-2/blob/master/src/encoder.py (`bytes_to_unicode`);
https://huggingface.co/docs/tokenizers/api/decoders
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_BYTE = re.compile("<0x([0-9A-F]{2})>")


class TokenBytes:
    """The bytes of the tokens of a `tokenizers.Tokenizer`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        steps = {str(step["type"]): step for step in _steps(tokenizer.decoder)}
        self._byte_level = "ByteLevel" in steps
        self._fallback = "ByteFallback" in steps
        self._space = _space(steps)
        self.exact = self._byte_level or self._space is not None
        """Whether the decoder only joins these bytes; others put spaces between tokens, or take some away."""

    @property
    def special(self) -> list[int]:
        """Tokens that stand for no text."""
        return [id for id, token in self._added.items() if token.special]

    def __len__(self) -> int:
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return max(size, *(id + 1 for id in self._added)) if self._added else size

    def __getitem__(self, id: int) -> bytes:
        """Bytes of a token; none of a special one, and of an id that is no token."""
        if added := self._added.get(id):
            return b"" if added.special else str(added.content).encode()
        token: str | None = self._tokenizer.id_to_token(id)
        if token is None:
            return b""
        if self._byte_level:
            return b"".join(_BYTES.get(character) or character.encode() for character in token)
        if self._fallback and (found := _BYTE.fullmatch(token)):
            return bytes([int(found[1], 16)])
        return (token if self._space is None else token.replace(self._space, " ")).encode()

    def name(self, id: int) -> str:
        """A token as text: `bytes:\\xe2\\x80` for a part of a character; the name of a special one."""
        if (added := self._added.get(id)) and added.special:
            return str(added.content)
        content = self[id]
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _steps(decoder: Any) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    found = json.loads(decoder.__getstate__())
    return list(found["decoders"]) if found["type"] == "Sequence" else [found]


def _space(steps: dict[str, dict[str, Any]]) -> str | None:
    """What a space is written as."""
    if metaspace := steps.get("Metaspace"):
        return str(metaspace["replacement"])
    replaced = steps.get("Replace", {})
    return replaced["pattern"].get("String") if replaced.get("content") == " " else None


def _printable() -> Iterator[tuple[str, bytes]]:
    """The character that byte-level BPE writes each byte as."""
    beyond = 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            yield chr(byte), bytes([byte])
        else:
            yield chr(beyond), bytes([byte])
            beyond += 1


_BYTES = dict(_printable())
