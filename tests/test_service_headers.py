"""Headers on every answer: request id, model digest, server timing, and the precondition on the model."""

import re

import httpx
import pytest
from service_answers import problem, timing
from service_pictures import NPY, PNG, ink, npy, png

PATHS = ("/", "/sample?n=1&seed=1", "/model", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/nothing")
SANE = ("abc", "01JABCDEF-x_y.z", "9f" * 16)
INSANE = ("", "a b", "x" * 1000, "<script>", 'quo"te', "semi;colon", "new\tline", "{json}", "a,b")


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_carries_a_request_id_and_the_digest_of_the_model(
    http: httpx.Client, model: dict, path: str
) -> None:
    got = http.get(path)
    assert re.fullmatch(r"[A-Za-z0-9._-]{8,128}", got.headers["x-request-id"])
    assert got.headers["x-model-digest"] == model["digest"]


@pytest.mark.parametrize("token", SANE)
def test_a_sane_request_id_comes_back_in_answers_and_in_errors(http: httpx.Client, token: str) -> None:
    mine = {"X-Request-ID": token}
    assert http.get("/livez", headers=mine).headers["x-request-id"] == token
    assert http.post("/encode", content=png(ink()), headers=PNG | mine).headers["x-request-id"] == token
    for got in (
        http.get("/nothing", headers=mine),
        http.put("/encode", headers=mine),
        http.post("/encode", content=b"x", headers=PNG | mine),
        http.post("/encode", content=b"x", headers=mine | {"Content-Type": "text/plain"}),
    ):
        assert problem(got, got.status_code)["request_id"] == token


@pytest.mark.parametrize("token", INSANE)
def test_an_insane_request_id_is_replaced(http: httpx.Client, token: str) -> None:
    for path in ("/livez", "/nothing"):
        got = http.get(path, headers={"X-Request-ID": token}).headers["x-request-id"]
        assert got != token
        assert re.fullmatch(r"[A-Za-z0-9._-]{8,128}", got)


def test_a_request_id_of_other_bytes_than_ascii_is_replaced(http: httpx.Client) -> None:
    got = http.get("/livez", headers=[(b"X-Request-ID", "größe".encode())])
    assert got.status_code == 200
    assert got.headers["x-request-id"].isascii()


def test_every_request_without_an_id_gets_its_own(http: httpx.Client) -> None:
    assert len({http.get("/livez").headers["x-request-id"] for _ in range(50)}) == 50


@pytest.mark.parametrize("path", ["/encode", "/reconstruct", "/kl", "/score?samples=4"])
def test_server_timing_tells_queue_device_and_total_where_a_model_ran(http: httpx.Client, path: str) -> None:
    check_timing(http.post(path, content=png(ink()), headers=PNG))


def test_server_timing_stands_on_decode_and_sample_too(http: httpx.Client, latent_dim: int) -> None:
    check_timing(http.get("/sample?n=3"))
    check_timing(http.post("/decode", json={"z": [[0] * latent_dim]}))


def check_timing(got: httpx.Response) -> None:
    assert got.status_code == 200, got.text
    members = timing(got)
    assert {"queue", "device", "total"} <= set(members)
    assert all(duration >= 0 for duration in members.values())
    assert members["total"] > 0
    assert members["device"] > 0
    assert members["total"] + 0.1 >= members["queue"]


MODEL_ROUTES = (
    ("POST", "/encode"),
    ("POST", "/v1/encode"),
    ("POST", "/reconstruct"),
    ("POST", "/score?samples=2"),
    ("POST", "/kl"),
    ("POST", "/decode"),
    ("GET", "/sample?n=1&seed=2"),
    ("GET", "/v1/sample?n=1&seed=2"),
)


def send(http: httpx.Client, method: str, path: str, latent_dim: int, **headers: str) -> httpx.Response:
    extra = {name.replace("_", "-"): value for name, value in headers.items()}
    if method == "GET":
        return http.get(path, headers=extra)
    if path == "/decode":
        return http.post(path, json={"z": [[0] * latent_dim]}, headers=extra)
    return http.post(path, content=npy(ink()), headers=NPY | extra)


@pytest.mark.parametrize(("method", "path"), MODEL_ROUTES)
def test_the_digest_that_is_loaded_passes_if_model_match(
    http: httpx.Client, model: dict, latent_dim: int, method: str, path: str
) -> None:
    assert send(http, method, path, latent_dim, If_Model_Match=model["digest"]).status_code == 200


@pytest.mark.parametrize(("method", "path"), MODEL_ROUTES)
@pytest.mark.parametrize("other", ["0123456789abcdef", "nonsense", "0" * 64])
def test_another_digest_is_412_and_the_loaded_one_is_told(
    http: httpx.Client, model: dict, latent_dim: int, method: str, path: str, other: str
) -> None:
    body = problem(send(http, method, path, latent_dim, If_Model_Match=other), 412, "model_mismatch")
    assert model["digest"] in body["detail"]


def test_a_precondition_that_fails_goes_before_a_304(http: httpx.Client) -> None:
    tag = http.get("/sample?n=1&seed=2").headers["etag"]
    got = http.get("/sample?n=1&seed=2", headers={"If-None-Match": tag, "If-Model-Match": "f" * 16})
    problem(got, 412)


def test_nobody_else_may_read_answers_from_a_browser_unless_cors_is_set(http: httpx.Client) -> None:
    got = http.get("/model", headers={"Origin": "https://example.org"})
    assert not [name for name in got.headers if name.startswith("access-control")]
    ask = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    preflight = http.options("/encode", headers=ask)
    assert not [name for name in preflight.headers if name.startswith("access-control")]


def test_a_preflight_of_an_origin_that_may_call_is_answered(small: httpx.Client) -> None:
    ask = {"Origin": "https://pictures.example", "Access-Control-Request-Method": "POST"}
    got = small.options("/encode", headers=ask)
    assert got.status_code == 200
    assert got.headers["access-control-allow-origin"] == "https://pictures.example"


@pytest.mark.parametrize(
    "refused",
    [
        {"Origin": "https://example.org"},
        {"Origin": "https://pictures.example", "Access-Control-Request-Method": "DELETE"},
        {"Origin": "https://pictures.example", "Access-Control-Request-Headers": "X-Other"},
    ],
    ids=["origin", "method", "header"],
)
def test_a_preflight_that_is_refused_is_answered_as_every_error(small: httpx.Client, refused: dict[str, str]) -> None:
    got = small.options("/encode", headers={"Access-Control-Request-Method": "POST"} | refused)
    problem(got, 405, "method_not_allowed")
    assert "origin" in got.headers["vary"].lower()
    problem(small.options("/nothing", headers={"Access-Control-Request-Method": "POST"} | refused), 404)


@pytest.mark.parametrize("path", ["/", "/docs", "/static/style.css"])
@pytest.mark.parametrize("part", ["bytes=abc", "bytes=99999999-", "bytes=0-5", "bytes=0-1,4-5", "pages=1-2"])
def test_files_come_whole_whatever_part_is_asked_for(http: httpx.Client, path: str, part: str) -> None:
    whole, got = http.get(path), http.get(path, headers={"Range": part})
    assert (got.status_code, got.content) == (200, whole.content)
    assert got.headers["accept-ranges"] == "none"
    assert "content-range" not in got.headers
    assert http.head(path, headers={"Range": part}).status_code == 200
