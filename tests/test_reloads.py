"""A server that loads its model again and again keeps neither a thread nor memory of the models before."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from crowds import memory_of
from load_client import closed_loop, request
from service_pictures import npy
from service_process import Server

from app.collector import LOOK_S

FIRST, MORE = 3, 12
SAFETY_S = 60.0
DEADLINE_S = 1
FEW = 10  # threads: a compiled model has some thirty, the helpers of requests come one by one
SETTLED_S = LOOK_S + 2.0  # in which the threads of the model before are gone
MODEL_MB = 60  # more than freed pages that the allocator keeps, less than half of what a loaded model holds


def threads_of(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.pid}/task"))


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    server = Server(folder / "log.txt", {"drain_delay_s": 0, "deadline_s": DEADLINE_S})
    server.wait_until_ready()
    try:
        yield server
    finally:
        server.end()


def loaded(server: Server) -> int:
    return server.log.read_text().count("ready:")


def reload(server: Server, times: int) -> tuple[int, float]:
    """Reload; return how many threads and megabytes there are afterwards."""
    for _ in range(times):
        before, end = loaded(server), time.monotonic() + SAFETY_S
        os.kill(server.pid, signal.SIGHUP)
        while loaded(server) == before:
            assert time.monotonic() < end, server.tail()
            time.sleep(0.05)
    time.sleep(SETTLED_S)
    return threads_of(server), memory_of(server) / 1e6


@pytest.mark.slow
def test_a_model_is_gone_after_a_reload_also_where_requests_fail_meanwhile(tmp_path: Path) -> None:
    scores = request(
        "POST", "/score?samples=200", {"content-type": "application/x-npy"}, npy(np.zeros((4, 1, 28, 28), np.uint8))
    )
    with running(tmp_path) as server:
        threads, _ = reload(server, FIRST)
        before = loaded(server)

        async def scored_meanwhile() -> set[int]:
            statuses = set()
            os.kill(server.pid, signal.SIGHUP)
            while loaded(server) == before:
                outcome = await closed_loop(server.port, lambda _: scores, 60, 20)
                statuses |= set(outcome.statuses)
            return statuses

        statuses = asyncio.run(asyncio.wait_for(scored_meanwhile(), SAFETY_S))
        time.sleep(SETTLED_S)
        assert statuses & {429, 504}
        assert threads_of(server) < threads + FEW


@pytest.mark.slow
def test_a_dozen_reloads_leave_no_thread_and_no_model_behind(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with running(tmp_path) as server:
        threads, memory = reload(server, FIRST)
        threads_then, memory_then = reload(server, MORE)
    record_property("reloads", FIRST + MORE)
    record_property(f"MB after {FIRST}", round(memory))
    record_property("MB at the end", round(memory_then))
    record_property("threads at the end", threads_then)
    assert threads_then == threads
    assert memory_then - memory < MODEL_MB
