"""All request bodies together: bounded in bytes, counted as they arrive, given back whatever becomes of them."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from inside import Caller, Gate, Inside, Reply, check_refusal, inside
from service_pictures import npy

from app.main import create_app
from app.settings import Settings

NPY = {"content-type": "application/x-npy"}
BODY = npy(np.zeros((50, 28, 28), np.uint8))  # 39,328 bytes
SMALL = npy(np.zeros((1, 28, 28), np.uint8))
LIMIT = 100_000


class Pieces(Caller):
    """A request whose body arrives in the pieces that are put into ``incoming``; None means that the caller left."""

    def __init__(self, service: Inside, headers: dict[str, str] | None = None) -> None:
        super().__init__(service.app, "POST", "/encode", NPY | (headers or {}), b"")
        self.incoming: asyncio.Queue[tuple[bytes, bool] | None] = asyncio.Queue()

    async def _receive(self) -> dict[str, Any]:
        piece = await self.incoming.get()
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece[0], "more_body": piece[1]}


@pytest.fixture(scope="module")
def service() -> Iterator[Inside]:
    with inside(streams=1, max_body_bytes=60_000, max_bodies_bytes=LIMIT) as running:
        yield running
        running.assert_unharmed()


@pytest.fixture(autouse=True)
def nothing_is_held_afterwards(service: Inside) -> Iterator[None]:
    yield
    assert service.app.state.service.body_bytes == 0
    assert service.ask("POST", "/encode", NPY, BODY).status == 200


def held(service: Inside) -> int:
    return int(service.app.state.service.body_bytes)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def check_full(reply: Reply) -> None:
    assert (reply.status, check_refusal(reply)) == (429, "queue_full")
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.headers["connection"] == "close"
    problem = json.loads(reply.body)
    assert problem["retry_after_ms"] >= 1
    assert "VAE_MAX_BODIES_BYTES" in problem["detail"]
    assert f"{LIMIT:,}" in problem["detail"]


def test_a_body_that_would_be_too_much_beside_those_worked_on_is_refused_before_it_is_read(service: Inside) -> None:
    async def play() -> None:
        gate = Gate(service.engine.encode)
        inside = [asyncio.create_task(service.caller("POST", "/encode", NPY, BODY).ask()) for _ in range(2)]
        await gate.wait_until_entered()
        await settle()
        assert held(service) == 2 * len(BODY)
        late = Pieces(service, {"content-length": str(len(BODY))})
        check_full(await late.ask())  # nothing of it has been sent
        small = asyncio.create_task(service.caller("POST", "/encode", NPY, SMALL).ask())
        await settle()
        gate.opened.set()
        assert [reply.status for reply in await asyncio.gather(*inside, small)] == [200] * 3

    service.play(play())
    metrics = service.ask("GET", "/metrics").body.decode()
    assert 'vae_rejected_total{reason="queue_full"} 1.0' in metrics


def test_bytes_beyond_the_limit_are_refused_while_others_are_received(service: Inside) -> None:
    async def play() -> None:
        first, second = Pieces(service), Pieces(service)
        tasks = [asyncio.create_task(caller.ask()) for caller in (first, second)]
        first.incoming.put_nowait((b"x" * 55_000, True))
        await settle()
        second.incoming.put_nowait((b"x" * 45_000, True))
        await settle()
        assert held(service) == LIMIT
        second.incoming.put_nowait((b"x", True))
        check_full(await tasks[1])
        assert held(service) == 55_000
        first.incoming.put_nowait(None)
        assert (await tasks[0]).status == 499

    service.play(play())


def test_a_body_that_is_announced_and_not_sent_takes_no_room(service: Inside) -> None:
    async def play() -> None:
        idle = [Pieces(service, {"content-length": "60000"}) for _ in range(10)]
        tasks = [asyncio.create_task(caller.ask()) for caller in idle]
        await settle()
        assert (await service.caller("POST", "/encode", NPY, BODY).ask()).status == 200
        for caller in idle:
            caller.incoming.put_nowait(None)
        assert {reply.status for reply in await asyncio.gather(*tasks)} == {499}

    service.play(play())


def test_refused_and_late_bodies_are_given_back(service: Inside) -> None:
    for headers, body, status in (
        (NPY, b"x" * 60_001, 413),
        (NPY, b"x" * 1000, 400),
        ({"content-type": "text/plain"}, BODY, 415),
        (NPY | {"x-timeout-ms": "1"}, BODY, 504),
    ):
        for _ in range(4):
            assert service.ask("POST", "/encode", headers, body).status == status


@pytest.mark.parametrize(("workers", "most"), [(1, LIMIT), (3, 33_334), (8, 20_000)])
def test_a_worker_has_its_share_but_room_for_one_body(workers: int, most: int) -> None:
    settings = Settings(model="mnist", max_body_bytes=20_000, max_bodies_bytes=LIMIT, workers=workers)
    assert create_app(settings).state.service._max_body_bytes == most
