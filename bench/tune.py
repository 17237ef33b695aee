"""How the peers' settings in ``bench.contenders`` were found: ``python -m bench.tune``, a few minutes.

Every setting takes its turn in every round, at 32 and 128 connections; the best goes into ``bench.contenders``.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median

from bench import wrk
from bench.contenders import Contender, bentoml, litserve, mlserver
from bench.environments import PEERS, prepare
from bench.measures import files
from bench.processes import stop_on_sigterm

LEVELS = (32, 128)


def candidates() -> dict[str, Contender]:
    """Return what is tried, by a name that says how it is set."""
    return {
        **{
            f"LitServe, batch {batch}, wait {wait} ms, {fronts} API servers": litserve(batch, wait, fronts)
            for batch, wait, fronts in ((8, 2, 2), (16, 2, 2), (16, 5, 2), (32, 2, 2), (32, 10, 2), (16, 2, 1))
        },
        **{f"BentoML, batch {batch}, at most {wait} ms": bentoml(batch, wait) for batch, wait in BENTOML},
        **{f"MLServer, batch {batch}, wait {wait} ms": mlserver(batch, wait) for batch, wait in MLSERVER},
    }


BENTOML = ((16, 10_000), (32, 10_000), (64, 10_000), (32, 1000))
MLSERVER = ((16, 2), (32, 2), (32, 5), (32, 10), (64, 5))


def measure(contender: Contender, seconds: int) -> list[float]:
    """Return requests per second at each number of connections, after a warm-up."""
    path = wrk.save_requests(contender.name, [contender.request(file) for file in files()])
    with contender.start() as server:
        wrk.closed_loop(server, path, 32, 2)
        return [wrk.closed_loop(server, path, n, seconds)["per_second"] for n in LEVELS]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=2)
    options = parser.parse_args()
    stop_on_sigterm()
    for peer in PEERS:
        prepare(peer)
    found: dict[str, list[list[float]]] = {}
    for _ in range(options.rounds):
        for name, contender in candidates().items():
            found.setdefault(name, []).append(measure(contender, options.seconds))
            rates = [f"{median(values):.0f}" for values in zip(*found[name], strict=True)]
            print(f"{name}: {' / '.join(rates)} requests/s at {' / '.join(map(str, LEVELS))} connections", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
