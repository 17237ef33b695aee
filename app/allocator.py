"""What the C library does with memory that is free again: large blocks go back to the system at once.

glibc moves its own bounds: after a block of 30 MB has been freed, blocks of up to that size come out of its arenas,
between small ones, and an arena keeps 60 MB at its end. So a process keeps the most that it ever needed at one time,
and a little more whenever a new crest finds the free pieces too small.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

LARGE: Final = 131_072  # bytes from which a block has pages of its own, which go when it is freed
SPARE: Final = 262_144  # free bytes that an arena keeps at its end
_TRIM_THRESHOLD: Final = -1  # M_TRIM_THRESHOLD of <malloc.h>
_MMAP_THRESHOLD: Final = -3  # M_MMAP_THRESHOLD
_VARIABLES: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def give_back_memory() -> bool:
    """Fix glibc's bounds for this process and those it forks; return whether that was done.

    Not where the C library is another one, nor where a variable of the environment has a word in it. Torch on the CPU
    loses three tenths of its speed by it, as each layer's output then gets new pages; OpenVINO next to nothing
    (measured: docs/experiments.md).
    """
    if any(name in os.environ for name in _VARIABLES):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    return bool(library.mallopt(_MMAP_THRESHOLD, LARGE) and library.mallopt(_TRIM_THRESHOLD, SPARE))
