"""A guarded connection that offers each request to the express before it is parsed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.connections import State
from app.express import Express, Ride
from app.guard import Guard
from app.limits import Limits

log = logging.getLogger("vae")


class Wire(Guard):
    """One connection, on which what is usual is answered without a task."""

    def __init__(
        self,
        limits: Limits,
        express: Express,
        config: Config,
        server_state: State,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Wait for a connection."""
        super().__init__(limits, config, server_state, app_state, _loop)
        self._express, self._closes = express, False
        self._ride: Ride | None = None

    def data_received(self, data: bytes) -> None:
        """Give what has come to the express, or to the parser; from the latter the express learns."""
        if self._ride is not None:
            self.flow.pause_reading()  # one request at a time
        elif self.is_still():
            self._ride = self._express.take(self, data)
            if self._ride is not None:
                self._stop_clock()
                self._idle_since = None
                return
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before and self.has_all():
                self._express.learn(data, self.cycle.scope)
            return
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Compute nothing for who is gone."""
        if self._ride is not None:
            self._ride.cancel()
            self._ride = None
        super().connection_lost(exc)

    def answer(self, status: int, fields: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """Write the answer to a request that the express took, and turn to what came after it."""
        self._ride = None
        if self.transport.is_closing():
            return
        lines = [b"%s: %s\r\n" % field for field in (*self.server_state.default_headers, *fields)]
        ends = self._closes or (self.server_state.draining and not self._unparsed)
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"connection: close\r\n" * ends, b"\r\n", body]))
        if ends:
            self.transport.close()
        try:
            self.on_response_complete()
        except Exception:  # of the next request: it must not spoil the batch that this answer is of
            log.exception("unexpected error")
            self.transport.abort()

    def shutdown(self) -> None:
        """End the connection after the answer that is under way."""
        self._closes = True
        if self._ride is None:
            super().shutdown()

    def may_parse(self) -> bool:
        """Return whether nobody is waiting for an answer that has to come first."""
        return self._ride is None and super().may_parse()
