"""A second thread computes beside a long batch or for many rows; a few wait for the quick batch that is under way."""

import asyncio
import threading
import time

import numpy as np
import pytest
from batching_fakes import SAFETY_S, Held, column, play, serving

from app import batching
from app.batching import WORTH, Op
from app.errors import InternalError


@pytest.fixture(autouse=True)
def everything_is_quick(monkeypatch):
    monkeypatch.setattr(batching, "QUICK_S", SAFETY_S)


async def quick(batcher, name="op"):
    """Return an operation that the batcher knows as quick and that waits at its gate from now on."""
    held = Held(name=name)
    held.gate.set()
    await batcher.submit(held.op, column(0))
    held.gate.clear()
    held.running.clear()
    held.batches.clear()
    return held


async def under_way(batcher, held, rows=2):
    """Submit rows, more than the one that the event loop would compute, and return when a thread holds them."""
    task = asyncio.create_task(batcher.submit(held.op, np.zeros(rows)))
    await asyncio.to_thread(held.running.wait, SAFETY_S)
    return task


async def until_sizes(held, sizes):
    deadline = time.monotonic() + SAFETY_S
    while held.sizes != sizes and time.monotonic() < deadline:
        await asyncio.sleep(0.001)
    assert held.sizes == sizes


async def come_one_by_one(batcher, op, count):
    """Start submissions of one row each, with time enough for a free thread to take each of them alone."""
    tasks = []
    for value in range(count):
        tasks.append(asyncio.create_task(batcher.submit(op, column(value))))
        await asyncio.sleep(0.01)
    return tasks


def test_few_rows_wait_for_a_quick_batch_and_are_computed_together():
    async def scenario():
        async with serving(max_batch=64, streams=2, at_once=True) as batcher:
            held = await quick(batcher)
            first = await under_way(batcher, held)
            tasks = await come_one_by_one(batcher, held.op, 3)
            assert held.sizes == [2]
            held.gate.set()
            await asyncio.gather(first, *tasks)
            assert held.sizes == [2, 3]

    play(scenario)


def test_enough_rows_do_not_wait():
    async def scenario():
        async with serving(max_batch=64, streams=2, at_once=True) as batcher:
            held = await quick(batcher)
            first = await under_way(batcher, held)
            tasks = await come_one_by_one(batcher, held.op, WORTH)
            await until_sizes(held, [2, WORTH])
            held.gate.set()
            await asyncio.gather(first, *tasks)

    play(scenario)


