"""What the line learns of its speed: rows count when they are computed, once, and never for who fails or leaves."""

import asyncio
import threading
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from batching_fakes import SAFETY_S, Held, play, serving

from app import admission, batching
from app.batching import Op
from app.errors import BadRequest, QueueFull
from app.problems import Departed

ROWS = 1_000


@pytest.fixture
def clock(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def wait_ms(batcher):
    """What somebody is told who does not get in."""
    with pytest.raises(QueueFull) as caught, batcher.reserve(1_000_000):
        pass
    return caught.value.extra["retry_after_ms"]


@pytest.mark.parametrize("error", [BadRequest("a broken file"), Departed("gone"), asyncio.CancelledError()])
def test_rows_of_requests_that_failed_before_their_batch_count_for_no_speed(clock, error):
    async def scenario():
        async with serving() as batcher:
            with batcher.reserve(1, ROWS):
                for _ in range(60):
                    with suppress(type(error)), batcher.reserve(1, ROWS):
                        raise error
                assert wait_ms(batcher) == 5_000  # the first guess: 200 rows a second

    play(scenario)


def test_rows_count_as_soon_as_their_batch_is_computed_and_only_once(clock, monkeypatch):
    monkeypatch.setattr(batching, "LONG_S", 0.0)  # as batches are that take a tenth of a second

    async def scenario():
        loop = asyncio.get_running_loop()

        def run(x):
            told = threading.Event()
            loop.call_soon_threadsafe(told.set)
            assert told.wait(SAFETY_S)  # the loop knows the batches before: the clock does not run ahead of it
            clock[0] += 0.1  # 8 rows in a tenth of a second: 80 rows a second
            return (x,)

        op = Op("op", run)
        async with serving(max_batch=8) as batcher:
            with batcher.reserve(1, 10_000) as stay:
                for _ in range(10):
                    await batcher.submit(op, np.arange(400.0), stay=stay)
                assert stay.rows == batcher._house.rows == 6_000
                assert wait_ms(batcher) == pytest.approx(60_000)
                for _ in range(10):
                    await batcher.submit(op, np.arange(400.0), stay=stay)
                assert wait_ms(batcher) == pytest.approx(2_000 / 80 * 1000, rel=0.05)
                before = batcher._house._computed
            assert (batcher._house.items, batcher._house.rows, batcher._house._in_line) == (0, 0, 0)
            assert batcher._house._computed == before  # no batch had to compute the rest

    play(scenario)


def test_a_request_that_leaves_in_the_middle_of_a_batch_gives_its_rows_back_once():
    async def scenario():
        held = Held()
        async with serving(max_batch=8) as batcher:

            async def request():
                with batcher.reserve(1, 20) as stay:
                    await batcher.submit(held.op, np.arange(20.0), stay=stay)

            task = asyncio.create_task(request())
            await asyncio.to_thread(held.running.wait, SAFETY_S)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert batcher._house.rows == 0
            assert batcher._house._in_line == 8  # of the batch that runs; the other rows wait no more
            held.gate.set()
            with batcher.reserve(1, 1) as stay:
                await batcher.submit(held.op, np.arange(1.0), stay=stay)
            assert (batcher._house.rows, batcher._house._in_line) == (0, 0)

    play(scenario)


def test_rows_that_fail_alone_are_given_back_when_their_request_leaves():
    async def scenario():
        def run(x):
            if np.isin(7.0, x):
                raise ValueError("poison")
            return (x,)

        async with serving(max_batch=8) as batcher:
            with suppress(ValueError), batcher.reserve(1, 8) as stay:
                await batcher.submit(Op("op", run), np.arange(8.0), stay=stay)
            assert (batcher._house.rows, batcher._house._in_line) == (0, 0)

    play(scenario)
