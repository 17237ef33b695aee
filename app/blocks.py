"""Memory for large answers, which is used again: the kernel takes about as long to find new pages as their copy takes.

(Measured: docs/experiments.md.) A block is free when nobody holds a view of it any more, an answer that is still being
sent among them; Python counts that by itself.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from app.allocator import LARGE

KEPT_BYTES: Final = 8 << 20  # of all blocks together


class Blocks:
    """Keeps some blocks; not for several threads at a time."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        """Keep no more than ``kept_bytes``."""
        self._kept_bytes = kept_bytes
        self._blocks: list[NDArray[np.uint8]] = []  # the one used last at the end

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array of any content, as ``np.empty`` does.

        A new one if it is small, as malloc has such memory at hand, or too large to be kept.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if not LARGE <= size <= self._kept_bytes:
            return np.empty(shape, dtype)
        block = self._take(size)
        if block is None:
            if not self._make_room(size):
                return np.empty(shape, dtype)
            block = np.empty(size, np.uint8)
        self._blocks.append(block)
        return block[:size].view(dtype).reshape(shape)

    def _take(self, size: int) -> NDArray[np.uint8] | None:
        """Take out a free block of this size, or of up to twice as much."""
        for at in reversed(range(len(self._blocks))):
            if size <= self._blocks[at].nbytes <= 2 * size and self._is_free(at):
                return self._blocks.pop(at)
        return None

    def _make_room(self, size: int) -> bool:
        """Drop free blocks, those used longest ago first, until another one may be kept; return whether it may."""
        free = [at for at in range(len(self._blocks)) if self._is_free(at)]
        spare = self._kept_bytes - sum(block.nbytes for block in self._blocks)
        if spare + sum(self._blocks[at].nbytes for at in free) < size:
            return False
        dropped = 0
        while spare < size:
            spare += self._blocks.pop(free[dropped] - dropped).nbytes
            dropped += 1
        return True

    def _is_free(self, at: int) -> bool:
        return sys.getrefcount(self._blocks[at]) <= 2  # the list's, and that of the call
