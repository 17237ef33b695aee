"""Image, npy and safetensors bodies that somebody has tampered with: an answer or a refusal, at a bounded cost."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hostile_files import good_files, tampered
from inside import Inside, check_good, check_refusal, inside

ALLOWED = {200, 400, 413, 422}
MAX_CPU_S = 0.1
GENEROUS = 5  # times, for processors that have other things to do
ROUTES = {"/encode": "images", "/reconstruct": "images", "/kl": "images", "/score?samples=1": "images", "/decode": "z"}
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def service() -> Iterator[Inside]:
    with inside() as running:
        yield running


def attack(service: Inside, count: int, seed: int) -> tuple[Counter[str], float]:
    """Send ``count`` files; return statuses and codes, and the most processor seconds that one has cost."""
    chance, seen, dearest = random.Random(seed), Counter[str](), 0.0
    files = tampered(good_files(service.engine.latent_dim), seed)
    for _, (kind, body) in zip(range(count), files, strict=False):
        readers = [route for route in ROUTES if route != "/decode" or "image/" not in kind]
        target, headers = chance.choice(readers), {"content-type": kind}
        begin = time.process_time()
        reply = service.ask("POST", target, headers, body)
        dearest = max(dearest, time.process_time() - begin)
        assert reply.status in ALLOWED, (target, kind, body, reply.status, reply.body[:600])
        seen[str(reply.status)] += 1
        if reply.status == 200:
            check_good(reply)
        else:
            seen[check_refusal(reply)] += 1
    return seen, dearest


def test_tampered_files_are_answered_or_refused_on_every_route(service: Inside) -> None:
    seen, _ = attack(service, 1_000, seed=1)
    codes = ("200", "malformed_image", "malformed_npy", "malformed_safetensors", "too_many_pixels")
    assert min(seen[code] for code in codes) > 0, seen
    service.assert_unharmed()


@pytest.mark.slow
@pytest.mark.usefixtures("takes_minutes")
def test_fifty_thousand_tampered_files_fail_nothing_and_none_costs_much(
    service: Inside, record_property: Record
) -> None:
    attack(service, 100, seed=2)
    seen, dearest = attack(service, 50_000, seed=3)
    record_property("cases", 50_000)
    for name in ("200", "400", "413", "422"):
        record_property(f"answered {name}", seen[name])
    record_property("dearest, ms of processor time", round(dearest * 1e3, 1))
    assert dearest < GENEROUS * MAX_CPU_S
    service.assert_unharmed()
