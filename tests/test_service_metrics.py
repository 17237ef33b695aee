"""GET /metrics: the names of the contract, what they count, and that no request can add a series."""

import uuid

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from service_answers import POST_ROUTES
from service_pictures import NPY, PNG, ink, npy, png

LABELS = {
    "vae_requests_total": {"route", "status"},
    "vae_request_seconds": {"route"},
    "vae_queue_wait_seconds": {"op"},
    "vae_device_seconds": {"op"},
    "vae_batch_items": {"op"},
    "vae_queue_items": {"op"},
    "vae_posterior_kl_nats": set(),
    "vae_model_info": {"name", "digest", "device", "precision"},
}
HISTOGRAMS = {
    "vae_request_seconds",
    "vae_queue_wait_seconds",
    "vae_device_seconds",
    "vae_batch_items",
    "vae_posterior_kl_nats",
}
Series = tuple[str, tuple[tuple[str, str], ...]]


def read(http: httpx.Client) -> dict[Series, float]:
    text = http.get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(series: dict[Series, float], name: str, **labels: str) -> float:
    return series.get((name, tuple(sorted(labels.items()))), 0.0)


@pytest.fixture(scope="module")
def warm(http: httpx.Client, latent_dim: int) -> None:
    """Every route, asked once, well and badly, so that whatever series it has are there."""
    for route in ("/encode", "/reconstruct", "/score?samples=2", "/kl"):
        http.post(route, content=png(ink()), headers=PNG)
    http.post("/decode", json={"z": [[0] * latent_dim]})
    for route in POST_ROUTES:
        http.post(route, content=b"x", headers=PNG)
        http.post(route, content=b"x", headers={"Content-Type": "text/plain"})
        http.post(route, content=b"{}", headers={"Content-Type": "application/json"})
        http.post(route, content=b"x", headers={"If-Model-Match": "x"})
        http.post(route, params={"format": "bmp"}, content=b"x")
        http.put(route)
    for route in ("/", "/sample", "/sample?n=0", "/sample?n=1&format=bmp", "/model", "/livez", "/readyz", "/docs"):
        http.get(route)
        http.put(route.partition("?")[0])
    for route in ("/metrics", "/openapi.json", "/nothing", "/v1/nothing", "/static/nothing"):
        http.get(route)
        http.put(route)


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("name", LABELS)
def test_a_metric_of_the_contract_is_there_with_its_labels(http: httpx.Client, name: str) -> None:
    parts = {f"{name}_bucket", f"{name}_count", f"{name}_sum"} if name in HISTOGRAMS else {name}
    found = [(metric, {key for key, _ in labels}) for metric, labels in read(http) if metric in parts]
    assert {metric for metric, _ in found} == parts
    for metric, labels in found:
        assert labels - {"le"} == LABELS[name], metric


def test_metrics_are_prometheus_text(http: httpx.Client) -> None:
    got = http.get("/metrics")
    assert got.headers["content-type"].startswith("text/plain")
    assert "# TYPE vae_requests_total counter" in got.text
    assert "# HELP vae_posterior_kl_nats " in got.text
    assert "# TYPE vae_rejected_total counter" in got.text  # its label: in the tests of overload


def test_the_model_is_named_once(http: httpx.Client, model: dict) -> None:
    found = [(dict(labels), v) for (name, labels), v in read(http).items() if name == "vae_model_info"]
    assert found == [({key: model[key] for key in ("name", "digest", "device", "precision")}, 1.0)]


def test_requests_are_counted_by_route_and_status_and_the_twin_counts_as_its_route(http: httpx.Client) -> None:
    before = read(http)
    for path in ("/encode", "/v1/encode"):
        http.post(path, content=png(ink()), headers=PNG)
        http.post(path, content=b"x", headers=PNG)
    after = read(http)
    for status in ("200", "400"):
        grown = {
            labels: after[("vae_requests_total", labels)] - before.get(("vae_requests_total", labels), 0)
            for name, labels in after
            if name == "vae_requests_total" and dict(labels)["status"] == status
        }
        encodes = {dict(labels)["route"]: n for labels, n in grown.items() if "encode" in dict(labels)["route"]}
        assert sum(encodes.values()) == 2
        assert encodes.get("/encode", 0) in {1, 2}


def test_encoded_images_are_counted_in_the_divergence_histogram(http: httpx.Client, strokes: np.ndarray) -> None:
    before = read(http)
    http.post("/encode", content=npy(strokes), headers=NPY)
    after = read(http)
    grown = value(after, "vae_posterior_kl_nats_count") - value(before, "vae_posterior_kl_nats_count")
    assert grown == len(strokes)
    kl = http.post("/kl", content=npy(strokes), headers=NPY).json()["kl"]
    total = value(after, "vae_posterior_kl_nats_sum") - value(before, "vae_posterior_kl_nats_sum")
    assert total == pytest.approx(sum(kl), rel=1e-4)


def grown_by(before: dict[Series, float], after: dict[Series, float], name: str) -> float:
    return sum(v - before.get(key, 0) for key, v in after.items() if key[0] == name)


def test_batches_waits_and_device_time_grow_with_work(http: httpx.Client, strokes: np.ndarray) -> None:
    before = read(http)
    http.post("/encode", content=npy(strokes), headers=NPY)
    after = read(http)
    assert grown_by(before, after, "vae_batch_items_sum") >= len(strokes)
    assert grown_by(before, after, "vae_batch_items_count") >= 1
    assert grown_by(before, after, "vae_device_seconds_sum") > 0
    assert grown_by(before, after, "vae_queue_wait_seconds_count") >= 1
    assert grown_by(before, after, "vae_request_seconds_count") >= 1


def test_nobody_waits_in_an_idle_service(http: httpx.Client) -> None:
    assert all(v == 0 for (name, _), v in read(http).items() if name == "vae_queue_items")


@pytest.mark.usefixtures("warm")
def test_no_request_can_add_a_series(http: httpx.Client) -> None:
    before = set(read(http))
    for i in range(30):
        odd = f"{uuid.uuid4().hex}{i}"
        http.get(f"/{odd}")
        http.get(f"/v1/{odd}")
        http.get(f"/static/{odd}.js")
        http.get(f"/encode/{odd}")
        http.put(f"/{odd}?{odd}={odd}")
        http.get("/livez", headers={"X-Request-ID": odd, "User-Agent": odd, odd: odd, "Host": odd})
        http.post("/encode", content=b"x", headers={"Content-Type": f"text/{odd}"})
        http.post("/encode", params={"format": odd}, content=b"x")
        http.get("/sample", params={"n": odd, "seed": odd})
        http.post("/encode", content=b"x", headers={"If-Model-Match": odd})
        http.post("/decode", json={odd: 1})
    added = set(read(http)) - before
    assert not added
    assert not [key for key in before if any(len(text) > 40 for _, text in key[1])]


@pytest.mark.usefixtures("warm")
def test_routes_and_statuses_are_a_closed_set(http: httpx.Client) -> None:
    labels = [dict(labels) for name, labels in read(http) if name == "vae_requests_total"]
    known = set(http.get("/openapi.json").json()["paths"]) | {"/", "/static", "/metrics", "/docs", "/openapi.json"}
    outside = {one["route"] for one in labels} - known
    assert len(outside) <= 3, outside  # one name for all unknown paths, and for static files
    assert all(one["status"].isdigit() and len(one["status"]) == 3 for one in labels)
