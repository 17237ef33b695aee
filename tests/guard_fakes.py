"""What the tests of the guard share: an application behind it, and raw connections to it."""

import asyncio
import json
from contextlib import asynccontextmanager
from functools import partial

import uvicorn
import uvloop

from app.connections import State
from app.guard import Guard
from app.limits import Limits

SAFETY_S = 30
SHORT = Limits(header_bytes=2000, receive_s=0.3, chunks=100, connections=4, keep_alive_s=1)
GET = b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: x\r\n"
LARGE, TWENTY = 20_000_000, 20_000


class App:
    """Answers small, large, slow and early; remembers what it saw."""

    def __init__(self):
        self.bodies, self.fields, self.departed, self.free = [], [], 0, asyncio.Event()

    async def __call__(self, scope, receive, send):
        body = b""
        if scope["path"] != "/early":
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.departed += 1
                    return
                body += message["body"]
                if not message["more_body"]:
                    break
        if scope["path"] == "/slow":
            await self.free.wait()
        self.bodies.append(body)
        self.fields.append(list(scope["headers"]))
        answer = {"/large": b"x" * LARGE, "/twenty": b"x" * TWENTY}.get(scope["path"], scope["path"].encode())
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


class Client:
    """One raw connection."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def send(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self):
        """Return status, headers and body of the next answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        status, *lines = head.split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        return int(status.split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def rest(self):
        """Return everything until the end of the connection, however it ends."""
        data = b""
        try:
            while part := await self.reader.read(1 << 16):
                data += part
        except ConnectionError:
            pass
        return data

    async def flood(self, data, times):
        """Send until the other side has had enough; return whether it had."""
        try:
            for _ in range(times):
                await self.send(data)
        except (ConnectionError, RuntimeError):  # uvloop raises the latter where the connection is gone already
            return True
        return False


@asynccontextmanager
async def guarded(limits=SHORT):
    """Serve an ``App`` behind guards; gives the app, the shared state and a function that connects."""
    app, state, clients = App(), State(), []
    config = uvicorn.Config(app, lifespan="off", log_config=None, log_level="critical", access_log=False)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(Guard, limits, config, state, {}, loop), "127.0.0.1", 0)

    async def connect():
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        clients.append(Client(reader, writer))
        return clients[-1]

    try:
        yield app, state, connect
    finally:
        app.free.set()
        server.close()
        for client in clients:
            client.writer.transport.abort()
        while state.connections or state.tasks:
            await asyncio.sleep(0.01)


def play(scenario):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(scenario(), SAFETY_S))


def refusal(data):
    """Return status and code of an answer that ends its connection; checks that it is a whole problem."""
    head, _, body = data.partition(b"\r\n\r\n")
    problem = json.loads(body)
    assert b"application/problem+json" in head
    assert b"connection: close" in head
    assert b"x-content-type-options: nosniff" in head
    assert f"x-request-id: {problem['request_id']}".encode() in head
    assert problem["detail"] == problem["error"]
    assert int(head.split()[1]) == problem["status"]
    return problem["status"], problem["code"]
