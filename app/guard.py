"""What one connection may cost: uvicorn's HTTP protocol, with limits where uvicorn has none.

Caps the header block, the time in which a request must arrive, the chunks of a body, the requests that wait for an
earlier one's answer, and the answers that nobody reads; refuses with ``malformed_http``, ``headers_too_large`` and
``too_slow``. Knows no route and no setting.
"""

import asyncio
from collections.abc import Sized
from typing import Any, Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.connections import State, refusal
from app.limits import Limits

STEP: Final = 1024  # bytes, besides a declared body, that are parsed before the next look whether requests wait
NOTHING: Final = memoryview(b"")  # an empty part of a message would keep all of it in memory


class Refused(Exception):
    """Raised inside the parser's callbacks to end the connection."""


class Flow(FlowControl):
    """Lets nothing more be read while requests wait for an earlier one's answer, whoever asks for it."""

    waiting: Sized = ()

    def resume_reading(self) -> None:
        """Read on, unless requests wait."""
        if not self.waiting:
            super().resume_reading()


class Guard(HttpToolsProtocol):
    """One connection, from the first byte to the last."""

    server_state: State

    def __init__(
        self,
        limits: Limits,
        config: Config,
        server_state: State,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Wait for a connection."""
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None  # of an answer that waits for its reader
        self._round: asyncio.TimerHandle | None = None  # looks now and then whether the connection should end, or does
        self._idle_since: float | None = None
        self._reading = self._in_body = self._moved = False  # in a request; in its body; the parser made something
        self._pile = 0  # bytes that it made nothing of
        self._unparsed = NOTHING  # what came behind requests that wait for an earlier one's answer
        self._behind = 0  # bytes that this takes
        self._size = self._chunks = 0  # of this request's path and header fields; of its body
        self._left = 0  # bytes of its declared body that are still to come
        self._code = "malformed_http"  # of the refusal, if the parser stops

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self.flow = flow = Flow(transport)
        flow.waiting = self.pipeline
        self._start_clock()
        self._round = self.loop.call_later(self._limits.keep_alive_s, self._look_round)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        self._stop_watch()
        if self._round is not None:
            self._round.cancel()
        self._keep(NOTHING)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, as far as it may be parsed now."""
        if not self.transport.is_closing():
            self._unparsed = memoryview(bytes(self._unparsed) + data if self._unparsed else data)
            self._read_on()

    def on_response_complete(self) -> None:
        """Turn to what waited for this answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._idle_since = None if self._reading else self.loop.time()
        self.flow.resume_reading()
        if not self.pipeline:
            self._read_on()

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._moved = self._reading = True
        self._idle_since = None
        self._size = self._chunks = self._left = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take a part of the path."""
        self._grow(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field, or a trailer field after a body."""
        self._grow(len(name) + len(value) + 4)
        if not self._in_body:  # a trailer is no header (RFC 9110, section 6.5.1)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check what only the whole header block shows, before the application sees it."""
        names = [name for name, _ in self.headers]
        hosts, tunnel = names.count(b"host"), self.parser.get_method() == b"CONNECT"  # then another protocol follows
        if tunnel or (hosts != 1 and (hosts or self.parser.get_http_version() == "1.1")):  # RFC 9112, section 3.2
            self._stop_parser("malformed_http")
        if self.parser.should_upgrade():
            return  # the same comes again without that wish
        super().on_headers_complete()
        self._moved = self._in_body = True
        self._left = int(self.headers[names.index(b"content-length")][1]) if b"content-length" in names else 0
        if self.server_state.draining:
            self.cycle.keep_alive = False

    def on_chunk_header(self) -> None:
        """Count a chunk."""
        self._chunks += 1
        if self._chunks > self._limits.chunks:
            self._stop_parser("malformed_http")

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._moved = True
        self._left -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request: it arrived in time."""
        if self.parser.should_upgrade():
            return
        self._reading = self._in_body = False
        self._stop_clock()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Watch an answer that waits for its reader; cut the oldest where they are too much for the memory."""
        super().pause_writing()
        self._look_again()
        unread = self.server_state.unread
        too_much = sum(guard.unsent for guard in unread) - self._limits.unsent_bytes
        for guard in list(unread)[:-1]:
            if too_much <= 0:
                break
            too_much -= guard.unsent
            guard.transport.abort()

    def resume_writing(self) -> None:
        """Watch no longer, as the answer is being read; unless it is the last one, which is watched to its end."""
        if not self.transport.is_closing():
            self._stop_watch()
        super().resume_writing()

    @property
    def unsent(self) -> int:
        """Bytes of answers that the other side has not taken."""
        return self.transport.get_write_buffer_size()

    def may_parse(self) -> bool:
        """Return whether what has come is read on: no request waits for an earlier one's answer."""
        return not self.pipeline and not self.transport.is_closing()

    def is_still(self) -> bool:
        """Return whether everything so far has been answered and taken, and the next byte begins a request."""
        return self._is_idle() and not self._reading and self.may_parse() and not self.flow.write_paused

    def has_all(self) -> bool:
        """Return whether what came last was the whole of the latest request, on a connection that stays open."""
        cycle, rest = self.cycle, self._reading or self._unparsed or self.pipeline
        return not rest and cycle.keep_alive and not cycle.more_body and cycle.scope["http_version"] == "1.1"

    def _read_on(self) -> None:
        """Parse until a request waits for an earlier one's answer; refuse what piles up without becoming a request."""
        while self._unparsed and self.may_parse():
            step, self._moved = max(STEP, self._left), False
            part, self._unparsed = self._unparsed[:step], self._unparsed[step:] or NOTHING
            try:
                self._parse(part)
            except httptools.HttpParserError:
                self._refuse(self._code)
                break
            self._pile = 0 if self._moved else self._pile + len(part)
            if self._pile > self._limits.header_bytes:
                self._refuse("headers_too_large")
            elif self._timer is None and (self._reading or self._is_idle()):
                self._start_clock()
        self._keep(NOTHING if self.transport.is_closing() else self._unparsed)

    def _keep(self, rest: memoryview) -> None:
        """Keep what is not parsed yet, without a large buffer around it; cut who brings too much of it."""
        held, others = memoryview(rest.obj).nbytes, self.server_state.behind_bytes - self._behind
        if held > 2 * len(rest):
            rest, held = memoryview(bytes(rest)), len(rest)
        if rest and others + held > self._limits.behind_bytes:
            self.transport.abort()
            rest, held = NOTHING, 0
        self._unparsed, self._behind = rest, held
        self.server_state.behind_bytes = others + held

    def _parse(self, data: memoryview) -> None:
        """Parse; who asks for another protocol is answered in this one (RFC 9110, section 7.8)."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            # the parser has left off at the end of the header block: it gets the same block again, without the wish
            start = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
            fields = [b"%s: %s" % field for field in self.headers if field[0] != b"upgrade"]
            self.parser.feed_data(b"\r\n".join([start, *fields, b"\r\n"]))

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > self._limits.header_bytes:
            self._stop_parser("headers_too_large")

    def _stop_parser(self, code: str) -> None:
        self._code = code
        raise Refused(code)

    def _is_idle(self) -> bool:
        return getattr(self.cycle, "response_complete", True)  # there is no cycle before the first request

    def _look_round(self) -> None:
        """End a connection that has been idle for long enough; watch one that ends and waits for its reader."""
        wait_s: float = self._limits.keep_alive_s
        if self._idle_since is not None:
            wait_s += self._idle_since - self.loop.time()
        if wait_s <= 0:
            self.transport.close()
        if not self.transport.is_closing():
            self._round = self.loop.call_later(wait_s, self._look_round)
        elif self._watch is None:
            self._look_again()

    def _start_clock(self) -> None:
        self._timer = self.loop.call_later(self._limits.receive_s, self._expire)

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        """End a request that did not arrive, unless it is us who are not reading or have not answered."""
        self._timer = None
        earlier = not self._in_body and not self._is_idle()  # an earlier request is being answered
        if earlier or self.pipeline or self.flow.read_paused:
            self._start_clock()
        else:
            self._refuse("too_slow")

    def _look_again(self) -> None:
        self._stop_watch()
        self.server_state.unread[self] = None  # at the end: it has just been served
        self._watch = self.loop.call_later(self._limits.send_s, self._look, self.unsent)

    def _look(self, before: int) -> None:
        """End a connection on which too little of an answer has been taken since the last look."""
        if before - self.unsent < self._limits.send_bytes:
            self.transport.abort()
        else:
            self._look_again()

    def _stop_watch(self) -> None:
        self.server_state.unread.pop(self, None)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _refuse(self, code: str) -> None:
        """End the connection, with an answer where the other side is waiting for this one."""
        self.server_state.rejected(code)
        waits = not self.cycle.response_started if self._in_body else self._is_idle()
        if waits and not self.pipeline and not self.transport.get_write_buffer_size():
            self.transport.write(refusal(code, self.server_state))
            self.transport.close()
        else:
            self.transport.abort()
        if self._in_body:  # the application reads that the caller is gone, and nothing it sends gets out
            self.cycle.disconnected = True
            self.cycle.message_event.set()
