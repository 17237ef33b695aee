from types import SimpleNamespace

import pytest

from app import lines
from app.errors import QueueFull
from app.lines import House


@pytest.fixture
def clock(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(lines, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def refusal(house, items=1):
    with pytest.raises(QueueFull) as caught:
        house.enter(items)
    return caught.value.headers["Retry-After"], caught.value.extra["retry_after_ms"]


def test_the_time_to_come_back_is_the_items_inside_over_the_measured_rate(clock):
    house = House(max_items=1000)
    house.enter(1000)
    assert refusal(house) == ("5", 5000)  # the first guess, 200 items a second
    for _ in range(600):  # 100 items a second, for a minute
        clock[0] += 0.1
        house.leave(10)
        house.enter(10)
    seconds, milliseconds = refusal(house)
    assert seconds == "10"
    assert milliseconds == pytest.approx(10_000, rel=0.02)
    house.leave(900)
    house.leave(100)
    clock[0] += 3600  # nobody is inside: this time says nothing about the rate
    house.enter(1000)
    assert refusal(house)[1] < 11_000


def test_a_device_that_stands_still_lengthens_the_time_to_come_back_up_to_a_minute(clock):
    house = House(max_items=100)
    house.enter(100)
    waits = []
    for _ in range(30):
        clock[0] += 1
        waits.append(refusal(house)[1])
    assert waits == sorted(waits)
    assert waits[-1] == 60_000
