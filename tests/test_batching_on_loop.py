"""Where there is one core, the event loop computes all that is quick; the promises of the batcher hold there, too."""

import asyncio
import time
from contextvars import ContextVar

import numpy as np
import pytest
from batching_fakes import SAFETY_S, Held, Recorder, column, play, run_poisoned, serving, submit_all
from test_batching_at_once import Places, known

from app import batching, service
from app.batching import DeviceLost, Op
from app.errors import Unavailable
from app.main import create_app
from app.settings import Settings
from tests.tiny import save_tiny


@pytest.fixture(autouse=True)
def everything_is_quick(monkeypatch):
    monkeypatch.setattr(batching, "QUICK_S", SAFETY_S)


def test_who_comes_together_is_computed_together_on_the_loop():
    async def scenario():
        places, recorder = Places(), Recorder()
        async with serving(on_loop=True, monitor=recorder) as batcher:
            await known(batcher, places)
            answers = await asyncio.gather(*(batcher.submit(places.op, column(i, i + 1)) for i in range(3)))
            assert [answer.rows[0].tolist() for answer in answers] == [[0, 2], [2, 4], [4, 6]]
            assert places.on_loop == [False, True]
            assert recorder.items["op"] == [1, 6]
            assert recorder.gauges == {"op": 0}

    play(scenario)


def test_a_batch_of_several_tells_as_well_that_they_are_quick():
    async def scenario():
        places = Places()
        async with serving(on_loop=True) as batcher:
            for _ in range(2):
                await asyncio.gather(*await submit_all(batcher, places.op, [column(i) for i in range(4)]))
            assert places.on_loop[0] is False
            assert places.on_loop[-1] is True

    play(scenario)


def test_what_is_not_quick_stays_in_threads(monkeypatch):
    monkeypatch.setattr(batching, "QUICK_S", 0.001)

    async def scenario():
        places = Places(lambda x: (time.sleep(0.01 * len(x)), (x,))[1])
        async with serving(on_loop=True) as batcher:
            for value in range(3):
                await asyncio.gather(*await submit_all(batcher, places.op, [column(value), column(1)]))
            assert not any(places.on_loop)

    play(scenario)


def test_the_loop_computes_nothing_beside_a_thread_and_the_thread_takes_what_waits():
    async def scenario():
        held, places = Held(), Places()
        async with serving(on_loop=True) as batcher:
            await known(batcher, places)
            slow = await held.occupy(batcher)
            tasks = await submit_all(batcher, places.op, [column(i) for i in range(3)])
            await asyncio.sleep(0.05)
            assert places.sizes == [1]
            held.gate.set()
            await asyncio.gather(slow, *tasks)
            assert not any(places.on_loop)

    play(scenario)


def test_the_loop_turns_to_others_between_two_batches():
    async def scenario():
        places, turns = Places(), []
        async with serving(max_batch=8, on_loop=True) as batcher:
            await known(batcher, places)
            large = asyncio.create_task(batcher.submit(places.op, np.arange(64.0)))
            while not large.done():
                turns.append(len(places.sizes))
                await asyncio.sleep(0)
            assert np.array_equal((await large).rows[0], np.arange(64.0) * 2)
            assert places.sizes == [1] + [8] * 8
            assert set(range(1, 9)) <= set(turns)  # somebody else's turn came after each of the batches

    play(scenario)


def test_a_batch_on_the_loop_takes_no_longer_than_a_turn(monkeypatch):
    monkeypatch.setattr(batching, "TURN_S", 0.1)

    async def scenario():
        places = Places(lambda x: (time.sleep(0.02 * len(x)), (x,))[1])
        async with serving(max_batch=32, on_loop=True) as batcher:
            await known(batcher, places)
            await batcher.submit(places.op, np.arange(32.0))
            assert max(places.sizes) <= 5
            assert all(places.on_loop[1:])

    play(scenario)


def test_what_the_loop_computes_belongs_to_no_request():
    seen, here = [], ContextVar("here", default="nobody")

    async def scenario():
        places = Places(lambda x: (seen.append(here.get()), (x,))[1])
        async with serving(on_loop=True) as batcher:
            await known(batcher, places)
            here.set("somebody")
            await batcher.submit(places.op, np.arange(20.0))
            assert all(places.on_loop[1:])
            assert set(seen) == {"nobody"}
            assert len(seen) > 2

    play(scenario)


