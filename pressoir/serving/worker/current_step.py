"""Which request a worker is computing a step of, where its server sees it though the worker answers nothing.

Eight bytes of memory that both processes map. A message would cost each step as much as a token of a small
model, and a worker that hangs sends none.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile

_NUMBER = struct.Struct("=Q")


class CurrentStep:
    """The id of a request; 0 between two steps."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _NUMBER.size)

    @classmethod
    def create(cls) -> CurrentStep:
        """One that a child can map which inherits the `descriptor`."""
        with tempfile.TemporaryFile() as file:
            file.write(bytes(_NUMBER.size))
            file.flush()
            return cls(os.dup(file.fileno()))

    def handed_on(self) -> None:
        """Close the descriptor, which a child has inherited; the memory stays."""
        os.close(self.descriptor)

    def close(self) -> None:
        """Give the memory back, and the descriptor that keeps it."""
        self._memory.close()

    @property
    def current(self) -> int:
        """What the worker last said; 0 once it is closed."""
        if self._memory.closed:
            return 0
        id: int = _NUMBER.unpack_from(self._memory)[0]
        return id

    @current.setter
    def current(self, id: int) -> None:
        _NUMBER.pack_into(self._memory, 0, id)
