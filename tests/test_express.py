"""The express: what it takes is answered as on the way of all requests, what is unusual it leaves alone.

Real connections of this process to a real application with a tiny model; ``taken`` counts what went by express.
"""

import asyncio
import json
import logging
import signal
import socket
import time
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import uvicorn
import uvloop
from guard_fakes import Client
from hostile_files import good_files, tampered
from inside import Failures, Gate
from service_pictures import jpeg, png

from app import admission, batching, express, reading
from app.batching import DeviceLost
from app.connections import State
from app.errors import Unavailable
from app.limits import Limits
from app.logs import REQUEST_ID
from app.main import create_app
from app.server import Server
from app.settings import Settings
from app.wire import Wire
from tests.tiny import save_tiny

SAFETY_S = 60
PICTURES = [png(np.full((8, 8), 9 * level, np.uint8)) for level in range(20)]
PICTURE = PICTURES[7]
OTHER = next(picture for picture in PICTURES if len(picture) == len(PICTURE) and picture != PICTURE)
PLAIN = ("Content-Type: image/png",)
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
ALWAYS = {"vary", "content-length", "content-type", "x-request-id", "x-model-digest", "server-timing"}


def post(picture=PICTURE, fields=PLAIN, line="POST /encode HTTP/1.1", length=None):
    length = len(picture) if length is None else length
    head = "\r\n".join([line, "Host: x", *fields, f"Content-Length: {length}", "", ""])
    return head.encode() + picture


class Serving:
    """An application behind its server's protocol."""

    def __init__(self, app, state, address):
        self.app, self.state, self._address, self.taken, self.clients = app, state, address, 0, []
        self.express, self.service = app.state.express, app.state.service
        take = self.express.take

        def counted(*args):
            ride = take(*args)
            self.taken += ride is not None
            return ride

        self.express.take = counted

    async def connect(self):
        self.clients.append(Client(*await asyncio.open_connection(*self._address)))
        return self.clients[-1]

    async def ask(self, client, data):
        """Return status, header fields and body of the answer, and whether it went by express."""
        before = self.taken
        await client.send(data)
        return *await client.answer(), self.taken > before

    async def known(self, data=None):
        """Return a connection, after a request with this head has been answered."""
        client = await self.connect()
        await self.ask(client, data or post())
        return client

    def inside(self):
        """Return the items that are let in and not yet answered."""
        return self.service.open_batcher()._house.items


@asynccontextmanager
async def serving(model, limits=None, quick_s=-1.0, **settings):
    """Serve the tiny model; rows are computed in threads alone unless ``quick_s`` allows the event loop some."""
    app = create_app(Settings(model=str(model), device="cpu", log_level="error", **settings))
    loop, state = asyncio.get_running_loop(), State()
    with patch.object(batching, "QUICK_S", quick_s):
        async with app.router.lifespan_context(app):
            config = uvicorn.Config(app, lifespan="off", log_config=None, log_level="critical", access_log=False)
            protocol = partial(Wire, limits or Limits(), app.state.express, config, state, {}, loop)
            server = await loop.create_server(protocol, "127.0.0.1", 0)
            running = Serving(app, state, server.sockets[0].getsockname())
            try:
                yield running
            finally:
                server.close()
                for client in running.clients:
                    client.writer.transport.abort()
                while state.connections or state.tasks:
                    await asyncio.sleep(0.01)
                batcher = app.state.service._batcher
                assert (batcher._house.items, batcher._open, state.behind_bytes) == (0, set(), 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.safetensors")


def play(scenario):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(scenario(), SAFETY_S))


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("quick_s", [-1.0, 60.0])
def test_a_head_that_is_known_goes_by_express_and_is_answered_as_any_other(model, quick_s):
    async def scenario():
        async with serving(model, quick_s=quick_s) as running:
            client = await running.connect()
            first, second, third = [await running.ask(client, post()) for _ in range(3)]
            assert [by_express for *_, by_express in (first, second, third)] == [False, True, True]
            assert first[0] == second[0] == third[0] == 200
            assert first[2] == second[2] == third[2]
            assert set(first[1]) == set(second[1]) > ALWAYS
            assert first[1]["x-request-id"] != second[1]["x-request-id"] != third[1]["x-request-id"]
            same = set(first[1]) - {"x-request-id", "server-timing"}
            assert {name: first[1][name] for name in same} == {name: second[1][name] for name in same}
            assert running.inside() == 0
            assert b"vae_posterior_kl_nats_count 3.0" in running.service.metrics.render()[0]
            assert b'vae_requests_total{route="/encode",status="200"} 3.0' in running.service.metrics.render()[0]

    play(scenario)


