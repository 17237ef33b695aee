"""A client of a few microseconds a request, for loads that an ordinary client cannot send: closed and open loops.

Requests are bytes that were put together before; an answer is its status and its body. Every connection is kept
open and used again. Knows HTTP/1.1 with Content-Length, and nothing of the service.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Answer = tuple[int, bytes]
PATIENCE_S = 60.0


def request(method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
    """Return a request as it goes over the wire."""
    lines = [f"{method} {target} HTTP/1.1", "host: test", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Link(asyncio.Protocol):
    """One connection; asks one request at a time."""

    def __init__(self) -> None:
        self.transport: Any = None
        self._data, self._need = bytearray(), -1
        self._answer: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._need < 0:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._data[: end + 2].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 : head.index(b"\r", at)]) if at >= 0 else 0
            self._need = end + 4 + length
            self._status, self._start = int(head[9:12]), end + 4
            if b"connection: close" in head:
                self.transport.close()
        if len(self._data) >= self._need:
            answer = self._status, bytes(self._data[self._start : self._need])
            del self._data[: self._need]
            self._need = -1
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the connection ended without an answer"))

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def start(self, data: bytes) -> asyncio.Future[Answer]:
        """Send a request; the future is its answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return self._answer


class Pool:
    """Connections to one server, made as they are needed; all end with the context."""

    def __init__(self, port: int) -> None:
        self._port, self._free, self._all = port, deque[Link](), list[Link]()

    async def __aenter__(self) -> "Pool":
        return self

    async def __aexit__(self, *_: object) -> None:
        for link in self._all:
            link.transport.abort()
        await asyncio.sleep(0)  # in which the transports close their sockets

    async def ask(self, data: bytes, patience_s: float = PATIENCE_S) -> Answer:
        """Return the answer to a request, on a connection that is free or new."""
        link = await self.take()
        async with asyncio.timeout(patience_s):
            answer = await link.start(data)
        self._free.append(link)
        return answer

    async def take(self) -> Link:
        while self._free:
            if (link := self._free.pop()).usable:
                return link
        _, link = await asyncio.get_running_loop().create_connection(Link, "127.0.0.1", self._port)
        self._all.append(link)
        return link


@dataclass
class Outcome:
    """What became of a load.

    Attributes:
        statuses: answers by status; 0 is a connection that broke or an answer that never came.
        seconds: from the moment a request was due to its answer, of those answered with 200.
        last: the moment of the last of them.
        wrong: texts about answers that were not those expected; the first few.
        span_s: of the whole load; of an open loop, the time in which requests were sent.
        work_s: from the first request to the last answer with 200, and at least ``span_s``. Requests that share a
            device end together, a crowd every few seconds: whoever counts up to an earlier moment cuts a crowd off.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    span_s: float = 0.0
    work_s: float = 0.0
    last: float = 0.0

    @property
    def goodput(self) -> float:
        """Answers with 200 a second."""
        return self.statuses[200] / self.work_s

    def p99_ms(self) -> float:
        """Milliseconds within which 99 of 100 good answers came."""
        return sorted(self.seconds)[int(0.99 * len(self.seconds))] * 1e3 if self.seconds else 0.0


Check = Callable[[int, Answer], str | None]


async def one(pool: Pool, outcome: Outcome, number: int, data: bytes, due: float, check: Check | None) -> None:
    """Ask one request and write down what came of it."""
    try:
        answer = await pool.ask(data)
    except (OSError, TimeoutError):
        outcome.statuses[0] += 1
        return
    status, body = answer
    outcome.statuses[status] += 1
    if status == 200:
        outcome.last = time.monotonic()
        outcome.seconds.append(outcome.last - due)
    else:
        at = body.find(b'"code":"')
        outcome.codes[body[at + 8 : body.find(b'"', at + 8)].decode() if at >= 0 else "?"] += 1
    if check and len(outcome.wrong) < 5 and (problem := check(number, answer)):
        outcome.wrong.append(problem)


async def closed_loop(
    port: int, make: Callable[[int], bytes], count: int, width: int, check: Check | None = None
) -> Outcome:
    """Send ``count`` requests, ``width`` at a time."""
    outcome, numbers, begin = Outcome(), iter(range(count)), time.monotonic()

    async def work(pool: Pool) -> None:
        for number in numbers:
            await one(pool, outcome, number, make(number), time.monotonic(), check)

    async with Pool(port) as pool:
        await asyncio.gather(*(work(pool) for _ in range(width)))
    outcome.span_s = outcome.work_s = time.monotonic() - begin
    return outcome


async def open_loop(
    port: int, make: Callable[[int], bytes], rate: float, seconds: float, check: Check | None = None
) -> Outcome:
    """Send requests when they are due, whatever became of the earlier ones; then wait for all answers."""
    outcome, tasks = Outcome(), set[asyncio.Task[None]]()
    async with Pool(port) as pool:
        begin = time.monotonic()
        for number in range(int(rate * seconds)):
            due = begin + number / rate
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(one(pool, outcome, number, make(number), due, check))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        outcome.span_s = time.monotonic() - begin
        if tasks:
            await asyncio.wait(tasks)
        outcome.work_s = max(outcome.span_s, outcome.last - begin)
    return outcome
