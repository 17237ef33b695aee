"""The closed loop: wrk, which costs little enough to share two cores with the server that it measures."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.client import HOST
from bench.environments import FOLDER, load_generator
from bench.processes import Server

SCRIPT = Path(__file__).with_name("wrk.lua")


def save_requests(name: str, requests: Sequence[bytes]) -> Path:
    """Write requests to a file that the script reads, and return its path."""
    path = FOLDER / "requests" / name.replace(" ", "-")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(b"%d\n%b" % (len(request), request) for request in requests))
    return path


def closed_loop(server: Server, requests: Path, connections: int, seconds: int) -> dict[str, Any]:
    """Return requests per second, latencies in ms, and the server's processor time per request in ms.

    Every connection sends its next request when it has its answer; the first answers count as well, so warm up.
    """
    command = [load_generator(), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency"]
    command += ["-s", str(SCRIPT), f"http://{HOST}:{server.port}/"]
    before = server.cpu_s()
    done = subprocess.run(
        command, env={**os.environ, "BENCH_REQUESTS": str(requests)}, capture_output=True, text=True, check=True
    )
    spent = server.cpu_s() - before
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    count = measured["requests"] - measured["errors"]
    measured["per_second"] = count / measured["seconds"]
    measured["cpu_ms"] = 1e3 * spent / max(1, count)
    return measured
