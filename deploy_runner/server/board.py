"""What the workers of one server show each other: memory that all of them have since they were forked."""

from __future__ import annotations

import json
import mmap
import struct
from typing import Any

__all__ = ["Board"]

_ROW_BYTES = 64 << 10
_HEAD = struct.Struct("<QQ")
"""A number that is odd while a row is being written, and the bytes that follow."""
_TRIES = 1000


class Board:
    """A row for each worker, which it alone writes; a row outlives a worker that ends."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._memory = mmap.mmap(-1, workers * _ROW_BYTES)

    def write(self, worker: int, value: Any) -> None:
        """Show a value, which JSON holds."""
        data, place = json.dumps(value).encode(), worker * _ROW_BYTES
        if len(data) > _ROW_BYTES - _HEAD.size:
            return
        number, _ = _HEAD.unpack_from(self._memory, place)
        number |= 1  # A worker that was killed while it wrote has left an odd one.
        _HEAD.pack_into(self._memory, place, number, len(data))
        self._memory[place + _HEAD.size : place + _HEAD.size + len(data)] = data
        _HEAD.pack_into(self._memory, place, number + 1, len(data))

    def read(self, worker: int) -> Any:
        """Return what a worker has shown last; None where that is nothing, or half of it."""
        place = worker * _ROW_BYTES
        for _ in range(_TRIES):
            number, size = _HEAD.unpack_from(self._memory, place)
            data = self._memory[place + _HEAD.size : place + _HEAD.size + size]
            if number % 2 == 0 and _HEAD.unpack_from(self._memory, place) == (number, size):
                return json.loads(data) if size else None
        return None
