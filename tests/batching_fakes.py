"""What the tests of the batcher share: an operation behind a gate, a monitor, poison."""

import asyncio
import threading
from collections import Counter, defaultdict
from contextlib import asynccontextmanager

import numpy as np

from app.batching import Batcher, Op
from app.errors import InternalError

SAFETY_S = 30  # a lost future ends the test as a failure instead of a hang


def column(*values):
    return np.array(values, dtype=np.float64)


def play(scenario):
    """Run a coroutine function to its end."""
    return asyncio.run(asyncio.wait_for(scenario(), SAFETY_S))


@asynccontextmanager
async def serving(max_batch=8, max_queue_items=10_000, **more):
    batcher = Batcher(max_batch, max_queue_items, **more)
    batcher.start()
    try:
        yield batcher
    finally:
        await batcher.close()


class Held:
    """An operation that waits at a gate and remembers its batches."""

    def __init__(self, run=lambda x: (x * 2,), name="op"):
        self.batches, self.running, self.gate = [], threading.Event(), threading.Event()
        self.op = Op(name, self.work)
        self.run = run

    def work(self, *columns):
        self.batches.append([float(value) for value in np.ravel(columns[0])])
        self.running.set()
        assert self.gate.wait(SAFETY_S)
        return self.run(*columns)

    async def occupy(self, batcher, value=0.0):
        """Submit one row and return once the worker holds it."""
        task = asyncio.create_task(batcher.submit(self.op, column(value)))
        await asyncio.to_thread(self.running.wait, SAFETY_S)
        return task

    @property
    def sizes(self):
        return [len(batch) for batch in self.batches]


class Recorder:
    """A monitor that keeps everything."""

    def __init__(self):
        self.waits, self.seconds, self.items = defaultdict(list), defaultdict(list), defaultdict(list)
        self.gauges, self.reasons = {}, Counter()

    def queue_wait(self, op, seconds):
        self.waits[op].append(seconds)

    def device(self, op, seconds):
        self.seconds[op].append(seconds)

    def batch(self, op, items):
        self.items[op].append(items)

    def queue_items(self, op, n):
        self.gauges[op] = n

    def rejected(self, reason):
        self.reasons[reason] += 1


async def submit_all(batcher, op, columns):
    """Start one submission per column, all of them waiting when this returns."""
    tasks = [asyncio.create_task(batcher.submit(op, x)) for x in columns]
    await asyncio.sleep(0)
    return tasks


def run_poisoned(x):
    """Return x + 0.5; a row from 1000 on raises, from 2000 on gives NaN, from 3000 on has no memory."""
    if np.any((x >= 1000) & (x < 2000)):
        raise ValueError(f"poison among {len(x)}")
    if np.any(x >= 3000):
        raise MemoryError
    return (np.where(x >= 2000, np.nan, x + 0.5),)


POISON = {1000: ValueError, 2000: InternalError, 3000: MemoryError}


class Places:
    """An operation that remembers in which threads it ran, and how many rows it got."""

    def __init__(self, run=lambda x: (x * 2,)):
        self.run, self.threads, self.sizes = run, [], []
        self.op = Op("op", self.work)

    def work(self, x):
        self.threads.append(threading.current_thread())
        self.sizes.append(len(x))
        return self.run(x)

    @property
    def on_loop(self):
        return [thread is threading.main_thread() for thread in self.threads]


async def known(batcher, places):
    """Have the operation measured, by a row that is computed in a thread."""
    await batcher.submit(places.op, column(0))
    assert places.on_loop == [False]
    while len(batcher._changed._waiters) < len(batcher._threads):  # the thread has yet to see that nothing is left
        await asyncio.sleep(0.001)
