"""Messages between a server and the worker of a model, and their form on a socket.

A frame is two lengths (four bytes each, big-endian), a JSON object, and the bytes of at most one float32
array: audio goes in this way, and embeddings come out. JSON keeps floats exactly.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LENGTHS = struct.Struct("!II")

Kind = Literal["load", "ready", "request", "cancel", "piece", "result", "failure"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `load`, `request` and `cancel` go to the model; the others come from it."""

    kind: Kind
    id: int = 0
    """Which request it is about; 0 where it is about the model."""
    body: dict[str, Any] = field(default_factory=dict)
    """Request or result, JSON-able; of a failure its `kind` and `message`."""
    array: NDArray[np.float32] | None = None
    """Numbers that are too many for JSON."""


def pack(message: Message) -> bytes:
    """The frame of a message."""
    header: dict[str, Any] = {"kind": message.kind, "id": message.id, "body": message.body}
    content = b""
    if message.array is not None:
        header["shape"] = message.array.shape
        content = message.array.astype("<f4", copy=False).tobytes()
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return LENGTHS.pack(len(text), len(content)) + text + content


def unpack(text: bytes, content: bytes) -> Message:
    """The message of a frame's two parts."""
    header = json.loads(text)
    array = None
    if "shape" in header:
        import numpy as np

        shape = header["shape"]
        array = np.frombuffer(content, dtype="<f4", count=prod(shape)).reshape(shape)
    return Message(header["kind"], header["id"], header["body"], array)
