"""A reload while requests arrive: each is answered by one set of weights, and says by which."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inside import Caller, Gate, Inside, Reply, inside
from service_pictures import npy

from app import loading
from app.engine import Engine
from app.settings import Settings
from tests.tiny import CONFIG, save_tiny

JSON = {"content-type": "application/json"}
IMAGE = np.full((1, 8, 8), 0.5, np.float32)
LARGER = replace(CONFIG, latent_dim=6)
Z = [0.5, -0.5, 0.25, 0.0]


class Slow(Caller):
    """A request whose body arrives when ``rest`` is set; ``reads`` is set when the service waits for it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.reads, self.rest = asyncio.Event(), asyncio.Event()

    async def _receive(self) -> dict[str, Any]:
        self.reads.set()
        await self.rest.wait()
        return await super()._receive()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model.safetensors")


@pytest.fixture
def service(path: Path) -> Iterator[Inside]:
    with inside(model=str(path), max_batch=8, streams=1) as running:
        yield running


def reload_meanwhile(service: Inside, path: Path, target: str, headers: dict[str, str], body: bytes) -> Reply:
    """Send a request, and its body only after a reload to weights with another number of latents."""

    async def play() -> Reply:
        slow = Slow(service.app, "POST", target, headers, body)
        task = asyncio.create_task(slow.ask())
        await slow.reads.wait()
        save_tiny(path, seed=1, config=LARGER)
        await service.app.state.service.reload()
        slow.rest.set()
        return await task

    reply: Reply = service.play(play())
    return reply


@pytest.mark.parametrize(
    ("target", "content"),
    [
        ("/decode", {"z": [Z]}),
        ("/traverse", {"z": Z, "dims": [0]}),
        ("/interpolate", {"from": Z, "to": Z}),
    ],
)
def test_latents_of_the_weights_before_a_reload_are_422_and_no_failure(
    service: Inside, path: Path, target: str, content: dict[str, Any]
) -> None:
    reply = reload_meanwhile(service, path, target, JSON, json.dumps(content).encode())
    assert (reply.status, json.loads(reply.body)["code"]) == (422, "wrong_shape")
    assert reply.headers["x-model-digest"] == service.engine.digest
    assert service.failures.lines == []


@pytest.mark.parametrize("target", ["/encode", "/decode", "/kl", "/score", "/interpolate"])
def test_weights_that_a_request_asks_for_are_compared_when_its_body_is_here(
    service: Inside, path: Path, target: str
) -> None:
    old = service.engine.digest
    reply = reload_meanwhile(service, path, target, JSON | {"if-model-match": old}, b"{}")
    assert (reply.status, json.loads(reply.body)["code"]) == (412, "model_mismatch")
    assert reply.headers["x-model-digest"] == service.engine.digest != old


@pytest.mark.parametrize("target", ["/encode", "/score?seed=1", "/kl", "/reconstruct?format=npy"])
def test_an_answer_names_the_weights_that_computed_it_and_no_newer_ones(
    service: Inside, path: Path, target: str
) -> None:
    headers, body = {"content-type": "application/x-npy"}, npy(IMAGE)
    expected = service.ask("POST", target, headers, body)
    old = service.engine.digest

    async def play() -> Reply:
        gate = Gate(service.engine.encode)
        task = asyncio.create_task(service.caller("POST", target, headers, body).ask())
        await gate.wait_until_entered()
        save_tiny(path, seed=1, config=LARGER)
        await service.app.state.service.reload()
        gate.opened.set()
        return await task

    reply: Reply = service.play(play())
    assert (reply.status, reply.body) == (200, expected.body)
    assert reply.headers["x-model-digest"] == old != service.engine.digest
    after = service.ask("POST", target, headers, body)
    assert after.body != expected.body
    assert after.headers["x-model-digest"] == service.engine.digest


def test_a_reload_asked_for_while_one_fails_by_surprise_is_done(
    service: Inside, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    owner, load, old = service.app.state.service, loading.load, service.engine.digest
    calls = list[int]()

    def fail_once(settings: Settings) -> Engine:
        calls.append(len(calls))
        if len(calls) > 1:
            return load(settings)
        asyncio.run_coroutine_threadsafe(owner.reload(), loop[0]).result()  # it returns at once: one is going on
        raise RuntimeError("nobody thought of this")

    loop = list[asyncio.AbstractEventLoop]()

    async def play() -> None:
        loop.append(asyncio.get_running_loop())
        await owner.reload()

    save_tiny(path, seed=1)
    monkeypatch.setattr(loading, "load", fail_once)
    service.play(play())
    assert len(calls) == 2
    assert service.engine.digest != old
    assert "nobody thought of this" in caplog.text
