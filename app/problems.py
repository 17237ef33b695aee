"""Every failure becomes one kind of answer: ``application/problem+json`` (RFC 9457).

The framework's own error bodies never leave the service: they echo the input and have other shapes. What is answered
outside of the application, before there is a request or after its time, is put together here too.
"""

from __future__ import annotations

import logging
import uuid

import orjson
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.context import context_of
from app.errors import BadRequest, InternalError, MethodNotAllowed, NotFound, ServiceError

log = logging.getLogger("vae")
CLOSED = 499


class Departed(Exception):
    """The caller closed the connection: nobody reads an answer, the metrics count it as 499."""


def response_to(error: ServiceError | Departed, request_id: str) -> Response:
    """Return the answer for an error that a route raised; one that is our fault is logged."""
    if isinstance(error, Departed):
        return Response(status_code=CLOSED)
    if isinstance(error, InternalError):
        log.error("%s", error, exc_info=error.__cause__)
    return problem_response(error, request_id)


def problem_response(error: ServiceError, request_id: str) -> Response:
    """Return the answer for an error that a caller may see."""
    headers = {"Cache-Control": "no-store"} | error.headers
    body = orjson.dumps(error.to_problem(request_id))
    return Response(body, error.status, headers, media_type="application/problem+json")


def outer_answer(
    problem: dict[str, object], request_id: str, digest: str | None
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of an error that is answered outside of the application, which else adds headers."""
    body = orjson.dumps(problem)
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"x-request-id", request_id.encode()),
    ]
    if problem["status"] == 503:
        headers.append((b"retry-after", b"1"))
    if digest:
        headers.append((b"x-model-digest", digest.encode()))
    return headers, body


def plain_answer(code: str, status: int, title: str, detail: str, digest: str | None) -> bytes:
    """Return an error as the bytes of a whole HTTP answer, which ends its connection."""
    request_id = uuid.uuid4().hex
    problem: dict[str, object] = {"type": "about:blank", "title": title, "status": status, "code": code}
    problem |= {"detail": detail, "error": detail, "request_id": request_id}
    headers, body = outer_answer(problem, request_id, digest)
    fields = [b"%s: %s" % field for field in [*headers, (b"connection", b"close")]]
    return b"\r\n".join([b"HTTP/1.1 %d %s" % (status, title.encode()), *fields, b"", body])


def install(app: FastAPI) -> None:
    """Make ``app`` answer the framework's own errors as all others."""

    async def handle(request: Request, error: Exception) -> Response:
        return response_to(_of_framework(error), context_of(request).request_id)

    async def fail(request: Request, _error: Exception) -> Response:
        return problem_response(internal_error(), context_of(request).request_id)  # the error is raised again

    app.add_exception_handler(HTTPException, handle)
    app.add_exception_handler(Exception, fail)


def internal_error() -> InternalError:
    """Return what is said of a failure that nobody expected."""
    return InternalError("the service failed; this is a bug: report it with the request id")


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
    return internal_error()
