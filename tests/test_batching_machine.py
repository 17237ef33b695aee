import asyncio
import threading

import numpy as np
import pytest
from batching_fakes import POISON, SAFETY_S, Recorder, column, run_poisoned
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app import batching
from app.admission import House
from app.batching import Batcher, Op
from app.errors import QueueFull, Unavailable


class BatcherMachine(RuleBasedStateMachine):
    """Submit, cancel, poison, run out of memory, drain and serve, in any order."""

    MAX_BATCH, MAX_ITEMS = 4, 12

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.gate, self.fits, self.number = threading.Event(), 99, 0
        self.ops = [Op("double", lambda x: self.work(x, 2)), Op("negate", lambda x: self.work(x, -1))]
        self.largest, self.patience_s = 0, SAFETY_S
        self.tasks = []
        self.open = []  # (task, items, rows expected or error)
        self.begin()

    def begin(self):
        self.recorder, self.open = Recorder(), []
        self.batcher = Batcher(self.MAX_BATCH, self.MAX_ITEMS, monitor=self.recorder)
        self.await_(self.start())

    async def start(self):
        self.batcher.start()

    def await_(self, awaitable):
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, self.patience_s))

    def work(self, x, factor):
        assert self.gate.wait(SAFETY_S)
        self.largest = max(self.largest, len(x))
        if len(x) > self.fits:
            raise MemoryError
        return (run_poisoned(x)[0] * factor,)

    async def request(self, op, x):
        with self.batcher.reserve(len(x)):
            return (await self.batcher.submit(op, x)).rows[0]

    @rule(items=st.integers(1, 9), op=st.integers(0, 1), poison=st.sampled_from([0, 0, 0, *POISON]))
    def submit(self, items, op, poison):
        x = np.arange(self.number, self.number + items) / 1e4
        self.number += items
        expected = (x + 0.5) * (2, -1)[op]
        if poison:
            x[0], expected = poison, POISON[poison]
        inside = sum(items for _, items, _ in self.open)
        task = self.loop.create_task(self.request(self.ops[op], x))
        self.tasks.append(task)
        self.await_(asyncio.sleep(0))
        if inside and inside + items > self.MAX_ITEMS:
            assert task.done()
            assert isinstance(task.exception(), QueueFull)
        else:
            assert not task.done()
            self.open.append((task, items, expected))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data):
        task, _, _ = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        task.cancel()
        self.await_(asyncio.wait([task]))
        assert task.cancelled()

    @rule(fits=st.sampled_from([1, 2, 3, 99]))
    def shrink_memory(self, fits):
        self.fits = fits

    @rule()
    def serve(self):
        self.gate.set()
        if self.open:
            self.await_(asyncio.wait([task for task, _, _ in self.open]))
        for task, _, expected in self.open:
            if isinstance(expected, type):
                assert type(task.exception()) is expected
            else:
                assert np.array_equal(task.result(), expected)
        self.open.clear()
        self.await_(self.sees_nobody())
        self.gate.clear()

    async def sees_nobody(self):
        assert (await self.request(self.ops[0], column(0.25))) == 1.5
        assert set(self.recorder.gauges.values()) <= {0}

    @rule()
    def drain(self):
        closing = self.loop.create_task(self.batcher.close())
        if self.open:
            self.await_(asyncio.wait([task for task, _, _ in self.open]))
        for task, _, _ in self.open:
            assert isinstance(task.exception(), Unavailable)
        self.gate.set()
        self.await_(closing)
        self.gate.clear()
        assert set(self.recorder.gauges.values()) <= {0}
        self.begin()

    @invariant()
    def nothing_ends_unasked_and_no_batch_is_too_large(self):
        assert self.largest <= self.MAX_BATCH
        assert not any(task.done() for task, _, _ in self.open)

    def teardown(self):
        try:
            self.serve()
        finally:
            self.end()

    def end(self):
        self.gate.set()
        self.await_(self.batcher.close())
        if unfinished := [task for task in self.tasks if not task.done()]:
            self.await_(asyncio.wait(unfinished))
        for task in self.tasks:
            if not task.cancelled():
                task.exception()  # one that nobody has seen is logged when it is collected, in some other test
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


def test_in_any_order_of_events_every_request_is_answered_exactly_once():
    run_state_machine_as_test(BatcherMachine, settings=settings(max_examples=40, deadline=None))


@pytest.mark.slow
def test_in_a_thousand_orders_of_events_every_request_is_answered_exactly_once():
    run_state_machine_as_test(BatcherMachine, settings=settings(max_examples=1_000, deadline=None))


def lose(batch, outcomes, seconds):
    pass


def swap(batch, outcomes, seconds, deliver=batching.deliver):
    results = [result for _, result in outcomes]
    deliver(batch, [(piece, r) for (piece, _), r in zip(outcomes, results[::-1], strict=True)], seconds)


@pytest.mark.parametrize(("broken", "found"), [(lose, TimeoutError), (swap, AssertionError)])
def test_a_batcher_that_loses_or_swaps_answers_is_found_out(monkeypatch, broken, found):
    monkeypatch.setattr(batching, "deliver", broken)
    machine = BatcherMachine()
    for _ in range(3):
        machine.submit(items=2, op=0, poison=0)
    machine.patience_s = 0.3 if broken is lose else SAFETY_S
    with pytest.raises(found):
        machine.serve()
    machine.end()


def test_a_line_without_a_bound_is_found_out(monkeypatch):
    monkeypatch.setattr(House, "enter", lambda house, items, rows, patience_s: None)
    machine = BatcherMachine()
    machine.submit(items=7, op=0, poison=0)
    with pytest.raises(AssertionError):
        machine.submit(items=6, op=0, poison=0)
    machine.end()
