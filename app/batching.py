"""Many concurrent calls become few large ones, cut whenever the device is free: no timers, no polls.

Promises: every ``submit`` ends exactly once, with its own rows in its own order or with an error; the line is
bounded in items and refuses at once; who has left costs no device time; one bad item fails alone. Who comes
next stands in ``lines``, what a failed batch does in ``running``; here are the threads and the event loop.
Knows no HTTP and no torch: an operation is a plain function of numpy arrays.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final
from weakref import WeakSet

from numpy.typing import NDArray

from app.errors import QueueFull, Unavailable
from app.lines import Answer, Columns, House, Line, Piece, Stay, Work, rows_of
from app.monitor import Monitor, Silent
from app.running import DeviceLost, Op, Outcomes, deliver, run_batch

__all__ = ["Answer", "Batcher", "Columns", "DeviceLost", "Monitor", "Op", "Stay"]

SMALL_CAP_S: Final = 60.0  # how long the batch size that fitted into memory is remembered
QUICK_S: Final = 0.001  # a row that took no longer may keep the event loop from its other work
WORTH: Final = 16  # rows for which a thread is woken beside quick batches of fewer, which end before it has begun
JOIN_S: Final = 5.0  # how long close() waits for a batch that is still running

_REFUSALS: Final = {
    "loading": "the model is not loaded yet; try again in a moment",
    "draining": "the server is shutting down; send the request again",
    "device_lost": "the device that computes is gone and the server ends; send the request again later",
}


class Batcher:
    """Joins submissions into batches and runs them in threads of its own.

    Args:
        max_batch: rows of the largest batch.
        max_queue_items: items let in and not yet answered, over all operations.
        streams: batches that may run at the same time; 1 means that one thread owns the device.
        monitor: takes what is measured.
        on_death: called once, on the event loop, with the error that ended an inference thread.
        at_once: whether quick rows are spared the threads: the event loop computes a lone one, few wait for their like.
    """

    def __init__(
        self,
        max_batch: int,
        max_queue_items: int,
        streams: int = 1,
        monitor: Monitor | None = None,
        on_death: Callable[[BaseException], None] | None = None,
        at_once: bool = False,
    ) -> None:
        """Keep the limits; nothing runs before ``start``."""
        self._max_batch, self._small_cap, self._small_until = max_batch, max_batch, 0.0
        self._monitor: Monitor = monitor or Silent()
        self._on_death, self._quick_s = on_death, QUICK_S if at_once else -math.inf
        self._refusal: str | None = "loading"  # the code with which everybody is refused
        self._house = House(max_queue_items)
        self._open: set[Work] = set()  # submissions without an answer; the event loop's alone
        self._changed = threading.Condition()  # guards the lines, and the next number
        self._running: list[bool] = []  # of each batch in the threads whether it will be over in no time
        self._lines: dict[Op, Line] = {}  # those in which somebody waits
        self._served: dict[str, int] = {}  # operation -> number of its latest batch
        self._quick = WeakSet[Op]()  # those whose latest single row took no longer than ``_quick_s``
        self._threads = [
            threading.Thread(target=self._live, name=f"inference-{i}", daemon=True) for i in range(streams)
        ]

    @property
    def alive(self) -> bool:
        """Whether submissions are taken and answered."""
        return self._refusal is None

    def start(self) -> None:
        """Start the threads; call it once, on the event loop that will submit."""
        self._loop = asyncio.get_running_loop()
        self._refusal = None
        for thread in self._threads:
            thread.start()

    async def close(self) -> None:
        """Fail what is unanswered with ``Unavailable`` and end the threads; calling it again does no harm."""
        self._end("draining")
        for thread in self._threads:
            if thread.ident is not None:
                await asyncio.to_thread(thread.join, JOIN_S)

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
        self._check_open()
        rows = items if rows is None else rows
        try:
            self._house.enter(items, rows, patience_s)
        except QueueFull as error:
            self._monitor.rejected(error.code)
            raise
        stay, computed = Stay(rows), False
        try:
            yield stay
            computed = True
        finally:
            rows, stay.rows = stay.rows, 0  # a batch that still computes some of them gives nothing back
            self._house.leave(items, rows, computed)

    def full(self, why: str) -> QueueFull:
        """Return, and count, the refusal of a request that lacks room elsewhere; it says when to come back."""
        error = self._house.full(why)
        self._monitor.rejected(error.code)
        return error

    async def submit(self, op: Op, *columns: NDArray[Any], stay: Stay | None = None) -> Answer:
        """Return ``op.run`` of the columns, row for row, computed in company.

        Cancel the call to leave: rows that are in no batch by then are never computed.

        Args:
            op: the operation.
            columns: arrays ``(n, …)`` of one n ≥ 1; of a broadcast view only a batch at a time is copied.
            stay: what ``reserve`` gave to the request, so that its rows count as soon as they are computed.

        Raises:
            Exception: what ``op.run`` raised for these rows, in whatever company.
            InternalError: an output of these rows is not finite.
            Unavailable: not started, closed or dead, now or meanwhile.
        """
        self._check_open()
        if not columns or len({len(column) for column in columns}) != 1 or not len(columns[0]):
            raise ValueError(f"columns of one length above 0 are needed, got {[c.shape for c in columns]}")
        work = Work(columns, self._loop.create_future(), stay)
        self._open.add(work)
        try:
            if self._is_alone(op, work):
                await asyncio.sleep(0)  # whoever came at the same time gets as far as this, and then none is alone
                if self._is_alone(op, work):
                    self._run_at_once(op, work)
            if work.cut < work.rows and not work.future.done():
                self._line_up(op, work)
            return await work.future
        finally:
            self._open.discard(work)
            if work.cut < work.rows:  # it left early, or failed
                with self._changed:
                    if line := self._lines.get(op):
                        line.lane(work).drop(work)
                    self._tidy(op)

    def _line_up(self, op: Op, work: Work) -> None:
        with self._changed:
            if op not in self._lines:
                self._lines[op] = Line(self._max_batch)
            self._lines[op].lane(work).add(work)
            self._tell_waiting(op.name)
            self._changed.notify()

    def _is_alone(self, op: Op, work: Work) -> bool:
        """Return whether this is a single quick row, and nothing else waits or is computed."""
        return work.rows == len(self._open) == 1 and not self._running and op in self._quick

    def _run_at_once(self, op: Op, work: Work) -> None:
        work.cut = 1
        try:
            self._hand_over(*self._run(op, [Piece(work, 0, 1)]))
        except BaseException as error:
            self._die(error)

    def _check_open(self) -> None:
        if self._refusal is not None:
            self._monitor.rejected(self._refusal)
            raise Unavailable(_REFUSALS[self._refusal], code=self._refusal)

    def _tidy(self, op: Op) -> None:
        if op in self._lines and not self._lines[op].rows:
            del self._lines[op]
        self._tell_waiting(op.name)

    def _tell_waiting(self, name: str) -> None:
        self._monitor.queue_items(name, sum(line.rows for op, line in self._lines.items() if op.name == name))

    def _end(self, refusal: str) -> None:
        """Refuse from now on, fail what is unanswered, let the threads go; on the event loop."""
        if self._refusal in ("draining", "device_lost"):
            return
        with self._changed:
            self._refusal = refusal
            names = {op.name for op in self._lines}
            self._lines.clear()
            for name in names:
                self._tell_waiting(name)
            self._changed.notify_all()
        for work in self._open:
            work.settle(0, 0, Unavailable(_REFUSALS[refusal], code=refusal))

    def _hand_over(self, batch: list[Piece], outcomes: Outcomes, seconds: float) -> None:
        """Count what was computed, and give it to whoever waits for it; on the event loop."""
        rows = 0
        for (work, start, stop), result in outcomes:
            if work.stay is not None and not isinstance(result, Exception):
                part = min(stop - start, work.stay.rows)
                work.stay.rows -= part
                rows += part
        self._house.leave(0, rows)
        deliver(batch, outcomes, seconds)

    def _die(self, error: BaseException) -> None:
        if self.alive:
            self._end("device_lost")
            if self._on_death is not None:
                self._on_death(error)

    # From here on: the inference threads.

    def _live(self) -> None:
        try:
            while self._serve_batch():
                pass
        except BaseException as error:
            self._on_loop(self._die, error)

    def _on_loop(self, call: Callable[..., None], *args: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(call, *args)

    def _serve_batch(self) -> bool:
        """Wait for work, run one batch and hand its rows over; False once the batcher has ended."""
        with self._changed:
            while not self._may_start() or (cut := self._cut()) is None:
                if not self.alive:
                    return False
                self._changed.wait()
            brief = cut[0] in self._quick and rows_of(cut[1]) < WORTH
            self._running.append(brief)
            if self._lines:  # there is more, and another thread may be free
                self._changed.notify()
        done = self._run(*cut)
        with self._changed:
            self._running.remove(brief)
        self._on_loop(self._hand_over, *done)
        return True

    def _run(self, op: Op, batch: list[Piece]) -> tuple[list[Piece], Outcomes, float]:
        """Run a batch; return it, what became of its rows, and the seconds that it took."""
        started, rows = time.monotonic(), rows_of(batch)
        for work, start, _ in batch:
            if start == 0:
                work.queue_s = started - work.queued_at
                self._monitor.queue_wait(op.name, work.queue_s)
        outcomes = run_batch(op, batch, self._remember_full)
        seconds = time.monotonic() - started
        if rows == 1:
            (self._quick.add if seconds <= self._quick_s else self._quick.discard)(op)
        self._monitor.batch(op.name, rows)
        self._monitor.device(op.name, seconds)
        return batch, outcomes, seconds

    def _may_start(self) -> bool:
        """Return whether a batch may start: beside brief ones only where enough waits to be worth another thread."""
        crowded = bool(self._running) and all(self._running)
        return not crowded or sum(line.rows for line in self._lines.values()) >= WORTH

    def _cut(self) -> tuple[Op, list[Piece]] | None:
        """Return the next batch, of the operation served longest ago; None where nobody waits."""
        while self._lines:
            op = min(self._lines, key=lambda op: self._served.get(op.name, 0))
            batch = self._lines[op].cut(self._cap())
            self._tidy(op)
            if batch:
                self._served[op.name] = max(self._served.values(), default=0) + 1
                return op, batch
        return None

    def _cap(self) -> int:
        return self._small_cap if time.monotonic() < self._small_until else self._max_batch

    def _remember_full(self, rows: int) -> None:
        self._small_cap = max(1, min(self._cap(), rows // 2))
        self._small_until = time.monotonic() + SMALL_CAP_S
