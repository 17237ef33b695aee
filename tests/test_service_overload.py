"""Too much at once, and too late: 429 with a computed wait, 504 at the deadline, and all well afterwards."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from conftest import StartServer, client_of
from service_answers import answer, problem
from service_pictures import NPY, PNG, from_npy, ink, npy, png

QUEUE = 8
HEAVY = npy(np.zeros((4, 28, 28), np.uint8))


@pytest.fixture(scope="module")
def narrow(start_server: StartServer) -> Iterator[httpx.Client]:
    """A server whose line holds 8 items and whose batches hold 4."""
    with client_of(start_server(max_queue_items=QUEUE, max_batch=4, max_items=QUEUE)) as client:
        yield client


@pytest.fixture(scope="module")
def burst(narrow: httpx.Client) -> list[httpx.Response]:
    """200 small requests at once, each with its own picture."""

    def ask(i: int) -> httpx.Response:
        return narrow.post("/reconstruct?format=npy", content=npy(np.full((4, 28, 28), i, np.uint8)), headers=NPY)

    with ThreadPoolExecutor(64) as pool:
        return list(pool.map(ask, range(200)))


def test_a_full_line_refuses_with_429_and_answers_the_others(burst: list[httpx.Response]) -> None:
    counts = Counter(got.status_code for got in burst)
    assert set(counts) == {200, 429}, counts
    assert counts[200] > 0


def test_429_tells_when_to_come_back_in_seconds_and_in_milliseconds(burst: list[httpx.Response]) -> None:
    refused = [got for got in burst if got.status_code == 429]
    assert refused
    for got in refused:
        body = problem(got, 429, "queue_full")
        wait = body["retry_after_ms"]
        assert isinstance(wait, (int, float))
        assert 0 < wait < 60_000
        assert got.headers["retry-after"].isdigit()
        assert int(got.headers["retry-after"]) == max(1, math.ceil(wait / 1000))


def test_the_wait_is_computed_and_no_constant(burst: list[httpx.Response]) -> None:
    waits = {got.json()["retry_after_ms"] for got in burst if got.status_code == 429}
    assert len(waits) > 1


def test_nobody_gets_the_answer_of_another_in_a_crowd(
    burst: list[httpx.Response], http: httpx.Client, pixel_tolerance: float
) -> None:
    served = [i for i, got in enumerate(burst) if got.status_code == 200]
    for i in served[:: max(1, len(served) // 8)]:
        want = http.post("/reconstruct?format=npy", content=npy(np.full((28, 28), i, np.uint8)), headers=NPY)
        assert abs(from_npy(burst[i].content) - from_npy(want.content)).max() <= pixel_tolerance


def test_rejections_are_counted_and_the_line_is_empty_afterwards(
    burst: list[httpx.Response], narrow: httpx.Client
) -> None:
    text = narrow.get("/metrics").text
    rejected = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("vae_rejected_total{")]
    assert sum(rejected) >= sum(got.status_code == 429 for got in burst)
    assert re.search(r'^vae_rejected_total\{reason="\w+"\} ', text, re.MULTILINE)
    waiting = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("vae_queue_items{")]
    assert waiting
    assert not any(waiting)
    answer(narrow.post("/encode", content=png(ink()), headers=PNG))


def test_a_request_that_fills_the_line_alone_is_answered_when_nobody_waits(narrow: httpx.Client) -> None:
    got = narrow.post("/encode?format=npy", content=npy(np.zeros((QUEUE, 28, 28), np.uint8)), headers=NPY)
    assert from_npy(got.content).shape[1] == QUEUE


def heavy(http: httpx.Client, **headers: str) -> httpx.Response:
    extra = {name.replace("_", "-"): value for name, value in headers.items()}
    return http.post("/score?samples=1024", content=HEAVY, headers=NPY | extra)


def test_a_request_that_outlives_its_own_timeout_is_504(http: httpx.Client) -> None:
    problem(heavy(http, X_Timeout_Ms="1"), 504, "deadline_exceeded")


def test_a_timeout_that_is_long_enough_changes_nothing(http: httpx.Client) -> None:
    got = http.post("/encode", content=png(ink()), headers=PNG | {"X-Timeout-Ms": "20000"})
    assert got.status_code == 200


@pytest.mark.parametrize("value", ["0", "-5", "soon", "nan", "inf", "1e999", "9" * 400, ""])
def test_a_senseless_timeout_is_refused_or_ignored_and_never_a_failure(http: httpx.Client, value: str) -> None:
    got = http.post("/encode", content=png(ink()), headers=PNG | {"X-Timeout-Ms": value})
    assert got.status_code in {200, 400, 422, 504}
    if got.status_code != 200:
        problem(got, got.status_code)


def test_after_a_deadline_the_next_request_is_answered(http: httpx.Client) -> None:
    heavy(http, X_Timeout_Ms="5")
    answer(http.post("/encode", content=png(ink()), headers=PNG))
