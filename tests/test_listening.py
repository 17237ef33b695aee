"""Who comes is accepted at once, however many come; where no file can be opened, a little later."""

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
import uvloop

from app import listening
from app.listening import Acceptor, Connection, listen
from app.workers import CLOSED, LEAD, Crew

COMING = 200


class Greeter(Connection):
    """Says hello."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.write(b"hello")
        transport.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    found = listen("127.0.0.1", 0)
    assert found is not None
    with found:
        yield found


def connected(listener: socket.socket, count: int) -> list[socket.socket]:
    """Return connections that the kernel has accepted and nobody else."""
    return [socket.create_connection(listener.getsockname()) for _ in range(count)]


def greeted(callers: list[socket.socket]) -> int:
    """Return how many have been greeted by now; closes all."""
    count = 0
    for caller in callers:
        caller.setblocking(False)
        with suppress(BlockingIOError):
            count += caller.recv(5) == b"hello"
        caller.close()
    return count


def until_end(caller: socket.socket) -> bytes:
    """Return all that a caller is told; closes it."""
    with caller, caller.makefile("rb") as said:
        return said.read()


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_all_who_wait_are_accepted_in_a_few_turns_of_the_loop(listener: socket.socket, make_loop: object) -> None:
    callers, made = connected(listener, COMING), list[Greeter]()

    def greeter() -> Greeter:
        made.append(Greeter())
        return made[-1]

    async def live() -> int:
        acceptor, turns = Acceptor(listener, greeter), 0
        while len(made) < COMING and turns < COMING:
            await asyncio.sleep(0.001)
            turns += 1
        acceptor.close()
        await asyncio.sleep(0.2)  # for the last greetings
        return turns

    with asyncio.Runner(loop_factory=make_loop) as runner:  # type: ignore[arg-type]
        assert runner.run(live()) < COMING / 4
    assert greeted(callers) == COMING


def test_who_came_before_the_end_is_accepted_and_who_comes_after_is_refused(listener: socket.socket) -> None:
    callers, address = connected(listener, 3), listener.getsockname()

    async def live() -> None:
        acceptor = Acceptor(listener, Greeter)
        acceptor.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        acceptor.close()
        await asyncio.sleep(0.2)

    asyncio.run(live())
    assert greeted(callers) == 3


def test_where_no_file_can_be_opened_it_waits_and_goes_on(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listening, "PAUSE_S", 0.05)

    class Full:
        """A listener without room for three times."""

        left = 3

        def __getattr__(self, name: str) -> object:
            return getattr(listener, name)

        def accept(self) -> object:
            if self.left:
                self.left -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return listener.accept()

    callers = connected(listener, 2)

    async def live() -> None:
        acceptor = Acceptor(Full(), Greeter)  # type: ignore[arg-type]
        await asyncio.sleep(1)
        acceptor.close()

    asyncio.run(live())
    assert greeted(callers) == 2
    assert [record.levelname for record in caplog.records if record.name == "vae"] == ["WARNING"] * 3


def test_an_end_in_the_middle_of_a_pause_leaves_nothing_behind(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "PAUSE_S", 0.1)

    class NoFiles:
        """A listener for whose connections no file can be opened."""

        def __getattr__(self, name: str) -> object:
            return getattr(listener, name)

        def accept(self) -> object:
            raise OSError(errno.EMFILE, "Too many open files")

    caller, problems = connected(listener, 1)[0], list[dict[str, object]]()

    async def live() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
        acceptor = Acceptor(NoFiles(), Greeter)  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        acceptor.close()
        await asyncio.sleep(0.3)

    with caller:
        asyncio.run(live())
    assert problems == []


def test_who_is_one_too_many_is_told_so_whatever_he_has_sent_and_nothing_is_made_for_him(
    listener: socket.socket,
) -> None:
    callers, made = connected(listener, COMING), list[Greeter]()
    for caller in callers:
        caller.sendall(b"GET / HTTP/1.1\r\n\r\n")

    def greeter() -> Greeter:
        made.append(Greeter())
        return made[-1]

    def is_full(connecting: int) -> bool:
        return sum(one.transport is not None for one in made) + connecting >= 3

    async def live() -> None:
        acceptor = Acceptor(listener, greeter, is_full, lambda: b"enough")
        await asyncio.sleep(0.2)
        acceptor.close()

    asyncio.run(live())
    assert len(made) == 3
    assert greeted(callers[:3]) == 3
    assert [until_end(caller) for caller in callers[3:]] == [b"enough"] * (COMING - 3)


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_who_comes_while_others_are_being_connected_counts_once(listener: socket.socket, make_loop: object) -> None:
    cap, at_once, later = 100, 60, 10  # and three more at each of those turns: 90 in all
    open_ = set[Connection]()
    counted = list[int]()

    class Staying(Connection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport
            open_.add(self)

    def is_full(connecting: int) -> bool:
        counted.append(len(open_) + connecting)
        return counted[-1] >= cap

    async def live() -> list[socket.socket]:
        callers = connected(listener, at_once)
        acceptor = Acceptor(listener, Staying, is_full)
        for _ in range(later):
            await asyncio.sleep(0)
            callers += connected(listener, 3)
        await asyncio.sleep(0.2)
        acceptor.close()
        return callers

    with asyncio.Runner(loop_factory=make_loop) as runner:  # type: ignore[arg-type]
        for caller in runner.run(live()):
            caller.close()
    assert sorted(set(counted)) == list(range(at_once + 3 * later + 1))


@pytest.mark.parametrize("room", [COMING, 20])
def test_one_too_many_here_is_left_to_whoever_has_room_and_else_refused(listener: socket.socket, room: int) -> None:
    callers, rooms = connected(listener, COMING), [5, room]
    refused = list[int]()

    async def live() -> None:
        acceptors = []
        for number, most in enumerate(rooms):
            made = list[Greeter]()

            def greeter(made: list[Greeter] = made) -> Greeter:
                made.append(Greeter())
                return made[-1]

            def is_full(_: int, made: list[Greeter] = made, most: int = most) -> bool:
                return len(made) >= most

            def refusal(number: int = number) -> bytes:
                refused.append(number)
                return b"enough"

            # two processes have a file each for one and the same socket
            acceptors.append(Acceptor(listener.dup(), greeter, is_full, refusal, patience_s=0.2))
        await asyncio.sleep(1)
        for acceptor in acceptors:
            acceptor.close()

    asyncio.run(live())
    said = [until_end(caller) for caller in callers]
    assert said.count(b"hello") == min(COMING, sum(rooms))
    assert said.count(b"enough") == len(refused) == COMING - said.count(b"hello")


@pytest.mark.parametrize("coming", [32, 1000])
def test_connections_that_come_at_once_are_shared_evenly_among_processes(listener: socket.socket, coming: int) -> None:
    callers, counts = connected(listener, coming), memoryview(bytearray(2 * 8)).cast("q")

    async def live() -> None:
        acceptors = [Acceptor(listener.dup(), *worker(counts, index)) for index in range(2)]
        await asyncio.sleep(1.5)
        assert sum(counts) == coming
        assert max(counts) - min(counts) <= max(2 * LEAD, coming // 8)
        for acceptor in acceptors:
            acceptor.close()

    asyncio.run(live())
    assert greeted(callers) == coming


@pytest.mark.parametrize("other", [0, CLOSED])
def test_who_comes_is_accepted_though_the_other_process_stands_still(listener: socket.socket, other: int) -> None:
    callers, counts = connected(listener, 100), memoryview(bytearray(2 * 8)).cast("q")
    counts[1] = other

    async def live() -> None:
        acceptor = Acceptor(listener.dup(), *worker(counts, 0))
        await asyncio.sleep(1)
        acceptor.close()

    asyncio.run(live())
    assert greeted(callers) == 100


def worker(counts: memoryview, index: int) -> tuple[object, ...]:
    """Return what an acceptor of one worker is given: it counts its connections where the others see them."""
    made = list[Greeter]()
    crew = Crew(index, len(counts), *[None] * 3, counts)  # type: ignore[arg-type]

    def greeter() -> Greeter:
        made.append(Greeter())
        return made[-1]

    def is_ahead(connecting: int) -> bool:
        return crew.is_ahead(sum(one.transport is not None for one in made) + connecting)

    return greeter, lambda _: False, bytes, 0.0, is_ahead
