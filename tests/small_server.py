"""A small application behind ``app.server``, run as a process of its own by the tests of the server.

The settings come as JSON in the first argument; ``fails`` (``start`` or ``reload``) and ``dies`` (the exit status
of a worker) choose a fault.
"""

import asyncio
import json
import logging
import os
import sys
from contextlib import asynccontextmanager
from types import SimpleNamespace

from app import server
from app.errors import Unavailable
from app.settings import Settings, SettingsError
from app.workers import supervise

log = logging.getLogger("vae")


class Service:
    exit_status = None
    digest = None
    replaced = ()
    metrics = SimpleNamespace(rejected=lambda code: log.info("rejected: %s", code))

    def __init__(self, fails):
        self.draining = self.refusing = False
        self.fails = fails

    def begin_drain(self):
        self.draining = True

    def refuse_new_work(self):
        self.refusing = True
        log.info("refusing")

    async def reload(self):
        if self.fails == "reload":
            raise OSError("no such file")
        log.info("reloaded")


class App:
    """``/readyz``, ``/livez``, ``/device`` (is lost), and anything else as work that takes ``?seconds``."""

    def __init__(self, fails):
        self.fails, self.inside = fails, 0
        self.state = SimpleNamespace(service=Service(fails))
        self.router = SimpleNamespace(lifespan_context=self.lifespan)

    @asynccontextmanager
    async def lifespan(self, _app):
        log.info("starting")
        await asyncio.sleep(0.5 if self.fails == "slow" else 0)
        if self.fails == "start":
            raise SettingsError(["VAE_MODEL: got 'x'; no such file", "VAE_DEVICE: got 'cuda'; there is none"])
        yield
        log.info("stopped")

    async def __call__(self, scope, receive, send):
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.disconnect":
            return
        status = await self.work(scope)
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def work(self, scope):
        service = self.state.service
        if scope["path"] in ("/livez", "/readyz"):
            return 503 if service.draining and scope["path"] == "/readyz" else 200
        if scope["path"] == "/device":
            service.exit_status = 70
            return 503
        if service.refusing:
            return Unavailable("draining", code="draining").status
        self.inside += 1
        log.info("inside", extra={"inside": self.inside})
        await asyncio.sleep(float(scope["query_string"] or b"0"))
        return 200


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    fails, dies = given.pop("fails", ""), given.pop("dies", 0)
    settings = Settings(**{"port": 0, "drain_delay_s": 0.2, "log_format": "json"} | given)

    def work(settings, listener, crew):
        if dies:
            os._exit(dies)
        return server.serve(App(fails), settings, listener, crew=crew)

    sys.exit(server.run(App(fails), settings) if settings.workers == 1 else supervise(settings, work))
