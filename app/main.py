"""The application, put together: ``create_app()`` is a factory that any ASGI server can call.

Nothing happens at import; loading the model happens in the lifespan, so an application that was started is ready.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app import openapi, problems
from app.allocator import trimmed_now_and_then
from app.direct import Direct
from app.express import Express
from app.health import router as health
from app.metrics import Metrics
from app.middleware import Envelope
from app.routes import router
from app.service import Service
from app.settings import Settings, load_settings, read_api_keys
from app.tally import Tally
from app.version import VERSION
from app.workers import Crew

PREFIXES = ("", "/v1")
OWN_HEADERS = ("X-API-Key", "X-Request-ID", "X-Timeout-Ms")
FRESH = {"Cache-Control": "no-cache", "Accept-Ranges": "none"}
STATIC = Path(__file__).parent / "static"


def create_app(settings: Settings | None = None, crew: Crew | None = None) -> FastAPI:
    """Return the application; without ``settings`` they are read from the environment.

    As one worker of a crew it counts with the others, and has its part of the line.

    Raises:
        SettingsError: a setting is wrong; one line per problem.
    """
    settings = settings or load_settings()
    tally = Tally(crew.pages, crew.index) if crew else Tally()
    room = crew.share(settings.max_queue_items) if crew else settings.max_queue_items
    service = Service(settings, Metrics(tally), room)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            async with trimmed_now_and_then():
                yield
        finally:
            await service.close()

    app = Application(
        title="vae-service",
        description=openapi.DESCRIPTION,
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,  # the framework's page loads its scripts from elsewhere; ours works offline
        redoc_url=None,
        redirect_slashes=False,
        responses=openapi.ERRORS,
    )
    app.state.service = service
    own_keys = read_api_keys(settings.api_keys_file) if settings.api_keys_file and not crew else ()
    app.state.keys = crew.keys if crew else own_keys
    app.state.express = Express(service, app.state.keys, PREFIXES)
    for prefix in PREFIXES:
        app.include_router(router, prefix=prefix, include_in_schema=not prefix)
        app.include_router(health, prefix=prefix, include_in_schema=not prefix)
    _add_page(app)
    problems.install(app)
    layers: ASGIApp = Direct(app.by_framework, (router, health), PREFIXES)
    if settings.cors_origin_list:
        layers = _with_origins(layers, settings)
    app.layers = Envelope(layers, service)
    return app


class Application(FastAPI):
    """The framework, inside layers of ours: a request to a route of ours never gets as far as the framework's own."""

    layers: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one event of the life cycle."""
        scope["app"] = self
        await (self.layers if scope["type"] == "http" else super().__call__)(scope, receive, send)

    async def by_framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the framework serve a request: files come whole, since its answers to a bad range are not ours."""
        scope["headers"] = [field for field in scope["headers"] if field[0] != b"range"]
        await super().__call__(scope, receive, send)


class Origins(CORSMiddleware):
    """Lets pages of other origins call; a preflight that it refuses is answered as any request that is not known."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        headers = Headers(scope=scope)
        preflight = scope["method"] == "OPTIONS" and {"origin", "access-control-request-method"} <= set(headers)
        if preflight and self.preflight_response(headers).status_code != 200:
            await self.simple_response(scope, receive, send, headers)
        else:
            await super().__call__(scope, receive, send)


class PageFiles(StaticFiles):
    """Files that a browser asks for again each time (by ETag), so that an upgrade never mixes old and new ones."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        """Return a file, or 304 where the browser has it."""
        response = super().file_response(*args, **options)
        response.headers.update(FRESH)
        return response


def _add_page(app: FastAPI) -> None:
    """Serve the page at ``/`` and the interactive documentation at ``/docs``, from files of our own."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=FRESH)

    @app.get("/docs", include_in_schema=False)
    @app.get("/v1/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        headers = FRESH | {"Content-Security-Policy": openapi.DOCS_CSP}
        return FileResponse(STATIC / "docs.html", headers=headers)

    @app.get("/v1/openapi.json", include_in_schema=False)
    async def document() -> JSONResponse:
        return JSONResponse(app.openapi())

    app.mount("/static", PageFiles(directory=STATIC), name="static")


def _with_origins(app: ASGIApp, settings: Settings) -> ASGIApp:
    return Origins(
        app,
        allow_origins=settings.cors_origin_list,
        allow_methods=["GET", "HEAD", "POST"],
        allow_headers=["Authorization", "Content-Type", "If-Model-Match", "If-None-Match", *OWN_HEADERS],
        expose_headers=["ETag", "Retry-After", "Server-Timing", "X-Model-Digest", "X-Request-ID", "X-Seed"],
        max_age=3600,
    )
