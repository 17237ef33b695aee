"""Caching of samples: a seeded one may be kept for ever and answers 304, an unseeded one is never stored."""

import httpx
import pytest
from service_pictures import from_png

FOREVER = "public, max-age=31536000, immutable"
BASE = {"n": 3, "seed": 7, "format": "png"}


def get(http: httpx.Client, etag: str | None = None, **query: object) -> httpx.Response:
    headers = {} if etag is None else {"If-None-Match": etag}
    return http.get("/sample", params={**BASE, **query}, headers=headers)


@pytest.mark.parametrize("form", ["json", "png", "npy", "safetensors"])
def test_a_seeded_sample_may_be_kept_for_ever(http: httpx.Client, form: str) -> None:
    got = get(http, format=form)
    assert got.headers["cache-control"] == FOREVER
    assert got.headers["etag"].removeprefix("W/").startswith('"')
    assert got.headers["etag"] == get(http, format=form).headers["etag"]


@pytest.mark.parametrize("form", ["json", "png", "npy", "safetensors"])
def test_if_none_match_is_answered_with_304_and_no_body(http: httpx.Client, form: str) -> None:
    etag = get(http, format=form).headers["etag"]
    plain = etag.removeprefix("W/")
    for condition in (etag, plain, f"W/{plain}", "*", f'"other", {etag}', f'W/"x",{plain}'):
        got = get(http, condition, format=form)
        assert got.status_code == 304, condition
        assert got.content == b""
        assert got.headers["etag"] == etag
        assert got.headers["cache-control"] == FOREVER
        assert "accept" in got.headers["vary"].lower()
        assert {"x-request-id", "x-model-digest"} <= set(got.headers)


@pytest.mark.parametrize("path", ["/sample?n=3&seed=7&format=png", "/map"])
def test_the_lines_of_a_repeated_if_none_match_are_one_list(http: httpx.Client, path: str) -> None:
    etag = http.get(path).headers["etag"]
    for tags, status in ((('"other"', etag), 304), ((etag, '"other"'), 304), (('"a"', '"b"'), 200)):
        assert http.get(path, headers=[("If-None-Match", tag) for tag in tags]).status_code == status


def test_another_etag_is_answered_with_the_picture(http: httpx.Client) -> None:
    for condition in ('"other"', 'W/"other"', "nonsense", '""'):
        got = get(http, condition)
        assert got.status_code == 200, condition
        assert from_png(got.content).size


def test_head_of_a_known_sample_is_304(http: httpx.Client) -> None:
    etag = get(http).headers["etag"]
    assert http.head("/sample", params=BASE, headers={"If-None-Match": etag}).status_code == 304


def test_the_etag_names_everything_that_the_bytes_depend_on(http: httpx.Client) -> None:
    answers = [
        get(http),
        get(http, seed=8),
        get(http, n=4),
        get(http, temperature=0.5),
        get(http, columns=1),
        get(http, format="json"),
        get(http, format="npy"),
        get(http, format="safetensors"),
    ]
    assert len({one.headers["etag"] for one in answers}) == len(answers)


def test_the_etag_of_accept_is_that_of_the_type_it_chose(http: httpx.Client) -> None:
    path = "/sample?n=3&seed=7"
    tags = {http.get(path, headers={"Accept": kind}).headers["etag"] for kind in ("image/png", "application/json")}
    assert len(tags) == 2
    in_json = http.get(path, headers={"Accept": "application/json"}).headers["etag"]
    crossed = http.get(path, headers={"Accept": "image/png", "If-None-Match": in_json})
    assert crossed.status_code == 200
    assert crossed.headers["content-type"] == "image/png"


def test_a_strong_etag_stands_for_the_same_bytes_every_time(http: httpx.Client) -> None:
    for form in ("json", "png", "npy", "safetensors"):
        first = get(http, format=form)
        if not first.headers["etag"].startswith("W/"):
            assert {get(http, format=form).content for _ in range(5)} == {first.content}


@pytest.mark.parametrize("form", ["json", "png", "npy", "safetensors"])
def test_an_unseeded_sample_is_never_stored(http: httpx.Client, form: str) -> None:
    got = http.get("/sample", params={"n": 1, "format": form})
    assert "no-store" in got.headers["cache-control"]
    assert "etag" not in got.headers
    assert http.get("/sample", params={"n": 1}, headers={"If-None-Match": "*"}).status_code == 200


def test_a_bad_request_for_a_sample_is_not_kept_for_ever(http: httpx.Client) -> None:
    for query in ("n=0&seed=7", "n=1&seed=7&format=bmp", "n=1&seed=7&temperature=9"):
        assert "immutable" not in http.get(f"/sample?{query}").headers.get("cache-control", "")
