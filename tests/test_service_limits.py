"""Limits, to the byte, the pixel and the item: the last that is allowed passes, one more is 413 and says why."""

import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from service_answers import answer, problem
from service_pictures import JSON, NPY, PNG, base64_text, images_json, ink, jpeg, multipart, npy, png
from service_process import Server

ITEMS = 5
BYTES = 40_000
PIXELS = 10_000
ORIGIN = "https://pictures.example"


def too_large(got: httpx.Response, code: str, setting: str, limit: int) -> None:
    body = problem(got, 413, code)
    assert setting in body["detail"]
    assert str(limit) in body["detail"].replace(",", "").replace("_", "")


def test_the_model_route_tells_the_limits_that_are_set(small: httpx.Client) -> None:
    limits = answer(small.get("/model"))["limits"]
    assert limits["max_items"] == ITEMS
    assert limits["max_body_bytes"] == BYTES
    assert limits["max_pixels"] == PIXELS
    assert limits["max_queue_items"] == 500
    assert limits["deadline_s"] == 12.5


def padded(size: int) -> bytes:
    body = images_json((ink() // 255).tolist())
    return body + b" " * (size - len(body))


def test_a_body_of_exactly_the_limit_passes_and_one_byte_more_is_413(small: httpx.Client) -> None:
    answer(small.post("/encode", content=padded(BYTES), headers=JSON))
    too_large(
        small.post("/encode", content=padded(BYTES + 1), headers=JSON), "body_too_large", "VAE_MAX_BODY_BYTES", BYTES
    )


def test_the_body_limit_holds_for_chunked_bodies_too(small: httpx.Client) -> None:
    def chunks(size: int) -> Iterator[bytes]:
        body = padded(size)
        for start in range(0, size, 1000):
            yield body[start : start + 1000]

    answer(small.post("/encode", content=chunks(BYTES), headers=JSON))
    got = small.post("/encode", content=chunks(BYTES + 1), headers=JSON)
    too_large(got, "body_too_large", "VAE_MAX_BODY_BYTES", BYTES)


@pytest.mark.parametrize("route", ["/encode", "/decode", "/kl", "/score", "/reconstruct", "/v1/encode"])
def test_the_body_limit_holds_on_every_route(small: httpx.Client, route: str) -> None:
    got = small.post(route, content=b" " * (BYTES + 1), headers=JSON)
    too_large(got, "body_too_large", "VAE_MAX_BODY_BYTES", BYTES)


def images_in(count: int) -> list[dict]:
    x = np.zeros((count, 28, 28), np.uint8)
    return [
        {"content": npy(x), "headers": NPY},
        {"content": images_json(*[base64_text(png(one)) for one in x]), "headers": JSON},
        {"files": multipart(*[png(one) for one in x])},
    ]


@pytest.mark.parametrize("route", ["/encode", "/reconstruct", "/score?samples=2", "/kl"])
def test_so_many_images_pass_and_one_more_is_413(small: httpx.Client, route: str) -> None:
    for form in images_in(ITEMS):
        assert small.post(route, **form).status_code == 200
    for form in images_in(ITEMS + 1):
        too_large(small.post(route, **form), "too_many_items", "VAE_MAX_ITEMS", ITEMS)


def test_so_many_latents_samples_and_rows_pass_and_one_more_is_413(small: httpx.Client, latent_dim: int) -> None:
    def latents(n: int) -> httpx.Response:
        return small.post("/decode", content=npy(np.zeros((n, latent_dim), np.float32)), headers=NPY)

    def rows(n: int) -> httpx.Response:
        return small.post("/kl", json={"mu": [[0.5]] * n, "sigma": [[1]] * n})

    def samples(n: int) -> httpx.Response:
        return small.get("/sample", params={"n": n})

    for ask in (latents, rows, samples):
        assert ask(ITEMS).status_code == 200
        too_large(ask(ITEMS + 1), "too_many_items", "VAE_MAX_ITEMS", ITEMS)
    in_json = small.post("/decode", json={"z": [[0] * latent_dim] * (ITEMS + 1)})
    too_large(in_json, "too_many_items", "VAE_MAX_ITEMS", ITEMS)


def test_so_many_pixels_pass_and_one_more_row_is_413(small: httpx.Client) -> None:
    right, large = np.zeros((100, 100), np.uint8), np.zeros((101, 100), np.uint8)
    for pack in (png, jpeg):
        kind = {"Content-Type": "image/png" if pack is png else "image/jpeg"}
        answer(small.post("/encode", content=pack(right), headers=kind))
        got = small.post("/encode", content=pack(large), headers=kind)
        too_large(got, "too_many_pixels", "VAE_MAX_PIXELS", PIXELS)
    got = small.post("/encode", content=images_json(base64_text(png(large))), headers=JSON)
    too_large(got, "too_many_pixels", "VAE_MAX_PIXELS", PIXELS)
    got = small.post("/encode", files=multipart(png(right), png(large)))
    too_large(got, "too_many_pixels", "VAE_MAX_PIXELS", PIXELS)


def test_a_refused_request_leaves_the_connection_and_the_service_usable(small: httpx.Client) -> None:
    small.post("/encode", content=padded(BYTES + 1), headers=JSON)
    answer(small.post("/encode", content=png(ink()), headers=PNG))


def test_an_origin_that_is_set_may_read_and_another_may_not(small: httpx.Client) -> None:
    for origin in (ORIGIN, "http://localhost:5173"):
        got = small.get("/model", headers={"Origin": origin})
        assert got.headers["access-control-allow-origin"] == origin
    for origin in ("https://evil.example", ORIGIN + ".evil", "null"):
        got = small.get("/model", headers={"Origin": origin})
        assert got.headers.get("access-control-allow-origin") is None


def test_a_preflight_of_an_origin_that_is_set_allows_the_request(small: httpx.Client) -> None:
    ask = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,if-model-match,x-request-id,x-timeout-ms",
    }
    got = small.options("/encode", headers=ask)
    assert got.status_code in {200, 204}
    assert got.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in got.headers["access-control-allow-methods"]
    got = small.options("/encode", headers=ask | {"Origin": "https://evil.example"})
    assert got.headers.get("access-control-allow-origin") is None


def test_an_error_can_be_read_by_an_origin_that_is_set(small: httpx.Client) -> None:
    got = small.post("/encode", content=b"x", headers=PNG | {"Origin": ORIGIN})
    problem(got, 400)
    assert got.headers["access-control-allow-origin"] == ORIGIN


def test_every_line_of_a_json_log_is_one_json_object(small: httpx.Client, small_server: Server) -> None:
    small.post("/encode", content=png(ink()), headers=PNG)
    lines = small_server.log.read_text().splitlines()
    assert lines
    assert all(isinstance(json.loads(line), dict) for line in lines)
