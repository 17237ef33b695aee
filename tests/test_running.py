import asyncio
import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from batching_fakes import POISON, SAFETY_S, Held, column, play, run_poisoned, serving, submit_all
from hypothesis import given, settings
from hypothesis import strategies as st

from app import batching
from app.batching import Op
from app.errors import InternalError
from app.lines import Work


def test_failed_batch_reaches_every_caller_and_the_next_batch_still_runs():
    async def scenario():
        held = Held(lambda x: 1 / 0)
        async with serving() as batcher:
            tasks = [await held.occupy(batcher)]
            tasks += await submit_all(batcher, held.op, [column(i) for i in range(5)])
            held.gate.set()
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(error) for error in errors] == [ZeroDivisionError] * 6
            assert len({id(error) for error in errors}) == 6
            assert (await batcher.submit(Op("op", lambda x: (x,)), column(3))).rows[0] == 3

    play(scenario)


@pytest.mark.parametrize(
    "run",
    [
        lambda x: (x[:-1],),
        lambda x: (np.append(x, x),),
        lambda x: (x, x[:0]),
        lambda x: x,
        lambda x: None,
        lambda x: (np.float64(1),),
        lambda x: next(iter(())),
    ],
)
def test_an_operation_that_breaks_the_rules_is_an_error_and_no_hang(run):
    async def scenario():
        async with serving() as batcher:
            for x in (column(1), column(1, 2), np.arange(100.0)):
                with pytest.raises((RuntimeError, TypeError)):
                    await batcher.submit(Op("op", run), x)
            assert batcher.alive

    play(scenario)


def test_batches_of_different_shapes_in_one_answer_are_an_error_and_no_hang():
    async def scenario():
        async with serving(max_batch=4) as batcher:
            with pytest.raises(ValueError, match="broadcast"):
                await batcher.submit(Op("op", lambda x: (np.ones((len(x), int(x[0]) + 2)),)), np.arange(8.0))

    play(scenario)


def test_requests_whose_rows_do_not_fit_together_are_answered_one_by_one():
    async def scenario():
        held = Held(lambda x: (x.reshape(len(x), -1).sum(axis=1),))
        async with serving() as batcher:
            first = await held.occupy(batcher)
            tasks = await submit_all(batcher, held.op, [np.ones((2, 3)), np.ones((2, 4)), np.ones((1, 3))])
            held.gate.set()
            await first
            assert [list(a.rows[0]) for a in await asyncio.gather(*tasks)] == [[3, 3], [4, 4], [3]]

    play(scenario)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_fails_its_own_request_only(bad):
    async def scenario():
        held = Held(lambda x: (np.arange(len(x)), np.where(x == 13, bad, x)))
        async with serving() as batcher:
            first = await held.occupy(batcher)
            tasks = await submit_all(batcher, held.op, [column(1, 2), column(3, 13), column(4)])
            held.gate.set()
            await first
            good, failed, other = await asyncio.gather(*tasks, return_exceptions=True)
            assert (list(good.rows[1]), list(other.rows[1])) == ([1, 2], [4])
            assert isinstance(failed, InternalError)
            assert len(held.batches) == 2  # nothing was run twice

    play(scenario)


def out_of_memory_above(limit):
    def run(x):
        if len(x) > limit:
            raise MemoryError
        return (x * 2,)

    return run


def test_out_of_memory_halves_the_batch_and_the_smaller_size_is_remembered_for_a_minute(monkeypatch):
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(batching, "time", clock)

    async def scenario():
        sizes = []
        run = out_of_memory_above(3)
        op = Op("op", lambda x: (sizes.append(len(x)), run(x))[1])
        async with serving(max_batch=16) as batcher:
            for _ in range(2):
                answer = await batcher.submit(op, np.arange(16.0))
                assert np.array_equal(answer.rows[0], np.arange(16) * 2.0)
            assert sizes == [16, 8, 4, 2, 2, 4, 2, 2, 8, 4, 2, 2, 4, 2, 2] + [2] * 8
            now[0] += 59
            await batcher.submit(op, np.arange(4.0))
            now[0] += 2
            await batcher.submit(op, np.arange(4.0))
            assert sizes[-5:] == [2, 2, 4, 2, 2]

    play(scenario)


