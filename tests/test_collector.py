"""After a reload the garbage collector sees everything, until the models before are gone or the wait is over."""

import asyncio
import gc
from types import SimpleNamespace

import pytest

from app import collector
from app.collector import LOOKS, Collector

DEADLINE_LOOKS = 6  # that the longest request takes


class Looks:
    """Stands for ``gc``: counts the looks, and lets the models before go at one of them."""

    def __init__(self, gone_after: int) -> None:
        self.models, self.gone_after = [object()], gone_after
        self.looks, self.frozen = 0, list[int]()

    def collect(self) -> None:
        self.looks += 1
        if self.looks == self.gone_after:
            self.models.clear()

    def freeze(self) -> None:
        self.frozen.append(self.looks)

    def unfreeze(self) -> None:
        pass


def looked(monkeypatch: pytest.MonkeyPatch, gone_after: int, reloads: int = 1) -> Looks:
    found = Looks(gone_after)
    monkeypatch.setattr(collector, "gc", found)
    monkeypatch.setattr(collector, "LOOK_S", 0.001)
    kept = Collector(found.models, DEADLINE_LOOKS * 0.001)

    async def live() -> None:
        for _ in range(reloads):
            kept.show_all()
            await asyncio.sleep(0)
        while not found.frozen:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(live(), 60))
    return found


@pytest.mark.parametrize("gone_after", [1, 7])
def test_all_is_kept_again_as_soon_as_the_models_before_are_gone(
    gone_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert looked(monkeypatch, gone_after).frozen == [gone_after]


def test_the_wait_ends_and_is_longer_than_the_longest_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked(monkeypatch, 10_000).frozen == [LOOKS + DEADLINE_LOOKS]


def test_each_reload_begins_the_wait_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked(monkeypatch, 3, reloads=5).frozen == [3]


def test_what_is_kept_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[str]()
    names = ("unfreeze", "collect", "freeze")
    monkeypatch.setattr(
        collector, "gc", SimpleNamespace(**{name: lambda name=name: calls.append(name) for name in names})
    )
    Collector([], 1).keep()
    assert calls == list(names)
    assert gc.get_freeze_count() == 0
