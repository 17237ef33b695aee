"""The Python client: what it makes of answers, how it waits, and that both kinds are one."""

import asyncio
import inspect
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app import client as module
from app import errors
from app.client import MAX_WAIT_S, AsyncClient, Client, NoAnswer, seconds_to_wait, to_pillow
from app.errors import ServiceError

KEY = "k3y-0123456789abcdef"
GOOD_MODEL = {"name": "mnist"}
METHODS = [name for name, value in vars(module._Methods).items() if isinstance(value, module._Method)]

Answer = Callable[[httpx.Request], httpx.Response]


def answering(answer: Answer, **options: Any) -> Client:
    return Client("http://service.test", transport=httpx.MockTransport(answer), **options)


def refusing(status: int, body: object = None, headers: dict[str, str] | None = None) -> Answer:
    return lambda request: httpx.Response(status, json=body or {}, headers=headers)


def test_key_and_digest_are_headers_and_a_path_of_the_url_is_kept() -> None:
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json=GOOD_MODEL)

    transport = httpx.MockTransport(answer)
    with Client("https://host.test/vae/", api_key=KEY, digest="0123456789abcdef", transport=transport) as client:
        assert client.model() == GOOD_MODEL
    assert str(requests[0].url) == "https://host.test/vae/model"
    assert requests[0].headers["Authorization"] == f"Bearer {KEY}"
    assert requests[0].headers["If-Model-Match"] == "0123456789abcdef"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "8000", ""])
def test_url_that_is_not_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL of a server"):
        Client(url)


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\nend"])
def test_key_that_cannot_stand_in_a_header_is_refused_and_not_printed(key: str) -> None:
    with pytest.raises(ValueError, match="the API key must be") as caught:
        Client(api_key=key)
    assert not key or key not in str(caught.value)


def test_proxies_of_the_environment_do_not_stand_before_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert not Client("http://localhost:8000")._http._mounts
    assert Client("http://far.test:8000")._http._mounts


@pytest.mark.parametrize("cls", [cls for cls in ServiceError.__subclasses__() if cls.status in errors.TITLES])
def test_refusal_raises_the_class_of_the_server_with_its_request_id(cls: type[ServiceError]) -> None:
    problem = cls("what was got", errors=[("body.z", "is wrong")]).to_problem("id-7")
    with answering(refusing(cls.status, problem), retries=0) as client, pytest.raises(cls) as caught:
        client.decode([[0.0]])
    error = caught.value
    assert type(error) is cls
    assert (error.detail, error.code, error.request_id) == ("what was got", cls.code, "id-7")
    assert error.errors == (("body.z", "is wrong"),)


def test_refusal_of_a_proxy_in_between_is_an_error_with_its_status() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(502, html="<html>bad gateway</html>", headers={"X-Request-ID": "edge-1"})

    with answering(answer) as client, pytest.raises(ServiceError, match="502 Bad Gateway") as caught:
        client.model()
    assert (caught.value.status, caught.value.request_id) == (502, "edge-1")


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.model(),
        lambda client: client.sample(1),
        lambda client: client.kl_posterior([[0.0]], [[1.0]]),
        lambda client: client.send(Client.sample(1).as_png()),
    ],
)
@pytest.mark.parametrize("content", [b"<html>", b"[]", b"", b"\xff" * 64])
def test_answer_of_something_else_is_no_answer(call: Callable[[Client], object], content: bytes) -> None:
    with (
        answering(lambda request: httpx.Response(200, content=content)) as client,
        pytest.raises(NoAnswer, match="none of vae-service"),
    ):
        call(client)


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), "Connection refused"),
        (httpx.ReadTimeout("timed out"), "in time"),
        (httpx.RemoteProtocolError(""), "RemoteProtocolError"),
        (httpx.DecodingError("bad gzip"), "none of vae-service"),
    ],
)
def test_failed_connection_is_no_answer_is_not_repeated_and_keeps_its_cause(
    failure: httpx.RequestError, says: str
) -> None:
    tries = []

    def answer(request: httpx.Request) -> httpx.Response:
        tries.append(request)
        raise failure

    with answering(answer) as client, pytest.raises(NoAnswer, match=says) as caught:
        client.model()
    assert caught.value.__cause__ is failure
    assert (caught.value.code, len(tries)) == ("no_answer", 1)


