"""From arrays to answers: the right writer for the format, headers, and the validators of a cacheable sample."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.engine import Engine
from app.errors import Unprocessable
from app.negotiation import Format
from app.payloads import npy_parts, write_tensors
from app.threads import in_thread

SMALL_ITEMS = 8  # up to here an answer is written on the event loop: a hop to a thread costs more
SMALL_NUMBERS = 65_536  # and where it has no more numbers than these


async def write(
    chosen: Format,
    tensors: Mapping[str, NDArray[Any]],
    fields: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
    columns: int | None = None,
) -> Response:
    """Return tensors as an answer.

    Args:
        chosen: the format to write.
        tensors: arrays by name, of one length; ``images`` are ``(N, C, H, W)`` in 0..1.
        fields: further members of the JSON form; a seed becomes a header too, whatever the format.
        headers: further headers.
        columns: images in a row of a contact sheet.
    """

    def body() -> Sequence[bytes | memoryview]:
        if chosen is Format.NPY:
            return npy_parts(tensors)
        if chosen is Format.SAFETENSORS:
            _check_float32(tensors)
        return (write_tensors(chosen, tensors, fields=fields, columns=columns),)

    content = body() if _is_small(chosen, tensors, columns) else await in_thread(None, body)
    seed = {"X-Seed": str(fields["seed"])} if fields and "seed" in fields else {}
    return Parts(content, {"Vary": "Accept", **seed, **(headers or {})}, chosen.media_type)


class Parts(Response):
    """An answer in parts that are sent as they are, without a copy of all of them together."""

    def __init__(self, parts: Sequence[bytes | memoryview], headers: Mapping[str, str], media_type: str) -> None:
        """Keep the parts, one or more."""
        length = str(sum(map(len, parts)))
        super().__init__(None, headers={"Content-Length": length, **headers}, media_type=media_type)
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        *first, last = self._parts
        for part in first:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": last})


def _is_small(chosen: Format, tensors: Mapping[str, NDArray[Any]], columns: int | None) -> bool:
    """Return whether an answer is written before it would get to a thread; a sheet has empty cells, too."""
    items = len(next(iter(tensors.values())))
    cells = -(-items // columns) * columns if columns and items > 1 and chosen is Format.PNG else items
    numbers = sum(tensor.size for tensor in tensors.values()) // max(1, items) * cells
    return items <= SMALL_ITEMS and numbers <= SMALL_NUMBERS


def _check_float32(tensors: Mapping[str, NDArray[Any]]) -> None:
    """Refuse float64 numbers that would become infinite in the float32 of the format that was asked for."""
    for name, tensor in tensors.items():
        if tensor.dtype == np.float64 and (np.abs(tensor) > np.finfo(np.float32).max).any():
            text = f"{name} is beyond the range of float32, which this format has; ask for format=json"
            raise Unprocessable(text, code="out_of_range")


def sample_tag(engine: Engine, *asked: object) -> str:
    """Return the weak entity tag of a seeded sample: of the weights and of everything that was asked for.

    Weak, because other company in a batch may change the last bit of a pixel.
    """
    what = repr((engine.digest, engine.precision, *asked))
    return f'W/"{hashlib.sha256(what.encode()).hexdigest()[:32]}"'


def map_tag(engine: Engine, content: Mapping[str, object], form: str) -> str:
    """Return the strong entity tag of the map: its answer in one format has the same bytes every time."""
    sha = hashlib.sha256(repr((engine.digest, form)).encode())
    for name, part in content.items():
        sha.update(name.encode() + (part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode()))
    return f'"{sha.hexdigest()[:32]}"'


def matches(if_none_match: str | None, tag: str) -> bool:
    """Return whether ``If-None-Match`` lists ``tag``, by weak comparison (RFC 9110, section 13.1.2)."""
    listed = [item.strip().removeprefix("W/") for item in (if_none_match or "").split(",")]
    return "*" in listed or tag.removeprefix("W/") in listed
