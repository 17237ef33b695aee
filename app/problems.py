"""Every failure becomes one kind of answer: ``application/problem+json`` (RFC 9457).

The framework's own error bodies never leave the service: they echo the input and have other shapes.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.errors import (
    BadRequest,
    InternalError,
    MethodNotAllowed,
    NotFound,
    ServiceError,
    Unprocessable,
)

log = logging.getLogger("vae")
CLOSED = 499
Handler = Callable[[Request, Exception], Awaitable[Response]]


class Departed(Exception):
    """The caller closed the connection: nobody reads an answer, the metrics count it as 499."""


def problem_response(error: ServiceError, request_id: str) -> Response:
    """Return the answer for an error that a caller may see."""
    headers = {"Cache-Control": "no-store"} | error.headers
    body = orjson.dumps(error.to_problem(request_id))
    return Response(body, error.status, headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Make ``app`` answer every error through :func:`problem_response`."""
    app.add_exception_handler(ServiceError, _handler(lambda error: error))
    app.add_exception_handler(HTTPException, _handler(_of_framework))
    app.add_exception_handler(Departed, _unread)
    app.add_exception_handler(RequestValidationError, _handler(_of_parameters))


def _handler(translate: Callable[[Exception], Exception]) -> Handler:
    async def handle(request: Request, raised: Exception) -> Response:
        error = translate(raised)
        assert isinstance(error, ServiceError)
        if isinstance(error, InternalError):
            log.error("%s", error, exc_info=error.__cause__)
        return problem_response(error, request.scope["vae"].request_id)

    return handle


async def _unread(_request: Request, _raised: Exception) -> Response:
    return Response(status_code=CLOSED)


def _of_framework(error: Exception) -> ServiceError:
    """Translate the framework's HTTP errors: unknown path, wrong method, a request it could not read."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return NotFound("there is nothing at this path; GET /openapi.json lists the routes")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        allowed = allowed.replace("GET", "GET, HEAD") if "HEAD" not in allowed else allowed
        return MethodNotAllowed(f"this path takes {allowed}", headers={"Allow": allowed})
    if 400 <= error.status_code < 500:
        return BadRequest("the request could not be read")
    return InternalError("the service failed; this is a bug: report it with the request id")


def _of_parameters(error: Exception) -> ServiceError:
    """Translate wrong query parameters, in our words: neither input nor a library's text is passed on."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()[:8]
    entries = [(".".join(str(part) for part in item["loc"][:2]), _expected(item)) for item in found]
    detail = "; ".join(f"{where.removeprefix('query.')} {message}" for where, message in entries)
    ranges = all(item["type"].startswith(("greater", "less")) for item in found)
    return Unprocessable(detail, code="out_of_range" if ranges else "invalid_field", errors=entries)


def _expected(item: dict[str, object]) -> str:
    context = item.get("ctx")
    bounds = context if isinstance(context, dict) else {}
    words = {
        "int_parsing": "must be an integer",
        "int_parsing_size": "is too large",
        "int_from_float": "must be an integer",
        "float_parsing": "must be a number",
        "finite_number": "must be a finite number",
        "greater_than_equal": f"must be at least {bounds.get('ge')}",
        "less_than_equal": f"must be at most {bounds.get('le')}",
        "literal_error": f"must be {bounds.get('expected')}",
        "enum": f"must be {bounds.get('expected')}",
        "missing": "is missing",
    }
    return words.get(str(item["type"]), "is not valid")
