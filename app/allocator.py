"""What the C library does with memory that is free again: it goes back to the system.

glibc moves its own bounds: after a block of 30 MB has been freed, blocks of up to that size come out of its arenas,
between small ones, and an arena keeps 60 MB at its end. So a process keeps the most that it ever needed at one time,
and a little more whenever a new crest finds the free pieces too small. Fixed bounds send the large blocks back, and
what lies free between small ones goes every ten seconds.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

LARGE: Final = 262_144  # bytes from which a block has pages of its own, which go when it is freed
SPARE: Final = 262_144  # free bytes that an arena keeps at its end
TRIM_S: Final = 10.0  # seconds between two times that free pages are sent back, for some milliseconds of work
_TRIM_THRESHOLD: Final = -1  # M_TRIM_THRESHOLD of <malloc.h>
_MMAP_THRESHOLD: Final = -3  # M_MMAP_THRESHOLD
_VARIABLES: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def give_back_memory() -> bool:
    """Fix glibc's bounds for this process and those it forks; return whether that was done.

    Not where the C library is another one, nor where a variable of the environment has a word in it. Torch on the CPU
    loses three tenths of its speed by it, as each layer's output then gets new pages; OpenVINO next to nothing
    (measured: docs/experiments.md).
    """
    library = _glibc()
    if library is None:
        return False
    return bool(library.mallopt(_MMAP_THRESHOLD, LARGE) and library.mallopt(_TRIM_THRESHOLD, SPARE))


@asynccontextmanager
async def trimmed_now_and_then() -> AsyncIterator[None]:
    """Send free pages back every ``TRIM_S`` seconds as long as inside, under the same conditions."""
    library = _glibc()
    task = asyncio.create_task(_trim_for_ever(library)) if library else None
    try:
        yield
    finally:
        if task:
            task.cancel()


async def _trim_for_ever(library: ctypes.CDLL) -> None:
    while True:
        await asyncio.to_thread(library.malloc_trim, 0)  # first what the start has left
        await asyncio.sleep(TRIM_S)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library, where it is glibc and the environment leaves the matter to us."""
    library = ctypes.CDLL(None)
    named = any(name in os.environ for name in _VARIABLES)
    return library if hasattr(library, "malloc_trim") and not named else None
