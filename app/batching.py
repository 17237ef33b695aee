"""Many concurrent calls become few large ones, cut whenever the device is free: no timers, no polls.

Promises: every ``submit`` ends exactly once, with its own rows in its own order or with an error; the line is
bounded in items and refuses at once; who has left costs no device time; one bad item fails alone. Who is let in
stands in ``admission``, who comes next in ``lines``, what a failed batch does in ``running``; here are the threads and
the event loop.
Knows no HTTP and no torch: an operation is a plain function of numpy arrays.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import Final
from weakref import WeakKeyDictionary

from app.admission import REFUSALS, Admission, Stay
from app.blocks import Blocks
from app.errors import Unavailable
from app.lines import Answer, Columns, Line, Piece, Rows, Work, rows_of
from app.monitor import Monitor, Silent
from app.running import DeviceLost, Op, Outcomes, deliver, run_batch

__all__ = ["Answer", "Batcher", "Columns", "DeviceLost", "Monitor", "Op", "Stay"]

SMALL_CAP_S: Final = 60.0  # how long the batch size that fitted into memory is remembered
QUICK_S: Final = 0.001  # a row that took no longer may keep the event loop from its other work
WORTH: Final = 16  # rows for which a thread is woken beside quick batches of fewer, which end before it has begun
TURN_S: Final = 0.01  # of computing, after which the event loop turns to its connections
UNTOLD: Final = 4  # batches, none of which completes an answer, of which the event loop is told together
LONG_S: Final = 0.02  # of a batch, beside which telling the event loop costs nothing
JOIN_S: Final = 5.0  # how long close() waits for a batch that is still running

Done = tuple[list[Piece], Outcomes, float]  # a batch, what became of its rows, and the seconds that it took


class Batcher(Admission):
    """Joins submissions into batches and runs them in threads of its own.

    Args:
        max_batch: rows of the largest batch.
        max_queue_items: items let in and not yet answered, over all operations.
        streams: batches that may run at the same time; 1 means that one thread owns the device.
        monitor: takes what is measured.
        on_death: called once, on the event loop, with the error that ended an inference thread.
        at_once: whether quick rows are spared the threads: the event loop computes a lone one, few wait for their like.
        on_loop: whether the event loop computes all that is quick: where it has no second core to give a thread.
    """

    def __init__(
        self,
        max_batch: int,
        max_queue_items: int,
        streams: int = 1,
        monitor: Monitor | None = None,
        on_death: Callable[[BaseException], None] | None = None,
        at_once: bool = False,
        on_loop: bool = False,
    ) -> None:
        """Keep the limits; nothing runs before ``start``."""
        super().__init__(max_queue_items, monitor or Silent())
        self._max_batch, self._small_cap, self._small_until = max_batch, max_batch, 0.0
        self._on_death, self._quick_s = on_death, QUICK_S if at_once or on_loop else -math.inf
        self._on_loop, self._turn_due = on_loop, False
        self._open: set[Work] = set()  # submissions without an answer; the event loop's alone
        self._changed = threading.Condition()  # guards the lines, the memory of large answers, and the next number
        self._running: list[bool] = []  # of each batch in the threads whether it will be over in no time
        self._blocks = Blocks()  # used with the lock
        self._untold: list[Done] = []  # batches that have been computed, of which the event loop is not told yet
        self._lines: dict[Op, Line] = {}  # those in which somebody waits
        self._served: dict[str, int] = {}  # operation -> number of its latest batch
        self._quick = WeakKeyDictionary[Op, float]()  # those whose rows take no longer than ``_quick_s``: how long
        self._context = Context()  # of the event loop's own batches: those of no request
        self._threads = [
            threading.Thread(target=self._live, name=f"inference-{i}", daemon=True) for i in range(streams)
        ]

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

    async def submit(self, op: Op, *columns: Rows, stay: Stay | None = None) -> Answer:
        """Return ``op.run`` of the columns, row for row, computed in company.

        Cancel the call to leave: rows that are in no batch by then are never computed.

        Args:
            op: the operation.
            columns: arrays ``(n, …)`` of one n ≥ 1, or what gives parts of them; of a broadcast view only a batch at
                a time is copied.
            stay: what ``reserve`` gave to the request, so that its rows count as soon as they are computed.

        Raises:
            Exception: what ``op.run`` raised for these rows, in whatever company.
            InternalError: an output of these rows is not finite.
            Unavailable: not started, closed or dead, now or meanwhile.
        """
        self._check_open()
        if not columns or len({len(column) for column in columns}) != 1 or not len(columns[0]):
            raise ValueError(f"columns of one length above 0 are needed, got {[len(column) for column in columns]}")
        future: asyncio.Future[Answer] = self._loop.create_future()
        work = Work(columns, future, stay, self._blocks.empty)
        self.begin(op, work)
        try:
            return await future
        finally:
            self.end(op, work)

    def begin(self, op: Op, work: Work) -> None:
        """Let a submission wait for its batch, until ``end``; on the event loop. ``submit`` is this, awaited."""
        self._open.add(work)
        self._house.line_up(work.rows)
        with self._changed:
            if op not in self._lines:
                self._lines[op] = Line(self._max_batch)
            self._lines[op].lane(work).add(work)
            self._tell_waiting(op.name)
            if op not in self._quick:
                self._changed.notify()
            else:
                self._take_turn()  # after whoever comes at the same time

    def end(self, op: Op, work: Work) -> None:
        """Forget a submission that has its answer, or that nobody waits for any more."""
        self._open.discard(work)
        if work.cut < work.rows:  # it left early, or failed
            with self._changed:
                left = work.rows - work.cut
                if line := self._lines.get(op):
                    line.lane(work).drop(work)
                self._tidy(op)
            self._house.leave_line(left, computed=False)

    def _take_turn(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn, context=self._context)

    def _turn(self) -> None:
        """Compute the next batch on the event loop if that is its business, or wake a thread for it."""
        self._turn_due = False
        with self._changed:
            cut = self._cut(brief=True) if self._computes_here() else None
            if self._lines and cut is None:
                self._changed.notify()
        if cut is None:
            return
        try:
            done = self._run(*cut)
            with self._changed:
                self._keep(done)
                told, self._untold = self._untold, []
            self._hand_over(told)
        except BaseException as error:
            self._die(error)
        if self._lines:
            self._take_turn()

    def _computes_here(self) -> bool:
        """Return whether the event loop computes: no thread does, and either that is its part or there is one row."""
        waiting = sum(line.rows for line in self._lines.values())
        return not self._running and (self._on_loop or waiting == len(self._open) == 1)

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
        for work in list(self._open):
            work.settle(0, 0, Unavailable(REFUSALS[refusal], code=refusal))

    def _hand_over(self, batches: list[Done]) -> None:
        """Count what was computed, and give it to whoever waits for it; on the event loop."""
        for batch, outcomes, seconds in batches:
            computed = rows = 0
            for (work, start, stop), result in outcomes:
                if isinstance(result, Exception):
                    continue
                computed += stop - start
                if work.stay is not None:
                    part = min(stop - start, work.stay.rows)
                    work.stay.rows -= part
                    rows += part
            self._house.leave_line(rows_of(batch) - computed, computed=False)
            self._house.leave_line(computed, computed=True)
            self._house.leave(0, rows)
            deliver(batch, [(piece, self._placed(piece, result)) for piece, result in outcomes], seconds)

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
            self._tell_loop(self._die, error)

    def _tell_loop(self, call: Callable[..., None], *args: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(call, *args)

    def _serve_batch(self) -> bool:
        """Wait for work, run one batch and hand its rows over; False once the batcher has ended."""
        with self._changed:
            while not self._may_start() or (cut := self._cut()) is None:
                if not self.alive:
                    return False
                self._tell()
                self._changed.wait()
            brief = cut[0] in self._quick and rows_of(cut[1]) < WORTH
            self._running.append(brief)
            if self._lines:  # there is more, and another thread may be free
                self._changed.notify()
        done = self._run(*cut)
        with self._changed:
            self._running.remove(brief)
            if self._keep(done):
                self._tell()
        return True

    def _keep(self, done: Done) -> bool:
        """Keep a batch of which the event loop is to be told; return whether that is due.

        It is when an answer is whole or has failed, when enough batches have come up, or when this one took long.
        Nobody waits for the other parts of a large answer, and each time that it is woken the event loop takes a core
        from a batch. A thread that finds nothing more to compute tells what is left.
        """
        self._untold.append(done)
        due = len(self._untold) >= UNTOLD or done[2] >= LONG_S
        for (work, start, stop), result in done[1]:
            work.computed += stop - start
            due = due or work.computed == work.rows or isinstance(result, Exception)
        return due

    def _tell(self) -> None:
        """Tell the event loop of all batches that it does not know yet; with the lock."""
        if self._untold:
            self._tell_loop(self._hand_over, self._untold)
            self._untold = []

    def _run(self, op: Op, batch: list[Piece]) -> Done:
        """Run a batch; return it, what became of its rows, and the seconds that it took."""
        started, rows = time.monotonic(), rows_of(batch)
        for work, start, _ in batch:
            if start == 0:
                work.queue_s = started - work.queued_at
                self._monitor.queue_wait(op.name, work.queue_s)
        outcomes = run_batch(op, batch, self._remember_full)
        seconds = time.monotonic() - started
        if len(self._threads) > 1:  # one alone, of a GPU, has other things to do: the event loop does it later
            outcomes = [(piece, self._placed(piece, result)) for piece, result in outcomes]
        if rows == 1 or self._on_loop:
            if seconds <= rows * self._quick_s:
                self._quick[op] = seconds / rows
            else:
                self._quick.pop(op, None)
        self._monitor.batch(op.name, rows)
        self._monitor.device(op.name, seconds)
        return batch, outcomes, seconds

    def _placed(self, piece: Piece, result: Columns | Exception | None) -> Columns | Exception | None:
        """Put rows of a larger answer into their place, if that has not been done; return what is left of them."""
        work, start, stop = piece
        whole = stop - start == work.rows
        if whole or work.future.done() or result is None or isinstance(result, Exception):
            return result
        try:
            with self._changed:
                work.make_room(result)
            work.put(start, result)
        except Exception as error:  # its batches have different shapes, or there is no memory for its rows together
            return error
        return None

    def _may_start(self) -> bool:
        """Return whether a batch may start: beside brief ones only where enough waits to be worth another thread."""
        crowded = bool(self._running) and all(self._running)
        return not crowded or sum(line.rows for line in self._lines.values()) >= WORTH

    def _cut(self, brief: bool = False) -> tuple[Op, list[Piece]] | None:
        """Return the next batch, of the operation served longest ago; None where nobody waits.

        With ``brief`` one that takes the event loop no longer than ``TURN_S``; None where the operation is not quick.
        """
        while self._lines:
            op, most = min(self._lines, key=lambda op: self._served.get(op.name, 0)), self._cap()
            if brief:
                if (row_s := self._quick.get(op)) is None:
                    return None
                most = max(1, min(most, int(TURN_S / max(row_s, 1e-9))))
            if (free := len(self._threads) - len(self._running)) > 1 and self._lines[op].rows >= 2 * WORTH:
                most = min(most, -(-self._lines[op].rows // free))  # so that another thread has its part
            batch = self._lines[op].cut(most)
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
