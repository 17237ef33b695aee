"""Ten minutes at 1,000 connections: ``python -m bench.steady``; is memory flat, and does p99 stay bounded?

A closed loop of single PNG images in stretches of half a minute; after each the memory of all the server's processes
is read. Prints a table in Markdown; exits with 1 where memory or latencies grow, or an answer is not 200.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median
from typing import Any

import numpy as np

from bench import wrk
from bench.contenders import own
from bench.measures import files
from bench.processes import stop_on_sigterm

STRETCH_S = 30
WARM = 0.2  # of the stretches, after which memory counts
MAX_SLOPE_MIB_H = 5.0  # of a line through so few minutes, 0.5 MiB of chance in ten of them
MAX_GROWTH = 1.5  # of p99, the second half over the first


def measure(connections: int, stretches: int) -> list[dict[str, Any]]:
    """Return what each stretch came to, with ``memory_mib`` after it."""
    ours, found = own("vae-service"), []
    path = wrk.save_requests("steady", [ours.request(file) for file in files()])
    with ours.start() as server:
        wrk.closed_loop(server, path, 32, 2)
        for _ in range(stretches):
            stretch = wrk.closed_loop(server, path, connections, STRETCH_S)
            found.append(stretch | {"memory_mib": server.memory_mib()})
            print(f"{stretch['per_second']:.0f}/s, p99 {stretch['p99_ms']:.0f} ms", file=sys.stderr)
    return found


def figures(found: list[dict[str, Any]]) -> dict[str, float]:
    """Return the figures that count."""
    memory = [stretch["memory_mib"] for stretch in found][int(WARM * len(found)) :]
    hours = np.arange(len(memory)) * STRETCH_S / 3600
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
        "memory, MiB, after the first stretch": found[0]["memory_mib"],
        "memory, MiB, at the end": memory[-1],
        "memory slope after warm-up, MiB an hour": float(np.polyfit(hours, memory, 1)[0]),
    }


def holds(result: dict[str, float]) -> bool:
    """Return whether memory is flat, p99 bounded, and every answer a 200."""
    flat = result["memory slope after warm-up, MiB an hour"] <= MAX_SLOPE_MIB_H
    bounded = result["p99, second half over first"] <= MAX_GROWTH
    return flat and bounded and not result["not answered with 200"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="at least 2")
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
