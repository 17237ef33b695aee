"""Work aside from the event loop; of who is cancelled nothing is begun any more, and a line's length is known."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

T = TypeVar("T")
NEWEST: Final = 0.1  # what the latest piece of work weighs in the mean of their times


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


class Pool:
    """A few threads, and how long who comes now would wait for one of them."""

    def __init__(self, size: int, name: str) -> None:
        """Start no thread yet."""
        self._threads, self._size = ThreadPoolExecutor(size, name), size
        self._lock = threading.Lock()  # guards the following
        self._inside = 0  # pieces of work that somebody waits for, or that a thread has begun
        self._mean_s = 0.0  # that one takes

    @property
    def wait_s(self) -> float:
        """Seconds until one of the threads is free: what is inside goes through all of them at the mean's speed."""
        return self._inside // self._size * self._mean_s

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Return ``work(*args)``, as ``in_thread`` does."""
        ticket = [partial(work, *args)]
        with self._lock:
            self._inside += 1
        try:
            return await in_thread(self._threads, self._timed, ticket)
        finally:
            with self._lock:
                if ticket:  # no thread has come to it
                    ticket.clear()
                    self._inside -= 1

    def _timed(self, ticket: list[Callable[[], T]]) -> T:
        with self._lock:
            work = ticket.pop()  # from now on it counts until it is done, whoever waits for it
        started = time.monotonic()
        try:
            return work()
        finally:
            seconds = time.monotonic() - started
            with self._lock:
                self._inside -= 1
                self._mean_s += (NEWEST if self._mean_s else 1.0) * (seconds - self._mean_s)

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
