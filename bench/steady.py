"""Ten minutes at 1,000 connections: ``python -m bench.steady``; is memory flat, and does p99 stay bounded?

A closed loop of single PNG images in stretches of half a minute, after five minutes to warm up. The memory of all the
server's processes is read every second, and the median is that of a stretch: free pages go back every ten seconds,
and what lies free between two such times is more than a leak would be. Prints a table in Markdown; exits with 1 where
memory or latencies grow, or an answer is not 200.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from threading import Event, Thread
from typing import Any

import numpy as np

from bench import wrk
from bench.contenders import own
from bench.measures import files
from bench.processes import Server, stop_on_sigterm

STRETCH_S = 30
WARM_UP_S = 300
LOOK_S = 1.0  # between two looks at the memory
MAX_SLOPE_MIB_H = 5.0
MAX_GROWTH = 1.5  # of p99, the second half over the first


def measure(connections: int, stretches: int) -> list[dict[str, Any]]:
    """Return what each stretch after the warm-up came to, with its ``memory_mib``."""
    ours, found = own("vae-service"), list[dict[str, Any]]()
    path = wrk.save_requests("steady", [ours.request(file) for file in files()])
    warm_up = WARM_UP_S // STRETCH_S
    with ours.start() as server:
        for _ in range(warm_up + stretches):
            with watched(server) as memory:
                stretch = wrk.closed_loop(server, path, connections, STRETCH_S)
            found.append(stretch | {"memory_mib": median(memory)})
            told = f"{stretch['per_second']:.0f}/s, p99 {stretch['p99_ms']:.0f} ms, {median(memory):.1f} MiB"
            print(told + ", warm-up" * (len(found) <= warm_up), file=sys.stderr)
    return found[warm_up:]


@contextmanager
def watched(server: Server) -> Iterator[list[float]]:
    """Yield a list to which a server's memory is added now and every ``LOOK_S`` as long as inside, in MiB."""
    seen, over = [server.memory_mib()], Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            seen.append(server.memory_mib())

    thread = Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def figures(found: list[dict[str, Any]]) -> dict[str, float]:
    """Return the figures that count."""
    memory = [stretch["memory_mib"] for stretch in found]
    line, covariance = np.polyfit(np.arange(len(memory)) * STRETCH_S / 3600, memory, 1, cov=True)
    half = len(found) // 2
    p99 = [stretch["p99_ms"] for stretch in found]
    return {
        "minutes": len(found) * STRETCH_S / 60,
        "requests": sum(stretch["requests"] for stretch in found),
        "not answered with 200": sum(stretch["errors"] for stretch in found),
        "requests a second, median": median(stretch["per_second"] for stretch in found),
        "p50, ms, median": median(stretch["p50_ms"] for stretch in found),
        "p99, ms, median": median(p99),
        "p99, ms, largest": max(p99),
        "p99, second half over first": median(p99[half:]) / median(p99[:half]),
        "memory, MiB, in the first stretch": memory[0],
        "memory, MiB, in the last stretch": memory[-1],
        "memory slope, MiB an hour": float(line[0]),
        "its standard error": float(covariance[0, 0] ** 0.5),
    }


def holds(result: dict[str, float]) -> bool:
    """Return whether memory is flat, p99 bounded, and every answer a 200."""
    flat = result["memory slope, MiB an hour"] <= MAX_SLOPE_MIB_H
    bounded = result["p99, second half over first"] <= MAX_GROWTH
    return flat and bounded and not result["not answered with 200"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="at least 2, after the warm-up")
    parser.add_argument("--connections", type=int, default=1000)
    given = parser.parse_args()
    stop_on_sigterm()
    result = figures(measure(given.connections, max(4, round(60 * given.minutes / STRETCH_S))))
    print(f"| {given.connections} connections | |\n|---|---|")
    for name, value in result.items():
        print(f"| {name} | {value:,.4g} |" if value < 1e4 else f"| {name} | {value:,.0f} |")
    return 0 if holds(result) else 1


if __name__ == "__main__":
    sys.exit(main())