def test_an_accept_of_several_lines_goes_by_express_where_it_means_json(model):
    async def scenario():
        data = post(fields=(*PLAIN, "Accept: image/png", "Accept: application/json;q=0.5"))
        async with serving(model) as running:
            client = await running.connect()
            first, second = [await running.ask(client, data) for _ in range(2)]
            assert (first[0], first[3], second[0], second[3]) == (200, False, 200, True)
            assert first[2] == second[2]
            assert first[1]["content-type"] == second[1]["content-type"] == "application/json"

    play(scenario)


def test_the_date_and_the_other_prefix_are_there_as_well(model, caplog):
    caplog.set_level(logging.DEBUG, "vae")

    async def scenario():
        async with serving(model) as running:
            running.state.default_headers = [(b"date", b"today")]
            client, data = await running.connect(), post(line="POST /v1/encode HTTP/1.1")
            answers = [await running.ask(client, data) for _ in range(2)]
            assert [by_express for *_, by_express in answers] == [False, True]
            assert [headers["date"] for _, headers, _, _ in answers] == ["today"] * 2
            assert [line for line in caplog.messages if "POST" in line] == ["POST /v1/encode 200"] * 2

    play(scenario)


def test_a_jpeg_goes_by_express_as_well(model):
    async def scenario():
        data = post(jpeg(np.full((8, 8), 200, np.uint8)), ("Content-Type: image/jpeg",))
        async with serving(model) as running:
            client = await running.connect()
            first, second = [await running.ask(client, data) for _ in range(2)]
            assert (first[0], first[3], second[0], second[3]) == (200, False, 200, True)
            assert first[2] == second[2]

    play(scenario)


def test_pictures_of_one_head_get_answers_of_their_own(model):
    async def scenario():
        async with serving(model) as running:
            fresh = await running.connect()
            expected = [(await running.ask(fresh, post(p, ("content-type:image/png",))))[2] for p in (PICTURE, OTHER)]
            client = await running.known()
            answers = [await running.ask(client, post(picture)) for picture in (OTHER, PICTURE, OTHER)]
            assert [body for _, _, body, _ in answers] == [expected[1], expected[0], expected[1]]
            assert all(by_express for *_, by_express in answers)
            assert expected[0] != expected[1]

    play(scenario)