def test_out_of_memory_with_one_row_is_that_requests_error():
    async def scenario():
        async with serving() as batcher:
            with pytest.raises(MemoryError):
                await batcher.submit(Op("op", out_of_memory_above(0)), column(1, 2, 3))
            assert (await batcher.submit(Op("op", lambda x: (x,)), column(3))).rows[0] == 3

    play(scenario)


def test_what_a_failed_batch_held_is_free_before_the_halves_are_tried():
    class Tensor:
        pass

    held, alive_at_retry = [], []

    def run(x):
        gc.collect()
        alive_at_retry.append(sum(ref() is not None for ref in held))
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        try:
            if len(x) > 1:
                raise RuntimeError("device out of memory")
        except RuntimeError as error:
            raise MemoryError from error
        return (x,)

    async def scenario():
        async with serving() as batcher:
            await batcher.submit(Op("op", run), column(1, 2, 3, 4))
            assert alive_at_retry == [0] * 7

    play(scenario)


def poisoned_items_fail_alone(requests, max_batch, streams):
    async def scenario():
        held = Held(run_poisoned)
        columns, number = [], 0
        for size, poison in requests:
            x = np.arange(number, number + size, dtype=np.float64)
            number += size
            if poison:
                x[size // 2] = poison
            columns.append(x)
        async with serving(max_batch, streams=streams) as batcher:
            first = await held.occupy(batcher, 1)
            tasks = await submit_all(batcher, held.op, columns)
            held.gate.set()
            assert (await first).rows[0] == 1.5
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        for (_, poison), x, answer in zip(requests, columns, answers, strict=True):
            if poison:
                assert type(answer) is POISON[poison]
            else:
                assert np.array_equal(answer.rows[0], x + 0.5)

    play(scenario)


POISONED = {
    "requests": st.lists(st.tuples(st.integers(1, 7), st.sampled_from([0, 0, 0, *POISON])), max_size=12),
    "max_batch": st.integers(1, 16),
    "streams": st.integers(1, 2),
}


@settings(max_examples=150, deadline=None)
@given(**POISONED)
def test_poisoned_items_fail_alone_and_neighbors_get_the_answers_of_a_clean_run(requests, max_batch, streams):
    poisoned_items_fail_alone(requests, max_batch, streams)


@pytest.mark.slow
@settings(max_examples=5_000, deadline=None)
@given(**POISONED)
def test_poisoned_items_fail_alone_in_five_thousand_batches(requests, max_batch, streams):
    poisoned_items_fail_alone(requests, max_batch, streams)


@pytest.mark.parametrize("broken", ["make_room", "put"])
def test_no_memory_for_the_rows_of_an_answer_fails_that_answer_alone(monkeypatch, broken):
    def full(*_):
        raise MemoryError

    async def scenario():
        held = Held()
        async with serving(max_batch=4) as batcher:
            first = await held.occupy(batcher)
            large, small = await submit_all(batcher, held.op, [np.arange(8.0), column(3)])
            held.gate.set()
            await first
            with pytest.raises(MemoryError):
                await large
            assert (await small).rows[0] == [6]

    monkeypatch.setattr(Work, broken, full)
    play(scenario)


class Spoiled:
    """Whoever waits cannot take the answer, only the error."""

    def __init__(self):
        self.errors = []

    def done(self):
        return bool(self.errors)

    def set_result(self, answer):
        raise ZeroDivisionError

    def set_exception(self, error):
        self.errors.append(error)


@pytest.mark.parametrize("more", [{}, {"streams": 2}, {"at_once": True}, {"on_loop": True}])
def test_who_cannot_take_an_answer_fails_alone(more, monkeypatch):
    monkeypatch.setattr(batching, "QUICK_S", SAFETY_S)

    async def scenario():
        op, spoiled = Op("op", lambda x: (x * 2,)), Spoiled()
        async with serving(**more) as batcher:
            await batcher.submit(op, column(1))
            work = Work((column(2),), spoiled)
            batcher.begin(op, work)
            neighbors = [asyncio.create_task(batcher.submit(op, column(3, value))) for value in range(5)]
            answers = await asyncio.gather(*neighbors)
            batcher.end(op, work)
            assert [answer.rows[0].tolist() for answer in answers] == [[6, 2 * value] for value in range(5)]
            assert [type(error) for error in spoiled.errors] == [ZeroDivisionError]
            lonely = Work((column(2),), Spoiled())
            batcher.begin(op, lonely)
            while not lonely.future.errors:
                await asyncio.sleep(0.001)
            assert batcher.alive

    play(scenario)
