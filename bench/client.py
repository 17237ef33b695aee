"""Requests over plain sockets, and their times: a closed loop and an open one. HTTP/1.1 with keep-alive, no more.

The open loop sends each request at the time that a schedule says, whatever the server does, and measures from that
time: an answer that comes late because the server was busy with others counts as late (no coordinated omission).
"""

from __future__ import annotations

import math
import random
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field

HOST = "127.0.0.1"
TIMEOUT_S = 30.0
MOST_CONNECTIONS = 512  # of the open loop; `select` takes no more than 1024
WARM_S = 0.2  # in which the threads of a closed loop count nothing, as in ``bench.limit``
RECEIVE_BYTES = 1 << 16  # at first; what is longer gets a longer buffer


@dataclass
class Times:
    """What a loop measured.

    Attributes:
        seconds: from the first request to the last answer; of threads, in which as many come at their common rate.
        latencies: of each answer, in seconds, in the order of arrival.
        late: how late the open loop itself sent, in seconds.
        errors: answers other than 200.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    errors: int = 0


class Connection:
    """One connection that is kept open; one request at a time."""

    def __init__(self, port: int) -> None:
        """Connect."""
        self.socket = socket.create_connection((HOST, port), timeout=TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.start = 0.0
        self._buffer, self._got, self._head, self._needed = bytearray(RECEIVE_BYTES), 0, 0, 0

    def fileno(self) -> int:
        """Return the socket's number, for ``select``."""
        return self.socket.fileno()

    def send(self, request: bytes) -> None:
        """Send a whole request."""
        self._got = self._needed = 0
        self.socket.sendall(request)

    def receive(self) -> int | None:
        """Receive once, into memory that is used again for the next answer; return its status where it is whole now.

        Raises:
            ConnectionError: the server has hung up.
        """
        received = self.socket.recv_into(memoryview(self._buffer)[self._got :])
        if not received:
            raise ConnectionError("the server has closed the connection")
        self._got += received
        if not self._needed:
            head, found, _ = bytes(self._buffer[: min(self._got, 16384)]).partition(b"\r\n\r\n")
            if not found:
                return None
            self._head = len(head) + 4
            self._needed = self._head + _content_length(head)
            self._buffer += bytes(max(0, self._needed - len(self._buffer)))
        return int(self._buffer[9:12]) if self._got >= self._needed else None

    def wait(self) -> int:
        """Return the status of the answer when it is whole."""
        while (status := self.receive()) is None:
            pass
        return status

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer to a request."""
        self.send(request)
        return self.wait(), bytes(self._buffer[self._head : self._needed])

    def close(self) -> None:
        """Hang up."""
        self.socket.close()


def request_bytes(method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    """Return a request as it goes over the wire."""
    fields = {"Host": HOST, "Content-Length": str(len(body)), **(headers or {})}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def closed_loop(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Times:
    """Keep every connection busy for some time: each sends its next request when it has its answer."""
    times, pool = Times(), [Connection(port) for _ in range(connections)]
    poll, by_number = select.epoll(), {connection.fileno(): connection for connection in pool}
    try:
        for number in by_number:
            poll.register(number, select.EPOLLIN)
        begin = time.perf_counter()
        busy = sent = 0
        for connection in pool:
            connection.start = time.perf_counter()
            connection.send(requests[sent % len(requests)])
            sent, busy = sent + 1, busy + 1
        while busy:
            for number, _ in poll.poll(TIMEOUT_S):
                connection = by_number[number]
                if (status := connection.receive()) is None:
                    continue
                now = time.perf_counter()
                times.latencies.append(now - connection.start)
                times.errors += status != 200
                if now - begin < seconds:
                    connection.start = now
                    connection.send(requests[sent % len(requests)])
                    sent += 1
                else:
                    busy -= 1
        times.seconds = time.perf_counter() - begin
    finally:
        poll.close()
        for connection in pool:
            connection.close()
    return times


def closed_threads(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Times:
    """Do the same with a thread for each connection: for long bodies, whose sending takes time.

    What is measured has neither beginning nor end, as they would be a good part of so few requests: each connection
    counts on its own clock, from ``WARM_S`` on, and goes on until the last one has counted for long enough.
    """
    times, begin, counting, rates = Times(), time.perf_counter(), set(range(connections)), list[float]()
    statuses = list[int]()

    def work(number: int) -> None:
        sent, since, counted = number, math.inf, 0
        with closing(Connection(port)) as connection:
            while counting:
                start = time.perf_counter()
                connection.send(requests[sent % len(requests)])
                status, sent, now = connection.wait(), sent + 1, time.perf_counter()
                if number in counting and start >= begin + WARM_S:
                    since, counted = min(since, start), counted + 1
                    times.latencies.append(now - start)
                    statuses.append(status)
                    if now - since >= seconds:
                        rates.append(counted / (now - since))
                        counting.discard(number)

    with ThreadPoolExecutor(connections) as pool:
        for done in as_completed([pool.submit(work, number) for number in range(connections)]):
            try:
                done.result()
            finally:
                counting.clear()  # where one has failed nobody goes on
    times.seconds, times.errors = len(statuses) / sum(rates), sum(status != 200 for status in statuses)
    return times


def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float, seed: int = 0) -> Times:
    """Send requests at random times, ``rate`` a second on average (Poisson), and measure from those times.

    A request takes a connection that is free, or opens one; where there are too many it waits, and its clock runs.
    The schedule is the same for the same seed.
    """
    times, free, waiting = Times(), [Connection(port) for _ in range(8)], set[Connection]()
    begin, sent = time.perf_counter() + 0.01, 0
    schedule = deque(begin + due for due in poisson(rate, seconds, seed))
    while schedule or waiting:
        while schedule and schedule[0] <= time.perf_counter() and len(waiting) < MOST_CONNECTIONS:
            connection = free.pop() if free else Connection(port)
            connection.start = schedule.popleft()
            connection.send(requests[sent % len(requests)])
            sent += 1
            times.late.append(time.perf_counter() - connection.start)
            waiting.add(connection)
        idle = schedule and len(waiting) < MOST_CONNECTIONS
        pause = max(0.0, schedule[0] - time.perf_counter()) if idle else TIMEOUT_S
        ready, _, _ = select.select(waiting, (), (), pause)
        for connection in ready:
            if (status := connection.receive()) is not None:
                times.latencies.append(time.perf_counter() - connection.start)
                times.errors += status != 200
                waiting.discard(connection)
                free.append(connection)
        if not ready and pause == TIMEOUT_S:
            raise TimeoutError(f"{len(waiting)} requests without an answer after {TIMEOUT_S:g} s")
    times.seconds = time.perf_counter() - begin
    for connection in free:
        connection.close()
    return times


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Return the times of independent events, ``rate`` a second on average, from 0 to ``seconds``, ascending."""
    rng, due, now = random.Random(seed), list[float](), 0.0
    while (now := now + rng.expovariate(rate)) < seconds:
        due.append(now)
    return due


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that ``share`` (0..1) of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def wait_until(ready: Callable[[], bool], seconds: float, pause: float = 0.02) -> float:
    """Return after how many seconds ``ready`` was true first.

    Raises:
        TimeoutError: it never was.
    """
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        if ready():
            return time.perf_counter() - begin
        time.sleep(pause)
    raise TimeoutError(f"not ready within {seconds:g} s")


def _content_length(head: bytes) -> int:
    for row in head.lower().split(b"\r\n"):
        if row.startswith(b"content-length:"):
            return int(row.split(b":")[1])
    raise ConnectionError("an answer without Content-Length")
