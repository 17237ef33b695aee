"""Is it alive, is it ready: for probes and balancers. Open to everybody, and cheap."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from app.direct import DirectRoute

router = APIRouter(tags=["health"], route_class=DirectRoute)


@router.get("/livez")
async def livez(request: Request) -> JSONResponse:
    """Answer 200 while the process is worth keeping, also while it drains; 503 once its device is lost."""
    service = request.app.state.service
    return _status("alive" if service.alive else service.status, service.alive)


@router.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """Answer 200 when requests are welcome; 503 with `loading`, `draining` or `device_lost`."""
    status = request.app.state.service.status
    return _status(status, status == "ready")


def _status(status: str, good: bool) -> JSONResponse:
    return JSONResponse({"status": status}, 200 if good else 503, {"Cache-Control": "no-store"})
