"""Ctrl-C at every moment of a loop with tasks that outlive a run: always ``KeyboardInterrupt``, nothing left behind."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Iterator

import pytest

from app.interruptible import InterruptibleLoop

Moment = Callable[[str], None]


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    """Let the tests begin with Python's handler, and see that it is back after them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    now = signal.signal(signal.SIGINT, before)
    assert now is signal.default_int_handler


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def at(moment: str) -> Moment:
    """Return what is told of every moment, and presses Ctrl-C in one of them."""

    def reached(now: str) -> None:
        if now == moment:
            ctrl_c()

    return reached


async def beside(reached: Moment, first: asyncio.Event) -> None:
    reached("a task that goes on beside")
    first.set()
    await asyncio.sleep(0)
    reached("a task that goes on beside, once more")
    await asyncio.Event().wait()


async def numbers(reached: Moment, ended: list[str]) -> AsyncGenerator[int, None]:
    """Yield numbers, with a task that goes on from one to the next."""
    first = asyncio.Event()
    task = asyncio.create_task(beside(reached, first))
    try:
        await first.wait()
        yield 1
        reached("the next step of the generator")
        await asyncio.sleep(0)
        yield 2
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        ended.append("generator")


async def following(generator: AsyncGenerator[int, None], reached: Moment) -> int | None:
    number = await anext(generator, None)
    asyncio.get_running_loop().call_soon(reached, f"a call when the run for {number} is done")
    return number


def used(reached: Moment, found: list[int | None], ended: list[str]) -> None:
    """Go through all moments."""
    with InterruptibleLoop() as loop:
        reached("before the first run")
        generator = numbers(reached, ended)
        found.append(loop.run(following(generator, reached)))
        reached("between two runs")
        found.append(loop.run(following(generator, reached)))
        found.append(loop.run(following(generator, reached)))
        reached("after the last run")


def test_nothing_happens_without_it() -> None:
    found: list[int | None] = []
    ended: list[str] = []
    used(at("never"), found, ended)
    assert (found, ended) == ([1, 2, None], ["generator"])


@pytest.mark.parametrize(
    ("moment", "before"),
    [
        ("before the first run", []),
        ("a task that goes on beside", []),
        ("a task that goes on beside, once more", [1]),
        ("a call when the run for 1 is done", [1]),
        ("between two runs", [1]),
        ("the next step of the generator", [1]),
        ("a call when the run for None is done", [1, 2, None]),
        ("after the last run", [1, 2, None]),
    ],
)
def test_it_ends_the_run_at_any_moment_and_nothing_is_left(moment: str, before: list[int | None]) -> None:
    found: list[int | None] = []
    ended: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        used(at(moment), found, ended)
    assert (found, ended) == (before, [] if moment == "before the first run" else ["generator"])


def test_it_wakes_a_loop_that_waits_for_nothing_else() -> None:
    main = threading.get_ident()

    async def forever() -> None:
        threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
        await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt), InterruptibleLoop() as loop:
        loop.run(forever())


def test_second_one_is_not_waited_for() -> None:
    async def stubborn() -> None:
        try:
            ctrl_c()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ctrl_c()  # Python's own handler raises here and now
            raise AssertionError("the second Ctrl-C did nothing") from None

    with pytest.raises(KeyboardInterrupt), InterruptibleLoop() as loop:
        loop.run(stubborn())


def test_cancellation_of_another_origin_stays_one() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError), InterruptibleLoop() as loop:
        loop.run(cancelled())


def test_error_of_the_caller_is_told_and_not_the_signal() -> None:
    def fails() -> None:
        with InterruptibleLoop():
            ctrl_c()
            raise ValueError("disk")

    with pytest.raises(ValueError, match="disk"):
        fails()


def test_handler_of_the_program_and_other_threads_are_left_alone() -> None:
    pressed = []

    async def press() -> str:
        ctrl_c()
        return "done"

    def elsewhere() -> None:
        with InterruptibleLoop() as loop:
            pressed.append(loop.run(asyncio.sleep(0, "thread")))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    signal.signal(signal.SIGINT, lambda *_: pressed.append("handler"))
    try:
        with InterruptibleLoop() as loop:
            pressed.append(loop.run(press()))
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert pressed == ["thread", "handler", "done"]
