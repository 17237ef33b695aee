import asyncio
import threading

import numpy as np
import pytest
from batching_fakes import SAFETY_S, Held, Recorder, column, play, serving, submit_all

from app.batching import Op


def test_what_arrives_while_the_device_works_becomes_one_batch():
    async def scenario():
        held = Held()
        async with serving(max_batch=64) as batcher:
            first = await held.occupy(batcher, 7)
            others = await submit_all(batcher, held.op, [column(i) for i in range(10)])
            held.gate.set()
            answers = await asyncio.gather(first, *others)
            assert [float(a.rows[0][0]) for a in answers] == [14, *range(0, 20, 2)]
            assert held.sizes == [1, 10]

    play(scenario)


def test_several_columns_go_in_and_come_out_together():
    async def scenario():
        op = Op("pair", lambda x, z: (x + z, x - z, (x * z).astype(np.float32)))
        async with serving() as batcher:
            answer = await batcher.submit(op, column(1, 2, 3), column(10, 20, 30))
            assert [list(c) for c in answer.rows] == [[11, 22, 33], [-9, -18, -27], [10, 40, 90]]
            assert answer.rows[2].dtype == np.float32
            assert answer.queue_s >= 0
            assert answer.device_s >= 0

    play(scenario)


def everybody_gets_the_own_rows(requests):
    async def scenario():
        async with serving(max_batch=16, streams=2) as batcher:
            numbers = iter(range(requests))
            op = Op("op", lambda x: (x * 2 + 1,))

            async def client():
                for i in numbers:
                    x = np.arange(i * 100, i * 100 + 1 + i % 3)
                    assert np.array_equal((await batcher.submit(op, x)).rows[0], x * 2 + 1)

            await asyncio.gather(*(client() for _ in range(64)))

    asyncio.run(scenario())


def test_every_answer_belongs_to_its_request():
    everybody_gets_the_own_rows(3_000)


@pytest.mark.slow
def test_every_one_of_a_hundred_thousand_answers_belongs_to_its_request():
    everybody_gets_the_own_rows(100_000)


def test_a_request_larger_than_the_largest_batch_is_split_and_comes_back_in_order():
    async def scenario():
        sizes = []
        op = Op("op", lambda x: (sizes.append(len(x)), (x * 2, -x))[1])
        async with serving(max_batch=8) as batcher:
            answer = await batcher.submit(op, np.arange(45.0))
            assert np.array_equal(answer.rows[0], np.arange(45) * 2.0)
            assert np.array_equal(answer.rows[1], -np.arange(45.0))
            assert sizes == [8, 8, 8, 8, 8, 5]

    play(scenario)


def test_a_broadcast_column_is_copied_only_batch_by_batch():
    async def scenario():
        seen = []

        def run(x, z):
            seen.append((x.base is None or x.base.nbytes <= x.nbytes, x.flags.c_contiguous))
            return (x.sum(axis=1) + z,)

        image = np.broadcast_to(np.ones((1, 5)), (1_000_000, 5))[:20]
        async with serving(max_batch=8) as batcher:
            answer = await batcher.submit(Op("op", run), image, np.arange(20.0))
            assert np.array_equal(answer.rows[0], np.arange(20) + 5.0)
            assert seen == [(True, True)] * 3

    play(scenario)


def test_a_single_row_gets_into_the_next_batch_however_many_large_requests_wait():
    async def scenario():
        held = Held()
        async with serving(max_batch=8) as batcher:
            tasks = [await held.occupy(batcher, -1)]
            tasks += await submit_all(batcher, held.op, [np.full(100, 50.0 + i) for i in range(30)])
            tasks += await submit_all(batcher, held.op, [column(1), column(2)])
            held.gate.set()
            await asyncio.gather(*tasks)
            assert sorted(held.batches[1])[:3] == [1, 2, 50]
            assert set(held.sizes[1:-1]) == {8}

    play(scenario)


@pytest.mark.parametrize("max_batch", [1, 2, 3, 8])
def test_a_large_request_moves_on_however_many_single_rows_keep_coming(max_batch):
    async def scenario():
        held = Held()
        async with serving(max_batch=max_batch) as batcher:
            tasks = [await held.occupy(batcher, -1)]
            tasks += await submit_all(batcher, held.op, [np.full(6, 9.0)])
            tasks += await submit_all(batcher, held.op, [column(1)] * 60)
            held.gate.set()
            await asyncio.gather(*tasks)
            last = max(i for i, batch in enumerate(held.batches) if 9 in batch)
            assert last <= 2 * 6
            assert any(1 in batch for batch in held.batches[1:3])
            assert max(held.sizes) <= max_batch

    play(scenario)


