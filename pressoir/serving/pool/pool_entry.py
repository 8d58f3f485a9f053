"""An entry of the pool: a loaded model with its use counts, and what the pool needs of a model."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Generic, Literal, Protocol, TypeVar

from pressoir.serving.pool.sharing import ModelSpec

Event = Literal["loaded", "evicted", "unloaded", "replaced", "died", "failed", "stuck"]
"""What happened to a model."""


class Model(Protocol):
    """What the pool needs of a loaded model."""

    ended: asyncio.Future[str]
    """Done when it is gone, and why; empty where it was closed."""

    async def measure(self) -> int:
        """Memory that it takes, bytes (PSS)."""

    async def close(self) -> None:
        """End it and give its memory back."""


ModelT = TypeVar("ModelT", bound=Model)


@dataclass(eq=False)
class PoolEntry(Generic[ModelT]):
    """A loaded model and how it is used."""

    spec: ModelSpec
    model: ModelT
    pss_bytes: int
    loaded_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    leases: int = 0
    used: int = 0
    """When it was last leased, on the pool's own clock."""
    measured: float = field(default_factory=time.monotonic)
