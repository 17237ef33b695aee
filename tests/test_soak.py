"""The soak's slope of memory finds a leak under noise, and takes neither the load's end nor its crests for one."""

import math
import random

import pytest

from tests.soak import LOWEST_OF, slope_mb_h

WARM_UP_S = 1500.0


def memory(leak_mb_h: float = 0.0, minutes: float = 75.0, at_the_end_mb: float = 0.0) -> list[tuple[float, int]]:
    """Return what is measured each second: a rise while warming up, crests of 20 MB, noise, and a leak."""
    chance, count = random.Random(1), int(60 * minutes)
    values = [
        600
        - 100 * math.exp(-second / 200)
        + (20 if second % 110 > 50 else 0)
        + chance.random()
        + leak_mb_h * second / 3600
        for second in range(count)
    ]
    values[-2:] = [value + at_the_end_mb for value in values[-2:]]
    return [(second + 1.0, int(value * 1e6)) for second, value in enumerate(values)]


@pytest.mark.parametrize("leak_mb_h", [0.0, 3.0, 10.0])
def test_a_leak_is_found_and_none_is_not(leak_mb_h: float) -> None:
    slope, error = slope_mb_h(memory(leak_mb_h), WARM_UP_S)
    assert abs(slope - leak_mb_h) < 0.3
    assert error < 0.3


@pytest.mark.parametrize("at_the_end_mb", [-50.0, 50.0])
def test_the_last_seconds_of_which_there_are_no_two_minutes_count_for_nothing(at_the_end_mb: float) -> None:
    seconds = WARM_UP_S + 10 * LOWEST_OF + 2
    slope, _ = slope_mb_h(memory(10.0, seconds / 60, at_the_end_mb), WARM_UP_S)
    assert abs(slope - 10) < 1


def test_a_short_time_says_nothing() -> None:
    assert slope_mb_h(memory(minutes=30), WARM_UP_S)[1] == math.inf
