"""What every answer has, whatever route wrote it: an id, a clock, security headers, an entry in the metrics.

One pure ASGI wrapper (no ``BaseHTTPMiddleware``: that hides departures and halves the throughput). It also makes
``HEAD`` a ``GET`` without its body, and is the last resort for exceptions that nobody expected.
"""

from __future__ import annotations

import logging
import random
import re
import time
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InternalError
from app.logs import REQUEST_ID
from app.problems import problem_response
from app.service import Service, Timing

log = logging.getLogger("vae")
SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
UNMATCHED = "unmatched"
CSP = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "form-action 'self'"
)
SECURITY = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class Context:
    """What is known of one request besides its bytes; lives in ``scope["vae"]``."""

    __slots__ = ("request_id", "started", "timing")

    def __init__(self, request_id: str) -> None:
        """Start the clock."""
        self.request_id = request_id
        self.started = time.monotonic()
        self.timing: Timing | None = None


class Envelope:
    """Wraps the application: ids, times, headers, metrics, ``HEAD``, and the last resort for exceptions."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        """Wrap ``app``; ``service`` tells the digest and takes the metrics."""
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP passes through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        context = Context(_request_id(scope))
        REQUEST_ID.set(context.request_id)  # every line logged for this request carries it
        head = scope["method"] == "HEAD"
        scope = {**scope, "vae": context, "method": "GET" if head else scope["method"]}  # the server keeps its own
        answer = _Answer(context, head, send, self.service)
        try:
            await self.app(scope, receive, answer.send)
        except Exception:
            log.exception("unexpected error")
            if answer.status == 0:
                await self._internal_error(context)(scope, receive, answer.send)
        finally:
            seconds = time.monotonic() - context.started
            self.service.metrics.observe_request(_route(scope), answer.status or 499, seconds)
            log.debug(
                "%s %s %d",
                scope["method"],
                scope["path"],
                answer.status,
                extra={"seconds": round(seconds, 6)},
            )

    def _internal_error(self, context: Context) -> Response:
        text = "the service failed; this is a bug: report it with the request id"
        return problem_response(InternalError(text), context.request_id)


class _Answer:
    """The way out of one request: adds headers to its start, leaves out the body of a ``HEAD``."""

    def __init__(self, context: Context, head: bool, send: Send, service: Service) -> None:
        self.context, self.head, self.service, self._send = context, head, service, send
        self.status = 0  # of the answer; 0 until it starts

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._add_headers(MutableHeaders(scope=message))
        elif self.head:
            message = {**message, "body": b""}
        await self._send(message)

    def _add_headers(self, headers: MutableHeaders) -> None:
        context = self.context
        headers["X-Request-ID"] = context.request_id
        for name, value in SECURITY.items():
            headers[name] = value
        if headers.get("Content-Type", "").startswith("text/html") and "Content-Security-Policy" not in headers:
            headers["Content-Security-Policy"] = CSP
        if (digest := self.service.digest) and "X-Model-Digest" not in headers:
            headers["X-Model-Digest"] = digest
        if timing := context.timing:
            total = time.monotonic() - context.started
            spans = {"queue": timing.queue_s, "device": timing.device_s, "total": total}
            headers["Server-Timing"] = ", ".join(f"{name};dur={span * 1e3:.3f}" for name, span in spans.items())


def _request_id(scope: Scope) -> str:
    """Return the caller's request id where it is a sane token, else a new one."""
    sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    text = sent.decode("latin-1")
    return text if SANE_ID.fullmatch(text) else f"{random.getrandbits(128):032x}"


def _route(scope: Scope) -> str:
    """Return the template of the route that was met: a label from a closed set, the same with ``/v1``."""
    route: Any = scope.get("route")
    path: str = getattr(route, "path", UNMATCHED)
    return path.removeprefix("/v1") or "/"
