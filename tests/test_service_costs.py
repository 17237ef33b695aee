"""What one request may cost: counted before it is paid, off the event loop where it is much, and not paid in vain."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inside import SAFETY_S, Inside, check_refusal, inside
from service_pictures import base64_text, jpeg, npy, png

from app import service as service_module
from app import writing
from app.errors import Unprocessable
from app.payloads import parse_images
from tests.tiny import save_tiny

JSON, NPY = {"content-type": "application/json"}, {"content-type": "application/x-npy"}
PIXELS = 100_000


@pytest.fixture(scope="module")
def service() -> Iterator[Inside]:
    with inside(streams=1, max_batch=8, max_pixels=PIXELS) as running:
        yield running


@pytest.mark.parametrize(
    ("target", "field", "item"),
    [("/encode", "images", "[[0.5]]"), ("/kl", "images", "[[0.5]]"), ("/decode", "z", "[0.5]")],
)
def test_far_too_many_items_of_a_json_body_are_413_before_one_is_read(
    service: Inside, monkeypatch: pytest.MonkeyPatch, target: str, field: str, item: str
) -> None:
    body = (f'{{"{field}": [' + ",".join([item] * 140_000) + "]}").encode()
    for module in ("app.images_in", "app.numbers_in"):
        monkeypatch.setattr(f"{module}.read_json", lambda *_: 1 / 0)
    reply = service.ask("POST", target, JSON, body)
    assert (reply.status, check_refusal(reply)) == (413, "too_many_items")
    assert "VAE_MAX_ITEMS" in json.loads(reply.body)["detail"]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 24)])
def test_as_many_nested_images_as_are_allowed_are_not_too_many_lists(shape: tuple[int, int, int]) -> None:
    body = json.dumps({"images": np.zeros((400, *shape)).tolist()}).encode()
    assert parse_images(body, "application/json", max_items=400, shape=shape).count == 400


@pytest.mark.parametrize("pack", [png, jpeg])
def test_all_files_of_a_request_have_no_more_pixels_than_sixteen_of_the_largest(
    service: Inside, monkeypatch: pytest.MonkeyPatch, pack: Any
) -> None:
    picture = base64_text(pack(np.random.default_rng(0).integers(0, 256, (250, 400), np.uint8)))
    body = json.dumps({"images": [picture] * 16}).encode()
    assert service.ask("POST", "/encode", JSON, body).status == 200
    monkeypatch.setattr("app.images_in._Items.decode", lambda *_, **__: 1 / 0)
    body = json.dumps({"images": [picture] * 17}).encode()
    reply = service.ask("POST", "/encode", JSON, body)
    assert (reply.status, check_refusal(reply)) == (413, "too_many_pixels")
    detail = json.loads(reply.body)["detail"]
    assert "1,700,000 pixels" in detail
    assert "1,600,000" in detail
    assert "VAE_MAX_PIXELS" in detail


def threads_of(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[bool]:
    """Return a list that gets, for each call of a function, whether it was made on the event loop."""
    real, seen = getattr(owner, name), []

    def call(*args: Any, **options: Any) -> Any:
        seen.append(threading.current_thread() is threading.main_thread())
        return real(*args, **options)

    monkeypatch.setattr(owner, name, call)
    return seen


def test_noise_is_drawn_on_the_event_loop_only_where_it_is_little(
    service: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = threads_of(monkeypatch, service_module, "noise")
    few, many = npy(np.zeros((1, 28, 28), np.uint8)), npy(np.zeros((64, 28, 28), np.uint8))
    for target, body in (("/encode?draws=2", few), ("/encode?draws=64", many), ("/score?samples=64", many)):
        assert service.ask("POST", target, NPY, body).status == 200
    assert service.ask("GET", "/sample?n=2").status == 200
    assert seen == [True, False, False, True]


def test_a_long_answer_of_few_items_is_not_written_on_the_event_loop(
    service: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = threads_of(monkeypatch, writing, "write_tensors")
    body = npy(np.zeros((8, 28, 28), np.uint8))
    for draws in (0, 256):
        assert service.ask("POST", f"/encode?draws={draws}", NPY, body).status == 200
    assert seen == [True, False]


def test_when_one_image_of_a_request_fails_the_others_are_not_computed(service: Inside) -> None:
    calls: list[int] = []

    def fail(x: Any, *_: Any) -> Any:
        calls.append(len(x))
        raise Unprocessable("this one fails", code="out_of_range")

    run = service.engine.weigh.run
    object.__setattr__(service.engine.weigh, "run", fail)
    try:
        reply = service.ask("POST", "/score?samples=8", NPY, npy(np.zeros((40, 28, 28), np.uint8)))
        assert (reply.status, check_refusal(reply)) == (422, "out_of_range")
        service.play(asyncio.sleep(0.2))
        assert len(calls) < 20
    finally:
        object.__setattr__(service.engine.weigh, "run", run)
    service.assert_unharmed()


def test_a_reload_asked_for_during_a_reload_is_done_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_tiny(tmp_path / "model.safetensors")
    with inside(model=str(path), max_batch=8, streams=1) as running:
        owner, load, loads = running.app.state.service, service_module.loading.load, []
        read, go = threading.Event(), threading.Event()

        def slow(settings: Any) -> Any:
            engine = load(settings)
            loads.append(engine.digest)
            read.set()
            assert go.wait(30)
            return engine

        async def play() -> None:
            first = asyncio.create_task(owner.reload())
            await asyncio.to_thread(read.wait, 30)
            save_tiny(path, seed=1)
            await asyncio.gather(owner.reload(), owner.reload())
            go.set()
            await first

        monkeypatch.setattr(service_module.loading, "load", slow)
        running.play(play())
        assert len(loads) == 2
        assert loads[0] != loads[1] == running.engine.digest


@contextmanager
def line_of(service: Inside, name: str, taking_s: float) -> Iterator[None]:
    """Keep all threads of a pool busy, and let it know that each piece of work takes so long."""
    pool, busy = getattr(service.app.state.service, name), threading.Event()

    async def begin() -> list[asyncio.Task[bool]]:
        line = [asyncio.create_task(pool.run(busy.wait, SAFETY_S)) for _ in range(pool._size)]
        await asyncio.sleep(0)
        return line

    line = service.play(begin())
    pool._mean_s = taking_s
    try:
        yield
    finally:
        busy.set()
        service.play(asyncio.wait(line))
        pool._mean_s = 0.0


def dense() -> bytes:
    side = {"mean": [0.0] * 40, "cov": np.eye(40).tolist()}
    return json.dumps({"p": side, "q": side}).encode()


LARGE_BODIES = [
    ("/encode", NPY, npy(np.zeros((9, 28, 28), np.uint8)), 200),  # batches take its rows, no reader does
    ("/encode", JSON, json.dumps({"images": np.zeros((9, 28, 28)).tolist()}).encode(), 429),
    ("/decode", JSON, json.dumps({"z": np.zeros((500, 32)).tolist()}).encode(), 429),
    ("/kl", JSON, dense(), 429),
    ("/kl", JSON, b'{"mu": [[0]], "sigma": [[1]]}', 200),
]


@pytest.mark.parametrize(("target", "kind", "body", "status"), LARGE_BODIES)
def test_who_could_not_be_answered_in_time_is_refused_before_the_body_waits_for_a_reader(
    service: Inside, target: str, kind: dict[str, str], body: bytes, status: int
) -> None:
    with line_of(service, "readers", taking_s=20):
        reply = service.ask("POST", target, kind, body)
    assert reply.status == status
    if status == 429:
        assert check_refusal(reply) == "queue_full"
        assert reply.headers["retry-after"] == "20"
    assert service.ask("POST", target, kind, body).status == 200


def test_a_divergence_that_takes_long_keeps_no_body_waiting(service: Inside) -> None:
    with line_of(service, "calculator", taking_s=20):
        for target, kind, body, _ in LARGE_BODIES:
            reply = service.ask("POST", target, kind, body)
            assert reply.status == (429 if body == dense() else 200)
            assert reply.status == 200 or reply.headers["retry-after"] == "20"


def test_a_request_that_is_being_read_is_not_refused_any_more(service: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, known = [], service_module.Service.check_line
    monkeypatch.setattr(service_module.Service, "check_line", lambda *args: (asked.append(args), known(*args)))
    picture = base64_text(png(np.random.default_rng(0).integers(0, 256, (250, 400), np.uint8)))
    body = json.dumps({"images": [picture] * 16}).encode()
    batch = parse_images(body, "application/json", max_items=16, shape=(1, 28, 28))
    assert len(list(batch.parts())) > 1
    assert service.ask("POST", "/encode", JSON, body).status == 200
    assert len(asked) == 2  # to parse it, and to begin with its images
