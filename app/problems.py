"""Every failure becomes one kind of answer: ``application/problem+json`` (RFC 9457).

The framework's own error bodies never leave the service: they echo the input and have other shapes.
"""

from __future__ import annotations

import logging

import orjson
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

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


def install(app: FastAPI) -> None:
    """Make ``app`` answer the framework's own errors as all others."""

    async def handle(request: Request, error: Exception) -> Response:
        return response_to(_of_framework(error), request.scope["vae"].request_id)

    async def fail(request: Request, _error: Exception) -> Response:
        return problem_response(internal_error(), request.scope["vae"].request_id)  # the error is raised again

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
