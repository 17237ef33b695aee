"""What every answer has, whatever route wrote it: an id, a clock, security headers, an entry in the metrics.

One pure ASGI wrapper (no ``BaseHTTPMiddleware``: that hides departures and halves the throughput). It also makes
``HEAD`` a ``GET`` without its body, and is the last resort for exceptions that nobody expected.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.context import Context
from app.logs import REQUEST_ID
from app.problems import CLOSED, internal_error, problem_response
from app.service import Service, Timing

log = logging.getLogger("vae")
UNMATCHED = "unmatched"
CSP = (
    b"default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
    b"form-action 'self'"
)
SECURITY = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
Headers = list[tuple[bytes, bytes]]


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
        context = Context(self.service, scope["headers"])
        REQUEST_ID.set(context.request_id)  # every line logged for this request carries it
        head = scope["method"] == "HEAD"
        scope = {**scope, "vae": context, "method": "GET" if head else scope["method"]}  # the server keeps its own
        answer = _Answer(context, head, send, self.service)
        try:
            await self.app(scope, receive, answer.send)
        except Exception:
            log.exception("unexpected error")
            if answer.status == 0:
                await problem_response(internal_error(), context.request_id)(scope, receive, answer.send)
        finally:
            seconds = time.monotonic() - context.started
            told(self.service, scope["method"], scope["path"], _route(scope), answer.status or CLOSED, seconds)


class _Answer:
    """The way out of one request: adds headers to its start, leaves out the body of a ``HEAD``."""

    def __init__(self, context: Context, head: bool, send: Send, service: Service) -> None:
        self.context, self.head, self.service, self._send = context, head, service, send
        self.status = 0  # of the answer; 0 until it starts

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._add_headers(message["headers"])
        elif self.head:
            message = {**message, "body": b""}
        await self._send(message)

    def _add_headers(self, headers: Headers) -> None:
        context, given = self.context, dict(headers)
        if given.get(b"content-type", b"").startswith(b"text/html") and b"content-security-policy" not in given:
            headers.append((b"content-security-policy", CSP))
        digest = context.engine.digest if context.engine else self.service.digest
        digest = None if b"x-model-digest" in given else digest
        headers += own_fields(context.request_id, digest, context.timing, context.started)


def own_fields(request_id: str, digest: str | None, timing: Timing | None, started: float) -> Headers:
    """Return the header fields that every answer has.

    Args:
        request_id: of the request.
        digest: of the weights that answered, or would have.
        timing: of what the device computed, if it did.
        started: when the request was here, on the monotonic clock.
    """
    fields = [(b"x-request-id", request_id.encode()), *SECURITY]
    if digest:
        fields.append((b"x-model-digest", digest.encode()))
    if timing:
        spans = (timing.queue_s * 1e3, timing.device_s * 1e3, (time.monotonic() - started) * 1e3)
        fields.append((b"server-timing", b"queue;dur=%.3f, device;dur=%.3f, total;dur=%.3f" % spans))
    return fields


def told(service: Service, method: str, path: str, route: str, status: int, seconds: float) -> None:
    """Count an answer, and log it where everything is logged."""
    service.metrics.observe_request(route, status, seconds)
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s %s %d", method, path, status, extra={"seconds": round(seconds, 6)})


def _route(scope: Scope) -> str:
    """Return the template of the route that was met: a label from a closed set, the same with ``/v1``."""
    route: Any = scope.get("route")
    path: str = getattr(route, "path", UNMATCHED)
    return path.removeprefix("/v1") or "/"