UNUSUAL = {
    "other path": post(line="POST /reconstruct HTTP/1.1"),
    "query": post(line="POST /encode?draws=1&seed=1 HTTP/1.1"),
    "model": post(fields=(*PLAIN, "If-Model-Match: 0123456789abcdef")),
    "timeout": post(fields=(*PLAIN, "X-Timeout-Ms: 9000")),
    "request id": post(fields=(*PLAIN, "X-Request-ID: mine")),
    "origin": post(fields=(*PLAIN, "Origin: https://pictures.example")),
    "upgrade": post(fields=(*PLAIN, "Connection: Upgrade", "Upgrade: h2c")),
    "npy": post(fields=(*PLAIN, "Accept: application/x-npy")),
    "npy, in a second line": post(fields=(*PLAIN, "Accept: application/json;q=0.5", "Accept: application/x-npy")),
    "nothing acceptable": post(fields=(*PLAIN, "Accept: text/html")),
    "no type": post(fields=()),
    "wrong type": post(fields=("Content-Type: image/gif",)),
    "json": post(json.dumps({"images": [[[0.5] * 8] * 8]}).encode(), ("Content-Type: application/json",)),
    "two in one": post() + post(),
    "large": post(PICTURE + b"\0" * 4096),
    "long head": post(fields=(*PLAIN, "X-Long: " + "x" * 1024)),
    "chunked": b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"%x\r\n%b\r\n0\r\n\r\n" % (len(PICTURE), PICTURE),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_never_goes_by_express(model, name):
    async def scenario():
        async with serving(model) as running:
            client = await running.connect()
            for _ in range(3):
                await client.send(UNUSUAL[name])
                for _ in range(1 + (name == "two in one")):
                    await client.answer()
            assert running.taken == 0
            assert running.express._heads == {}

    play(scenario)


@pytest.mark.parametrize("ending", ["Connection: close", "HTTP/1.0"])
def test_who_wants_the_connection_to_end_is_not_taken(model, ending):
    data = post(line="POST /encode HTTP/1.0") if ending == "HTTP/1.0" else post(fields=(*PLAIN, ending))

    async def scenario():
        async with serving(model) as running:
            for _ in range(2):
                client = await running.connect()
                await client.send(data)
                assert b" 200 OK" in await client.rest()
            assert running.taken == 0

    play(scenario)


def test_a_file_that_claims_to_be_large_is_not_decoded_by_express(model):
    data = post(png(np.zeros((1200, 1200), np.uint8)))
    assert len(data) < 4096

    async def scenario():
        async with serving(model) as running:
            client = await running.connect()
            answers = [await running.ask(client, data) for _ in range(2)]
            assert [(status, by_express) for status, *_, by_express in answers] == [(200, False)] * 2

    play(scenario)


def test_a_limit_that_refuses_one_refuses_the_next(model):
    async def scenario():
        async with serving(model, max_body_bytes=1024) as running:
            for _ in range(2):
                client = await running.connect()
                status, _, body, by_express = await running.ask(client, post(PICTURE + b"\0" * 1024))
                assert (status, json.loads(body)["code"], by_express) == (413, "body_too_large", False)

    play(scenario)


def test_where_bodies_fill_the_memory_the_usual_way_refuses(model):
    async def scenario():
        async with serving(model) as running:
            client = await running.known()
            running.service.body_bytes += 2**40
            status, _, body, by_express = await running.ask(client, post())
            running.service.body_bytes -= 2**40
            assert (status, json.loads(body)["code"], by_express) == (429, "queue_full", False)

    play(scenario)


def test_who_would_wait_for_too_long_is_refused_by_the_usual_way(model, monkeypatch):
    async def scenario():
        async with serving(model) as running:
            clients = [await running.known() for _ in range(80)]
            gate = Gate(running.service.engine.encode)
            for client in clients[:70]:
                await client.send(post())
            await until(lambda: running.inside() == 70)
            now = time.monotonic()  # an hour passes in which nothing is answered, and nobody comes or goes
            monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 3600))
            assert time.monotonic() - now < 60
            status, _, body, by_express = await running.ask(clients[70], post())
            assert (status, json.loads(body)["code"], by_express) == (429, "queue_full", False)
            gate.opened.set()
            assert {(await client.answer())[0] for client in clients[:70]} == {200}

    play(scenario)


def test_what_is_a_bug_on_the_express_is_met_again_and_answered_on_the_usual_way(model, monkeypatch):
    async def scenario():
        async with serving(model) as running:
            client = await running.known()
            for module in (express, reading):
                monkeypatch.setattr(module, "parse_images", lambda *_, **__: 1 / 0)
            status, _, body, by_express = await running.ask(client, post())
            assert (status, json.loads(body)["code"], by_express) == (500, "internal", False)

    play(scenario)


