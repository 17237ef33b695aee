"""Routes served past the framework: the query read by the endpoint's signature, the table of paths."""

import asyncio
from typing import Annotated, Any, Literal, cast

import pytest
from fastapi import APIRouter, Query, Request
from starlette.responses import PlainTextResponse, Response

from app.context import Context
from app.direct import Direct, DirectRoute, arguments_of
from app.errors import NotFound, Unprocessable
from app.service import Service

router = APIRouter(route_class=DirectRoute)


@router.get("/add")
async def add(
    request: Request,
    a: Annotated[int, Query(ge=0, le=9)],
    b: Annotated[float, Query(allow_inf_nan=False)] = 0.5,
    form: Annotated[str | None, Query(alias="format")] = None,
    unit: Literal["one", "two"] = "one",
) -> Response:
    return PlainTextResponse(f"{request.method} {a + b} {form} {unit}")


@router.get("/fails")
async def fails(request: Request) -> Response:
    raise NotFound("nothing here")


async def framework(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("framework")(scope, receive, send)


def ask(path: str, query: bytes = b"", method: str = "GET") -> tuple[int, str, str]:
    """Return status, body and the template of the route that was met."""
    sent: list[Any] = []
    context = Context(cast(Service, None), [(b"x-request-id", b"id")])
    scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": [], "vae": context}

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    asyncio.run(Direct(framework, [router], ["", "/v1"])(scope, receive, send))
    return sent[0]["status"], sent[1]["body"].decode(), getattr(scope.get("route"), "path", "")


def test_a_known_path_is_served_under_every_prefix_and_says_which_route_it_met() -> None:
    assert ask("/add", b"a=1") == (200, "GET 1.5 None one", "/add")
    assert ask("/v1/add", b"a=1") == (200, "GET 1.5 None one", "/add")


@pytest.mark.parametrize(("path", "method"), [("/add", "POST"), ("/add/", "GET"), ("/other", "GET")])
def test_everything_else_is_the_frameworks(path: str, method: str) -> None:
    assert ask(path, method=method) == (200, "framework", "")


def test_a_failure_of_an_endpoint_is_its_answer() -> None:
    status, body, _ = ask("/fails")
    assert status == 404
    assert '"request_id":"id"' in body


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"a=1", {"a": 1, "b": 0.5, "form": None, "unit": "one"}),
        (b"a=1&a=2", {"a": 2, "b": 0.5, "form": None, "unit": "one"}),
        (b"x=1&a=3&b=1e2&format=a%20b%26&unit=two", {"a": 3, "b": 100.0, "form": "a b&", "unit": "two"}),
        (b"a=3&form=png", {"a": 3, "b": 0.5, "form": None, "unit": "one"}),
        (b"a=3&self=1&request=2&__class__=4", {"a": 3, "b": 0.5, "form": None, "unit": "one"}),
    ],
)
def test_a_query_becomes_the_arguments_of_the_signature(query: bytes, expected: dict[str, Any]) -> None:
    assert arguments_of(add)(query) == expected


@pytest.mark.parametrize(
    ("query", "code", "detail"),
    [
        (b"", "invalid_field", "a is missing"),
        (b"a", "invalid_field", "a must be an integer"),
        (b"a=1.5", "invalid_field", "a must be an integer"),
        (b"a=\xff%ff", "invalid_field", "a must be an integer"),
        (b"a=" + b"1" * 5000, "invalid_field", "a is too large"),
        (b"a=10", "out_of_range", "a must be at most 9"),
        (b"a=-1&b=x", "invalid_field", "a must be at least 0; b must be a number"),
        (b"a=1&b=inf", "invalid_field", "b must be a finite number"),
        (b"a=1&unit=three", "invalid_field", "unit must be 'one' or 'two'"),
    ],
)
def test_a_wrong_query_is_refused_in_our_words(query: bytes, code: str, detail: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        arguments_of(add)(query)
    assert (caught.value.code, str(caught.value)) == (code, detail)
    assert caught.value.to_problem("")["errors"][0]["where"].startswith("query.")
