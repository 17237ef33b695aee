"""A server that loads its model again and again keeps neither a thread nor memory of the models before."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from crowds import memory_of
from service_process import Server

FIRST, MORE = 3, 12
SAFETY_S = 60.0
SETTLED_S = 2.0  # in which the threads of the model before are gone
MODEL_MB = 60  # more than freed pages that the allocator keeps, less than half of what a loaded model holds


def threads_of(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.pid}/task"))


@pytest.mark.slow
def test_a_dozen_reloads_leave_no_thread_and_no_model_behind(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    server = Server(tmp_path / "log.txt", {"drain_delay_s": 0})

    def loaded() -> int:
        return server.log.read_text().count("ready:")

    def reload(times: int) -> tuple[int, float]:
        """Reload; return how many threads and megabytes there are afterwards."""
        for _ in range(times):
            before, end = loaded(), time.monotonic() + SAFETY_S
            os.kill(server.pid, signal.SIGHUP)
            while loaded() == before:
                assert time.monotonic() < end, server.tail()
                time.sleep(0.05)
        time.sleep(SETTLED_S)
        return threads_of(server), memory_of(server) / 1e6

    server.wait_until_ready()
    try:
        threads, memory = reload(FIRST)
        threads_then, memory_then = reload(MORE)
    finally:
        server.end()
    record_property("reloads", FIRST + MORE)
    record_property(f"MB after {FIRST}", round(memory))
    record_property("MB at the end", round(memory_then))
    record_property("threads at the end", threads_then)
    assert threads_then == threads
    assert memory_then - memory < MODEL_MB
