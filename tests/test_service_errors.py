"""Errors: one body for all of them, bounded, without the input, without what is inside, from whatever layer."""

import json
import socket
from collections.abc import Iterator

import httpx
import pytest
from service_answers import POST_ROUTES, problem, strict_json
from service_pictures import JSON, NPY, PNG, ink, multipart, npy, png
from service_process import Server

MARK = "Xyzzy42Marker"


def bad_requests(http: httpx.Client) -> Iterator[httpx.Response]:
    """Requests that carry a mark wherever a caller can put one, each of them bad."""
    yield http.get(f"/{MARK}")
    yield http.get(f"/{MARK}?{MARK}={MARK}")
    for route in POST_ROUTES:
        yield http.put(route, content=MARK)
        yield http.post(route, content=MARK, headers={"Content-Type": f"application/{MARK}"})
        yield http.post(route, content=f'{{"{MARK}": 1}}', headers=JSON)
        yield http.post(route, content=f'{{"images": ["{MARK}"], "z": "{MARK}", "mu": "{MARK}"}}', headers=JSON)
        yield http.post(route, content=f'{{"z": [["{MARK}"]], "images": [[["{MARK}"]]]}}', headers=JSON)
        yield http.post(route, content=f'"{MARK}"', headers=JSON)
        yield http.post(route, content=f"{{{MARK}", headers=JSON)
    for route in ("/encode", "/score", "/kl", "/reconstruct"):
        yield http.post(route, content=png(ink()), headers=PNG | {"Accept": f"text/{MARK}"})
        yield http.post(route, params={"format": MARK}, content=png(ink()), headers=PNG)
        yield http.post(route, params={"resize": MARK}, content=png(ink()), headers=PNG)
        yield http.post(route, files=multipart(MARK.encode(), name=MARK))
        yield http.post(route, files=[("images", (MARK, MARK.encode(), f"image/{MARK}"))])
        yield http.post(route, content=npy(ink()).replace(b"|u1", b"|Z9") + MARK.encode(), headers=NPY)
    for name in ("n", "seed", "temperature", "columns", "format"):
        yield http.get("/sample", params={name: MARK})
    for name in ("samples", "seed"):
        yield http.post("/score", params={name: MARK}, content=png(ink()), headers=PNG)
    yield http.post("/encode", params={"draws": MARK}, content=png(ink()), headers=PNG)
    yield http.post("/kl", params={"unit": MARK}, json={"mu": [[0]], "sigma": [[1]]})
    yield http.post("/kl", json={"p": {MARK: [1]}, "q": {"mean": [1], "std": MARK}})
    yield http.get("/sample", headers={"If-Model-Match": MARK})
    yield http.get("/sample", headers={"Accept": f"text/{MARK}"})


def test_no_refusal_echoes_the_input_and_every_one_is_a_problem(http: httpx.Client) -> None:
    seen = 0
    for got in bad_requests(http):
        assert got.status_code in {400, 404, 405, 406, 412, 415, 422}, (got.request.url, got.text)
        problem(got, got.status_code)
        assert MARK.lower() not in got.text.lower(), (got.request.url, got.text)
        seen += 1
    assert seen > 70


LONG = "9" * 300_000
HUGE: dict[str, tuple[str, str]] = {
    "many bad rows": ("/decode", json.dumps({"z": [["x"]] * 900})),
    "many bad numbers": ("/decode", json.dumps({"z": [["x"] * 5000]})),
    "many unknown fields": ("/decode", json.dumps({f"field{i}": i for i in range(5000)})),
    "a long unknown field": ("/decode", json.dumps({"k" * 300_000: 1})),
    "a long text": ("/encode", json.dumps({"images": ["A" * 300_000]})),
    "many bad images": ("/encode", json.dumps({"images": ["AAAA"] * 900})),
    "many null images": ("/encode", json.dumps({"images": [None] * 900})),
    "a long number": ("/decode", '{"z": [[' + LONG + "]]}"),
    "many wrong rows": ("/kl", json.dumps({"mu": [[0]] * 900, "sigma": [[-1]] * 900})),
    "a great depth": ("/kl", '{"p":' * 50_000),
    "lone surrogates": ("/encode", '{"images": ["\\ud800", "\\udfff"], "\\ud800": 1}'),
    "a bad p with all fields": ("/kl", json.dumps({"p": {f"f{i}": 0 for i in range(900)}, "q": []})),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_huge_mistake_has_at_most_8_entries_and_4_kb(http: httpx.Client, name: str) -> None:
    route, text = HUGE[name]
    got = http.post(route, content=text.encode(), headers=JSON)
    assert got.status_code in {400, 422}
    problem(got, got.status_code)


def test_a_mistake_in_a_json_body_says_where(http: httpx.Client, latent_dim: int) -> None:
    rows: list = [[0.0] * latent_dim for _ in range(4)]
    rows[2][1] = "x"
    entries = problem(http.post("/decode", json={"z": rows}), 422)["errors"]
    assert any("z" in entry["where"] and "2" in entry["where"] for entry in entries)


def test_every_mistake_of_a_query_is_named(http: httpx.Client) -> None:
    body = problem(http.get("/sample?n=zero&seed=-4"), 422)
    said = json.dumps(body)
    assert "seed" in said or '"query.n"' in said or "n " in body["detail"]


def test_a_bad_query_does_not_wait_for_a_good_body(http: httpx.Client) -> None:
    problem(http.post("/score?samples=0", content=png(ink()), headers=PNG), 422)


def raw(server: Server, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes to the socket as they are; return status, headers and body."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as link:
        link.sendall(data)
        got = b""
        while b"\r\n\r\n" not in got:
            got += (chunk := link.recv(65536))
            assert chunk, f"closed without an answer: {got!r}"
        head, _, body = got.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            body += link.recv(65536)
    return int(first.split()[1]), headers, body


RAW = {
    "no HTTP": b"hello there\r\n\r\n",
    "a length that is no number": b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
    "two lengths": b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a header of 100 kB": b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 100_000 + b"\r\n\r\n",
    "chunks that are none": b"POST /encode HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("name", RAW)
def test_broken_http_is_answered_with_the_same_body_as_every_error(server: Server, name: str) -> None:
    status, headers, body = raw(server, RAW[name])
    assert status in {400, 413, 431}
    assert headers["content-type"] == "application/problem+json"
    said = strict_json(body.decode())
    assert said["status"] == status
    assert said["type"] == "about:blank"
    assert said["detail"] == said["error"]
    assert said["request_id"] == headers["x-request-id"]
    assert len(body) <= 4096
    assert len(headers["x-model-digest"]) == 16


def test_a_declared_body_over_the_limit_is_413_before_it_is_sent(server: Server) -> None:
    status, headers, body = raw(
        server,
        b"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 999999999999\r\n\r\n",
    )
    assert status == 413
    assert headers["content-type"] == "application/problem+json"
    assert "VAE_MAX_BODY_BYTES" in strict_json(body.decode())["detail"]


def test_after_all_that_the_service_lives_and_has_counted_no_failure_of_its_own(
    http: httpx.Client, server: Server
) -> None:
    assert http.get("/livez").status_code == 200
    assert http.post("/encode", content=png(ink()), headers=PNG).status_code == 200
    assert 'status="500"' not in http.get("/metrics").text
    server.assert_clean_log()