def test_rows_of_several_operations_count_together():
    async def scenario():
        async with serving(max_batch=64, streams=2, at_once=True) as batcher:
            held, other = await quick(batcher), await quick(batcher, "other")
            first = await under_way(batcher, held)
            few = asyncio.create_task(batcher.submit(other.op, np.zeros(WORTH // 2)))
            await asyncio.sleep(0.01)
            assert other.sizes == []
            more = asyncio.create_task(batcher.submit(held.op, np.zeros(WORTH // 2)))
            await until_sizes(other, [WORTH // 2])
            held.gate.set()
            other.gate.set()
            await asyncio.gather(first, few, more)

    play(scenario)


def test_nobody_waits_beside_a_large_batch():
    async def scenario():
        async with serving(max_batch=64, streams=2, at_once=True) as batcher:
            held = await quick(batcher)
            large = await under_way(batcher, held, WORTH)
            single = asyncio.create_task(batcher.submit(held.op, column(1)))
            await until_sizes(held, [WORTH, 1])
            held.gate.set()
            await asyncio.gather(large, single)

    play(scenario)


@pytest.mark.parametrize("at_once", [False, True])
def test_nobody_waits_beside_a_batch_that_is_not_known_to_be_quick(at_once):
    async def scenario():
        async with serving(max_batch=64, streams=2, at_once=at_once) as batcher:
            slow = Held()
            first = await under_way(batcher, slow)
            second = asyncio.create_task(batcher.submit(slow.op, column(1)))
            await until_sizes(slow, [2, 1])
            slow.gate.set()
            await asyncio.gather(first, second)

    play(scenario)


def test_nobody_waits_where_a_long_batch_runs_beside_the_quick_one():
    async def scenario():
        async with serving(max_batch=64, streams=3, at_once=True) as batcher:
            held, slow = await quick(batcher), Held(name="slow")
            long = await under_way(batcher, slow)
            brief = await under_way(batcher, held)
            single = asyncio.create_task(batcher.submit(held.op, column(1)))
            await until_sizes(held, [2, 1])
            held.gate.set()
            slow.gate.set()
            await asyncio.gather(long, brief, single)

    play(scenario)


def test_who_waits_for_a_quick_batch_is_told_when_the_batcher_ends():
    async def scenario():
        async with serving(max_batch=64, streams=2, at_once=True) as batcher:
            held = await quick(batcher)
            first = await under_way(batcher, held)
            (waiting,) = await come_one_by_one(batcher, held.op, 1)
            closing = asyncio.create_task(batcher.close())
            done = await asyncio.gather(first, waiting, return_exceptions=True)
            assert [error.code for error in done] == ["draining", "draining"]
            held.gate.set()
            await closing
            assert not any(thread.is_alive() for thread in batcher._threads)
            assert held.sizes == [2]

    play(scenario)


@pytest.mark.parametrize(("rows", "sizes"), [(64, [32, 32]), (33, [17, 16]), (31, [31])])
def test_threads_that_are_free_share_what_is_enough_for_each(rows, sizes):
    async def scenario():
        held = Held()
        async with serving(max_batch=64, streams=2) as batcher:
            task = asyncio.create_task(batcher.submit(held.op, np.arange(float(rows))))
            while sum(held.sizes) < rows:
                await asyncio.sleep(0.001)
            assert held.sizes == sizes
            held.gate.set()
            assert np.array_equal((await task).rows[0], np.arange(rows) * 2)

    play(scenario)


def counted(batcher, monkeypatch, long_s=SAFETY_S):
    """Return a list that grows by the batches of which the event loop is told, each time that it is told of any."""
    monkeypatch.setattr(batching, "LONG_S", long_s)
    told, hand_over = [], batcher._hand_over

    def count(batches):
        told.append(len(batches))
        hand_over(batches)

    monkeypatch.setattr(batcher, "_hand_over", count)
    return told


def test_the_loop_is_told_of_few_batches_of_a_large_answer_and_of_its_last_one_at_once(monkeypatch):
    async def scenario():
        async with serving(max_batch=8) as batcher:
            told = counted(batcher, monkeypatch)
            x = np.arange(8.0 * 11)
            with batcher.reserve(len(x)) as stay:
                answer = await batcher.submit(Op("op", lambda x: (x * 2, np.stack([x, -x], 1))), x, stay=stay)
                assert stay.rows == batcher._house.rows == 0
            np.testing.assert_array_equal(answer.rows[0], x * 2)
            np.testing.assert_array_equal(answer.rows[1], np.stack([x, -x], 1))
            assert told == [4, 4, 3]

    play(scenario)


def test_an_answer_that_is_whole_does_not_wait_for_a_large_one():
    async def scenario():
        async with serving(max_batch=8) as batcher:
            more = threading.Event()
            held = Held(lambda x: (x * 2,) if x.max() < 15 or more.wait(SAFETY_S) else None)
            large = asyncio.create_task(batcher.submit(held.op, np.arange(8.0 * 5)))
            await asyncio.to_thread(held.running.wait, SAFETY_S)
            small = asyncio.create_task(batcher.submit(held.op, column(3)))
            await asyncio.sleep(0)
            held.gate.set()
            assert (await small).rows[0].tolist() == [6]
            assert not large.done()
            more.set()
            assert (await large).rows[0].tolist() == (2 * np.arange(40.0)).tolist()

    play(scenario)


def test_an_error_in_the_middle_of_a_large_answer_is_told_at_once(monkeypatch):
    async def scenario():
        async with serving(max_batch=8) as batcher:
            told = counted(batcher, monkeypatch)
            op = Op("op", lambda x: (np.where(x == 12, np.nan, x),))
            with pytest.raises(InternalError):
                await batcher.submit(op, np.arange(8.0 * 5))
            assert told[0] == 2

    play(scenario)


def test_a_batch_that_took_long_is_told_of_at_once(monkeypatch):
    async def scenario():
        async with serving(max_batch=8) as batcher:
            told = counted(batcher, monkeypatch, long_s=0.0)
            await batcher.submit(Op("op", lambda x: (x,)), np.arange(8.0 * 5))
            assert told == [1] * 5

    play(scenario)


def test_nothing_is_kept_of_a_large_request_whose_caller_left():
    async def scenario():
        async with serving(max_batch=8, streams=2) as batcher:
            held = Held()
            task = asyncio.create_task(batcher.submit(held.op, x := np.arange(8.0 * 50)))
            await asyncio.to_thread(held.running.wait, SAFETY_S)
            (work,) = batcher._open
            work.future.cancel()  # the loop has not come to `end` yet when the threads go on
            held.gate.set()
            deadline = time.monotonic() + SAFETY_S
            while (batcher._untold or batcher._lines) and time.monotonic() < deadline:
                time.sleep(0.001)
            assert not batcher._untold
            assert work.out is None
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(x) > sum(held.sizes)

    play(scenario)


def test_large_answers_of_several_streams_keep_their_memory_as_long_as_anybody_holds_it():
    async def scenario():
        async with serving(max_batch=64, streams=3) as batcher:
            op = Op("op", lambda x: (np.repeat(x[:, None], 1_024, 1).astype(np.float32),))
            held = {}
            for start in range(0, 60, 6):
                asked = [
                    asyncio.create_task(batcher.submit(op, np.full(100 + i, float(i)))) for i in range(start, start + 6)
                ]
                await asyncio.sleep(0)
                asked[1].cancel()
                answers = await asyncio.gather(*asked, return_exceptions=True)
                held |= {start + i: answers[i].rows[0] for i in (0, 3, 5)}
                assert len(batcher._blocks._blocks) > 1
                for value in list(held)[:-4]:
                    del held[value]
                for value, rows in held.items():
                    assert rows.shape == (100 + value, 1_024)
                    assert (rows == value).all()

    play(scenario)


def test_streams_put_their_parts_of_many_large_answers_where_they_belong():
    async def scenario():
        async with serving(max_batch=4, streams=3) as batcher:
            op = Op("op", lambda x: (x + 1, np.repeat(x[:, None], 3, 1)))
            columns = [np.arange(float(count)) + 1_000 * count for count in range(1, 60)]
            answers = await asyncio.gather(*(batcher.submit(op, x) for x in columns))
            for x, answer in zip(columns, answers, strict=True):
                np.testing.assert_array_equal(answer.rows[0], x + 1)
                np.testing.assert_array_equal(answer.rows[1], np.repeat(x[:, None], 3, 1))

    play(scenario)
