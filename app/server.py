"""The process: one listening socket, limits per connection, signals, exit statuses.

``run`` takes the port, starts the application, serves, drains and says with what status to exit. It needs of the
application no more than a lifespan and ``app.state.service``; it knows no route and no model.
"""

import asyncio
import logging
import math
import os
import signal
import socket
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sized
from contextlib import contextmanager, suppress
from functools import partial
from ipaddress import ip_address
from typing import Any, Final, Protocol

import uvicorn

from app import logs
from app.collector import Collector
from app.connections import State, refusal
from app.errors import Unavailable
from app.express import Express
from app.guard import Guard
from app.limits import Limits
from app.listening import EXIT_NO_PORT, Acceptor, listen, url, with_files_for
from app.problems import outer_answer
from app.settings import Settings, SettingsError
from app.wire import Wire
from app.workers import Crew

EXIT_SETTINGS: Final = 78  # EX_CONFIG of sysexits.h
SETTLE_S: Final = 0.1  # in which everything that the kernel holds for us is accepted and read
ANOTHER_S: Final = 0.05  # in which another worker may take a connection that is one too many here
LAST_ANSWERS_S: Final = 1.0  # to send what is answered already, where there is no time to drain

App = Any  # an ASGI application with ``router.lifespan_context`` and ``state.service``
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
log = logging.getLogger("vae")


class Rejecting(Protocol):
    """Where refused connections are counted."""

    def rejected(self, reason: str) -> None:
        """Count one, by its error code."""


class Drainable(Protocol):
    """What is needed of ``app.state.service``; ``exit_status`` ends the process as soon as it is a number."""

    exit_status: int | None
    digest: str | None
    metrics: "Rejecting"
    replaced: Sized  # models that are no longer in force and not yet gone

    def begin_drain(self) -> None:
        """Report not ready from now on."""

    def refuse_new_work(self) -> None:
        """Answer new requests with 503."""

    async def reload(self) -> None:
        """Load the model's file again."""


def run(app: App, settings: Settings, limits: Limits | None = None) -> int:
    """Serve ``app`` until a signal or its service ends it, and return the exit status of the process.

    0 after a drain, 3 without a port, 78 where the lifespan raises ``SettingsError`` (one line per problem), else
    what the service says. A second signal ends the process at once, with 128 and the signal's number.

    Args:
        app: see ``App``; started after the port is taken, so nothing is loaded in vain.
        settings: address, drain times, connections and log format.
        limits: of a connection; by default the usual ones, with ``settings.max_connections``.
    """
    listener = listen(settings.host, settings.port)
    return EXIT_NO_PORT if listener is None else serve(app, settings, listener, limits)


def serve(
    app: App, settings: Settings, listener: socket.socket, limits: Limits | None = None, crew: Crew | None = None
) -> int:
    """Do what ``run`` does with a socket that listens already; as one of a crew, with a part of the limits."""
    stop_logging = logs.configure(settings.log_level, settings.log_format)
    try:
        if crew is None or crew.index == 0:
            _warn_if_open(settings, listener)
        server = Server(app, settings, limits or _limits(settings, crew), crew)
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            return runner.run(server.live(listener))
    except SettingsError as error:
        if crew:
            crew.say_problems(error.problems)
        for problem in () if crew else error.problems:
            log.critical("%s", problem)
        return EXIT_SETTINGS
    finally:
        listener.close()
        stop_logging()


