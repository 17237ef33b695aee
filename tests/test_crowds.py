"""Thousands of clients at once, on real connections: a full line, deadlines, half of them leaving, nobody mixed up."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from conftest import StartServer
from crowds import (
    Figures,
    GatedServer,
    Pictures,
    Record,
    allow_files,
    assert_all_given_back,
    assert_room_for_connections,
    assert_room_for_items,
    assert_unharmed,
    gated,
    wait_for,
    wait_until_left,
)
from load_client import Answer, Pool, closed_loop
from procfs import connections, cpu_s, family
from service_process import Server

LINE, MORE = 256, 50
COMPUTED = 'vae_batch_items_sum{op="encode"}'
CUT = 'vae_queue_wait_seconds_count{op="encode"}'
MOST = 4_000
FEW = 400


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures(MOST)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatedServer]:
    server = gated(tmp_path_factory.mktemp("gated"), streams=1, deadline_s=86_400, max_items=4096)
    yield server
    server.open()
    server.end()


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> Server:
    """A server that nobody else asks."""
    return start_server(max_items=4096)


@contextmanager
def held(server: GatedServer, pictures: Pictures) -> Iterator[float]:
    """Hold the device inside a batch of one picture; gives how many rows were computed before it."""
    before = Figures(server)
    server.hold()

    async def plug() -> Answer:
        async with Pool(server.port) as pool:
            return await pool.ask(pictures.request(0), patience_s=300)

    with asyncio.Runner() as runner:
        task = runner.get_loop().create_task(plug())
        runner.run(asyncio.sleep(0.05))
        wait_for(server, lambda now: now[CUT] == before[CUT] + 1)
        try:
            yield before[COMPUTED] + 1
        finally:
            server.open()
            assert pictures.check(0, runner.run(_result(task))) is None


async def _result(task: asyncio.Task[Answer]) -> Answer:
    return await task


def test_a_full_line_refuses_exactly_those_that_are_too_many(
    pictures: Pictures, tmp_path_factory: pytest.TempPathFactory, record_property: Record
) -> None:
    server = gated(tmp_path_factory.mktemp("full"), max_queue_items=LINE, deadline_s=86_400)

    async def crowd(pool: Pool) -> None:
        tasks = [asyncio.create_task(pool.ask(pictures.request(i))) for i in range(LINE + MORE)]
        while sum(task.done() for task in tasks) < MORE:
            await asyncio.sleep(0.01)
        refused = [task.result() for task in tasks if task.done()]
        assert [status for status, _ in refused] == [429] * MORE
        assert all(b'"retry_after_ms":' in body and b'"queue_full"' in body for _, body in refused)
        begin, waits = cpu_s(*family(server.pid)), []
        for i in range(MORE):
            asked = time.monotonic()
            assert (await pool.ask(pictures.request(i)))[0] == 429
            waits.append(time.monotonic() - asked)
        record_property("refused with 429", len(refused) + len(waits))
        record_property("one refusal, ms of processor time", round(20 * (cpu_s(*family(server.pid)) - begin), 2))
        record_property("slowest refusal, ms", round(max(waits) * 1e3, 1))
        server.open()
        answers = await asyncio.gather(*tasks)
        assert Counter(status for status, _ in answers) == {200: LINE, 429: MORE}
        assert [problem for i, answer in enumerate(answers) if (problem := pictures.check(i, answer))] == []
        record_property("answered 200", LINE)

    async def play() -> None:
        async with Pool(server.port) as pool:
            await crowd(pool)

    asyncio.run(play())
    assert_unharmed(server, pictures)
    assert_all_given_back(server, pictures)
    server.end()


def test_what_waited_past_its_deadline_is_never_computed(
    running: GatedServer, pictures: Pictures, record_property: Record
) -> None:
    async def crowd() -> list[Answer]:
        async with Pool(running.port) as pool:
            return await asyncio.gather(*(pool.ask(pictures.request(i, X_Timeout_Ms="300")) for i in range(200)))

    with held(running, pictures) as before:
        answers = asyncio.run(crowd())
        late = sum(status == 504 for status, _ in answers)
        assert late  # they waited
        assert {status for status, _ in answers} <= {429, 504}  # 429: its time would be over before its turn
    computed = Figures(running)[COMPUTED] - before
    record_property("answered 504", late)
    record_property("answered 429 at once", len(answers) - late)
    record_property("computed", int(computed))
    assert computed == 0
    assert_unharmed(running, pictures)
    assert_all_given_back(running, pictures)


def test_an_item_and_a_connection_that_are_not_given_back_are_found_out(
    running: GatedServer, pictures: Pictures
) -> None:
    with held(running, pictures), pytest.raises(AssertionError, match="no room for 4096 items"):
        assert_room_for_items(running, pictures)
    wait_until_left(running)
    with socket.create_connection(("127.0.0.1", running.port)):
        wait_for(running, lambda _: connections(running.port) > 0)
        with pytest.raises(AssertionError, match="no room for 1 of 4096 connections"):
            assert_room_for_connections(running)
        with pytest.raises(AssertionError, match="1 connections are left"):
            wait_until_left(running, seconds=1)
    assert_all_given_back(running, pictures)


def half_of_a_crowd_leaves(server: GatedServer, pictures: Pictures, count: int) -> tuple[float, float]:
    """Send ``count`` requests, let every second client leave while all wait.

    Return the rows computed for those who left, and the seconds after the last answer until nobody waits.
    """
    allow_files(count + 200)

    async def crowd(pool: Pool) -> list[Answer | BaseException]:
        links = [await pool.take() for _ in range(count)]
        answers = [link.start(pictures.request(i)) for i, link in enumerate(links)]
        await asyncio.to_thread(wait_for, server, lambda now: now.waiting == count)
        for link in links[1::2]:
            link.transport.abort()
        await asyncio.to_thread(wait_for, server, lambda now: now.waiting == count / 2)
        server.open()
        return await asyncio.gather(*answers, return_exceptions=True)

    async def play() -> list[Answer | BaseException]:
        async with Pool(server.port) as pool:
            return await crowd(pool)

    with held(server, pictures) as before:
        answers = asyncio.run(play())
    seconds = wait_for(server, lambda now: now.waiting == 0)
    stayed = answers[0::2]
    assert all(isinstance(answer, ConnectionError) for answer in answers[1::2])
    assert {answer[0] for answer in stayed if isinstance(answer, tuple)} == {200}
    assert [p for i, a in enumerate(stayed) if (p := pictures.check(2 * i, a))] == []  # type: ignore[arg-type]
    return Figures(server)[COMPUTED] - before - len(stayed), seconds


def test_nothing_is_computed_for_the_half_of_a_crowd_that_leaves(running: GatedServer, pictures: Pictures) -> None:
    assert half_of_a_crowd_leaves(running, pictures, FEW)[0] == 0
    assert_unharmed(running, pictures)
    assert_all_given_back(running, pictures)


@pytest.mark.slow
@pytest.mark.usefixtures("takes_minutes")
def test_nothing_is_computed_for_two_thousand_of_four_thousand_clients_that_leave(
    running: GatedServer, pictures: Pictures, record_property: Record
) -> None:
    wasted, seconds = half_of_a_crowd_leaves(running, pictures, MOST)
    record_property("clients", MOST)
    record_property("left, and computed nevertheless", int(wasted))
    record_property("nobody in line after, s", round(seconds, 2))
    assert wasted == 0
    assert seconds < 1
    assert_unharmed(running, pictures)
    assert_all_given_back(running, pictures)


def test_none_of_two_hundred_requests_in_line_is_lost_when_the_server_is_told_to_stop(
    pictures: Pictures, tmp_path_factory: pytest.TempPathFactory, record_property: Record
) -> None:
    server = gated(tmp_path_factory.mktemp("stopped"), streams=1, deadline_s=86_400, drain_s=300)
    count = 200

    async def crowd() -> list[Answer]:
        async with Pool(server.port) as pool:
            answers = [asyncio.create_task(pool.ask(pictures.request(i))) for i in range(count)]
            # the first batch is in the device's hands; it held whoever was there when it was cut
            await asyncio.to_thread(wait_for, server, lambda now: now[CUT] + now.waiting == count)
            server.terminate()
            with suppress(ConnectionResetError):  # a connection without a request is closed by then
                while (await pool.ask(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200:
                    await asyncio.sleep(0.01)
            server.open()
            return await asyncio.gather(*answers)

    answers = asyncio.run(crowd())
    record_property("in flight", count)
    record_property("answered 200", sum(status == 200 for status, _ in answers))
    assert {status for status, _ in answers} == {200}
    assert [problem for i, answer in enumerate(answers) if (problem := pictures.check(i, answer))] == []
    assert server.wait() == 0  # it was told once; a second time would end it at once
    server.assert_clean_log()


def test_two_thousand_requests_side_by_side_each_get_their_own_answer(server: Server, pictures: Pictures) -> None:
    outcome = asyncio.run(closed_loop(server.port, pictures.request, 2_000, 64, pictures.check))
    assert outcome.statuses == {200: 2_000}
    assert outcome.wrong == []
    assert_unharmed(server, pictures)
    assert_all_given_back(server, pictures)


@pytest.mark.slow
@pytest.mark.usefixtures("takes_minutes")
def test_a_hundred_thousand_requests_side_by_side_each_get_their_own_answer(
    server: Server, record_property: Record
) -> None:
    pictures = Pictures(100_000, drawn=2_000)
    outcome = asyncio.run(closed_loop(server.port, pictures.request, 100_000, 64, pictures.check))
    record_property("requests", 100_000)
    record_property("side by side", 64)
    record_property("answered 200", outcome.statuses[200])
    record_property("wrong", len(outcome.wrong))
    record_property("closest pictures, sigma apart", round(pictures.apart(), 2))
    record_property("p99, ms", round(outcome.p99_ms(), 1))
    record_property("a second", round(outcome.goodput))
    assert outcome.statuses == {200: 100_000}
    assert outcome.wrong == []
    assert pictures.apart() > 0.1
    assert_unharmed(server, pictures)
    assert_all_given_back(server, pictures)
