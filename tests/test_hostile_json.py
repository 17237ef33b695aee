"""JSON bodies that somebody has tampered with, on every route that reads one: an answer or a short, clear refusal."""

import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hostile_json import good_bodies, mutated
from inside import Inside, check_good, check_refusal, inside
from procfs import resident, settle

JSON = {"content-type": "application/json"}
ALLOWED = {200, 400, 413, 422}
MAX_GROWTH = 5_000_000
WARM_UP = 20_000  # cases after which caches, pools and arenas are full
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def service() -> Iterator[Inside]:
    with inside() as running:
        yield running


def routes(service: Inside) -> list[str]:
    """Return every POST route that reads JSON, from the document; scores with few draws, to save time."""
    paths = service.app.openapi()["paths"]
    found = [path for path, methods in paths.items() if "application/json" in _media_types(methods.get("post", {}))]
    return [path + "?samples=1" if path == "/score" else path for path in sorted(found)]


def _media_types(operation: dict) -> dict:
    content: dict = operation.get("requestBody", {}).get("content", {})
    return content


def attack(service: Inside, count: int, seed: int) -> Counter[str]:
    """Send ``count`` bodies, and count statuses and codes; the first that is answered wrongly ends it."""
    chance, seen = random.Random(seed), Counter[str]()
    targets, bodies = routes(service), mutated(good_bodies(service.engine.latent_dim), seed)
    assert {"/encode", "/decode", "/kl", "/score?samples=1", "/reconstruct"} <= set(targets)
    for _, body in zip(range(count), bodies, strict=False):
        target = chance.choice(targets)
        reply = service.ask("POST", target, JSON, body)
        assert reply.status in ALLOWED, (target, body[:300], reply.status, reply.body[:600])
        seen[str(reply.status)] += 1
        if reply.status == 200:
            check_good(reply)
        else:
            seen[check_refusal(reply)] += 1
            seen["longest"] = max(seen["longest"], len(reply.body))
    return seen


def test_tampered_json_is_answered_or_refused_on_every_route(service: Inside) -> None:
    seen = attack(service, 1_500, seed=1)
    assert min(seen["200"], seen["malformed_json"], seen["invalid_field"], seen["not_finite"]) > 0, seen
    service.assert_unharmed()


@pytest.mark.slow
@pytest.mark.usefixtures("takes_minutes")
def test_a_hundred_thousand_tampered_json_bodies_fail_nothing_and_leave_no_memory_behind(
    service: Inside, record_property: Record
) -> None:
    attack(service, WARM_UP, seed=2)
    settle()
    before = resident()
    seen = attack(service, 100_000, seed=3)
    settle()
    growth = resident() - before
    record_property("cases", 100_000)
    for name in ("200", "400", "413", "422"):
        record_property(f"answered {name}", seen[name])
    record_property("longest refusal, bytes", seen["longest"])
    record_property("memory growth, MB", round(growth / 1e6, 2))
    assert growth < MAX_GROWTH
    service.assert_unharmed()