def test_who_does_not_read_gets_no_more_answers_by_express(model):
    async def scenario():
        async with serving(model) as running:
            client = await running.known()
            (connection,) = running.state.connections
            connection.flow.pause_writing()
            await client.send(post())
            await asyncio.sleep(0.1)
            connection.flow.resume_writing()
            assert (await client.answer())[0] == 200
            assert running.taken == 0

    play(scenario)


def test_a_request_that_began_behind_another_is_not_cut_as_idle(model):
    async def scenario():
        async with serving(model, Limits(keep_alive_s=1)) as running:
            client, whole = await running.connect(), post(fields=(*PLAIN, "X-Request-ID: second"))
            gate = Gate(running.service.engine.encode)
            await client.send(post() + whole[:30])
            await gate.wait_until_entered()
            gate.opened.set()
            await client.answer()
            gate.opened.clear()
            await client.send(whole[30:])
            await asyncio.sleep(1.3)
            gate.opened.set()
            assert (await client.answer())[1]["x-request-id"] == "second"

    play(scenario)


def test_a_request_in_pieces_is_parsed_and_others_after_it_go_by_express(model):
    async def scenario():
        async with serving(model) as running:
            client = await running.known()
            data = post()
            for part in (data[:40], data[40:-10]):
                await client.send(part)
                await asyncio.sleep(0.02)
            status, _, _, by_express = await running.ask(client, data[-10:])
            assert (status, by_express) == (200, False)
            assert (await running.ask(client, post()))[3]

    play(scenario)


BROKEN = {"nothing": b"\0" * 99, "half": PICTURE[:-20] + b"\0" * 20, "signatures": b"\x89PNG\r\n\x1a\n" * 9}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_picture_is_refused_as_without_the_express(model, broken):
    async def scenario():
        async with serving(model) as running:
            body = (BROKEN[broken] * 9)[: len(PICTURE)]
            first = await running.ask(await running.connect(), post(body))
            client = await running.known()
            second = await running.ask(client, post(body))
            assert not first[3]
            assert not second[3]
            assert first[0] == second[0] == 400
            assert json.loads(first[2])["detail"] == json.loads(second[2])["detail"]
            assert running.inside() == 0
            assert (await running.ask(client, post()))[3]

    play(scenario)


