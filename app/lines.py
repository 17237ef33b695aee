"""Who waits for a batch, and who comes next: the bookkeeping under ``batching``.

Plain data without threads and locks; it knows no model, no HTTP, and never runs anything.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from app.admission import Stay

Columns = tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A submission's rows, the seconds until its first batch was cut, and those that its batches ran."""

    rows: Columns
    queue_s: float
    device_s: float


class Waiter(Protocol):
    """Who waits for a submission, such as a future; of the three calls that end the wait only the first counts."""

    def done(self) -> bool:
        """Return whether nobody waits any more."""

    def set_result(self, answer: Answer, /) -> None:
        """Take the rows."""

    def set_exception(self, error: Exception, /) -> None:
        """Take what became of them instead."""


class Work:
    """One submission on its way through one batch or several."""

    __slots__ = ("columns", "cut", "device_s", "future", "missing", "out", "queue_s", "queued_at", "rows", "stay")

    def __init__(self, columns: Columns, future: Waiter, stay: Stay | None = None) -> None:
        """Start waiting; columns are arrays ``(rows, …)``, ``stay`` is that of the request."""
        self.columns, self.future, self.stay = columns, future, stay
        self.rows = self.missing = len(columns[0])  # missing: rows without an answer
        self.cut = 0  # rows that went into a batch
        self.out: Columns | None = None
        self.queued_at, self.queue_s, self.device_s = time.monotonic(), 0.0, 0.0

    def settle(self, start: int, stop: int, result: Columns | Exception) -> None:
        """Take rows ``start`` to ``stop`` of the answer, or the error that ends it; on the event loop."""
        if self.future.done():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
            return
        if stop - start == self.rows:
            self.out = result
        else:
            self._fill(start, stop, result)
        self.missing -= stop - start
        if self.out is not None and not self.missing:
            self.future.set_result(Answer(self.out, self.queue_s, self.device_s))

    def _fill(self, start: int, stop: int, part: Columns) -> None:
        if self.out is None:
            self.out = tuple(np.empty((self.rows, *column.shape[1:]), column.dtype) for column in part)
        for whole, column in zip(self.out, part, strict=True):
            whole[start:stop] = column


class Piece(NamedTuple):
    """Rows ``start`` to ``stop`` of a submission, in a batch."""

    work: Work
    start: int
    stop: int


def rows_of(pieces: list[Piece]) -> int:
    """Return the number of rows that the pieces hold together."""
    return sum(stop - start for _, start, stop in pieces)


class Lane:
    """Submissions that wait their turn; who got a part of a batch and wants more goes to the back."""

    def __init__(self) -> None:
        """Start empty."""
        self.rows = 0
        self._waiting: OrderedDict[Work, None] = OrderedDict()

    def add(self, work: Work) -> None:
        """Put a submission at the back."""
        self._waiting[work] = None
        self.rows += work.rows - work.cut

    def drop(self, work: Work) -> None:
        """Take a submission out, if it is here."""
        if work in self._waiting:
            del self._waiting[work]
            self.rows -= work.rows - work.cut

    def take(self, room: int) -> list[Piece]:
        """Return at most ``room`` rows, of submissions that somebody still waits for."""
        pieces = []
        while room > 0 and self._waiting:
            work = next(iter(self._waiting))
            self.drop(work)
            if work.future.done():
                continue
            piece = Piece(work, work.cut, min(work.cut + room, work.rows))
            pieces.append(piece)
            work.cut = piece.stop
            room -= piece.stop - piece.start
            if work.cut < work.rows:
                self.add(work)
        return pieces


class Line:
    """What waits for one operation: two lanes, each sure of half a batch, each given what the other leaves.

    So a small submission gets into the next batch however many large ones wait, and the large always move.
    """

    def __init__(self, max_batch: int) -> None:
        """Start empty; ``max_batch`` says what is small: an eighth of it."""
        self._small_rows = max(1, max_batch // 8)
        self._small, self._large = Lane(), Lane()
        self._odd = 0

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return self._small.rows + self._large.rows

    def lane(self, work: Work) -> Lane:
        """Return the lane of a submission."""
        return self._small if work.rows <= self._small_rows else self._large

    def cut(self, room: int) -> list[Piece]:
        """Return the next batch, of at most ``room`` rows; half of an odd number is rounded up in turns."""
        half = (room + self._odd) // 2
        self._odd ^= 1
        pieces = self._small.take(room - min(half, self._large.rows))
        return pieces + self._large.take(room - rows_of(pieces))
