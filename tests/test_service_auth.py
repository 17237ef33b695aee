"""Keys: with a key file every route but the open ones wants a key, and nothing tells what the keys are."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import StartServer, client_of
from service_answers import POST_ROUTES, answer, problem
from service_pictures import NPY, PNG, ink, npy, png
from service_process import Server, refused_start

FIRST, SECOND = "first-key-0123456789abcdef", "second/key+ABCDEFGHIJKLMNOP="
OPEN = ("/", "/docs", "/openapi.json", "/livez", "/readyz")
CLOSED_GETS = ("/sample?n=1&seed=1", "/model", "/metrics", "/map")


@pytest.fixture(scope="module")
def keyed_server(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(f"# who may call\n{FIRST}\n\n{SECOND}\n# commented-key-0123456789\n")
    flags = ("--deadline-s", "0.2", "--precision", "fp32", "--max-items", "900")
    return start_server(flags=flags, api_keys_file=path, max_items=4)


@pytest.fixture(scope="module")
def keyed(keyed_server: Server) -> Iterator[httpx.Client]:
    with client_of(keyed_server) as client:
        yield client


def everything_closed(http: httpx.Client) -> list[tuple[str, str]]:
    """Every operation of the document but the open ones, so that no route can be forgotten here."""
    told = {
        (method.upper(), path)
        for path, operations in http.get("/openapi.json").json()["paths"].items()
        for method in operations
        if path not in OPEN
    }
    heads = {("HEAD", path) for method, path in told if method == "GET"}
    assert {path for method, path in told if method == "POST"} == set(POST_ROUTES)
    assert {path for method, path in told if method == "GET"} == {path.partition("?")[0] for path in CLOSED_GETS}
    return [(method, prefix + path) for prefix in ("", "/v1") for method, path in sorted(told | heads)]


WRONG: dict[str, list[tuple[bytes, bytes]]] = {
    "none": [],
    "a wrong key": [(b"Authorization", b"Bearer wrong-key-0123456789abcdef")],
    "a wrong X-API-Key": [(b"X-API-Key", b"wrong-key-0123456789abcdef")],
    "a key cut short": [(b"X-API-Key", FIRST[:-1].encode())],
    "a key with more": [(b"X-API-Key", FIRST.encode() + b"x")],
    "a key in capitals": [(b"X-API-Key", FIRST.upper().encode())],
    "a commented key": [(b"X-API-Key", b"commented-key-0123456789")],
    "a comment": [(b"X-API-Key", b"# who may call")],
    "an empty key": [(b"X-API-Key", b"")],
    "an empty bearer": [(b"Authorization", b"Bearer")],
    "a key without its scheme": [(b"Authorization", FIRST.encode())],
    "another scheme": [(b"Authorization", b"Basic " + FIRST.encode())],
    "a key beyond ASCII": [(b"X-API-Key", "schlüssel-0123456789".encode())],
    "a bearer beyond ASCII": [(b"Authorization", "Bearer schlüssel-0123456789".encode())],
    "a bearer of high bytes": [(b"Authorization", b"Bearer \xff\xfe\xfd" + FIRST.encode())],
    "a very long key": [(b"X-API-Key", b"k" * 8000)],
    "both keys at once": [(b"X-API-Key", f"{FIRST},{SECOND}".encode())],
}


@pytest.mark.parametrize("name", WRONG)
def test_every_closed_route_answers_401_to_a_wrong_key(keyed: httpx.Client, name: str) -> None:
    for method, path in everything_closed(keyed):
        got = keyed.request(method, path, headers=WRONG[name])
        assert got.status_code == 401, (method, path, got.text)
        assert "www-authenticate" in got.headers
        if method != "HEAD":
            problem(got, 401, "unauthorized")
            assert FIRST not in got.text
            assert SECOND not in got.text


@pytest.mark.parametrize("key", [FIRST, SECOND])
@pytest.mark.parametrize("form", ["bearer", "x-api-key", "lower-case scheme"])
def test_every_key_of_the_file_opens_every_closed_route(keyed: httpx.Client, key: str, form: str) -> None:
    headers = {
        "bearer": {"Authorization": f"Bearer {key}"},
        "x-api-key": {"X-API-Key": key},
        "lower-case scheme": {"authorization": f"bearer {key}"},
    }[form]
    for path in ("/model", "/metrics", "/v1/model"):
        assert keyed.get(path, headers=headers).status_code == 200
    late = {200, 504}  # on a busy machine, within the short deadline of this server
    assert keyed.get("/sample?n=1", headers=headers).status_code in late
    for path in ("/encode", "/v1/encode"):
        assert keyed.post(path, content=png(ink()), headers=PNG | headers).status_code in late


def test_a_seeded_sample_may_be_kept_by_its_caller_but_by_no_cache_that_others_ask(keyed: httpx.Client) -> None:
    headers = {"X-API-Key": FIRST, "If-None-Match": "*"}
    got = keyed.get("/sample?n=1&seed=1", headers=headers)
    assert (got.status_code, got.headers["cache-control"]) == (304, "private, max-age=31536000, immutable")


@pytest.mark.parametrize("path", OPEN)
def test_an_open_route_needs_no_key_and_minds_no_wrong_one(keyed: httpx.Client, path: str) -> None:
    assert keyed.get(path).status_code == 200
    assert keyed.head(path).status_code == 200
    assert keyed.get(path, headers={"X-API-Key": "wrong"}).status_code == 200


def test_the_list_of_open_routes_is_exact(keyed: httpx.Client) -> None:
    document = keyed.get("/openapi.json").json()
    open_ones = set()
    for path, operations in document["paths"].items():
        for method in operations:
            if method in {"get", "post"} and keyed.request(method, path).status_code != 401:
                open_ones.add(path)
    assert open_ones <= set(OPEN)
    assert {"/livez", "/readyz"} <= open_ones


def test_a_missing_key_goes_before_every_other_mistake(keyed: httpx.Client) -> None:
    problem(keyed.post("/encode", content=b"x", headers={"Content-Type": "text/plain"}), 401)
    problem(keyed.post("/encode", content=b"x" * 100_000, headers=PNG), 401)
    problem(keyed.get("/sample?n=0"), 401)
    problem(keyed.get("/sample?format=bmp"), 401)
    problem(keyed.get("/sample", headers={"X-Timeout-Ms": "soon"}), 401)
    problem(keyed.get("/sample", headers={"If-Model-Match": "x"}), 401)


def test_a_key_in_the_query_opens_nothing(keyed: httpx.Client) -> None:
    for name in ("api_key", "key", "X-API-Key", "token"):
        problem(keyed.get("/model", params={name: FIRST}), 401)


def test_paths_written_in_other_ways_open_nothing(keyed: httpx.Client) -> None:
    for path in (b"//model", b"/./model", b"/static/../model", b"/%6dodel", b"/MODEL", b"/model/", b"/docs/../model"):
        got = keyed.get("/model", extensions={"target": path})
        assert got.status_code in {400, 401, 404}, path


def test_with_a_key_wrong_requests_get_their_own_answers(keyed: httpx.Client) -> None:
    mine = {"X-API-Key": FIRST}
    problem(keyed.get("/nothing", headers=mine), 404)
    problem(keyed.put("/encode", headers=mine), 405)
    problem(keyed.post("/encode", content=b"x", headers=PNG | mine), 400)


def test_no_key_ever_stands_in_the_log(keyed: httpx.Client, keyed_server: Server) -> None:
    keyed.get("/model", headers={"X-API-Key": FIRST})
    keyed.get("/model", headers={"Authorization": "Bearer wrong-key-0123456789abcdef"})
    text = keyed_server.log.read_text()
    assert FIRST not in text
    assert SECOND not in text
    assert "wrong-key" not in text


@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n", None])
def test_a_key_file_without_a_key_refuses_to_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "keys.txt"
    if content is not None:
        path.write_text(content)
    done = refused_start(api_keys_file=path)
    assert done.returncode == 78
    assert "VAE_API_KEYS_FILE" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_deadline_of_the_service_holds_however_long_the_caller_would_wait(keyed: httpx.Client) -> None:
    """This server was started by flags: they beat the variables, and one of them is a deadline of 0.2 s."""
    body = npy(np.zeros((50, 28, 28), np.uint8))
    for timeout in ({}, {"X-Timeout-Ms": "60000"}):
        headers = NPY | timeout | {"X-API-Key": FIRST}
        problem(keyed.post("/score?samples=1024", content=body, headers=headers), 504, "deadline_exceeded")
    said = answer(keyed.get("/model", headers={"X-API-Key": FIRST}))
    assert said["limits"]["deadline_s"] == 0.2
    assert said["limits"]["max_items"] == 900
    assert said["precision"] == "fp32"


def test_without_a_key_file_every_route_is_open(http: httpx.Client) -> None:
    for path in CLOSED_GETS:
        assert http.get(path).status_code == 200
