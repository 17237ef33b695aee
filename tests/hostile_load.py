"""Hostile bodies for a server on a port, by itself: ``python tests/hostile_load.py PORT COUNT``, or ``memory``.

With a count it sends so many tampered bodies and bombs, 16 at a time, and exits with 1 where one of them is answered
with anything but an answer or a refusal. ``memory`` sends many bodies of the largest size at the same time, to fill
whatever limit there is; what becomes of them does not matter.
"""

import asyncio
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from hostile_files import good_files, tampered
from hostile_json import good_bodies, mutated
from hostile_pictures import refused
from load_client import Outcome, closed_loop, open_loop, request

ALLOWED = {200, 400, 413, 422, 429}
LATENT_DIM = 32


def bodies(seed: int) -> "itertools.cycle[bytes] | itertools.chain[bytes]":
    json_bodies, files = mutated(good_bodies(LATENT_DIM), seed), tampered(good_files(LATENT_DIM), seed)
    bombs = [request("POST", "/encode", {"content-type": "image/png"}, data) for data, _ in refused().values()]

    def without_end():
        for route in itertools.cycle(("/encode", "/decode", "/kl", "/reconstruct", "/score?samples=1")):
            yield request("POST", route, {"content-type": "application/json"}, next(json_bodies))
            kind, data = next(files)
            yield request("POST", "/encode", {"content-type": kind}, data)

    return itertools.chain(bombs, without_end())


async def attack(port: int, count: int) -> Outcome:
    source = bodies(seed=5)
    return await closed_loop(port, lambda _: next(source), count, 16)


async def fill_memory(port: int) -> Outcome:
    row = b"[" + b",".join([b"0.12345"] * 500) + b"]"
    rows = b"[" + b",".join([row] * 1000) + b"]"
    data = request("POST", "/kl", {"content-type": "application/json"}, b'{"mu":' + rows + b',"sigma":' + rows + b"}")
    return await open_loop(port, lambda _: data, 20, 6)


def main(port: str, what: str) -> int:
    outcome = asyncio.run(fill_memory(int(port)) if what == "memory" else attack(int(port), int(what)))
    print(dict(outcome.statuses), dict(outcome.codes))
    return 0 if what == "memory" or set(outcome.statuses) <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