def test_large_requests_share_their_half_in_turns():
    async def scenario():
        held = Held()
        async with serving(max_batch=4) as batcher:
            tasks = [await held.occupy(batcher)]
            tasks += await submit_all(batcher, held.op, [np.full(8, 1.0), np.full(8, 2.0)])
            held.gate.set()
            await asyncio.gather(*tasks)
            assert held.batches[1:] == [[1] * 4, [2] * 4, [1] * 4, [2] * 4]

    play(scenario)


def test_the_operation_served_longest_ago_comes_first():
    async def scenario():
        order = []
        ops = {name: Op(name, lambda x, name=name: (order.append(name), (x,))[1]) for name in "abc"}
        held = Held(name="a")
        async with serving(max_batch=2) as batcher:
            tasks = [await held.occupy(batcher)]  # so a was served last
            for name in "aaaabbc":
                tasks += await submit_all(batcher, ops[name], [column(1, 1)])
            held.gate.set()
            await asyncio.gather(*tasks)
            assert order == ["b", "c", "a", "b", "a", "a", "a"]

    play(scenario)


def test_new_weights_never_share_a_batch_with_old_ones():
    async def scenario():
        old, new = Held(lambda x: (x + 100,), "encode"), Op("encode", lambda x: (x + 200,))
        recorder = Recorder()
        async with serving(monitor=recorder) as batcher:
            tasks = [await old.occupy(batcher, 1)]
            tasks += await submit_all(batcher, old.op, [column(2)])
            tasks += await submit_all(batcher, new, [column(3)])
            assert recorder.gauges["encode"] == 2
            old.gate.set()
            assert [float(a.rows[0][0]) for a in await asyncio.gather(*tasks)] == [101, 102, 203]
            assert recorder.gauges["encode"] == 0

    play(scenario)


def test_two_streams_run_two_batches_at_the_same_time():
    async def scenario():
        both = threading.Barrier(2)
        op = Op("op", lambda x: (both.wait(SAFETY_S), (x,))[1])
        async with serving(max_batch=4, streams=2) as batcher:
            answer = await batcher.submit(op, np.arange(8.0))  # one submission wakes both threads
            assert np.array_equal(answer.rows[0], np.arange(8.0))

    play(scenario)


def test_columns_of_no_or_different_length_are_the_callers_mistake():
    async def scenario():
        async with serving() as batcher:
            for columns in [(), (column(),), (column(1), column(1, 2))]:
                with pytest.raises(ValueError, match="one length"):
                    await batcher.submit(Op("op", lambda *c: c), *columns)

    play(scenario)


# Leaving


def test_half_of_the_callers_leave_and_cost_no_device_time():
    async def scenario():
        held, recorder = Held(), Recorder()
        async with serving(max_batch=32, monitor=recorder) as batcher:
            first = await held.occupy(batcher, -1)
            tasks = await submit_all(batcher, held.op, [column(i) for i in range(1000)])
            for task in tasks[::2]:
                task.cancel()
            held.gate.set()
            answers = await asyncio.gather(first, *tasks, return_exceptions=True)
            assert [float(a.rows[0][0]) for a in answers[2::2]] == [2 * i for i in range(1, 1000, 2)]
            assert all(isinstance(a, asyncio.CancelledError) for a in answers[1::2])
            assert sorted(value for batch in held.batches for value in batch) == [-1, *range(1, 1000, 2)]
            assert recorder.gauges == {"op": 0}

    play(scenario)


def test_who_leaves_between_two_batches_is_not_computed_further():
    async def scenario():
        held = Held()
        async with serving(max_batch=2) as batcher:
            task = asyncio.create_task(batcher.submit(held.op, np.arange(10.0)))
            await asyncio.to_thread(held.running.wait, SAFETY_S)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            held.gate.set()
            await batcher.submit(held.op, column(99))
            assert held.batches == [[0, 1], [99]]

    play(scenario)


def test_a_request_whose_deadline_passes_in_the_line_is_never_computed():
    async def scenario():
        held, recorder = Held(), Recorder()
        async with serving(monitor=recorder) as batcher:
            first = await held.occupy(batcher)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await batcher.submit(held.op, column(5))
            assert recorder.gauges == {"op": 0}  # at once, while the device still works
            held.gate.set()
            await first
            await batcher.submit(held.op, column(6))
            assert held.batches == [[0], [6]]

    play(scenario)
