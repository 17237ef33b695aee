"""How many pixels an image file claims, or can turn out to have, before anything of it is decoded.

Knows base64, as files come in JSON, and no request.
"""

import base64
import re
from typing import Any, Final

from model.imagefile import JPEG_PIXELS_PER_BYTE, PNG_PIXELS_PER_BYTE, scan

Item = bytes | str | list[Any]
"""An image file, its base64, or nested lists of numbers, which are no file and claim no pixels."""

_DATA_URL: Final = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_HEAD: Final = 24  # bytes of a PNG in which its size stands


def most_pixels(item: Item) -> int:
    """Return the most pixels that an item can turn out to have, from its first bytes and its length."""
    if isinstance(item, list):
        return 0
    head = item[:_HEAD] if isinstance(item, bytes) else _base64_head(item)
    if len(head) < _HEAD:  # too few for a file, or there is white space in the base64, and it can be anything
        return PNG_PIXELS_PER_BYTE * len(item)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return int.from_bytes(head[16:20]) * int.from_bytes(head[20:24])
    return JPEG_PIXELS_PER_BYTE * len(item)


def told_pixels(item: Item) -> int:
    """Return the pixels that an image file's header tells; 0 where it cannot be read."""
    if isinstance(item, list):
        return 0
    try:
        file = scan(item if isinstance(item, bytes) else from_base64(item), 2**62)
        return file.width * file.height
    except ValueError:  # no base64, or no image
        return 0


def from_base64(text: str) -> bytes:
    """Return the bytes of a base64 string; a ``data:`` URL's prefix and white space are allowed.

    Raises:
        ValueError: it is not base64.
    """
    return base64.b64decode(_encoded(text).encode("ascii").translate(None, b" \t\r\n"), validate=True)


def _base64_head(text: str) -> bytes:
    try:
        return base64.b64decode(_encoded(text)[: _HEAD * 4 // 3], validate=True)
    except ValueError:
        return b""


def _encoded(text: str) -> str:
    prefix = _DATA_URL.match(text) if text[:5].lower() == "data:" else None
    return text[prefix.end() :] if prefix else text
