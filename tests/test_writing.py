"""Answers in: what is written on the event loop, and that room is held until an answer is written."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from inside import SAFETY_S, Inside, inside

from app import writing
from app.negotiation import Format


@pytest.mark.parametrize(
    ("form", "shape", "columns", "small"),
    [
        (Format.PNG, (8, 1, 28, 28), None, True),
        (Format.PNG, (8, 1, 28, 28), 8, True),
        (Format.PNG, (2, 1, 28, 28), 1024, False),  # a sheet of 1,024 cells, 1,022 of them empty
        (Format.PNG, (2, 1, 28, 28), 83, True),
        (Format.PNG, (2, 1, 28, 28), 84, False),
        (Format.PNG, (1, 1, 28, 28), 1024, True),
        (Format.NPY, (2, 1, 28, 28), 1024, True),
        (Format.JSON, (0, 32), None, True),
        (Format.JSON, (9, 32), None, False),
        (Format.JSON, (8, 256, 32), None, True),
        (Format.JSON, (8, 257, 32), None, False),
    ],
)
def test_on_the_loop_is_written_what_is_small(form: Format, shape: Any, columns: int | None, small: bool) -> None:
    assert writing._is_small(form, {"images": np.zeros(shape, np.float32)}, columns) is small


class Desk:
    """Holds whoever writes an answer aside from the event loop until it is opened."""

    def __init__(self) -> None:
        self.entered, self.opened, self._write = threading.Event(), threading.Event(), writing.write_tensors

    def write(self, *args: Any, **options: Any) -> bytes:
        if threading.current_thread() is not threading.main_thread():
            self.entered.set()
            assert self.opened.wait(SAFETY_S)
        return self._write(*args, **options)


@pytest.fixture
def service() -> Iterator[Inside]:
    with inside(streams=1, max_queue_items=20) as running:
        yield running


def test_room_is_held_until_the_answer_is_written(service: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    monkeypatch.setattr(writing, "write_tensors", desk.write)

    async def scenario() -> None:
        first = asyncio.create_task(service.caller("GET", "/sample?n=16").ask())
        await asyncio.to_thread(desk.entered.wait, SAFETY_S)
        assert (await service.caller("GET", "/sample?n=16").ask()).status == 429
        assert (await service.caller("GET", "/sample?n=4").ask()).status == 200
        desk.opened.set()
        assert (await first).status == 200
        assert (await service.caller("GET", "/sample?n=16").ask()).status == 200

    service.play(scenario())
    service.assert_unharmed()


def test_who_leaves_while_the_answer_is_written_gives_the_room_back(
    service: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk()
    monkeypatch.setattr(writing, "write_tensors", desk.write)

    async def scenario() -> None:
        caller = service.caller("GET", "/sample?n=16")
        first = asyncio.create_task(caller.ask())
        await asyncio.to_thread(desk.entered.wait, SAFETY_S)
        caller.leave()
        assert (await first).status == 499
        assert service.app.state.service._batcher._house.items == 0
        desk.opened.set()

    service.play(scenario())
    service.assert_unharmed()


@pytest.mark.parametrize("route", ["/model", "/metrics"])
def test_what_tells_about_the_service_is_not_cached(service: Inside, route: str) -> None:
    assert service.ask("GET", route).headers["cache-control"] == "no-store"
