"""An hour of everything at once: ``python -m tests.soak --minutes 75`` starts a server, loads it, looks, reports.

The load goes up and down between less than can be served and four times as much: images to encode, latents to
decode, seeded samples, divergences, scores, tampered bodies, clients who leave, connections that never finish. While
it warms up the weights are loaded anew now and then; later no more, as each time moves the memory by megabytes, up or
down (what many reloads leave behind is the campaign's row ``reloads``). Every answer that can be known is compared.
Writes a report in JSON, and a table.
"""

import argparse
import asyncio
import itertools
import json
import math
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this one, as pytest finds them

from crowds import Figures, Pictures, allow_files, assert_all_given_back, assert_unharmed, memory_of
from hostile_files import good_files, tampered
from hostile_json import good_bodies, mutated
from load_client import Answer, Outcome, Pool, closed_loop, one, request
from procfs import anonymous, family
from service_pictures import from_npy, npy
from service_process import Server

from tests.campaign import ROOT, keep

ALLOWED = {200, 400, 413, 422, 429, 503, 504}
MAX_SLOPE_MB_H = 1.0
WARM_UP_S = 600.0  # after which memory counts; of a shorter run 0.4
RELOADING = 0.5  # of the warm-up, in which the weights are loaded anew
LEAST_MINUTES = 60  # with fewer the slope says nothing about an hour
LOWEST_OF = 140  # seconds, somewhat more than a round: memory breathes with the load
REST_S = 15.0  # at the end of a round: what is free goes back meanwhile, and what is left can be compared
RELOAD_S = 150
SECTION_S = 20.0  # of one level of load
COUNTS = (1, 4, 16, 64)  # of samples and of draws: so that every size of batch is used for the first time early
LEVELS = (0.5, 1.0, 4.0, 1.0, 2.0)  # times the capacity
COURSES = ("memory", "anonymous")  # that are told in the report
SETTINGS = {"drain_delay_s": 0, "deadline_s": 5, "max_queue_items": 1024}

Ask = tuple[bytes, Callable[[Answer], str | None]]


@dataclass
class Seen:
    """What the soak has seen."""

    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)  # when, how much
    anonymous: list[tuple[float, int]] = field(default_factory=list)  # of it, what is no part of a file
    checked: int = 0
    left: int = 0


class Mixture:
    """Requests of all kinds, each with what its answer must be."""

    def __init__(self, pictures: Pictures, seen: Seen) -> None:
        self._pictures, self._seen = pictures, seen
        self._chance, self._samples = random.Random(7), dict[tuple[int, int], bytes]()
        dim = pictures.mu.shape[1]
        self._bad_json, self._bad_files = mutated(good_bodies(dim), 11), tampered(good_files(dim), 12)
        self._kinds = (self._encode,) * 8 + (self._sample, self._kl, self._score, self._json, self._file)

    def next(self) -> Ask:
        return self._chance.choice(self._kinds)()

    def _encode(self) -> Ask:
        number = self._chance.randrange(len(self._pictures.pixels))
        return self._pictures.request(number), lambda answer: self._known(self._pictures.check(number, answer), answer)

    def _sample(self) -> Ask:
        seed, n = self._chance.randrange(50), self._chance.choice(COUNTS)
        data = request("GET", f"/sample?n={n}&seed={seed}&format=npy")

        def check(answer: Answer) -> str | None:
            if answer[0] != 200:
                return None
            off = np.abs(from_npy(answer[1]) - from_npy(self._samples.setdefault((seed, n), answer[1]))).max()
            return self._known(f"samples of seed {seed} differ by {off:.3g}" if off > 1 / 255 else None, answer)

        return data, check

    def _kl(self) -> Ask:
        mu, sigma = round(self._chance.uniform(-3, 3), 3), round(self._chance.uniform(0.1, 3), 3)
        body = json.dumps({"mu": [[mu]], "sigma": [[sigma]]}).encode()
        want = (mu**2 + sigma**2 - 1) / 2 - np.log(sigma)

        def check(answer: Answer) -> str | None:
            if answer[0] != 200:
                return None
            got = json.loads(answer[1])["kl"][0]
            wrong = abs(got - want) > 1e-9 * max(1e-3, abs(want))
            return self._known(f"kl {got}, expected {want}" if wrong else None, answer)

        return request("POST", "/kl", {"content-type": "application/json"}, body), check

    def _score(self) -> Ask:
        picture = npy(self._pictures.pixels[self._chance.randrange(len(self._pictures.pixels))])
        draws = self._chance.choice(COUNTS)
        return request(
            "POST", f"/score?samples={draws}", {"content-type": "application/x-npy"}, picture
        ), lambda _: None

    def _json(self) -> Ask:
        route = self._chance.choice(("/encode", "/decode", "/kl", "/reconstruct"))
        return request("POST", route, {"content-type": "application/json"}, next(self._bad_json)), short

    def _file(self) -> Ask:
        kind, data = next(self._bad_files)
        return request("POST", "/encode", {"content-type": kind}, data), short

    def _known(self, problem: str | None, answer: Answer) -> str | None:
        self._seen.checked += answer[0] == 200
        return problem


