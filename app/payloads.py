"""Bytes <-> arrays: every body that the service reads or writes, as pure functions without HTTP objects.

Reading is in ``app.images_in`` (images, in two phases) and ``app.numbers_in`` (latents, distributions); their
names are offered here too. Writing is below. ``app.negotiation`` decides which format an answer takes.
"""

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Any, Final

import numpy as np
import orjson
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image

from app.images_in import ImageBatch, parse_images
from app.negotiation import Format
from app.numbers_in import DiscretePair, KlQuestion, Normal, NormalPair, Posteriors, read_kl, read_latents
from model.pixels import contact_sheet, to_bytes

__all__ = [
    "DiscretePair",
    "ImageBatch",
    "KlQuestion",
    "Normal",
    "NormalPair",
    "Posteriors",
    "npy_parts",
    "parse_images",
    "read_kl",
    "read_latents",
    "write_json",
    "write_png",
    "write_tensors",
]

_NUMBERS: Final = (np.ndarray, np.floating, float)
_SEVERAL: Final = (list, tuple, Mapping)
_SLICE: Final = 65_536  # numbers that orjson writes at a time, some milliseconds: it holds the interpreter's lock
_COMPRESSION: Final = 1  # of PNGs: 6 takes twice the time for a tenth fewer bytes


def write_tensors(
    form: Format,
    tensors: Mapping[str, NDArray[Any]],
    *,
    fields: Mapping[str, object] | None = None,
    columns: int | None = None,
) -> bytes:
    """Return the body of an answer.

    JSON has every tensor as nested lists, but for ``images``, of which each becomes base64 of a PNG file, and
    then ``fields``. Safetensors has every tensor as float32, whole numbers as int64. A .npy file has ``images``, or
    else ``mu`` alone, or ``mu`` and ``sigma`` stacked to ``(2, N, D)``, as float32. PNG has ``images``: one alone,
    several as a contact sheet.

    Args:
        form: format of the body.
        tensors: arrays by name; ``images`` are ``(N, C, H, W)`` in 0..1.
        fields: further members of JSON, such as ``seed``.
        columns: images in a row of a contact sheet; by default those of the smallest square.

    Raises:
        ValueError: a number is NaN or infinite, also after rounding to float32.
    """
    if form is Format.JSON:
        content: dict[str, object] = {
            name: _base64_pngs(tensor) if name == "images" else np.ascontiguousarray(tensor)
            for name, tensor in tensors.items()
        }
        return write_json(content | dict(fields or {}))
    if form is Format.PNG:
        return write_png(tensors["images"], columns)
    if form is Format.NPY:
        return b"".join(npy_parts(tensors))
    return safetensors.numpy.save({name: _as_sent(tensor) for name, tensor in tensors.items()})


def write_json(content: object) -> bytes:
    """Return JSON of dictionaries, lists, arrays and plain values; float32 and float64 are exact.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    parts = {name: _in_slices(part) for name, part in content.items()} if isinstance(content, dict) else content
    text = orjson.dumps(parts, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in text:  # which is what becomes of such a number, though not of that alone
        _check_finite(content)
    return text


def _in_slices(part: object) -> object:
    """Return a large array as JSON that was written piece by piece, so that other threads get their turn in between."""
    if not isinstance(part, np.ndarray) or part.size <= _SLICE:
        return part
    rows = max(1, _SLICE * len(part) // part.size)
    pieces = (part[start : start + rows] for start in range(0, len(part), rows))
    lists = (orjson.dumps(piece, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] for piece in pieces)
    return orjson.Fragment(b"[" + b",".join(lists) + b"]")


def write_png(images: NDArray[Any], columns: int | None = None) -> bytes:
    """Return images ``(N, C, H, W)`` in 0..1 as a PNG file: one as it is, several as a contact sheet.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    _check_finite(images)
    pixels = to_bytes(images)
    return _png(pixels[0] if len(pixels) == 1 else contact_sheet(pixels, columns))


def _base64_pngs(images: NDArray[Any]) -> list[str]:
    _check_finite(images)
    return [base64.b64encode(_png(pixels)).decode() for pixels in to_bytes(images)]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Return ``(C, H, W)`` bytes as a PNG file, grey or RGB."""
    file = BytesIO()
    rows = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)  # (H, W) or (H, W, C)
    Image.fromarray(rows).save(file, "PNG", compress_level=_COMPRESSION)
    return file.getvalue()


def npy_parts(tensors: Mapping[str, NDArray[Any]]) -> tuple[bytes, memoryview]:
    """Return what ``write_tensors`` puts into a .npy file in two parts, so that a large array need not be copied."""
    if "images" in tensors:
        array = _float32(tensors["images"])
    else:
        array = _float32(np.stack([tensors["mu"], tensors["sigma"]]) if "sigma" in tensors else tensors["mu"])
    head = BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
    return head.getvalue(), array.data.cast("B") if array.size else memoryview(b"")


def _as_sent(tensor: NDArray[Any]) -> NDArray[Any]:
    """Return a tensor as safetensors has it."""
    return _float32(tensor) if tensor.dtype.kind == "f" else np.ascontiguousarray(tensor, np.int64)


def _float32(tensor: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(tensor, np.float32)
    _check_finite(rounded)
    return rounded


def _check_finite(content: object) -> None:
    """Refuse NaN and infinity, which JSON would turn into null, wherever they stand."""
    if isinstance(content, _NUMBERS):
        if np.size(content) and not (np.isfinite(np.max(content)) and np.isfinite(np.min(content))):
            raise ValueError("an answer holds a number that is not finite")
    elif isinstance(content, _SEVERAL):
        for part in content.values() if isinstance(content, Mapping) else content:
            _check_finite(part)
