"""Who is let in: so many items, and none that would wait for longer than it can.

Knows no batch and no thread: it counts who is inside, measures how fast rows are answered, and refuses the rest.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from app.errors import QueueFull, Unavailable
from app.monitor import Monitor

# Rows per second before anything was measured; the guess weighs as much as one second of measuring.
FIRST_GUESS: Final = 200.0
RATE_WINDOW_S: Final = 5.0  # busy seconds over which the service rate is averaged
MAX_RETRY_S: Final = 60.0
# With fewer in line, or less than half of a smaller house, what is measured is the speed of single requests.
BACKLOG_ROWS: Final = 64
KNOWN_S: Final = 1.0  # seconds of measuring after which the rate is believed when it refuses somebody
FORGET_S: Final = 30.0  # without measuring, in which most of that is forgotten: who is refused cannot be measured
SURE: Final = 0.5  # of a request's time: estimates err, and an answer that comes too late was computed in vain

REFUSALS: Final = {
    "loading": "the model is not loaded yet; try again in a moment",
    "draining": "the server is shutting down; send the request again",
    "device_lost": "the device that computes is gone and the server ends; send the request again later",
}


@dataclass(slots=True)
class Stay:
    """One request inside the house, and how many of its rows are not yet computed."""

    rows: int


class Admission:
    """The door: refuses everybody while closed, and who is too many while open."""

    def __init__(self, max_items: int, monitor: Monitor) -> None:
        """Be closed; inside is room for ``max_items``, ``monitor`` counts refusals."""
        self._monitor, self._house = monitor, House(max_items)
        self._refusal: str | None = "loading"  # the code with which everybody is refused

    @property
    def alive(self) -> bool:
        """Whether submissions are taken and answered."""
        return self._refusal is None

    @contextmanager
    def reserve(self, items: int, rows: int | None = None, patience_s: float = math.inf) -> Iterator[Stay]:
        """Hold room for a whole request, from before its images are decoded until its answer.

        A request larger than the whole line is let in when nobody else is there.

        Args:
            items: of the request.
            rows: that will be submitted for it; as many as items where nothing is said.
            patience_s: how long it can wait; one that would wait longer is refused at once.

        Raises:
            QueueFull: no room, or no time; says when to come back, from the items inside and the measured rate.
            Unavailable: not started, closed or dead.
        """
        stay = self.enter(items, items if rows is None else rows, patience_s)
        try:
            yield stay
        finally:
            self.leave(stay, items)

    def enter(self, items: int, rows: int, patience_s: float = math.inf) -> Stay:
        """Take room as ``reserve`` does, until ``leave``."""
        self._check_open()
        try:
            self._house.enter(items, rows, patience_s)
        except QueueFull as error:
            self._monitor.rejected(error.code)
            raise
        return Stay(rows)

    def leave(self, stay: Stay, items: int) -> None:
        """Give back what ``enter`` took for ``items``."""
        rows, stay.rows = stay.rows, 0  # a batch that still computes some of them gives nothing back
        self._house.leave(items, rows)

    def enter_if_room(self, items: int, rows: int, patience_s: float) -> Stay | None:
        """Take room as ``enter`` does, if there is any; else nobody is refused, and nothing is returned."""
        if not self.alive or self._house.why_not(items, rows, patience_s) is not None:
            return None
        self._house.let_in(items, rows)
        return Stay(rows)

    def full(self, why: str, wait_s: float | None = None) -> QueueFull:
        """Return, and count, the refusal of a request that lacks room elsewhere; it says when to come back.

        In ``wait_s``; where nothing is said, when those inside have been answered.
        """
        error = self._house.full(why, wait_s)
        self._monitor.rejected(error.code)
        return error

    def _check_open(self) -> None:
        if self._refusal is not None:
            self._monitor.rejected(self._refusal)
            raise Unavailable(REFUSALS[self._refusal], code=self._refusal)


class House:
    """Items admitted and not yet answered, the rows that they cost, and the rate at which the device computes rows.

    Only rows that wait for a batch or are in one say something of that rate: those of a request whose images are
    still being decoded, or that is computed elsewhere, do not.
    """

    def __init__(self, max_items: int) -> None:
        """Start empty, with room for ``max_items``."""
        self.items = self.rows = 0
        self._max_items = max_items
        self._backlog = min(BACKLOG_ROWS, max(1, max_items // 2))
        self._in_line = 0  # rows that wait for the device or are being computed
        self._computed, self._busy_s, self._seen_at = FIRST_GUESS, 1.0, 0.0
        self._known_s = 0.0  # seconds of measuring, as far as they are not forgotten

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
        if (why := self.why_not(items, rows, patience_s)) is not None:
            raise self.full(why)
        self.let_in(items, rows)

    def let_in(self, items: int, rows: int) -> None:
        """Let a request in for which there is room, as ``why_not`` has just found."""
        self.items += items
        self.rows += rows

    def why_not(self, items: int, rows: int, patience_s: float) -> str | None:
        """Return why ``enter`` would refuse a request; None where it would not."""
        self._measure()
        if self.items and self.items + items > self._max_items:
            return (
                f"{self.items} items are waiting or being computed and this request has {items}; at most "
                f"{self._max_items} are let in (VAE_MAX_QUEUE_ITEMS)"
            )
        if rows and self.items and self._known_s > KNOWN_S and self._wait_s(self.rows + rows) > SURE * patience_s:
            return (
                f"{self.rows} rows are waiting or being computed and this request has {rows}; its time, "
                f"{patience_s:.1f} s (VAE_DEADLINE_S or X-Timeout-Ms), might be over before they all are"
            )
        return None

    def leave(self, items: int, rows: int) -> None:
        """Let a request out, whatever became of it; or, with no items, rows of it as they are computed."""
        self.items -= items
        self.rows -= rows

    def line_up(self, rows: int) -> None:
        """Take note of rows that wait for the device from now on."""
        self._measure()
        self._in_line += rows

    def leave_line(self, rows: int, computed: bool) -> None:
        """Take note that rows wait no more: the device has computed them, or they failed, or nobody wants them."""
        self._measure()
        self._computed += rows if computed and self._in_line >= self._backlog else 0
        self._in_line -= rows

    def _measure(self) -> None:
        """Age what is known: while there is a backlog of both sums of the rate the older seconds, else the belief."""
        now = time.monotonic()
        passed, self._seen_at = now - self._seen_at, now
        if self._in_line < self._backlog:
            self._known_s *= math.exp(-passed / FORGET_S)
            return
        fade = math.exp(-passed / RATE_WINDOW_S)
        self._computed *= fade
        self._busy_s = self._busy_s * fade + passed
        self._known_s = min(self._known_s + passed, RATE_WINDOW_S)

    def _wait_s(self, rows: int) -> float:
        """Return the seconds that so many rows will take."""
        return rows * self._busy_s / max(self._computed, 1e-9)

    def full(self, why: str, wait_s: float | None = None) -> QueueFull:
        """Return the refusal of a request, which says ``why`` and how long those inside will take, or ``wait_s``."""
        wait_s = min(self._wait_s(self.rows) if wait_s is None else wait_s, MAX_RETRY_S)
        return QueueFull(
            f"{why}; try again in {wait_s:.1f} s",
            headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
            extra={"retry_after_ms": max(1, math.ceil(wait_s * 1000))},
        )