def short(answer: Answer) -> str | None:
    """Return what is wrong with a refusal that is too long."""
    return None if answer[0] == 200 or len(answer[1]) <= 4096 else f"a refusal of {len(answer[1])} bytes"


async def section(port: int, mixture: Mixture, rate: float, seconds: float, seen: Seen) -> None:
    """Send a mixture at a rate, whatever becomes of it; write everything down."""
    outcome, tasks, begin = Outcome(), set[asyncio.Task[None]](), time.monotonic()
    async with Pool(port) as pool:
        for number in itertools.count():
            due = begin + number / rate
            if due > begin + seconds:
                break
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if number % 100 == 99:
                await leave(pool, mixture.next()[0], seen)
                continue
            data, check = mixture.next()
            task = asyncio.create_task(one(pool, outcome, number, data, due, lambda _, got, check=check: check(got)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    seen.statuses += outcome.statuses
    seen.codes += outcome.codes
    seen.seconds += outcome.seconds
    seen.wrong += outcome.wrong


async def leave(pool: Pool, data: bytes, seen: Seen) -> None:
    """Send a request, whole or half of it, and close the connection."""
    link = await pool.take()
    link.start(data if seen.left % 2 else data[: len(data) // 2]).cancel()
    await asyncio.sleep(0)
    link.transport.close()
    seen.left += 1


def watch(server: Server, seen: Seen, stop: threading.Event, warm_up_s: float) -> None:
    """Write the memory down once a second, and at the start reload the weights now and then."""
    begin = time.monotonic()
    for second in itertools.count(1):
        if stop.wait(max(0.0, begin + second - time.monotonic())):
            return
        seen.memory.append((time.monotonic() - begin, memory_of(server)))
        seen.anonymous.append((time.monotonic() - begin, anonymous(*family(server.pid))))
        if second % RELOAD_S == 0 and second <= RELOADING * warm_up_s:
            os.kill(server.pid, signal.SIGHUP)


def lowest(memory: list[tuple[float, int]], after_s: float = 0.0) -> list[tuple[float, int]]:
    """Return the lowest values of all whole stretches of ``LOWEST_OF`` seconds after a time."""
    after = [one for one in memory if one[0] > after_s]
    groups = [after[i : i + LOWEST_OF] for i in range(0, len(after) - LOWEST_OF + 1, LOWEST_OF)]
    return [min(group, key=lambda one: one[1]) for group in groups]


def slope_mb_h(memory: list[tuple[float, int]], warm_up_s: float) -> tuple[float, float]:
    """Return by how many megabytes an hour memory grows, and the standard error of that.

    A line is fitted to the lowest values after the warm-up.
    """
    found = lowest(memory, warm_up_s)
    if len(found) < 4:
        return 0.0, math.inf
    times, values = np.array(found, np.float64).T
    line, covariance = np.polyfit(times / 3600, values / 1e6, 1, cov=True)
    return float(line[0]), math.sqrt(covariance[0, 0])


async def load(server: Server, minutes: float, mixture: Mixture, seen: Seen) -> float:
    """Measure the capacity, send all levels of load, rest, and again until the time is over; return the capacity.

    It is the median over the rounds, as it changes with what else the machine does.
    """
    end, capacities = time.monotonic() + 60 * minutes, list[float]()
    while time.monotonic() < end:
        whole = await closed_loop(server.port, lambda _: mixture.next()[0], 2_000, 32)
        capacities.append(whole.statuses.total() / whole.span_s)
        for level in LEVELS:
            if (left := end - time.monotonic()) > 0:
                await section(server.port, mixture, level * capacities[-1], min(SECTION_S, left), seen)
        await asyncio.sleep(REST_S)
    return median(capacities)


def soak(minutes: float, folder: Path) -> dict[str, object]:
    """Return what the load came to, as a row of the campaign."""
    allow_files(8_000)
    pictures, seen, stop = Pictures(2_000), Seen(), threading.Event()
    warm_up_s = min(WARM_UP_S, 0.4 * 60 * minutes)
    server = Server(folder / "log.txt", SETTINGS)
    server.wait_until_ready()
    watcher = threading.Thread(target=watch, args=(server, seen, stop, warm_up_s))
    watcher.start()
    begin, harm = time.monotonic(), ""
    try:
        capacity = asyncio.run(load(server, minutes, Mixture(pictures, seen), seen))
        stop.set()  # the memory of what follows is not the load's
        try:
            assert_unharmed(server, pictures)
            assert_all_given_back(server, pictures)
        except AssertionError as error:  # what was seen until then is told nevertheless
            harm = str(error) or "not unharmed"
        computed = Figures(server)['vae_batch_items_sum{op="encode"}']
    except BaseException:
        server.terminate()
        raise
    finally:
        stop.set()
        watcher.join()
    server.end()  # once: a second signal would end it at once
    slope, error = slope_mb_h(seen.memory, warm_up_s)
    figures = {
        "requests": seen.statuses.total(),
        "capacity, a second": round(capacity),
        **{f"answered {status or 'nothing'}": count for status, count in sorted(seen.statuses.items())},
        **{f"refused as {code}": count for code, count in sorted(seen.codes.items())},
        "clients who left": seen.left,
        "answers checked by value": seen.checked,
        "wrong": len(seen.wrong),
        "images encoded": int(computed),
        "p99 of good answers, ms": round(sorted(seen.seconds)[int(0.99 * len(seen.seconds))] * 1e3),
        "memory at the end, MB": round(seen.memory[-1][1] / 1e6),
        "highest memory after warm-up, MB": round(max(size for when, size in seen.memory if when > warm_up_s) / 1e6),
        "memory slope after warm-up, MB an hour": round(slope, 2),
        "its standard error": round(error, 2),
        "of it anonymous memory, MB an hour": round(slope_mb_h(seen.anonymous, warm_up_s)[0], 2),
    }
    if harm:
        figures["harm"] = harm.splitlines()[0][:80]
    steady = slope + error < MAX_SLOPE_MB_H or minutes < LEAST_MINUTES
    passed = set(seen.statuses) <= ALLOWED and not seen.wrong and steady and not harm
    seconds = round(time.monotonic() - begin)
    courses = {f"lowest {name}, MB": course(values) for name, values in vars(seen).items() if name in COURSES}
    return {"passed": passed, "tests": 1, "seconds": seconds, "figures": figures, **courses}


def course(memory: list[tuple[float, int]]) -> list[tuple[int, float]]:
    """Return the lowest values of the whole run, with their times in seconds, in MB."""
    return [(round(when), round(value / 1e6, 2)) for when, value in lowest(memory)]


def lines(result: dict) -> Iterator[str]:
    for name, value in result["figures"].items():
        yield f"{name:<42} {value:>12}"
    yield "passed" if result["passed"] else "FAILED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--report", type=Path, default=ROOT / "soak.json", help="where the report is written")
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/reliability.md, too")
    given = parser.parse_args()
    if given.keep and given.minutes < LEAST_MINUTES:
        parser.error(f"got --keep with {given.minutes:g} minutes; figures are kept of {LEAST_MINUTES} or more")
    with TemporaryDirectory() as folder:
        result = soak(given.minutes, Path(folder))
    given.report.write_text(json.dumps(result, indent=1) + "\n")
    if given.keep:
        keep("soak", {name: value for name, value in result.items() if not name.startswith("lowest ")})
    print(*lines(result), sep="\n")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
