"""SIGTERM with 200 requests in flight: none is lost, readiness says so at once, new work is refused, exit 0."""

import signal
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import StartServer, client_of
from service_answers import strict_json
from service_pictures import NPY, PNG, ink, npy, png
from service_process import Server

IN_FLIGHT = 200


@dataclass
class Drained:
    """What was seen of one server that was told to stop while 200 requests were in flight."""

    answers: list[httpx.Response] = field(default_factory=list)
    readiness: list[tuple[int, object]] = field(default_factory=list)
    liveness: list[int] = field(default_factory=list)
    new_work: list[int] = field(default_factory=list)
    exit_status: int | None = None
    log: str = ""


@pytest.fixture(scope="module")
def drained(start_server: StartServer) -> Drained:
    seen = Drained()
    server = start_server(drain_delay_s=3.0)  # in which the slowest of 200 threads has sent its request
    picture = npy(ink())
    started = threading.Barrier(IN_FLIGHT + 1)

    def ask(client: httpx.Client) -> httpx.Response:
        started.wait(60)
        return client.post("/score?samples=8", content=picture, headers=NPY)

    with client_of(server) as client, client_of(server) as probe, ThreadPoolExecutor(IN_FLIGHT) as pool:
        probe.get("/livez")
        flights: list[Future[httpx.Response]] = [pool.submit(ask, client) for _ in range(IN_FLIGHT)]
        started.wait(60)
        wait(flights, timeout=60, return_when="FIRST_COMPLETED")
        server.process.send_signal(signal.SIGTERM)
        watch(seen, server.url, probe)
        seen.answers = [flight.result(60) for flight in flights]
    seen.exit_status = server.wait()
    seen.log = server.log.read_text()
    return seen


def watch(seen: Drained, url: str, probe: httpx.Client) -> None:
    """Look at the draining server until it no longer answers, on an old connection and on new ones."""
    end = time.monotonic() + 40
    while time.monotonic() < end:
        try:
            for get in (probe.get, lambda path: httpx.get(url + path, timeout=10)):
                ready = get("/readyz")
                seen.readiness.append((ready.status_code, strict_json(ready.text)))
                seen.liveness.append(get("/livez").status_code)
            seen.new_work.append(probe.post("/encode", content=png(ink()), headers=PNG).status_code)
        except httpx.TransportError:
            return
        time.sleep(0.05)


def test_none_of_200_requests_in_flight_is_lost(drained: Drained) -> None:
    assert Counter(got.status_code for got in drained.answers) == {200: IN_FLIGHT}
    assert all(len(strict_json(got.text)["elbo"]) == 1 for got in drained.answers)


def test_the_drained_process_exits_with_0_and_a_clean_log(drained: Drained) -> None:
    assert drained.exit_status == 0
    assert "Traceback" not in drained.log


def test_readiness_is_503_with_a_status_while_draining(drained: Drained) -> None:
    assert drained.readiness
    late = drained.readiness[1:] if drained.readiness[0][0] == 200 else drained.readiness
    assert {status for status, _ in late} == {503}
    assert all(isinstance(body, dict) and "status" in body for _, body in late)


def test_liveness_stays_200_while_draining(drained: Drained) -> None:
    assert set(drained.liveness) == {200}


def test_new_work_is_taken_or_refused_with_503_while_draining(drained: Drained) -> None:
    assert 200 in drained.new_work  # for the three seconds in which callers have yet to learn of it
    assert set(drained.new_work) <= {200, 503}


@pytest.mark.slow
def test_drain_s_bounds_the_wait_for_what_is_in_flight(tmp_path: Path) -> None:
    server = Server(tmp_path / "log.txt", {"drain_s": 0.5, "drain_delay_s": 0})
    server.wait_until_ready()
    with client_of(server) as client, ThreadPoolExecutor(4) as pool:
        body = npy(np.zeros((64, 28, 28), np.uint8))
        flights = [pool.submit(client.post, "/score?samples=1024", content=body, headers=NPY) for _ in range(4)]
        time.sleep(1.0)
        server.terminate()
        begin = time.monotonic()
        status = server.wait()
        assert status in {0, 70}
        assert time.monotonic() - begin < 20
        for flight in flights:
            error = flight.exception(30)
            assert error is None or isinstance(error, httpx.TransportError)
    server.assert_clean_log()
