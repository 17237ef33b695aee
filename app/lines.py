"""Who waits for a batch, and who comes next: the bookkeeping under ``batching``.

Plain data without threads and locks; it knows no model, no HTTP, and never runs anything.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from app.admission import Stay

Columns = tuple[NDArray[Any], ...]


class Rows(Protocol):
    """An array ``(rows, …)``, or what gives a part of one when a batch takes it."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Return some of the rows."""


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

    __slots__ = (
        "columns",
        "computed",
        "cut",
        "device_s",
        "empty",
        "future",
        "missing",
        "out",
        "queue_s",
        "queued_at",
        "rows",
        "stay",
    )

    def __init__(
        self,
        columns: Sequence[Rows],
        future: Waiter,
        stay: Stay | None = None,
        empty: Callable[..., NDArray[Any]] = np.empty,
    ) -> None:
        """Start waiting.

        Args:
            columns: arrays ``(rows, …)``, or what gives parts of them.
            future: takes the answer.
            stay: that of the request.
            empty: gives memory, of a shape and type, for an answer that several batches compute.
        """
        self.columns, self.future, self.stay, self.empty = columns, future, stay, empty
        self.rows = self.missing = len(columns[0])  # missing: rows without an answer
        self.cut = self.computed = 0  # rows that went into a batch; that came out of one
        self.out: Columns | None = None
        self.queued_at, self.queue_s, self.device_s = time.monotonic(), 0.0, 0.0

    def make_room(self, part: Columns) -> None:
        """Have room for the whole answer, of which a batch has computed ``part``; in one thread at a time."""
        if self.out is None:
            self.out = tuple(self.empty((self.rows, *column.shape[1:]), column.dtype) for column in part)

    def put(self, start: int, part: Columns) -> None:
        """Put what a batch has computed into the answer, from row ``start`` on; in any thread, as there is room."""
        assert self.out is not None
        for whole, column in zip(self.out, part, strict=True):
            whole[start : start + len(column)] = column

    def settle(self, start: int, stop: int, result: Columns | Exception | None) -> None:
        """Take rows ``start`` to ``stop`` of the answer, or the error that ends it; on the event loop.

        ``None`` where they are in their place already.
        """
        if self.future.done():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
            return
        if result is not None:  # all of them, in one
            self.out = result
        self.missing -= stop - start
        if self.out is not None and not self.missing:
            self.future.set_result(Answer(self.out, self.queue_s, self.device_s))


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
