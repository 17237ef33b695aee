import math
from types import SimpleNamespace

import pytest

from app import admission
from app.admission import Admission, House
from app.errors import QueueFull
from app.monitor import Silent


@pytest.fixture
def clock(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def refusal(house, items=1):
    with pytest.raises(QueueFull) as caught:
        house.enter(items, items)
    return caught.value.headers["Retry-After"], caught.value.extra["retry_after_ms"]


def arrive(house, rows, items=1, patience_s=math.inf):
    """Let in a request whose rows wait for the device at once."""
    house.enter(items, rows, patience_s)
    house.line_up(rows)


def go(house, rows, items=1, computed=True):
    house.leave_line(rows, computed)
    house.leave(items, rows)


def crowd(house, clock, rows_per_s, seconds=60):
    """Have the device compute, without a pause, what a thousand rows in line are replaced from; they are there then."""
    arrive(house, 1000, 1000)
    for _ in range(10 * seconds):
        clock[0] += 0.1
        go(house, rows_per_s // 10, rows_per_s // 10)
        arrive(house, rows_per_s // 10, rows_per_s // 10)


def test_the_time_to_come_back_is_the_items_inside_over_the_measured_rate(clock):
    house = House(max_items=1000)
    house.enter(1000, 1000)
    assert refusal(house) == ("5", 5000)  # the first guess, 200 items a second
    house.leave(1000, 1000)
    crowd(house, clock, rows_per_s=100)
    seconds, milliseconds = refusal(house)
    assert seconds == "10"
    assert milliseconds == pytest.approx(10_000, rel=0.02)
    go(house, 1000, 1000, computed=False)
    clock[0] += 3600  # nobody is inside: this time says nothing about the rate
    house.enter(1000, 1000)
    assert refusal(house)[1] < 11_000


def test_a_device_that_stands_still_lengthens_the_time_to_come_back_up_to_a_minute(clock):
    house = House(max_items=100)
    arrive(house, 100, 100)
    waits = []
    for _ in range(30):
        clock[0] += 1
        waits.append(refusal(house)[1])
    assert waits == sorted(waits)
    assert waits[-1] == 60_000


def test_who_could_not_be_answered_in_time_is_refused_though_there_is_room(clock):
    house = House(max_items=1000)
    house.enter(1, 100_000, patience_s=0.01)  # nobody is inside: it may try
    house.enter(1, 100_000, patience_s=0.01)  # nothing is known of the speed
    for _ in range(2):
        house.leave(1, 100_000)
    for _ in range(20):
        arrive(house, 400)
        clock[0] += 2
        go(house, 400)
    for _ in range(100):  # single requests are slower, and say nothing of the device
        arrive(house, 1)
        clock[0] += 0.1
        go(house, 1)
    house.enter(2, 600, patience_s=1)  # 200 rows a second
    with pytest.raises(QueueFull, match=r"10\.0 s \(VAE_DEADLINE_S") as caught:
        house.enter(1, 401, patience_s=10)  # half of its time is what counts
    assert caught.value.extra["retry_after_ms"] == pytest.approx(3000, abs=1)
    house.enter(1, 399, patience_s=10)
    assert (house.items, house.rows) == (3, 999)


def test_what_was_not_computed_counts_for_no_speed(clock):
    house = House(max_items=1000)
    arrive(house, 1000, 1000)
    for _ in range(100):
        clock[0] += 1
        go(house, 10, 10, computed=False)
        arrive(house, 10, 10)
    assert refusal(house)[1] == 60_000


def test_rows_that_do_not_wait_for_the_device_say_nothing_of_its_speed(clock):
    house = House(max_items=1000)
    crowd(house, clock, rows_per_s=1000)
    go(house, 1000, 1000, computed=False)
    for _ in range(3):
        house.enter(64, 65_600)
        clock[0] += 20  # its images are decoded
        house.leave(64, 65_600)  # and it leaves
    house.enter(1000, 1000)
    assert refusal(house)[1] == pytest.approx(1000, rel=0.02)
    house.leave(1000, 1000)
    for _ in range(300):
        house.enter(1000, 1000)
        clock[0] += 0.001
        house.leave(1000, 1000)  # computed by no device
    house.enter(1000, 1000)
    assert refusal(house)[1] == pytest.approx(1000, rel=0.02)


def test_a_slow_time_is_forgotten_as_who_is_refused_cannot_be_measured(clock):
    house = House(max_items=10_000)
    crowd(house, clock, rows_per_s=10)  # something else has the device
    go(house, 1000, 1000, computed=False)
    house.enter(1, 1)
    with pytest.raises(QueueFull, match="VAE_DEADLINE_S"):
        house.enter(1, 100, patience_s=5)
    for _ in range(60):  # single requests, too few to measure anything by
        clock[0] += 1
        house.enter(1, 1, patience_s=5)
        house.leave(1, 1)
    house.enter(1, 100, patience_s=5)
    house.leave(2, 101)
    crowd(house, clock, rows_per_s=100, seconds=20)  # as soon as there is a crowd its speed is known
    with pytest.raises(QueueFull, match="VAE_DEADLINE_S") as caught:
        house.enter(1, 1, patience_s=5)
    assert caught.value.extra["retry_after_ms"] == pytest.approx(10_000, rel=0.1)


def test_room_that_is_taken_if_there_is_any_is_asked_for_once(monkeypatch):
    answers = iter([None, "full"])  # as time passes between two questions their answers may differ
    monkeypatch.setattr(House, "why_not", lambda *_: next(answers))
    door = Admission(10, Silent())
    door._refusal = None
    stay = door.enter_if_room(2, 3, 5.0)
    assert stay is not None
    assert (stay.rows, door._house.items, door._house.rows) == (3, 2, 3)
    assert door.enter_if_room(1, 1, 5.0) is None
    assert (door._house.items, door._house.rows) == (2, 3)


def test_nobody_takes_room_behind_a_closed_door():
    assert Admission(10, Silent()).enter_if_room(1, 1, 5.0) is None
