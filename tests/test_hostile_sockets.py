"""Connections that only cost: idle, halting, endless or ambiguous; all cut, and good clients never notice."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import StartServer
from crowds import Pictures, Record, assert_all_given_back, assert_unharmed, memory_of
from load_client import Outcome, Pool, closed_loop
from procfs import family, forget_peak, peak
from service_process import Server

RECEIVE_S = 10  # seconds in which a request must arrive
CUT_S = 3 * RECEIVE_S  # by which everybody is cut, on a machine that has other things to do
EACH = 100  # connections of each slow kind
MAX_GROWTH = 4_000_000
MAX_PEAK = 100_000_000  # bytes more than before, at the worst moment of an attack
ASKING_S = 5  # for which requests are sent without waiting for an answer
POST = b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
Attack = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def says(data: bytes, more: bytes = b"", times: int = 0, pause_s: float = 0.0) -> Attack:
    """Return an attack that sends ``data``, then ``more`` so many times, as long as the other side listens."""

    async def attack(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        for _i in range(times):
            writer.write(more)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return attack


async def asks_without_waiting(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send requests as fast as they are taken, then leave: each of them is answered, so nobody else ends this."""
    end = time.monotonic() + ASKING_S
    while time.monotonic() < end:
        writer.write(b"GET /livez HTTP/1.1\r\nHost:a\r\n\r\n" * 10_000)
        with suppress(TimeoutError):
            await asyncio.wait_for(writer.drain(), ASKING_S)
    writer.transport.abort()


