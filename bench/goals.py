"""What the service is meant to reach on two cores, and whether it does: ratios within each round, then the median."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.rows import (
    CREW,
    CREW_FP32,
    GIVEN,
    OURS,
    OURS_FP32,
    PEERS,
    Pick,
    Round,
    best,
    bulk,
    closed,
    limit,
    ratio,
    share,
    spread,
)

Holds = Callable[[float, float], bool]
AT_LEAST: Holds = operator.ge
AT_MOST: Holds = operator.le
SIGNS = {AT_LEAST: "≥", AT_MOST: "≤"}


class Goal(NamedTuple):
    """A figure that should be at least, or at most, a bound."""

    what: str
    pick: Pick
    holds: Holds
    bound: float
    unit: str = "×"


def goals(rounds: Sequence[Round]) -> list[tuple[str, str, str, str]]:
    """Return a row for each goal: what, measured, goal, reached."""
    rows = []
    for goal in _goals():
        found = spread(rounds, goal.pick)
        bound = f"{SIGNS[goal.holds]} {goal.bound:g} {goal.unit}"
        reached = "–" if found is None else "yes" if goal.holds(found.middle, goal.bound) else "no"
        rows.append((goal.what, f"{found.text(2)} {goal.unit}" if found else "–", bound, reached))
    return rows


def _goals() -> list[Goal]:
    return [*_throughput(), *_latency(), *_shares(), *_costs()]


def _throughput() -> list[Goal]:
    made = []
    for n in (32, 128):
        peers, given = best(PEERS, _at(n)), best(GIVEN, _at(n))
        made += [
            Goal(f"default precision against the best peer, {n} connections", _over(OURS, n, peers), AT_LEAST, 4),
            Goal(f"fp32 against the best peer, {n} connections", _over(OURS_FP32, n, peers), AT_LEAST, 2),
            Goal(f"peers given our path and precision, {n} connections", _over(OURS, n, given), AT_LEAST, 1.5),
        ]
        made += [
            Goal(f"two workers against the best peer, {n} connections", _over(CREW, n, peers), AT_LEAST, 4),
            Goal(
                f"two workers in fp32 against the best peer, {n} connections", _over(CREW_FP32, n, peers), AT_LEAST, 2
            ),
        ]
    one = best(PEERS, _at(1))
    return [*made, Goal("one connection, against the best peer", _over(OURS, 1, one), AT_LEAST, 2.5)]


def _latency() -> list[Goal]:
    p50_of_best = best(PEERS, lambda name: closed(name, 1, "p50_ms"), min)
    alone = ratio(closed(OURS, 1, "p99_ms"), p50_of_best)
    half = ratio(_open("open_half", "p99_ms"), _open("open_half", "p50_ms"))
    growth = ratio(_stretch(1000), _stretch(32))
    return [
        Goal("p99 at one connection over the best peer's p50", alone, AT_MOST, 1),
        Goal("open loop, 300/s: p99", _open("open_300", "p99_ms"), AT_MOST, 8, "ms"),
        Goal("open loop, half of capacity: p99 over p50", half, AT_MOST, 3),
        Goal("p99 per waiting request, 1000 connections over 32", growth, AT_MOST, 1),
    ]


def _shares() -> list[Goal]:
    over_http, by_crew = (ratio(closed(name, 32), limit("auto", "encode_png")) for name in (OURS, CREW))
    sheets = ratio(bulk("bulk", "sample png"), _naive_sheets)
    return [
        Goal("share of the in-process limit, one PNG a request, 32 connections", over_http, AT_LEAST, 0.7),
        Goal("the same with two workers", by_crew, AT_LEAST, 0.7),
        Goal("share of the limit, `/encode` npy of 512", share("encode"), AT_LEAST, 0.9),
        Goal("share of the limit, `/decode` npy of 512", share("decode"), AT_LEAST, 0.9),
        Goal("`/sample?n=64` as PNG against naive FastAPI", sheets, AT_LEAST, 5),
    ]


def _costs() -> list[Goal]:
    return [
        Goal("memory of all processes, loaded", lambda one: one[OURS]["memory_mib"], AT_MOST, 450, "MiB"),
        Goal("start to ready", lambda one: one[OURS]["start_s"], AT_MOST, 3, "s"),
    ]


def _over(name: str, connections: int, peers: Pick) -> Pick:
    return ratio(closed(name, connections), peers)


def _at(connections: int) -> Callable[[str], Pick]:
    return lambda name: closed(name, connections)


def _open(which: str, what: str) -> Pick:
    return lambda one: one[OURS][which][what]


def _stretch(connections: int) -> Pick:
    """Return the way to p99 in units of the time that the queue alone takes."""

    def of(one: Round) -> float:
        found = one["many connections"][str(connections)]
        if not found["requests"]:
            raise ValueError("nothing was answered in time")
        return float(found["p99_ms"] / 1e3 * found["per_second"] / connections)

    return of


def _naive_sheets(one: Round) -> float:
    return 64 * max(float(found["per_second"]) for found in one["sheets naive"].values())
