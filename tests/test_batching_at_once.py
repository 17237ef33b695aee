"""A lone quick row is computed by the event loop itself; the promises of the batcher hold there, too."""

import asyncio
import time

import numpy as np
import pytest
from batching_fakes import SAFETY_S, Held, Places, Recorder, column, known, play, run_poisoned, serving

from app import batching
from app.batching import DeviceLost
from app.errors import InternalError, Unavailable
from app.main import create_app
from app.settings import Settings
from tests.tiny import save_tiny


@pytest.fixture(autouse=True)
def everything_is_quick(monkeypatch):
    monkeypatch.setattr(batching, "QUICK_S", SAFETY_S)


async def looking_around(batcher, places):
    """Submit a row and return while the loop sees whether it is alone."""
    task = asyncio.create_task(batcher.submit(places.op, column(1)))
    await asyncio.sleep(0)
    return task


def test_a_lone_row_is_computed_on_the_loop_once_its_time_is_known():
    async def scenario():
        places, recorder = Places(), Recorder()
        async with serving(at_once=True, monitor=recorder) as batcher:
            await known(batcher, places)
            for value in (1, 2, 3):
                answer = await batcher.submit(places.op, column(value))
                assert answer.rows[0] == [2 * value]
                assert answer.device_s > 0
            assert places.on_loop == [False, True, True, True]
            assert recorder.items["op"] == [1, 1, 1, 1]
            assert len(recorder.waits["op"]) == len(recorder.seconds["op"]) == 4
            assert recorder.gauges == {"op": 0}

    play(scenario)


def test_nothing_is_computed_on_the_loop_unless_asked_for():
    async def scenario():
        places = Places()
        async with serving() as batcher:
            for value in range(5):
                await batcher.submit(places.op, column(value))
            assert not any(places.on_loop)

    play(scenario)


@pytest.mark.parametrize("size", [1, 2])
def test_who_comes_together_is_computed_in_threads(size):
    async def scenario():
        places = Places()
        async with serving(at_once=True) as batcher:
            await known(batcher, places)
            await asyncio.gather(*(batcher.submit(places.op, np.arange(float(size))) for _ in range(4)))
            await batcher.submit(places.op, column(1, 2))
            assert not any(places.on_loop)

    play(scenario)


def test_a_slow_row_is_not_computed_on_the_loop_again(monkeypatch):
    monkeypatch.setattr(batching, "QUICK_S", 0.05)

    async def scenario():
        pause_s = 0.0
        places = Places(lambda x: (time.sleep(pause_s), (x,))[1])
        async with serving(at_once=True) as batcher:
            for _ in range(100):  # a machine that is busy makes any row slow
                await batcher.submit(places.op, column(1))
                if places.on_loop[-1]:
                    break
            assert places.on_loop[-1]
            pause_s = 0.06
            for _ in range(2):
                await batcher.submit(places.op, column(1))
            assert not places.on_loop[-1]

    play(scenario)


def test_other_weights_are_measured_before_they_are_computed_on_the_loop():
    async def scenario():
        before, after = Places(), Places()
        async with serving(at_once=True) as batcher:
            await known(batcher, before)
            await known(batcher, after)

    play(scenario)


def test_the_loop_does_not_compute_beside_a_batch_whose_callers_have_left():
    async def scenario():
        held, places = Held(), Places()
        async with serving(at_once=True, streams=2) as batcher:
            await known(batcher, places)
            left = await held.occupy(batcher)
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
            await batcher.submit(places.op, column(1))
            assert places.on_loop == [False, False]
            held.gate.set()

    play(scenario)


@pytest.mark.parametrize(("value", "error"), [(1000, ValueError), (2000, InternalError), (3000, MemoryError)])
def test_a_bad_row_on_the_loop_fails_alone(value, error):
    async def scenario():
        places, recorder = Places(run_poisoned), Recorder()
        async with serving(at_once=True, monitor=recorder) as batcher:
            await known(batcher, places)
            with pytest.raises(error):
                await batcher.submit(places.op, column(value))
            assert (await batcher.submit(places.op, column(1))).rows[0] == [1.5]
            assert all(places.on_loop[1:])
            assert recorder.gauges == {"op": 0}

    play(scenario)


def test_a_device_that_is_lost_on_the_loop_ends_the_batcher():
    def run(x):
        if x[0] == 13:
            raise DeviceLost("gone")
        return (x,)

    async def scenario():
        places, deaths = Places(run), []
        async with serving(at_once=True, on_death=deaths.append) as batcher:
            await known(batcher, places)
            for value in (13, 1):
                with pytest.raises(Unavailable) as raised:
                    await batcher.submit(places.op, column(value))
                assert raised.value.code == "device_lost"
            assert places.on_loop == [False, True]
            assert [str(error) for error in deaths] == ["gone"]

    play(scenario)


def test_who_leaves_before_the_loop_has_looked_around_is_not_computed():
    async def scenario():
        places = Places()
        async with serving(at_once=True) as batcher:
            await known(batcher, places)
            task = await looking_around(batcher, places)
            task.cancel()
            assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
            assert places.sizes == [1]
            await batcher.submit(places.op, column(2))
            assert places.on_loop == [False, True]

    play(scenario)


def test_who_is_there_when_the_batcher_ends_is_told_so():
    async def scenario():
        places = Places()
        async with serving(at_once=True) as batcher:
            await known(batcher, places)
            task = await looking_around(batcher, places)
            await batcher.close()
            with pytest.raises(Unavailable) as raised:
                await task
            assert raised.value.code == "draining"
            assert places.sizes == [1]

    play(scenario)


def test_every_answer_belongs_to_its_request_wherever_it_is_computed():
    async def scenario():
        places = Places(lambda x: (x * 2 + 1,))
        async with serving(max_batch=16, streams=2, at_once=True) as batcher:
            await known(batcher, places)
            numbers = iter(range(2_000))

            async def client(pause_s):
                for i in numbers:
                    x = np.arange(i * 100, i * 100 + 1 + (i % 5 == 0))
                    assert np.array_equal((await batcher.submit(places.op, x)).rows[0], x * 2 + 1)
                    await asyncio.sleep(pause_s)

            await asyncio.gather(*(client(pause_s) for pause_s in (0, 0.001, 0.002)))
            assert any(places.on_loop)
            assert not all(places.on_loop[1:])

    play(scenario)


def test_on_a_cpu_the_service_asks_for_it(tmp_path):
    app = create_app(Settings(model=str(save_tiny(tmp_path / "tiny.safetensors")), device="cpu"))

    async def scenario():
        async with app.router.lifespan_context(app):
            engine, x = app.state.service.engine, np.full((1, 1, 8, 8), 0.5, np.float32)
            places = Places(engine.encode.run)
            with app.state.service.admit(engine, 1, 1, SAFETY_S) as call:
                first, *others = [await call.run(places.op, x) for _ in range(3)]
            assert places.on_loop == [False, True, True]
            assert all(np.array_equal(first[0], other[0]) for other in others)

    play(scenario)
