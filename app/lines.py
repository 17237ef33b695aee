"""Who waits for a batch, who comes next, and how full the house is: the bookkeeping under ``batching``.

Plain data without threads and locks; it knows no model, no HTTP, and never runs anything.
"""

import asyncio
import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.errors import QueueFull

Columns = tuple[NDArray[Any], ...]

# Rows per second before anything was measured; the guess weighs as much as one second of measuring.
FIRST_GUESS: Final = 200.0
RATE_WINDOW_S: Final = 5.0  # busy seconds over which the service rate is averaged
MAX_RETRY_S: Final = 60.0
# With fewer inside, or less than half of a smaller house, what is measured is the speed of single requests.
BACKLOG_ROWS: Final = 64
KNOWN_S: Final = 1.0  # seconds of measuring after which the rate is believed when it refuses somebody
SURE: Final = 0.5  # of a request's time: estimates err, and an answer that comes too late was computed in vain


@dataclass(frozen=True, slots=True)
class Answer:
    """A submission's rows, the seconds until its first batch was cut, and those that its batches ran."""

    rows: Columns
    queue_s: float
    device_s: float


@dataclass(slots=True)
class Stay:
    """One request inside the house, and how many of its rows are not yet computed."""

    rows: int


class Work:
    """One submission on its way through one batch or several."""

    __slots__ = ("columns", "cut", "device_s", "future", "missing", "out", "queue_s", "queued_at", "rows", "stay")

    def __init__(self, columns: Columns, future: asyncio.Future[Answer], stay: Stay | None = None) -> None:
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


class House:
    """Items admitted and not yet answered, the rows that they cost, and the rate at which rows are answered."""

    def __init__(self, max_items: int) -> None:
        """Start empty, with room for ``max_items``."""
        self.items = self.rows = 0
        self._max_items = max_items
        self._backlog = min(BACKLOG_ROWS, max(1, max_items // 2))
        self._answered, self._busy_s, self._seen_at = FIRST_GUESS, 1.0, 0.0
        self._known_s = 0.0  # seconds of measuring so far

    def enter(self, items: int, rows: int, patience_s: float = math.inf) -> None:
        """Let a request in; more than there is room or time for only where nobody is inside.

        Without the second bound a crowd of costly requests would share the device until none of them is answered
        within its time.

        Args:
            items: of the request.
            rows: that are to be computed for it.
            patience_s: the longest that it can wait for its answer.

        Raises:
            QueueFull: no room, or no time; ``Retry-After`` and ``retry_after_ms`` say how long those inside will take.
        """
        self._measure()
        if self.items and self.items + items > self._max_items:
            raise self.full(
                f"{self.items} items are waiting or being computed and this request has {items}; at most "
                f"{self._max_items} are let in (VAE_MAX_QUEUE_ITEMS)"
            )
        if self.items and self._known_s > KNOWN_S and self._wait_s(self.rows + rows) > SURE * patience_s:
            raise self.full(
                f"{self.rows} rows are waiting or being computed and this request has {rows}; its time, "
                f"{patience_s:.1f} s (VAE_DEADLINE_S or X-Timeout-Ms), might be over before they all are"
            )
        self.items += items
        self.rows += rows

    def leave(self, items: int, rows: int, computed: bool = True) -> None:
        """Let a request out, whatever became of it; or, with no items, rows of it as they are computed."""
        self._measure()
        self._answered += rows if computed and self.rows >= self._backlog else 0
        self.items -= items
        self.rows -= rows

    def _measure(self) -> None:
        """Age both sums of the rate, older seconds weigh less; time counts while there is a backlog."""
        now = time.monotonic()
        passed = now - self._seen_at if self.rows >= self._backlog else 0.0
        fade = math.exp(-passed / RATE_WINDOW_S)
        self._answered *= fade
        self._busy_s = self._busy_s * fade + passed
        self._known_s += passed
        self._seen_at = now

    def _wait_s(self, rows: int) -> float:
        """Return the seconds that so many rows will take."""
        return rows * self._busy_s / max(self._answered, 1e-9)

    def full(self, why: str) -> QueueFull:
        """Return the refusal of a request, which says ``why`` and how long those inside will take."""
        wait_s = min(self._wait_s(self.rows), MAX_RETRY_S)
        return QueueFull(
            f"{why}; try again in {wait_s:.1f} s",
            headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
            extra={"retry_after_ms": max(1, math.ceil(wait_s * 1000))},
        )
