"""The application in this process, with a tiny model: what only its inside can show.

What a caller sees is tested through a real server in ``test_service_*``.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from inside import Gate

from app import batching
from app.batching import DeviceLost
from app.main import create_app
from app.settings import Settings
from tests.tiny import CONFIG, save_tiny

PIXELS = {"images": np.full((1, 1, 8, 8), 0.5).tolist()}
Body = Callable[[httpx.AsyncClient, FastAPI], Awaitable[None]]


@pytest.fixture(autouse=True)
def rows_are_computed_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a ``Gate`` never holds the event loop."""
    monkeypatch.setattr(batching, "QUICK_S", -1.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("main") / "tiny.safetensors")


@asynccontextmanager
async def started(path: Path, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    app = create_app(Settings(model=str(path), device="cpu", max_batch=8, streams=1, **settings))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client, app


def run(path: Path, body: Body, **settings: Any) -> None:
    async def main() -> None:
        async with started(path, **settings) as (client, app):
            await body(client, app)

    asyncio.run(main())


def test_an_unexpected_error_is_a_500_that_tells_nothing_and_a_log_line_that_tells_all(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(client: httpx.AsyncClient, app: FastAPI) -> None:
        def fail(*_: Any) -> Any:
            raise RuntimeError("secret detail at 0x7f00")

        object.__setattr__(app.state.service.engine.encode, "run", fail)
        answer = await client.post("/encode", json=PIXELS, headers={"X-Request-ID": "find-me"})
        assert answer.status_code == 500
        assert answer.json()["code"] == "internal"
        assert "secret" not in answer.text
        assert answer.json()["request_id"] == answer.headers["X-Request-ID"] == "find-me"

    with caplog.at_level(logging.ERROR, "vae"):
        run(path, body)
    assert "secret detail" in caplog.text


def test_output_that_is_not_finite_never_leaves(path: Path) -> None:
    async def body(client: httpx.AsyncClient, app: FastAPI) -> None:
        def poisoned(z: Any) -> Any:
            return (np.full((len(z), 1, 8, 8), np.nan, np.float32),)

        object.__setattr__(app.state.service.engine.decode, "run", poisoned)
        answer = await client.post("/decode", json={"z": [[0, 0, 0, 0]]})
        assert answer.status_code == 500
        assert "NaN" not in answer.text

    run(path, body)


def test_a_request_past_its_deadline_is_a_504_and_is_never_computed(path: Path) -> None:
    async def body(client: httpx.AsyncClient, app: FastAPI) -> None:
        gate = Gate(app.state.service.engine.encode)
        first = asyncio.create_task(client.post("/encode", json=PIXELS))
        await gate.wait_until_entered()
        late = await client.post("/encode", json=PIXELS, headers={"X-Timeout-Ms": "50"})
        assert late.status_code == 504
        assert late.json()["code"] == "deadline_exceeded"
        gate.opened.set()
        assert (await first).status_code == 200
        assert (await client.post("/encode", json=PIXELS)).status_code == 200
        assert gate.rows == 2  # the first and the last; not the late one

    run(path, body)


def test_a_caller_who_leaves_frees_its_place_and_is_never_computed(path: Path) -> None:
    async def body(client: httpx.AsyncClient, app: FastAPI) -> None:
        gate = Gate(app.state.service.engine.encode)
        first = asyncio.create_task(client.post("/encode", json=PIXELS))
        await gate.wait_until_entered()
        sent: list[Any] = []
        incoming: asyncio.Queue[Any] = asyncio.Queue()
        await incoming.put({"type": "http.request", "body": httpx.Request("POST", "http://t", json=PIXELS).read()})
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/encode",
            "raw_path": b"/encode", "root_path": "", "scheme": "http", "query_string": b"",
            "headers": [(b"content-type", b"application/json")], "client": ("t", 1), "server": ("t", 80),
        }  # fmt: skip

        async def send(message: Any) -> None:
            sent.append(message)

        leaver = asyncio.create_task(app(scope, incoming.get, send))
        while 'vae_queue_items{op="encode"} 1.0' not in app.state.service.metrics.render()[0].decode():
            await asyncio.sleep(0)
        await incoming.put({"type": "http.disconnect"})
        await leaver
        assert sent[0]["status"] == 499
        gate.opened.set()
        assert (await first).status_code == 200
        assert gate.rows == 1
        text = app.state.service.metrics.render()[0].decode()
        assert 'vae_queue_items{op="encode"} 0.0' in text

    run(path, body)


def test_a_full_line_refuses_before_anything_is_decoded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(client: httpx.AsyncClient, app: FastAPI) -> None:
        gate = Gate(app.state.service.engine.encode)
        inside = [asyncio.create_task(client.post("/encode", json=PIXELS)) for _ in range(3)]
        await gate.wait_until_entered()
        decoded = []
        monkeypatch.setattr("app.images_in._Items.decode", lambda *_, **__: decoded.append(1))
        refused = await asyncio.gather(*(client.post("/encode", json=PIXELS) for _ in range(50)))
        assert {answer.status_code for answer in refused} == {429}
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        assert all(answer.json()["retry_after_ms"] >= 1 for answer in refused)
        assert not decoded
        gate.opened.set()
        assert [(await task).status_code for task in inside] == [200, 200, 200]

    run(path, body, max_queue_items=3)


def test_only_two_large_bodies_are_read_at_the_same_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = threading.Lock()
    now, most = 0, 0

    def decode(batch: Any, shape: tuple[int, ...], **_: Any) -> Any:
        nonlocal now, most
        with counting:
            now += 1
            most = max(most, now)
        time.sleep(0.05)  # long enough for others to come in, if they could
        with counting:
            now -= 1
        return np.zeros((batch.count, *shape), np.float32)

    async def body(client: httpx.AsyncClient, app: FastAPI) -> None:
        monkeypatch.setattr("app.images_in._Items.decode", decode)
        large = {"images": np.full((64, 1, 8, 8), 0.5).tolist()}
        answers = await asyncio.gather(*(client.post("/encode", json=large) for _ in range(6)))
        assert {answer.status_code for answer in answers} == {200}
        assert most == 2

    run(path, body)


def test_draining_reports_not_ready_first_and_refuses_new_work_later(path: Path) -> None:
    async def body(client: httpx.AsyncClient, app: FastAPI) -> None:
        service = app.state.service
        service.begin_drain()
        assert (await client.get("/readyz")).json() == {"status": "draining"}
        assert (await client.get("/livez")).status_code == 200
        assert (await client.post("/encode", json=PIXELS)).status_code == 200
        service.refuse_new_work()
        answer = await client.post("/encode", json=PIXELS)
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")

    run(path, body)


def test_a_lost_device_makes_the_service_not_alive_with_its_exit_status(path: Path) -> None:
    async def body(client: httpx.AsyncClient, app: FastAPI) -> None:
        def lose(*_: Any) -> Any:
            raise DeviceLost("gone")

        object.__setattr__(app.state.service.engine.encode, "run", lose)
        answer = await client.post("/encode", json=PIXELS)
        assert (answer.status_code, answer.json()["code"]) == (503, "device_lost")
        live = await client.get("/livez")
        assert (live.status_code, live.json()) == (503, {"status": "device_lost"})
        assert app.state.service.exit_status == 70

    run(path, body)


def test_a_reload_swaps_the_weights_and_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model.safetensors")

    async def body(client: httpx.AsyncClient, app: FastAPI) -> None:
        before = (await client.get("/model")).json()["digest"]
        old = (await client.post("/encode", json=PIXELS)).json()
        path.write_bytes(path.read_bytes()[:-100])
        await app.state.service.reload()
        assert (await client.get("/model")).json()["digest"] == before
        save_tiny(path, seed=1)
        await app.state.service.reload()
        assert (await client.get("/model")).json()["digest"] != before
        new = await client.post("/encode", json=PIXELS)
        assert new.json() != old
        stale = await client.post("/encode", json=PIXELS, headers={"If-Model-Match": before})
        assert (stale.status_code, stale.json()["code"]) == (412, "model_mismatch")

    run(path, body)


def test_a_request_in_flight_finishes_on_the_weights_that_it_started_with(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model.safetensors")

    async def body(client: httpx.AsyncClient, app: FastAPI) -> None:
        old = (await client.post("/reconstruct", json=PIXELS)).json()
        gate = Gate(app.state.service.engine.encode)
        running = asyncio.create_task(client.post("/reconstruct", json=PIXELS))
        await gate.wait_until_entered()
        save_tiny(path, seed=1)
        await app.state.service.reload()
        gate.opened.set()
        assert (await running).json() == old
        assert (await client.post("/reconstruct", json=PIXELS)).json() != old

    run(path, body)


def test_every_route_has_a_hidden_twin_under_v1(path: Path) -> None:
    async def body(client: httpx.AsyncClient, app: FastAPI) -> None:
        document = (await client.get("/openapi.json")).json()
        assert not [name for name in document["paths"] if name.startswith("/v1")]
        for name, methods in document["paths"].items():
            for method in methods:
                plain, twin = [await client.request(method, prefix + name) for prefix in ("", "/v1")]
                assert plain.status_code == twin.status_code
                assert b'"not_found"' not in plain.content

    run(path, body)


def test_the_latent_of_an_image_file_is_that_of_its_array(path: Path) -> None:
    async def body(client: httpx.AsyncClient, app: FastAPI) -> None:
        sample = await client.get("/sample?seed=5&format=png")
        files = {"content": sample.content, "headers": {"Content-Type": "image/png"}}
        by_file = (await client.post("/encode", **files)).json()
        assert np.array(by_file["mu"]).shape == (1, CONFIG.latent_dim)
        reconstruction = await client.post("/reconstruct?format=npy", **files)
        assert reconstruction.headers["Content-Type"] == "application/x-npy"

    run(path, body)


def test_what_is_past_its_deadline_is_not_decoded_to_its_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def decode(batch: Any, shape: tuple[int, ...], **_: Any) -> Any:
        seen.append(batch.count)
        time.sleep(0.02)
        return np.zeros((batch.count, *shape), np.float32)

    async def body(client: httpx.AsyncClient, app: FastAPI) -> None:
        monkeypatch.setattr("app.images_in.PART_BYTES", 1)
        monkeypatch.setattr("app.images_in._Items.decode", decode)
        large = {"images": ["A" * 100] * 200}
        answer = await client.post("/encode", json=large, headers={"X-Timeout-Ms": "300"})
        assert answer.status_code == 504
        await asyncio.to_thread(time.sleep, 0.1)
        assert set(seen) == {1}
        assert len(seen) < 200
        assert (await client.post("/encode", json={"images": ["A" * 100] * 3})).status_code == 200

    run(path, body)
