"""What is known of one request besides its bytes: who answers it, its header fields, its clock, its share of memory."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Sequence

from fastapi import Request

from app.engine import Engine
from app.service import Service, Timing

LISTS = (b"accept", b"if-none-match")  # fields that may come in several lines, as one list
SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class Context:
    """Lives in ``scope["vae"]`` as long as the request.

    Attributes:
        service: that answers it.
        headers: its fields, as ``by_name`` gives them.
        request_id: the caller's, or a new one.
        started: when, on the monotonic clock.
        seconds: that it has until its deadline, once that is known.
        body_bytes: that it has sent and that are held for it.
        engine: that answers it, once it is chosen; a reload does not change it.
        timing: of what the device computes for it.
    """

    __slots__ = ("body_bytes", "engine", "headers", "request_id", "seconds", "service", "started", "timing")

    def __init__(self, service: Service, fields: Sequence[tuple[bytes, bytes]]) -> None:
        """Start the clock; ``fields`` are the request's headers, as the server gives them."""
        self.service = service
        self.headers = by_name(fields)
        self.request_id = _request_id(self.headers.get(b"x-request-id", b""))
        self.started = time.monotonic()
        self.seconds = math.inf
        self.body_bytes = 0
        self.engine: Engine | None = None
        self.timing: Timing | None = None

    def header(self, name: bytes) -> str | None:
        """Return a header field of the request by its name in lower case; None where it has none of that name."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


def by_name(fields: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return header fields by their names in lower case; a repeated one is the first, or a list (RFC 9110, 5.3)."""
    headers = dict(reversed(fields))
    if len(headers) < len(fields):
        for name in headers.keys() & LISTS:
            headers[name] = b", ".join(value for other, value in fields if other == name)
    return headers


def context_of(request: Request) -> Context:
    """Return what is known of a request."""
    context: Context = request.scope["vae"]
    return context


def service_of(request: Request) -> Service:
    """Return the service that answers a request."""
    return context_of(request).service


def fresh_id() -> str:
    """Return the id of a request that brought none."""
    return f"{random.getrandbits(128):032x}"


def _request_id(sent: bytes) -> str:
    """Return the caller's request id where it is a sane token, else a new one."""
    text = sent.decode("latin-1")
    return text if SANE_ID.fullmatch(text) else fresh_id()
