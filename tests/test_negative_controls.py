"""The campaign finds what it looks for: with a fault built in, its checks fail."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from crowds import Pictures
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse
from hostile_files import good_files
from inside import Caller, Gate, Inside, inside
from pydantic import ValidationError
from service_pictures import ink, npy
from test_hostile_json import attack

from app import batching, direct, json_bodies
from app.admission import House
from app.errors import Unprocessable

NPY = {"content-type": "application/x-npy"}


@pytest.fixture
def service() -> Iterator[Inside]:
    with inside(streams=1, max_queue_items=20) as running:
        yield running


class Stock(Unprocessable):
    """A wrong body, to be answered as the framework would."""

    def __init__(self, error: ValidationError) -> None:
        super().__init__("wrong")
        self.found = error.errors()


def use_stock_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer wrong bodies with what FastAPI's own handler writes."""
    ours = direct.response_to

    def read_json(model: Any, body: bytes) -> Any:
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            raise Stock(error) from None

    def response_to(error: Any, request_id: str) -> Any:
        if isinstance(error, Stock):
            return JSONResponse({"detail": jsonable_encoder(error.found)}, 422)
        return ours(error, request_id)

    for module in ("app.images_in", "app.numbers_in"):
        monkeypatch.setattr(f"{module}.read_json", read_json)
    monkeypatch.setattr(direct, "response_to", response_to)


def test_the_frameworks_own_handler_is_found_out(service: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    use_stock_handler(monkeypatch)
    with pytest.raises((AssertionError, ValueError, UnicodeError)):
        attack(service, 1_500, seed=1)


def test_a_refusal_that_repeats_the_input_is_found_out(service: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_bodies, "_POSITION", json_bodies.re.compile(r"(?s)(.)(.*)"))  # a library's own words
    monkeypatch.setattr("app.errors.MAX_PROBLEM_BYTES", 10**9)
    monkeypatch.setattr("app.errors._clean", lambda text, _limit: "pydantic: " + text * 100)
    with pytest.raises(AssertionError):
        attack(service, 1_500, seed=1)


def refused_at_once(service: Inside, count: int) -> int:
    """Send ``count`` requests while the device is held; return how many were refused before it moves."""

    async def crowd() -> int:
        gate = Gate(service.engine.encode)
        body = npy(ink())
        tasks = [asyncio.create_task(service.caller("POST", "/encode", NPY, body).ask()) for _ in range(count)]
        await gate.wait_until_entered()
        for _ in range(50):
            await asyncio.sleep(0)
        refused = sum(task.done() for task in tasks)
        gate.opened.set()
        async with asyncio.timeout(5):
            assert {reply.status for reply in await asyncio.gather(*tasks)} <= {200, 429}
        return refused

    number: int = service.play(crowd())
    return number


def test_a_line_of_twenty_refuses_exactly_the_rest(service: Inside) -> None:
    assert refused_at_once(service, 70) == 50
    service.assert_unharmed()


def test_a_line_without_a_bound_is_found_out(service: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(House, "enter", lambda *_: None)
    monkeypatch.setattr(House, "leave", lambda *_: None)
    assert refused_at_once(service, 70) != 50


def test_a_lost_answer_is_found_out(service: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "deliver", lambda batch, outcomes, seconds: None)
    with pytest.raises(TimeoutError):
        refused_at_once(service, 70)


def test_room_that_is_never_given_back_is_found_out(service: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(House, "leave", lambda *_: None)
    service.ask("POST", "/encode", NPY, npy(ink()))
    with pytest.raises(AssertionError):
        service.assert_unharmed()


def test_wrong_numbers_are_found_out(service: Inside) -> None:
    run = service.engine.encode.run
    object.__setattr__(service.engine.encode, "run", lambda x: tuple(column * 1.1 for column in run(x)))
    with pytest.raises(AssertionError):
        service.assert_unharmed()


def test_a_failure_of_the_service_is_found_out(service: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.images_in._Items.decode", lambda *_, **__: 1 / 0)
    kind, picture = good_files(service.engine.latent_dim)[0]
    assert service.ask("POST", "/encode", {"content-type": kind}, picture).status == 500
    with pytest.raises(AssertionError):
        service.assert_unharmed()


def test_the_answer_of_another_is_found_out() -> None:
    pictures = Pictures(8, drawn=4)
    right = np.stack([pictures.mu[2:3], pictures.sigma[2:3]])
    assert pictures.check(2, (200, npy(right))) is None
    assert [pictures.check(i, (200, npy(right))) is None for i in range(8)] == [i == 2 for i in range(8)]
    assert pictures.check(3, (429, b"")) is None


def test_a_caller_who_leaves_is_seen(service: Inside) -> None:
    async def play() -> Caller:
        gate = Gate(service.engine.encode)
        first = asyncio.create_task(service.caller("POST", "/encode", NPY, npy(ink())).ask())
        await gate.wait_until_entered()
        leaver = service.caller("POST", "/encode", NPY, npy(ink()))
        task = asyncio.create_task(leaver.ask())
        await asyncio.sleep(0.05)
        leaver.leave()
        await task
        gate.opened.set()
        await first
        assert gate.rows == 1
        return leaver

    assert service.play(play()).reply.status == 499
