"""What is handed to a thread and no longer waited for is let go, although no thread has come to it."""

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app import threads
from app.threads import Pool, in_thread


def test_a_body_whose_time_is_over_is_not_held_until_a_thread_is_free() -> None:
    busy, held = threading.Event(), list[weakref.ref[Any]]()

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as readers:
            first = asyncio.create_task(in_thread(readers, busy.wait))
            await asyncio.sleep(0)
            for _ in range(20):
                body = np.zeros(1000)
                held.append(weakref.ref(body))
                late = asyncio.create_task(in_thread(readers, body.sum))
                del body
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(late, 0.01)
                del late
            gc.collect()
            alive = sum(one() is not None for one in held)
            busy.set()
            assert await first
            assert alive == 0

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_what_a_thread_returns_or_raises_comes_back() -> None:
    async def scenario() -> None:
        with ThreadPoolExecutor(1) as readers:
            assert await in_thread(readers, divmod, 7, 2) == (3, 1)
            with pytest.raises(ZeroDivisionError):
                await in_thread(readers, divmod, 7, 0)

    asyncio.run(scenario())


def test_a_pool_knows_how_long_its_line_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr(threads, "time", SimpleNamespace(monotonic=lambda: now[0]))
    busy = threading.Event()

    def slow(answer: float) -> float:
        now[0] += 2
        return 1 / answer

    async def scenario() -> None:
        pool = Pool(2, "test")
        for _ in range(50):
            assert await pool.run(slow, 2.0) == 0.5
            with pytest.raises(ZeroDivisionError):
                await pool.run(slow, 0.0)
        assert pool.wait_s == 0  # nobody is inside
        line = [asyncio.create_task(pool.run(busy.wait)) for _ in range(5)]
        await asyncio.sleep(0)
        assert pool.wait_s == pytest.approx(4, rel=0.01)  # the next is sixth: two twos before it
        for waiting in line[2:]:
            waiting.cancel()
        await asyncio.wait(line[2:])
        assert pool.wait_s == pytest.approx(2, rel=0.01)
        busy.set()
        await asyncio.wait(line)
        assert pool.wait_s == 0
        pool.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_work_that_nobody_waits_for_any_more_counts_until_it_is_done() -> None:
    begun, busy = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        busy.wait()
        time.sleep(0.02)

    async def scenario() -> None:
        pool = Pool(1, "test")
        await pool.run(time.sleep, 0.5)
        left = asyncio.create_task(pool.run(work))
        await asyncio.to_thread(begun.wait)
        left.cancel()
        await asyncio.wait([left])
        first = pool.wait_s
        assert first >= 0.5  # what was done once is what is known
        busy.set()
        while pool.wait_s:
            await asyncio.sleep(0.01)
        follower = asyncio.create_task(pool.run(time.sleep, 0.0))
        await asyncio.sleep(0)
        assert 0 < pool.wait_s < first  # what nobody waited for has been learnt, too
        await follower
        pool.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))
