"""Counts of several processes: a page of numbers for each, written by its owner, added up by whoever is asked.

A process that dies leaves its numbers, and the one that takes its place goes on with them, so no total ever falls.
Knows no metric.
"""

import mmap
import os
import threading
from typing import Final

PAGE: Final = 16_384  # numbers of one process; what is never counted is never in memory
_PID: Final = 0  # the first number of a page


def shared(processes: int) -> mmap.mmap:
    """Return empty pages for that many processes, to be inherited by them."""
    return mmap.mmap(-1, processes * PAGE * 8)


class Tally:
    """One process's page, and sight of the others'; its methods may be called from any thread.

    Every process reserves the same numbers in the same order.

    Args:
        pages: what ``shared`` returned; by default one page for this process alone.
        index: whose page this is, from 0.
    """

    def __init__(self, pages: mmap.mmap | None = None, index: int = 0) -> None:
        """Take the page over."""
        numbers = memoryview(pages or shared(1)).cast("d")
        self._pages = [numbers[start : start + PAGE] for start in range(0, len(numbers), PAGE)]
        self._own = self._pages[index]
        self._lock = threading.Lock()
        self._reserved = 1
        self._own[_PID] = os.getpid()

    def reserve(self, count: int) -> int:
        """Return the first of ``count`` numbers that nobody else uses."""
        first, self._reserved = self._reserved, self._reserved + count
        if self._reserved > PAGE:
            raise ValueError(f"{self._reserved} numbers do not fit on a page of {PAGE}")
        return first

    def add(self, at: int, value: float, also: int | None = None) -> None:
        """Add ``value`` to a number, and 1 to another one."""
        with self._lock:
            self._own[at] += value
            if also is not None:
                self._own[also] += 1

    def set(self, at: int, value: float) -> None:
        """Replace a number."""
        self._own[at] = value

    def totals(self, first: int, count: int) -> list[float]:
        """Return ``count`` numbers from ``first`` on, each added up over all processes."""
        return [sum(numbers) for numbers in zip(*(page[first : first + count] for page in self._pages), strict=True)]

    def processes(self) -> list[int]:
        """Return the ids of the processes that count, or did."""
        return [int(page[_PID]) for page in self._pages if page[_PID]]
