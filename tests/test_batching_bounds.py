import asyncio
import threading
from contextlib import suppress

import numpy as np
import pytest
from batching_fakes import SAFETY_S, Held, Recorder, column, play, serving, submit_all

from app import batching
from app.batching import Batcher, DeviceLost, Op
from app.errors import QueueFull, Unavailable


def test_a_full_line_refuses_at_once_and_serves_everybody_it_let_in():
    async def scenario():
        held, recorder = Held(), Recorder()
        async with serving(max_queue_items=20, monitor=recorder) as batcher:

            async def request(i):
                with batcher.reserve(1):
                    return float((await batcher.submit(held.op, column(i))).rows[0][0])

            tasks = [asyncio.create_task(request(i)) for i in range(70)]
            await asyncio.sleep(0)
            refused = [task.exception() for task in tasks[20:]]  # the device has not moved
            assert all(isinstance(error, QueueFull) for error in refused)
            assert all(int(error.headers["Retry-After"]) >= 1 for error in refused)
            assert all(error.extra["retry_after_ms"] >= 1 for error in refused)
            held.gate.set()
            assert await asyncio.gather(*tasks[:20]) == [2.0 * i for i in range(20)]
            assert recorder.reasons == {"queue_full": 50}
            assert await request(5) == 10  # there is room again

    play(scenario)


def test_a_request_larger_than_the_whole_line_is_let_in_when_nobody_else_is_there():
    async def scenario():
        async with serving(max_queue_items=10) as batcher:
            with batcher.reserve(500), pytest.raises(QueueFull), batcher.reserve(1):
                pass
            with batcher.reserve(1), pytest.raises(QueueFull), batcher.reserve(500):
                pass
            with batcher.reserve(4), batcher.reserve(6), pytest.raises(QueueFull), batcher.reserve(1):
                pass

    play(scenario)


def test_room_is_given_back_when_a_request_fails():
    async def scenario():
        async with serving(max_queue_items=10) as batcher:
            for _ in range(3):
                with suppress(ZeroDivisionError), batcher.reserve(10):
                    raise ZeroDivisionError

    play(scenario)


# Life and death


@pytest.mark.parametrize("error", [DeviceLost("bus error"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("streams", [1, 2])
def test_a_dead_device_fails_everybody_promptly_and_is_told_once(error, streams):
    async def scenario():
        deaths, recorder = [], Recorder()

        def die(x):
            raise error

        held = Held(die)
        async with serving(streams=streams, monitor=recorder, on_death=deaths.append) as batcher:
            tasks = [await held.occupy(batcher)]
            tasks += await submit_all(batcher, held.op, [np.arange(50.0), column(1), column(2)])
            held.gate.set()
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            assert [(type(e), e.code) for e in errors] == [(Unavailable, "device_lost")] * 4
            assert not batcher.alive
            assert recorder.gauges == {"op": 0}
            with pytest.raises(Unavailable, match="device"):
                await batcher.submit(held.op, column(1))
            with pytest.raises(Unavailable, match="device"), batcher.reserve(1):
                pass
            await batcher.close()
        assert deaths == [error]
        assert recorder.reasons == {"device_lost": 2}

    play(scenario)


def test_closing_fails_what_is_unanswered_and_may_be_repeated():
    async def scenario():
        held, recorder = Held(), Recorder()
        async with serving(monitor=recorder) as batcher:
            tasks = [await held.occupy(batcher)]
            tasks += await submit_all(batcher, held.op, [np.arange(100.0), column(2)])
            closing = [asyncio.create_task(batcher.close()) for _ in range(2)]
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            assert [(type(e), e.code) for e in errors] == [(Unavailable, "draining")] * 3
            held.gate.set()
            await asyncio.gather(*closing)
            assert not batcher.alive
            assert recorder.gauges == {"op": 0}
            with pytest.raises(Unavailable, match="shutting down"):
                await batcher.submit(held.op, column(1))
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("inference-")]

    play(scenario)


def test_before_its_start_a_batcher_refuses_and_can_be_closed():
    async def scenario():
        batcher = Batcher(8, 8)
        assert not batcher.alive
        with pytest.raises(Unavailable, match="not loaded"):
            await batcher.submit(Op("op", lambda x: (x,)), column(1))
        await batcher.close()

    play(scenario)


def test_a_device_that_hangs_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr(batching, "JOIN_S", 0.01)
    held = Held()

    async def scenario():
        batcher = Batcher(8, 8)
        batcher.start()
        task = await held.occupy(batcher)
        await batcher.close()
        with pytest.raises(Unavailable):
            await task
        return batcher

    batcher = play(scenario)
    held.gate.set()  # it comes back when the event loop is gone: nobody minds
    for thread in batcher._threads:
        thread.join(SAFETY_S)
        assert not thread.is_alive()


def test_queue_time_and_device_time_are_measured_apart():
    async def scenario():
        recorder, held = Recorder(), Held()
        async with serving(max_batch=4, monitor=recorder) as batcher:
            first = await held.occupy(batcher)
            tasks = await submit_all(batcher, held.op, [np.arange(6.0), column(1)])
            held.gate.set()
            await asyncio.gather(first, *tasks)
            assert len(recorder.waits["op"]) == 3  # submissions
            assert recorder.items["op"] == [1, 4, 3]  # batches
            assert len(recorder.seconds["op"]) == 3
            assert (await tasks[0]).device_s == pytest.approx(sum(recorder.seconds["op"][1:]))
            assert (await tasks[0]).queue_s in recorder.waits["op"]

    play(scenario)