def test_a_large_submission_does_not_keep_small_ones_waiting():
    async def scenario():
        places = Places()
        async with serving(max_batch=8, on_loop=True) as batcher:
            await known(batcher, places)
            large = asyncio.create_task(batcher.submit(places.op, np.arange(800.0)))
            await asyncio.sleep(0)
            await batcher.submit(places.op, column(1))
            assert len(places.sizes) < 10
            await large

    play(scenario)


@pytest.mark.parametrize("value", [1000, 2000, 3000])
def test_a_bad_row_fails_alone(value):
    async def scenario():
        places = Places(run_poisoned)
        async with serving(on_loop=True) as batcher:
            await known(batcher, places)
            tasks = await submit_all(batcher, places.op, [column(i) for i in (1, 2, value, 3)])
            good, bad = (await asyncio.gather(*tasks, return_exceptions=True))[::3], tasks[2].exception()
            assert [answer.rows[0].tolist() for answer in good] == [[1.5], [3.5]]
            assert bad is not None
            assert all(places.on_loop[1:])

    play(scenario)


def test_who_leaves_before_the_turn_is_not_computed():
    async def scenario():
        places = Places()
        async with serving(on_loop=True) as batcher:
            await known(batcher, places)
            tasks = await submit_all(batcher, places.op, [column(i) for i in range(3)])
            tasks[1].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert places.sizes == [1, 2]

    play(scenario)


def test_who_waits_when_the_batcher_ends_is_told_so_and_nothing_is_computed():
    async def scenario():
        places = Places()
        async with serving(on_loop=True) as batcher:
            await known(batcher, places)
            tasks = await submit_all(batcher, places.op, [column(i) for i in range(3)])
            await batcher.close()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert {error.code for error in ends if isinstance(error, Unavailable)} == {"draining"}
            assert len(ends) == 3
            assert places.sizes == [1]

    play(scenario)


def test_a_device_that_is_lost_on_the_loop_ends_the_batcher():
    def run(x):
        if 13 in x:
            raise DeviceLost("gone")
        return (x,)

    async def scenario():
        places, deaths = Places(run), []
        async with serving(on_loop=True, on_death=deaths.append) as batcher:
            await known(batcher, places)
            tasks = await submit_all(batcher, places.op, [column(i) for i in (1, 13, 2)])
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert [error.code for error in ends] == ["device_lost"] * 3
            assert [str(error) for error in deaths] == ["gone"]

    play(scenario)


def test_quick_and_slow_operations_in_any_order_are_all_answered():
    async def scenario():
        quick, slow = Places(lambda x: (x * 2 + 1,)), Op("slow", lambda x: (time.sleep(0.0005), (x * 3,))[1])
        async with serving(max_batch=16, on_loop=True) as batcher:
            await known(batcher, quick)

            async def client(start):
                for i in range(start, start + 100):
                    op, factor, plus = (slow, 3, 0) if i % 7 == 0 else (quick.op, 2, 1)
                    x = np.arange(i, i + 1 + (i % 5) * 6)
                    batcher._quick.pop(slow, None)
                    assert np.array_equal((await batcher.submit(op, x)).rows[0], x * factor + plus)

            await asyncio.gather(*(client(1000 * number) for number in range(12)))
            assert any(quick.on_loop)
            assert not all(quick.on_loop[1:])

    play(scenario)


@pytest.mark.parametrize(("cores", "workers", "on_loop"), [(2, 1, False), (2, 2, True), (1, 1, True), (4, 2, False)])
def test_the_service_asks_for_it_where_a_process_has_one_core(tmp_path, monkeypatch, cores, workers, on_loop):
    monkeypatch.setattr(service, "usable_cores", lambda: cores)
    monkeypatch.setattr(batching, "TURN_S", SAFETY_S)
    model = save_tiny(tmp_path / "tiny.safetensors")
    app = create_app(Settings(model=str(model), device="cpu", workers=workers))

    async def scenario():
        async with app.router.lifespan_context(app):
            engine, x = app.state.service.engine, np.full((2, 1, 8, 8), 0.5, np.float32)
            places = Places(engine.encode.run)
            with app.state.service.admit(engine, 2, 2, SAFETY_S) as call:
                first, *others = [await call.run(places.op, x) for _ in range(3)]
            assert places.on_loop == [False, on_loop, on_loop]
            assert all(np.array_equal(first[0], other[0]) for other in others)

    play(scenario)