def test_a_key_opens_and_a_head_without_it_stays_shut(model, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef\n")
    right = post(fields=(*PLAIN, "X-API-Key: 0123456789abcdef"))
    wrong = post(fields=(*PLAIN, "X-API-Key: 0123456789abcdeg"))

    async def scenario():
        async with serving(model, api_keys_file=keys) as running:
            client = await running.known(right)
            for data, expected in ((right, (200, True)), (wrong, (401, False)), (post(), (401, False))) * 2:
                status, _, _, by_express = await running.ask(client, data)
                assert (status, by_express) == expected

    play(scenario)


def test_a_full_line_refuses_with_429_and_nothing_is_lost(model):
    async def scenario():
        async with serving(model, max_queue_items=3) as running:
            clients = [await running.known() for _ in range(5)]
            gate = Gate(running.service.engine.encode)
            for client in clients[:3]:
                await client.send(post())
            await until(lambda: running.inside() == 3)
            for client in clients[3:]:
                status, headers, body, by_express = await running.ask(client, post())
                assert (status, by_express) == (429, False)
                assert int(headers["retry-after"]) >= 1
                assert json.loads(body)["code"] == "queue_full"
            gate.opened.set()
            assert [(await client.answer())[0] for client in clients[:3]] == [200] * 3
            assert running.inside() == 0
            assert 'vae_rejected_total{reason="queue_full"} 2.0' in running.service.metrics.render()[0].decode()

    play(scenario)


def test_a_deadline_that_passes_is_504_and_what_waited_is_not_computed(model):
    async def scenario():
        async with serving(model, deadline_s=0.3, max_batch=1, streams=1) as running:
            clients = [await running.known() for _ in range(3)]
            gate = Gate(running.service.engine.encode)
            await clients[0].send(post())
            await gate.wait_until_entered()
            for client in clients[1:]:
                await client.send(post())
            answers = [await client.answer() for client in clients]
            assert [status for status, _, _ in answers] == [504] * 3
            problem = json.loads(answers[0][2])
            assert problem["code"] == "deadline_exceeded"
            assert problem["request_id"] == answers[0][1]["x-request-id"]
            gate.opened.set()
            assert (await running.ask(clients[1], post()))[::3] == (200, True)
            assert gate.rows == 2
            assert running.inside() == 0

    play(scenario)


def test_who_leaves_is_not_computed_and_counts_as_gone(model):
    async def scenario():
        async with serving(model, max_batch=1, streams=1) as running:
            clients = [await running.known() for _ in range(3)]
            gate = Gate(running.service.engine.encode)
            await clients[0].send(post())
            await gate.wait_until_entered()
            for client in clients[1:]:
                await client.send(post())
            await until(lambda: running.inside() == 3)
            clients[1].writer.transport.abort()
            await until(lambda: running.inside() == 2)
            gate.opened.set()
            assert [(await client.answer())[0] for client in (clients[0], clients[2])] == [200, 200]
            assert gate.rows == 2
            text = running.service.metrics.render()[0].decode()
            assert 'vae_requests_total{route="/encode",status="499"} 1.0' in text
            assert 'vae_queue_items{op="encode"} 0.0' in text

    play(scenario)


def test_what_comes_behind_a_ride_waits_for_its_answer(model):
    async def scenario():
        async with serving(model) as running:
            client = await running.known()
            gate = Gate(running.service.engine.encode)
            await client.send(post())
            await gate.wait_until_entered()
            await client.send(LIVEZ + post(OTHER))
            await asyncio.sleep(0.05)
            gate.opened.set()
            bodies = [(await client.answer())[2] for _ in range(3)]
            assert json.loads(bodies[1]) == {"status": "alive"}
            assert b"mu" in bodies[0]
            assert b"mu" in bodies[2]
            assert bodies[0] != bodies[2]
            assert running.state.behind_bytes == 0

    play(scenario)


def test_behind_a_ride_little_is_read(model):
    async def scenario():
        async with serving(model) as running:
            client = await running.known()
            gate = Gate(running.service.engine.encode)
            await client.send(post())
            await gate.wait_until_entered()
            client.writer.write(LIVEZ * 1_000_000)  # 34 MB
            await asyncio.sleep(0.3)
            assert 0 < running.state.behind_bytes < 2_000_000
            gate.opened.set()
            for number in range(1_000):
                assert (b"mu" in (await client.answer())[2]) == (number == 0)

    play(scenario)


def test_a_failure_of_its_batch_is_a_500_that_is_logged_with_its_id(model):
    async def scenario():
        async with serving(model) as running:
            client = await running.known()
            op, failures, ids = running.service.engine.encode, Failures(), []
            run = op.run
            emit = failures.emit
            failures.emit = lambda record: (ids.append(REQUEST_ID.get()), emit(record))
            logging.getLogger("vae").addHandler(failures)
            object.__setattr__(op, "run", lambda x: 1 / 0)
            try:
                status, headers, body, by_express = await running.ask(client, post())
            finally:
                logging.getLogger("vae").removeHandler(failures)
            assert (status, by_express) == (500, True)
            assert failures.lines == ["unexpected error"]
            assert ids == [headers["x-request-id"]]
            assert b"zero" not in body
            assert json.loads(body)["request_id"] == headers["x-request-id"]
            object.__setattr__(op, "run", run)
            assert (await running.ask(client, post()))[::3] == (200, True)
            assert running.inside() == 0

    play(scenario)


def test_an_output_that_is_not_finite_is_a_500(model):
    async def scenario():
        async with serving(model) as running:
            client = await running.known()
            op = running.service.engine.encode
            object.__setattr__(op, "run", lambda x: tuple(np.full((len(x), 4), np.nan, np.float32) for _ in range(3)))
            status, _, body, by_express = await running.ask(client, post())
            assert (status, by_express) == (500, True)
            assert json.loads(body)["code"] == "internal"

    play(scenario)


@pytest.mark.parametrize("end", ["device_lost", "draining"])
def test_where_the_device_or_the_batcher_ends_rides_are_told_so(model, end):
    async def scenario():
        async with serving(model) as running:
            clients = [await running.known() for _ in range(3)]
            gate, before = Gate(running.service.engine.encode), running.taken
            for client in clients:
                await client.send(post())
            await until(lambda: running.inside() == 3)
            if end == "draining":
                ending = asyncio.create_task(running.service.close())
                await asyncio.sleep(0.05)
            else:
                gate._run = lost
            gate.opened.set()
            answers = [await client.answer() for client in clients]
            assert [(status, json.loads(body)["code"]) for status, _, body in answers] == [(503, end)] * 3
            assert running.taken == before + 3
            if end == "draining":
                await ending

    def lost(x):
        raise DeviceLost("gone")

    play(scenario)


def test_new_weights_answer_new_requests_and_the_old_ones_those_under_way(model, tmp_path):
    async def scenario():
        file = tmp_path / "changing.safetensors"
        file.write_bytes(model.read_bytes())
        async with serving(file) as running:
            client, other = await running.known(), await running.known()
            before = running.service.engine
            gate = Gate(before.encode)
            await client.send(post())
            await gate.wait_until_entered()
            save_tiny(file, seed=1)
            await running.service.reload()
            status, headers, _, by_express = await running.ask(other, post())
            assert (status, headers["x-model-digest"], by_express) == (200, running.service.digest, True)
            gate.opened.set()
            assert (await client.answer())[1]["x-model-digest"] == before.digest != running.service.digest

    play(scenario)


def test_draining_leaves_new_requests_to_the_usual_way_and_ends_those_under_way(model):
    async def scenario():
        async with serving(model) as running:
            client, other = await running.known(), await running.known()
            gate = Gate(running.service.engine.encode)
            await client.send(post())
            await gate.wait_until_entered()
            running.state.draining = True
            running.service.refuse_new_work()
            status, headers, _, by_express = await running.ask(other, post())
            assert (status, headers["connection"], by_express) == (503, "close", False)
            for connection in list(running.state.connections):
                connection.shutdown()
            gate.opened.set()
            status, headers, _ = await client.answer()
            assert (status, headers["connection"]) == (200, "close")
            assert await client.rest() == b""

    play(scenario)


def test_what_has_been_read_behind_a_ride_is_answered_though_draining_has_begun(model):
    async def scenario():
        async with serving(model) as running:
            client, gate = await running.known(), Gate(running.service.engine.encode)
            await client.send(post())
            await gate.wait_until_entered()
            await client.send(LIVEZ)
            await until(lambda: running.state.behind_bytes > 0)
            running.state.draining = True
            gate.opened.set()
            assert b"mu" in (await client.answer())[2]
            _, headers, body = await client.answer()
            assert (headers["connection"], json.loads(body)) == ("close", {"status": "alive"})
            assert await client.rest() == b""

    play(scenario)


def test_who_is_given_up_is_told_so(model):
    async def scenario():
        async with serving(model) as running:
            client = await running.known()
            gate = Gate(running.service.engine.encode)
            await client.send(post())
            await gate.wait_until_entered()
            running.express.give_up(Unavailable("the server has shut down", code="draining"))
            status, _, body = await client.answer()
            assert (status, json.loads(body)["code"]) == (503, "draining")
            gate.opened.set()
            assert (await running.ask(client, post()))[0] == 200

    play(scenario)


@pytest.mark.parametrize(("drain_s", "expected"), [(30.0, 200), (0.2, 503)])
def test_the_end_of_the_process_waits_for_rides_and_tells_those_that_take_too_long(model, drain_s, expected):
    async def scenario():
        settings = Settings(model=str(model), device="cpu", log_level="error", drain_s=drain_s, drain_delay_s=0)
        app, listener = create_app(settings), socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        server = Server(app, settings, Limits())
        with patch.object(batching, "QUICK_S", -1.0):
            living = asyncio.create_task(server.live(listener))
            await until(lambda: server.started)
            running = Serving(app, server.server_state, listener.getsockname())
            client, gate = await running.known(), Gate(app.state.service.engine.encode)
            await client.send(post())
            await gate.wait_until_entered()
            server._stop(signal.SIGTERM)
            if expected == 200:
                await asyncio.sleep(0.5)
                gate.opened.set()
            status, headers, body = await client.answer()
            gate.opened.set()
            assert (status, headers["connection"]) == (expected, "close")
            assert expected == 200 or (json.loads(body)["code"], headers["retry-after"]) == ("draining", "1")
            assert running.taken == 1
            assert await living == 0
            client.writer.transport.abort()

    play(scenario)


@pytest.mark.parametrize("count", [500, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("takes_minutes")
def test_tampered_files_get_the_same_answer_with_and_without_the_express(model, count, record_property):
    files = [(kind, data) for kind, data in good_files(4) if "image/" in kind]
    seen = Counter()

    async def scenario():
        async with serving(model) as running:
            client = await running.connect()
            for _, (kind, body) in zip(range(count), tampered(files, count), strict=False):
                running.express._heads.clear()
                data = post(body or b"\0", (f"Content-Type: {kind}",))
                (status, _, first, _), (again, _, second, by_express) = [await running.ask(client, data) for _ in "12"]
                assert status == again
                assert status in (200, 400, 413)
                seen[f"answered {status}"] += 1
                seen["of them by express"] += by_express
                if status == 200:
                    assert first == second
                else:
                    assert json.loads(first)["detail"] == json.loads(second)["detail"]
            assert seen["of them by express"] > 0.9 * seen["answered 200"] > 0  # some claim to be large

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
    record_property("files", count)
    for name, value in sorted(seen.items()):
        record_property(name, value)


def test_an_idle_connection_ends_also_after_answers_by_express(model):
    async def scenario():
        async with serving(model, Limits(keep_alive_s=1)) as running:
            client = await running.known()
            for _ in range(3):
                await asyncio.sleep(0.6)
                assert (await running.ask(client, post()))[3]
            assert await client.rest() == b""

    play(scenario)


def test_the_clocks_of_a_connection_do_not_end_a_request_that_waits_for_its_batch(model):
    async def scenario():
        async with serving(model, Limits(receive_s=0.2, keep_alive_s=1)) as running:
            known = await running.known()
            fresh = await running.connect()  # whose clock runs since it is there
            gate = Gate(running.service.engine.encode)
            for client in (known, fresh):
                await client.send(post())
            await asyncio.sleep(1.3)
            gate.opened.set()
            assert [(await client.answer())[0] for client in (known, fresh)] == [200, 200]
            assert running.taken == 2

    play(scenario)


def test_few_heads_are_remembered_the_latest_ones(model):
    async def scenario():
        async with serving(model) as running:
            client = await running.connect()
            with patch.object(express, "HEADS", 4):
                for number in range(9):
                    await running.ask(client, post(fields=(*PLAIN, f"X-Number: {number}")))
            assert len(running.express._heads) == 4
            assert [b"X-Number: 8" in head for head in running.express._heads] == [False] * 3 + [True]
            assert (await running.ask(client, post(fields=(*PLAIN, "X-Number: 8"))))[3]
            assert not (await running.ask(client, post(fields=(*PLAIN, "X-Number: 0"))))[3]

    play(scenario)
