"""Which media type comes in, which one goes out (RFC 9110, sections 8.3 and 12.5.1).

Pure functions on header values; what the types mean is the business of the readers and writers.
"""

import re
from collections.abc import Sequence
from enum import Enum
from typing import Final

from app.errors import NotAcceptable, UnsupportedMediaType

PNG: Final = "image/png"
JPEG: Final = "image/jpeg"
JSON: Final = "application/json"
NPY: Final = "application/x-npy"
SAFETENSORS: Final = "application/x-safetensors"
MULTIPART: Final = "multipart/form-data"

IMAGE_TYPES: Final = (PNG, JPEG, MULTIPART, JSON, NPY, SAFETENSORS)
"""What routes that read images accept."""

LATENT_TYPES: Final = (JSON, NPY, SAFETENSORS)
"""What routes that read latents accept."""

_MAGIC: Final = ((b"\x89PNG\r\n\x1a\n", PNG), (b"\xff\xd8\xff", JPEG), (b"\x93NUMPY", NPY))
_QUALITY: Final = re.compile(r"0(\.\d*)?|1(\.0*)?|\.\d+")


class Format(Enum):
    """A form in which answers are written; its value is the name that ``?format=`` takes."""

    JSON = "json"
    PNG = "png"
    NPY = "npy"
    SAFETENSORS = "safetensors"

    @property
    def media_type(self) -> str:
        """Content-Type of the answer."""
        return {"json": JSON, "png": PNG, "npy": NPY, "safetensors": SAFETENSORS}[self.value]


def input_type(content_type: str | None, body: bytes, readable: Sequence[str]) -> str:
    """Return the media type of a body: lower case, without parameters, one of ``readable``.

    Without a Content-Type the body's first bytes decide: PNG, JPEG, npy, else JSON.

    Raises:
        UnsupportedMediaType: it is none of ``readable``; the answer lists them, in ``Accept-Post`` too.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if not kind:
        kind = next((name for magic, name in _MAGIC if body.startswith(magic)), JSON)
    if kind in readable:
        return kind
    types = ", ".join(readable)
    raise UnsupportedMediaType(
        f"this Content-Type is not read here; send one of {types}", headers={"Accept-Post": types}
    )


def choose_format(accept: str | None, format_name: str | None, offered: Sequence[Format]) -> Format:
    """Return the format to answer in.

    ``format_name`` (from ``?format=``) overrides ``accept``. Else the highest quality wins; a format has that
    of the most specific range which covers it. A tie goes to PNG where the header names an image type or
    ``text/html``, as browsers do, and otherwise to the format offered first.

    Args:
        accept: the Accept header; none or an empty one accepts everything. Malformed parts are ignored.
        format_name: a format's name, in any case.
        offered: formats that the route writes, the default one first.

    Raises:
        NotAcceptable: none of the offered formats is accepted; the answer lists them.
    """
    if format_name is not None:
        chosen = next((f for f in offered if f.value == format_name.strip().lower()), None)
        if chosen is None:
            raise _not_acceptable(offered)
        return chosen
    if accept is None or accept == "*/*":
        return offered[0]
    ranges = _ranges(accept) or {"*/*": 1.0}
    looks = any(name.startswith("image/") or name == "text/html" for name in ranges)
    order = sorted(offered, key=lambda f: f is not Format.PNG) if looks else offered
    best = max(order, key=lambda f: _quality(f.media_type, ranges))  # the first of equals
    if _quality(best.media_type, ranges) == 0:
        raise _not_acceptable(offered)
    return best


def _not_acceptable(offered: Sequence[Format]) -> NotAcceptable:
    types = ", ".join(f"{f.media_type} (format={f.value})" for f in offered)
    return NotAcceptable(f"this route writes {types}; ask for one of them by Accept or ?format=")


def _ranges(accept: str) -> dict[str, float]:
    """Return the media ranges of an Accept header, lower case without parameters, with their quality."""
    ranges: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if name.count("/") == 1:
            ranges[name] = max(ranges.get(name, 0.0), _weight(parameters))
    return ranges


def _weight(parameters: list[str]) -> float:
    """Return the value of ``q`` among parameters; 1 where it is missing or malformed."""
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q" and _QUALITY.fullmatch(value.strip()):
            return float(value)
    return 1.0


def _quality(media_type: str, ranges: dict[str, float]) -> float:
    """Return the quality of a media type: that of ``type/subtype``, else of ``type/*``, else of ``*/*``."""
    for name in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        if name in ranges:
            return ranges[name]
    return 0.0
