"""The application in this process, asked without a network: what thousands of requests, or a held device, need.

``Inside`` starts the application with a real model and sends it one ASGI call after the other; ``Gate`` holds its
device. Also what must hold after every attack: alive, a golden answer right, nobody left in line, no failure.
"""

import asyncio
import json
import logging
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import numpy as np
from service_answers import LEAKS, strict_json
from service_pictures import from_npy, npy

from app import batching
from app.batching import Op
from app.main import create_app
from app.settings import Settings

SAFETY_S = 60
NPY_IN = {"content-type": "application/x-npy", "accept": "application/x-npy"}


@dataclass
class Reply:
    """An answer: status, header fields in lower case, body."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Caller:
    """One request to an application; ``leave`` closes the connection from this side."""

    def __init__(self, app: Any, method: str, target: str, headers: Mapping[str, str], body: bytes) -> None:
        url = urlsplit(target)
        self.reply, self._app, self._left = Reply(), app, asyncio.Event()
        self._body: bytes | None = body
        self._scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": url.path,
            "raw_path": url.path.encode(), "root_path": "", "scheme": "http", "query_string": url.query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "client": ("test", 1), "server": ("test", 80), "state": {},
        }  # fmt: skip

    async def ask(self) -> Reply:
        await self._app(self._scope, self._receive, self._send)
        return self.reply

    def leave(self) -> None:
        self._left.set()

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.reply.status = message["status"]
            self.reply.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
        else:
            self.reply.body += message.get("body", b"")


class Inside:
    """A started application: ``play`` runs a coroutine beside it, ``ask`` one request."""

    def __init__(self, app: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.app, self._loop, self.failures = app, loop, Failures()

    @property
    def engine(self) -> Any:
        return self.app.state.service.engine

    def play(self, scenario: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(scenario)

    def caller(self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Caller:
        return Caller(self.app, method, target, headers or {}, body)

    def ask(self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Reply:
        reply: Reply = self.play(self.caller(method, target, headers, body).ask())
        return reply

    def assert_unharmed(self) -> None:
        """Alive, the golden batch encoded right, nobody in line, no failure counted or logged."""
        assert self.ask("GET", "/livez").status == 200
        notes = self.engine.notes
        reply = self.ask("POST", "/encode", NPY_IN, npy(notes.golden_images))
        mu, _ = from_npy(reply.body)
        assert np.abs((mu - notes.golden_mu) / notes.golden_sigma).max() < 0.02
        text = self.ask("GET", "/metrics").body.decode()
        assert 'status="500"' not in text
        assert not [line for line in text.splitlines() if line.startswith("vae_queue_items{") and line[-4:] != " 0.0"]
        house = self.app.state.service._batcher._house
        assert (house.items, house.rows, house._in_line) == (0, 0, 0)
        assert self.failures.lines == []


class Failures(logging.Handler):
    """Keeps the lines of level ERROR and above that the service logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def inside(**settings: Any) -> Iterator[Inside]:
    """Start the application with the bundled model on the CPU; its threads end with the context.

    Rows are computed in threads alone, never by the event loop, so that a ``Gate`` holds nothing but threads.
    """
    app = create_app(Settings(**{"device": "cpu", "log_level": "error", **settings}))
    log = logging.getLogger("vae")
    with asyncio.Runner() as runner, patch.object(batching, "QUICK_S", -1.0):
        loop = runner.get_loop()
        lifespan = app.router.lifespan_context(app)
        loop.run_until_complete(lifespan.__aenter__())
        running = Inside(app, loop)
        log.addHandler(running.failures)
        try:
            yield running
        finally:
            log.removeHandler(running.failures)
            loop.run_until_complete(lifespan.__aexit__(None, None, None))


class Gate:
    """Holds the inference threads inside an operation until it is opened, and keeps the rows that got there."""

    def __init__(self, op: Op) -> None:
        self.entered, self.opened, self.rows = threading.Event(), threading.Event(), 0
        self._run = op.run
        object.__setattr__(op, "run", self.run)

    def run(self, *columns: Any) -> Any:
        self.rows += len(columns[0])
        self.entered.set()
        assert self.opened.wait(SAFETY_S)
        return self._run(*columns)

    async def wait_until_entered(self) -> None:
        await asyncio.to_thread(self.entered.wait, SAFETY_S)


def check_refusal(reply: Reply) -> str:
    """Assert that an answer is a documented refusal: a problem of at most 4 kB that tells nothing internal."""
    assert 400 <= reply.status < 500, (reply.status, reply.body[:600])
    assert reply.headers["content-type"] == "application/problem+json"
    assert len(reply.body) <= 4096
    text = reply.body.decode()
    problem = json.loads(text)
    assert problem["status"] == reply.status
    assert problem["detail"]
    assert not LEAKS.search(text), text[:600]
    return str(problem["code"])


def check_good(reply: Reply) -> None:
    """Assert that an answer 200 in JSON is standard JSON; other forms are left to other tests."""
    assert reply.status == 200
    if reply.headers["content-type"] == "application/json":
        strict_json(reply.body.decode())
