"""The service as a process whose device can be held: SIGUSR1 opens it, SIGUSR2 holds it again.

``python -m tests.gated_server``, settings from the environment. All the rest is the real thing: sockets, guard,
reading, line, model.
"""

import signal
import sys
import threading
from contextlib import asynccontextmanager

from app import batching, server
from app.main import create_app
from app.settings import load_settings

OPEN = threading.Event()


def hold(op):
    """Make an operation wait for the gate before each batch."""
    run = op.run

    def held(*columns):
        OPEN.wait()
        return run(*columns)

    object.__setattr__(op, "run", held)


def main() -> int:
    batching.QUICK_S = -1.0  # all rows are computed in threads: the event loop must not be held
    settings = load_settings()
    app = create_app(settings)
    start = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(inner):
        async with start(inner):
            hold(app.state.service.engine.encode)
            yield

    app.router.lifespan_context = lifespan
    signal.signal(signal.SIGUSR1, lambda *_: OPEN.set())
    signal.signal(signal.SIGUSR2, lambda *_: OPEN.clear())
    return server.run(app, settings)


if __name__ == "__main__":
    sys.exit(main())