def test_ready_is_false_while_loading_and_where_nobody_answers() -> None:
    def nobody(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    assert not answering(nobody).ready()
    assert not answering(refusing(503, {"status": "loading"})).ready()
    assert answering(refusing(200, {"status": "ready"})).ready()
    with pytest.raises(errors.NotFound):
        answering(refusing(404)).ready()


def busy(times: int, status: int = 429, **body: object) -> tuple[Answer, list[int]]:
    """An answer that refuses so many times, then is good; and the statuses that it gave."""
    given: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        given.append(status if len(given) < times else 200)
        return httpx.Response(given[-1], json=GOOD_MODEL if given[-1] == 200 else body)

    return answer, given


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the clients would have slept."""
    seconds: list[float] = []

    async def sleep(delay: float) -> None:
        seconds.append(delay)

    monkeypatch.setattr(module.time, "sleep", seconds.append)
    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    return seconds


@pytest.mark.parametrize("status", [429, 503])
def test_busy_server_is_asked_again_after_the_time_that_it_names(status: int, waits: list[float]) -> None:
    answer, given = busy(2, status, retry_after_ms=250)
    assert answering(answer).model() == GOOD_MODEL
    assert given == [status, status, 200]
    assert waits == [0.25, 0.25]


@pytest.mark.parametrize("status", [429, 503])
def test_async_client_waits_as_the_other_does(status: int, waits: list[float]) -> None:
    answer, given = busy(2, status, retry_after_ms=250)

    async def ask() -> dict[str, Any]:
        async with AsyncClient("http://service.test", transport=httpx.MockTransport(answer)) as client:
            return await client.model()

    assert asyncio.run(ask()) == GOOD_MODEL
    assert given == [status, status, 200]
    assert waits == [0.25, 0.25]


def test_after_the_last_retry_the_refusal_is_raised(waits: list[float]) -> None:
    answer, given = busy(9, retry_after_ms=10)
    with pytest.raises(errors.QueueFull):
        answering(answer, retries=3).model()
    assert given == [429] * 4
    assert waits == [0.01] * 3
    with pytest.raises(errors.QueueFull):
        answering(answer, retries=0).model()
    assert len(given) == 5


@pytest.mark.parametrize("status", [400, 401, 404, 412, 413, 422, 500, 502, 504])
def test_no_other_refusal_is_asked_again(status: int, waits: list[float]) -> None:
    answer, given = busy(1, status, retry_after_ms=1)
    with pytest.raises(ServiceError):
        answering(answer).model()
    assert given == [status]
    assert waits == []


@pytest.mark.parametrize(
    ("body", "header", "seconds"),
    [
        ({"retry_after_ms": 1500}, "9", 1.5),
        ({}, "2", 2.0),
        ({}, None, 1.0),
        ({"retry_after_ms": "soon"}, "Wed, 21 Oct 2015 07:28:00 GMT", 1.0),
        ({"retry_after_ms": MAX_WAIT_S * 1000}, None, MAX_WAIT_S),
        ({"retry_after_ms": MAX_WAIT_S * 1000 + 1}, None, None),
        ({"retry_after_ms": -5}, None, None),
        ({"retry_after_ms": float("nan")}, None, None),
        ({}, "99999", None),
    ],
)
def test_wait_is_that_of_the_body_then_of_the_header_and_never_a_long_one(
    body: dict[str, object], header: str | None, seconds: float | None
) -> None:
    error = errors.from_problem(429, body, {"retry-after": header} if header else {})
    assert seconds_to_wait(error) == seconds


def test_date_of_a_proxy_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "time", lambda: 1_700_000_000.0)
    for date, seconds in [
        ("Tue, 14 Nov 2023 22:13:27 GMT", 7.0),
        ("Tue, 14 Nov 2023 22:13:10 GMT", 1.0),
        ("Wed, 15 Nov 2023 22:13:20 GMT", None),
    ]:
        assert seconds_to_wait(errors.from_problem(503, {}, {"retry-after": date})) == seconds


def test_async_client_of_a_client_asks_the_same_server_in_the_same_way() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(503 if len(seen) < 3 else 200, json={"retry_after_ms": 0, "name": "mnist"})

    async def ask(client: Client) -> object:
        async with client.to_async(digest="0123456789abcdef") as other:
            return (await other.model())["name"]

    transport = httpx.MockTransport(answer)
    with Client("http://far.test/vae", api_key=KEY, retries=2, transport=transport) as client:
        assert asyncio.run(ask(client)) == "mnist"
    assert [str(request.url) for request in seen] == ["http://far.test/vae/model"] * 3
    assert seen[0].headers["Authorization"] == f"Bearer {KEY}"
    assert seen[0].headers["If-Model-Match"] == "0123456789abcdef"


@pytest.mark.parametrize(("shape", "mode"), [((3, 1, 4, 5), "L"), ((2, 3, 4, 5), "RGB"), ((2, 3, 1, 4, 5), "L")])
def test_images_become_images_of_pillow(shape: tuple[int, ...], mode: str) -> None:
    images = np.linspace(0, 1, math.prod(shape), dtype=np.float32).reshape(shape)
    drawn = to_pillow(images)
    assert [(image.mode, image.size) for image in drawn] == [(mode, (5, 4))] * math.prod(shape[:-3])
    flat = images.reshape(-1, *shape[-3:])
    last = np.asarray(drawn[-1]).reshape(4, 5, -1).transpose(2, 0, 1)
    assert np.array_equal(last, np.rint(flat[-1] * 255))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_documented_and_has_the_same_parameters_in_both_clients(name: str) -> None:
    sync, other = getattr(Client(), name), getattr(AsyncClient(), name)
    assert inspect.getdoc(sync)
    assert inspect.signature(sync) == inspect.signature(other)
    assert f"`{name}(" in (Path(__file__).parent.parent / "docs" / "client.md").read_text()


def test_method_on_the_class_only_describes_the_call() -> None:
    call = Client.sample(3, seed=7)
    assert call.arguments()["params"] == {"n": 3, "seed": 7, "temperature": 1.0}
    picture = call.as_png(columns=2)
    assert picture.arguments()["headers"] == {"Accept": "image/png"}
    assert picture.arguments()["params"]["columns"] == 2


def test_client_needs_neither_torch_nor_pillow() -> None:
    code = "import sys, app.client, app.commands; sys.exit(any(m in sys.modules for m in ('torch', 'PIL', 'fastapi')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
