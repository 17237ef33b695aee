"""From the server straight to an endpoint, past the framework's routing and dependency injection.

Routes are declared with FastAPI, which documents them and answers for whatever meets none of them. A request to the
path of a ``DirectRoute`` is served here: one lookup, one pass over its query. Knows no endpoint.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from pydantic import ValidationError, create_model
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.context import context_of
from app.errors import ServiceError, Unprocessable
from app.problems import Departed, response_to

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
MAX_ERRORS = 8


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request, and of the query what its signature names, and returns a response."""

    def handler(self) -> Handler:
        """Return the endpoint as a function of the request alone."""
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = self.endpoint
        arguments = arguments_of(endpoint)

        async def handle(request: Request) -> Response:
            return await endpoint(request, **arguments(request.scope["query_string"]))

        return handle

    def get_route_handler(self) -> Handler:
        """Return the handler, with every failure that a caller may see turned into its answer."""
        handle = self.handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except (ServiceError, Departed) as error:
                return response_to(error, context_of(request).request_id)

        return answer


class Direct:
    """Serves the direct routes of some routers; hands everything else to ``app``."""

    def __init__(self, app: ASGIApp, routers: Iterable[APIRouter], prefixes: Iterable[str]) -> None:
        """Build the table of paths; each router is served under each prefix."""
        self._app = app
        routes = [route for router in routers for route in router.routes if isinstance(route, DirectRoute)]
        self._routes = {
            (method, prefix + route.path): (route, route.get_route_handler())
            for route in routes
            for prefix in prefixes
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        found = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        scope["route"], handle = found
        response = await handle(Request(scope, receive))
        await response(scope, receive, send)


def arguments_of(endpoint: Callable[..., Any]) -> Callable[[bytes], dict[str, Any]]:
    """Return the reader of an endpoint's query: from its bytes to the arguments that the signature asks for.

    Names that the signature does not know are ignored; of a repeated name the last counts.

    The reader raises:
        Unprocessable: an argument is missing, of the wrong type or out of its range.
    """
    fields: dict[str, Any] = {
        p.name: (p.annotation, ... if p.default is p.empty else p.default)
        for p in inspect.signature(endpoint, eval_str=True).parameters.values()
        if p.name != "request"
    }
    query_of = create_model(endpoint.__name__, **fields)
    needed = any(default is ... for _, default in fields.values())
    nothing_said = None if needed else vars(query_of())

    def read(query: bytes) -> dict[str, Any]:
        if not query and nothing_said is not None:
            return nothing_said
        try:
            return vars(query_of(**dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))))
        except ValidationError as error:
            raise _problem(error) from None

    return read


def _problem(error: ValidationError) -> Unprocessable:
    """Say what is wrong in our words: neither the input nor a library's text is passed on."""
    found = error.errors(include_url=False, include_input=False)[:MAX_ERRORS]
    entries = [(str(item["loc"][0]), _expected(item)) for item in found]
    detail = "; ".join(f"{name} {message}" for name, message in entries)
    ranges = all(item["type"].startswith(("greater", "less")) for item in found)
    errors = [(f"query.{name}", message) for name, message in entries]
    return Unprocessable(detail, code="out_of_range" if ranges else "invalid_field", errors=errors)


def _expected(item: Mapping[str, Any]) -> str:
    bounds = item.get("ctx", {})
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
    return words.get(item["type"], "is not valid")
