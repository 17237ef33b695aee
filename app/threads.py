"""Work aside from the event loop; of who is cancelled nothing is begun any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(threads: Executor | None, work: Callable[..., T], *args: Any) -> T:
    """Return ``work(*args)``, computed in one of the threads; without ``threads`` in one of the event loop's few.

    Cancelled while it waits for a thread it lets go of ``work`` and ``args`` at once: in line stays an empty shell.

    Raises:
        Exception: whatever ``work`` raises.
    """
    job = [partial(work, *args)]
    try:
        return await asyncio.get_running_loop().run_in_executor(threads, lambda: job.pop()())
    except asyncio.CancelledError:
        job.clear()
        raise
