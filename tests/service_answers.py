"""What every answer of the service must look like, from the contract alone."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np

TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    412: "Precondition Failed",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
LEAKS = re.compile(
    r"0x[0-9a-fA-F]{4,}|object at|Traceback|File \"|site-packages|pydantic|starlette|fastapi|uvicorn|torch|"
    r"orjson|libpng|libjpeg|Pillow|PIL\b|UnidentifiedImage|_io\.|errno",
)
DOCS = Path(__file__).resolve().parent.parent / "docs" / "api.md"
POST_ROUTES = ("/encode", "/decode", "/kl", "/score", "/reconstruct", "/interpolate", "/traverse")
GET_ROUTES = ("/sample", "/model", "/map", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json")
INPUT_TYPES = (
    "image/png",
    "image/jpeg",
    "multipart/form-data",
    "application/json",
    "application/x-npy",
    "application/x-safetensors",
)


def problem(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """Assert that ``response`` is the error body of the contract with ``status`` (and ``code``); return it."""
    assert response.status_code == status, f"{response.status_code}: {response.text[:600]}"
    assert response.headers["content-type"].split(";")[0] == "application/problem+json"
    assert len(response.content) <= 4096
    body = strict_json(response.text)
    assert isinstance(body, dict)
    assert body["type"] == "about:blank"
    assert body["status"] == status
    assert body["title"] == TITLES[status]
    assert re.fullmatch(r"[a-z_]+", body["code"])
    assert isinstance(body["detail"], str)
    assert body["detail"].strip()
    assert body["error"] == body["detail"]
    assert body["request_id"] == response.headers["x-request-id"]
    entries = body.get("errors", [])
    assert len(entries) <= 8
    assert all(isinstance(entry["where"], str) and isinstance(entry["message"], str) for entry in entries)
    assert not (leak := LEAKS.search(response.text)), f"{leak}: {response.text[:600]}"
    assert re.fullmatch(r"[0-9a-f]{16}", response.headers["x-model-digest"])
    assert f"`{body['code']}`" in DOCS.read_text(), f"{body['code']} is not listed in the docs"
    if code is not None:
        assert body["code"] == code, body
    return body


def words(body: dict[str, Any]) -> str:
    """All that an error says to a person, in lower case."""
    entries = body.get("errors", [])
    return " ".join([body["detail"], *(f"{e['where']} {e['message']}" for e in entries)]).lower()


def strict_json(text: str) -> Any:
    """Parse JSON as the standard has it: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} left the service")

    return json.loads(text, parse_constant=refuse)


def answer(response: httpx.Response) -> dict[str, Any]:
    """Assert a JSON answer 200 without NaN, Infinity or null; return it."""
    assert response.status_code == 200, f"{response.status_code}: {response.text[:600]}"
    assert response.headers["content-type"].split(";")[0] == "application/json"
    assert "null" not in response.text
    body = strict_json(response.text)
    assert isinstance(body, dict)
    return body


def as_float32(numbers: list[Any]) -> np.ndarray:
    """What a caller gets who parses exact JSON floats and stores them as float32."""
    return np.asarray(numbers, dtype=np.float64).astype(np.float32)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def timing(response: httpx.Response) -> dict[str, float]:
    """The members of ``Server-Timing`` with their durations in milliseconds."""
    members = {}
    for member in response.headers["server-timing"].split(","):
        name, *parameters = (part.strip() for part in member.split(";"))
        durations = [p.removeprefix("dur=") for p in parameters if p.startswith("dur=")]
        members[name] = float(durations[0])
    return members
