"""The listening socket, taken before anything is loaded, so that a port in use is told at once; and who comes there."""

import asyncio
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

EXIT_NO_PORT: Final = 3
BACKLOG: Final = 2048  # connections that the kernel accepts ahead of us
PAUSE_S: Final = 1.0  # without accepting, where there is no room for another open file
AHEAD_S: Final = 0.002  # without accepting, where another process has fewer connections
FEW: Final = 2  # that are accepted all the same after that time
SPARE_FILES: Final = 128  # open files besides connections
UNREAD: Final = 65_536  # bytes of a request that are read before its connection is refused
log = logging.getLogger("vae")


def listen(host: str, port: int) -> socket.socket | None:
    """Return a listening socket; None, with one line on the standard error, where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:
        print(f"cannot listen on {host} port {port}: {_reason(error)}", file=sys.stderr)
        return None


class Connection(asyncio.Protocol):
    """What serves a connection; ``transport`` is None until the connection is made."""

    transport: asyncio.BaseTransport | None = None


class Acceptor:
    """Accepts all connections that wait, whenever the event loop comes by.

    libuv takes one at each turn. A turn under load answers everybody who is connected, so that of a thousand who come
    at once some would wait for seconds. One too many is refused here, where it costs a system call or two: a crowd
    that is turned away leaves nothing in memory. Like ``asyncio.Server`` as far as uvicorn needs it.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], Connection],
        is_full: Callable[[int], bool] = lambda _: False,
        refusal: Callable[[], bytes] = bytes,
        patience_s: float = 0.0,
        is_ahead: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """Begin to accept, on the running loop.

        Args:
            listener: a listening socket; closed at the end.
            protocol: makes what serves a connection.
            is_full: gets the number of connections that are accepted and not yet served; says whether one more would
                be one too many.
            refusal: returns what one too many is told at its end.
            patience_s: how long one too many is left to other processes that accept from the same socket.
            is_ahead: gets the same number as ``is_full``; says whether this process has more than its part, and
                should leave the next ones to the others for a moment.
        """
        self._listener, self._protocol, self._patience_s = listener, protocol, patience_s
        self._is_full, self._refusal, self._is_ahead = is_full, refusal, is_ahead
        self._loop = asyncio.get_running_loop()
        self._connecting: dict[asyncio.Task[object], Connection] = {}
        self._pause: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._begin()

    def close(self) -> None:
        """Accept who has come by now, and listen no longer: who comes after is refused, not kept and cut."""
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._accept(patient=False)
        if self._pause is not None:
            self._pause.cancel()
        self._listener.close()

    async def wait_closed(self) -> None:
        """Return at once."""

    def _begin(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    def _accept_all(self) -> None:
        self._begin()
        self._accept(patient=False)

    def _accept_few(self) -> None:
        """Accept some whom nobody else has taken meanwhile."""
        self._begin()
        self._accept(at_least=FEW)

    def _stop_for(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._listener)
        if self._pause is not None:  # at the end, in the middle of an earlier one
            self._pause.cancel()
        self._pause = self._loop.call_later(seconds, then)

    def _accept(self, patient: bool = True, at_least: int = 0) -> None:
        connecting = sum(one.transport is None for one in self._connecting.values())
        for number in range(BACKLOG):
            if patient and number >= at_least and self._is_ahead(connecting):
                self._stop_for(AHEAD_S, self._accept_few)
                return
            full = self._is_full(connecting)
            if full and patient and self._patience_s:
                self._stop_for(self._patience_s, self._accept_all)
                return
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # too many open files, in this process or in all
                log.warning("no connection can be accepted for %g s: %s", PAUSE_S, _reason(error))
                self._stop_for(PAUSE_S, self._begin)
                return
            connection.setblocking(False)
            if full:
                _refuse(connection, self._refusal())
            else:
                connecting += 1
                self._welcome(connection)

    def _welcome(self, connection: socket.socket) -> None:
        protocol = self._protocol()
        task: asyncio.Task[object] = self._loop.create_task(
            self._loop.connect_accepted_socket(lambda: protocol, connection)
        )
        self._connecting[task] = protocol
        task.add_done_callback(self._connecting.pop)


def _refuse(connection: socket.socket, answer: bytes) -> None:
    """Tell and close; unread bytes would turn the end into a reset, which may overtake the answer."""
    with connection, suppress(OSError):
        connection.send(answer)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(UNREAD)


def with_files_for(connections: int) -> int:
    """Raise the limit of open files as far as needed; return for how many connections it is enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            log.warning("VAE_MAX_CONNECTIONS: only %d files may be open (ulimit -n)", soft)
            return max(1, soft - SPARE_FILES)
    return connections


def url(listener: socket.socket) -> str:
    """Return where the socket listens."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _reason(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number and number > 0 else str(getattr(error, "strerror", None) or error)