class Server(uvicorn.Server):
    """uvicorn with guarded connections, and signals that drain before they end."""

    server_state: State

    def __init__(self, app: App, settings: Settings, limits: Limits, crew: Crew | None = None) -> None:
        """Prepare; nothing runs before ``live``."""
        self._express: Express | None = getattr(app.state, "express", None)
        protocol = partial(Wire, limits, self._express) if self._express else partial(Guard, limits)
        config = uvicorn.Config(
            _refused_when_cut(app, self._digest),
            interface="asgi3",
            lifespan="off",  # run by ``live``, where its errors can be told apart
            http=protocol,  # type: ignore[arg-type]  # it is only ever called
            ws="none",
            timeout_keep_alive=limits.keep_alive_s,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        super().__init__(config)
        self.server_state = State()
        self._app, self._settings, self._crew = app, settings, crew
        self._connections = limits.connections
        self._service: Drainable = app.state.service
        self.server_state.digest = self._digest  # type: ignore[method-assign]
        self.server_state.rejected = self._service.metrics.rejected  # type: ignore[method-assign]
        self._opened = asyncio.Event()  # the crew is complete, or it is over
        self._draining: asyncio.Task[None] | None = None
        self._reloads: set[asyncio.Task[None]] = set()
        self._collector = Collector(self._service.replaced, settings.deadline_s)
        self._asked_early = False  # to reload, before the start was over

    async def live(self, listener: socket.socket) -> int:
        """Start the application, serve it until something ends it, stop it; return the exit status."""
        with self._signals():
            async with self._app.router.lifespan_context(self._app):
                self._collector.keep()
                if self._crew:
                    await self._join(self._crew)
                await self.serve(sockets=[listener])
        return self._service.exit_status or 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup([])
        guard: Any = self.config.http_protocol_class
        protocol = partial(guard, self.config, self.server_state, self.lifespan.state)
        for listener in sockets or ():
            patience_s = ANOTHER_S if self._crew else 0.0
            acceptor = Acceptor(listener, protocol, self._is_full, self._refusal, patience_s, self._is_ahead)
            self.servers.append(acceptor)  # type: ignore[arg-type]  # what uvicorn needs of it
            if self._crew is None:
                log.info("listening on %s", url(listener))
        if self._asked_early:
            self._reload()

    def _is_full(self, connecting: int) -> bool:
        return len(self.server_state.connections) + connecting >= self._connections

    def _is_ahead(self, connecting: int = 0) -> bool:
        return self._crew is not None and self._crew.is_ahead(len(self.server_state.connections) + connecting)

    def _refusal(self) -> bytes:
        self.server_state.rejected("too_many_connections")
        return refusal("too_many_connections", self.server_state)

    async def _join(self, crew: Crew) -> None:
        """Wait until the whole crew is ready, and drain as soon as its parent is gone."""
        loop = asyncio.get_running_loop()

        def hear() -> None:
            self._opened.set()
            if not crew.line.recv(64):
                loop.remove_reader(crew.line)
                if self._draining is None:
                    self._stop(signal.SIGTERM)

        loop.add_reader(crew.line, hear)
        crew.say_loaded(self._digest())
        await self._opened.wait()

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second whether it is over; tell the other workers how many connections there are."""
        self._is_ahead()
        if self._service.exit_status is not None:
            self.config.timeout_graceful_shutdown = math.ceil(LAST_ANSWERS_S)
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all connections: what has arrived is read first, and who is cut is told so."""
        if self._crew:
            self._crew.accept_none()
        for server in self.servers:
            server.close()
        await asyncio.sleep(SETTLE_S)
        await super().shutdown(sockets)
        if self._express:
            self._express.give_up(_shut_down())
        if self.server_state.tasks:
            await asyncio.wait(set(self.server_state.tasks), timeout=LAST_ANSWERS_S)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: uvicorn would raise them again after a clean end."""
        yield

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _stop(self, number: int) -> None:
        if self._draining is not None:
            os._exit(128 + number)
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        """Let balancers look away, refuse what is new, wait for what is in flight; then let uvicorn end."""
        log.info("draining: not ready from now on; a second signal ends at once")
        self._service.begin_drain()
        self.server_state.draining = True
        await asyncio.sleep(max(self._settings.drain_delay_s, SETTLE_S))
        self._service.refuse_new_work()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.drain_s
        if self.server_state.tasks:  # what has none is waited for with its connection
            await asyncio.wait(set(self.server_state.tasks), timeout=self._settings.drain_s)
        self.config.timeout_graceful_shutdown = math.ceil(max(end - loop.time(), LAST_ANSWERS_S))
        self.should_exit = True
        self._opened.set()

    def _digest(self) -> str | None:
        return self._service.digest

    def _reload(self) -> None:
        self._asked_early = not self.started
        if self.started and self._draining is None:
            task = asyncio.get_running_loop().create_task(self._service.reload())
            self._reloads.add(task)
            task.add_done_callback(self._reloaded)

    def _reloaded(self, task: asyncio.Task[None]) -> None:
        self._reloads.discard(task)
        if task.cancelled() or self._draining:
            return
        if error := task.exception():
            log.error("the reload failed, nothing has changed", exc_info=error)
        self._collector.show_all()
        if self._crew:
            with suppress(ConnectionError):  # without a parent it is over anyway
                self._crew.say_loaded(self._digest())


def _shut_down() -> Unavailable:
    text = "the server has shut down; send the request again"
    return Unavailable(text, code="draining", headers={"Retry-After": "1"})


def _refused_when_cut(app: App, digest: Callable[[], str | None]) -> App:
    """Return ``app`` such that a request that is cancelled at the end of the drain is answered with 503."""

    async def answer(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            request_id, problem = logs.REQUEST_ID.get() or uuid.uuid4().hex, _shut_down()
            headers, body = outer_answer(problem.to_problem(request_id), request_id, digest())
            with suppress(RuntimeError):  # the answer has begun
                await send({"type": "http.response.start", "status": problem.status, "headers": headers})
                await send({"type": "http.response.body", "body": body})

    return answer


def _warn_if_open(settings: Settings, listener: socket.socket) -> None:
    """Judge by the address: a name may stand for any."""
    if not settings.api_keys_file and not ip_address(listener.getsockname()[0]).is_loopback:
        log.warning("everybody who reaches %s may use the service: no VAE_API_KEYS_FILE", url(listener))


def _limits(settings: Settings, crew: Crew | None) -> Limits:
    if crew is None:
        return Limits(connections=with_files_for(settings.max_connections))
    shares = {name: crew.share(getattr(Limits, name)) for name in ("unsent_bytes", "behind_bytes")}
    return Limits(connections=with_files_for(crew.share(settings.max_connections)), **shares)