SLOW = {
    "idle": says(b""),
    "half a header": says(b"POST /encode HTTP/1.1\r\nHost: x\r\nX-A: "),
    "half a body": says(POST + b'Content-Length: 5000\r\n\r\n{"images": ['),
    "a byte a second": says(POST + b"Content-Length: 5000\r\n\r\n", b"x", CUT_S, 1.0),
    "a header field a second": says(b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"A: b\r\n", CUT_S, 1.0),
    "half a chunk": says(CHUNKED + b"400\r\nabc"),
}
ENDLESS = {
    "a header of 10 MB": says(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: ", b"a" * 100_000, 100),
    "200,000 header fields": says(b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"A: b\r\n" * 1000, 200),
    "a path of 10 MB": says(b"GET /", b"a" * 100_000, 100),
    "a million chunks of one byte": says(CHUNKED, b"1\r\nx\r\n" * 1000, 1000),
    "a chunk extension of 10 MB": says(CHUNKED + b"1;a=", b"a" * 100_000, 100),
    "empty lines without an end": says(b"", b"\r\n" * 50_000, 100),
    "requests without an end": asks_without_waiting,
}
AMBIGUOUS = {
    "two hosts": b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "a length and chunks": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a length with a sign": POST + b"Content-Length: +3\r\n\r\nabc",
    "a length with a space": POST + b"Content-Length: 1 0\r\n\r\nabc",
    "two codings": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a hidden coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"GET /livez HTTP/1.1\r\nHost : x\r\n\r\n",
    "a folded field": b"GET /livez HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "a bare CR": b"GET /livez HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
    "a zero byte": b"GET /livez HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "another protocol": b"SSH-2.0-OpenSSH_9.9\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


async def endure(port: int, attack: Attack) -> tuple[bytes, float]:
    """Carry an attack out; return what was answered, and after how many seconds the connection was cut."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begin = time.monotonic()

    async def rest() -> bytes:
        data = b""
        with suppress(ConnectionError):
            while part := await reader.read(1 << 16):
                data = (data + part)[:4096]
        return data

    reading = asyncio.ensure_future(rest())
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(CUT_S):
            await attack(reader, writer)
    try:
        return await asyncio.wait_for(reading, CUT_S), time.monotonic() - begin
    finally:
        writer.transport.abort()


def statuses(answers: list[tuple[bytes, float]]) -> Counter[str]:
    return Counter(data[9:12].decode() or "cut" for data, _ in answers)


@contextmanager
def good_clients(server: Server, pictures: Pictures, width: int = 4) -> Iterator[list[Outcome]]:
    """Let good clients ask all the time, from a thread of their own; gives what became of them, once they are done.

    At least one round is asked, however soon the other side has ended.
    """
    stop, outcomes = threading.Event(), list[Outcome]()

    async def ask() -> None:
        while not outcomes or not stop.is_set():
            outcomes.append(await closed_loop(server.port, pictures.request, 200, width, pictures.check))

    thread = threading.Thread(target=lambda: asyncio.run(ask()))
    thread.start()
    try:
        yield outcomes
    finally:
        stop.set()
        thread.join()


def assert_all_good(outcomes: list[Outcome]) -> None:
    assert outcomes
    assert [one.statuses for one in outcomes if set(one.statuses) != {200}] == []
    assert [one.wrong for one in outcomes if one.wrong] == []


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> Server:
    """A server that nobody else asks."""
    return start_server(max_items=4096)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures(200, drawn=64)


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_could_be_read_in_two_ways_is_read_in_none(server: Server, name: str) -> None:
    data, _ = asyncio.run(endure(server.port, says(AMBIGUOUS[name] + b"GET /model HTTP/1.1\r\nHost: x\r\n\r\n")))
    assert data[:12] == b"HTTP/1.1 400", data
    assert data.count(b"x-request-id:") == 1, data
    assert b"latent_dim" not in data


@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_is_cut_and_good_clients_do_not_notice(server: Server, pictures: Pictures, name: str) -> None:
    processes = family(server.pid)
    forget_peak(*processes)
    before = peak(*processes)
    with good_clients(server, pictures) as outcomes:
        asyncio.run(endure(server.port, ENDLESS[name]))
    assert_all_good(outcomes)
    assert peak(*processes) - before < MAX_PEAK
    assert_unharmed(server, pictures)
    assert_all_given_back(server, pictures)


@pytest.mark.slow
@pytest.mark.usefixtures("takes_minutes")
def test_six_hundred_connections_that_never_finish_are_cut_and_leave_nothing_behind(
    tmp_path: Path, pictures: Pictures, record_property: Record
) -> None:
    server = Server(tmp_path / "log.txt", {"drain_delay_s": 0, "max_items": 4096})
    server.wait_until_ready()

    async def attack() -> list[tuple[bytes, float]]:
        kinds = [kind for kind in SLOW.values() for _ in range(EACH)] + list(ENDLESS.values())
        return await asyncio.gather(*(endure(server.port, kind) for kind in kinds))

    asyncio.run(attack())  # once, so that whatever is kept for good is there
    before = memory_of(server)
    with good_clients(server, pictures) as outcomes:
        answers = asyncio.run(attack())
    asyncio.run(_quiet(server))
    growth = memory_of(server) - before
    record_property("connections", len(answers))
    for status, count in sorted(statuses(answers).items()):
        record_property(f"ended with {status}", count)
    record_property("last one cut after, s", round(max(seconds for _, seconds in answers), 1))
    record_property("good answers meanwhile", sum(one.statuses[200] for one in outcomes))
    record_property(
        "other answers meanwhile", sum(n for one in outcomes for status, n in one.statuses.items() if status != 200)
    )
    record_property("p99 of good clients, ms", round(max(one.p99_ms() for one in outcomes), 1))
    record_property("memory growth, MB", round(growth / 1e6, 2))
    assert_all_good(outcomes)
    assert growth < MAX_GROWTH
    assert_unharmed(server, pictures)
    assert_all_given_back(server, pictures)
    server.end()


async def _quiet(server: Server) -> None:
    """Ask a few times, so that what ended a moment ago has been tidied up."""
    async with Pool(server.port) as pool:
        for _ in range(20):
            await pool.ask(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.sleep(0.05)
