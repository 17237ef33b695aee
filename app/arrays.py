"""Arrays in: the bytes of a .npy or .safetensors file to a NumPy array.

The header is checked against the length of the body before anything is allocated. A .npy header is read by
pattern: nothing is evaluated, nothing is unpickled. What the numbers mean is not known here.
"""

import math
import re
from typing import Any, Final

import numpy as np
import safetensors
from numpy.typing import NDArray

from app.errors import BadRequest, Unprocessable
from app.negotiation import NPY

FLOATS: Final = ("float16", "float32", "float64")
PIXELS: Final = ("uint8", *FLOATS)

_MAX_NPY_HEADER: Final = 10_000
_MAX_SAFETENSORS_HEADER: Final = 100_000
_MAX_AXES: Final = 8
_MAX_SIDES: Final = 2**48  # their product, a side of 0 counted as 1: NumPy refuses much larger arrays, even empty ones

# A .npy header is the text of a Python dictionary with these three keys (numpy.lib.format).
_DESCR: Final = re.compile(r"""['"]descr['"]\s*:\s*(?:['"][<>|=]?([A-Za-z?]\d{0,6})(?:\[\w{1,8}\])?['"]|[\[(])""")
_ORDER: Final = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)\b""")
_SHAPE: Final = re.compile(r"""['"]shape['"]\s*:\s*\(((?:\s*\d{1,15}L?\s*,)*(?:\s*\d{1,15}L?)?)\s*\)""")
_NPY: Final = {"u1": "uint8", "f2": "float16", "f4": "float32", "f8": "float64"}
_SAFETENSORS: Final = {"U8": "uint8", "F16": "float16", "F32": "float32", "F64": "float64"}


def read_array(body: bytes, media_type: str, name: str, dtypes: tuple[str, ...]) -> NDArray[Any]:
    """Return the array of a body.

    Args:
        body: a .npy file, or a safetensors file, of which other tensors than ``name`` are ignored.
        media_type: ``application/x-npy`` or ``application/x-safetensors``.
        name: tensor that is read from safetensors.
        dtypes: names of the number types that are read.

    Returns:
        The array in whatever byte and axis order it came; of a .npy file a view, which is read only.

    Raises:
        BadRequest: the header is broken, or does not fit the length of the body.
        Unprocessable: there is no such tensor, or it has another number type or more than 8 axes.
    """
    return _read_npy(body, dtypes) if media_type == NPY else _read_safetensors(body, name, dtypes)


def to_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """Return a copy as contiguous float32 in native byte order; what is beyond its range becomes infinite.

    No warning is given: the caller refuses what is not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(array, np.float32, order="C")


def shape_text(array: NDArray[Any]) -> str:
    """Return a shape as messages show it, such as ``(3, 32)``."""
    return str(tuple(int(side) for side in array.shape))


def _read_npy(body: bytes, dtypes: tuple[str, ...]) -> NDArray[Any]:
    header, start = _npy_header(body)
    descr, order, shape = _DESCR.search(header), _ORDER.search(header), _SHAPE.search(header)
    if descr is None or order is None or shape is None:
        raise BadRequest("the .npy header lacks descr, fortran_order or shape", code="malformed_npy")
    code = descr[1] or "structured"
    kind = _dtype(_NPY.get(code), code, dtypes)
    if ">" in descr[0]:
        kind = kind.newbyteorder(">")
    sides = tuple(int(side.strip().rstrip("L")) for side in shape[1].split(",") if side.strip())
    _check_axes(sides)
    needed = math.prod(sides) * kind.itemsize
    if needed != len(body) - start:
        raise BadRequest(
            f"the .npy header asks for {needed:,} bytes of data, the body holds {len(body) - start:,}",
            code="malformed_npy",
        )
    _check_sides(sides)
    return np.ndarray(sides, kind, body, start, order="F" if order[1] == "True" else "C")


def _npy_header(body: bytes) -> tuple[str, int]:
    """Return the text of the header, and where the data start."""
    version = bytes(body[6:8])
    if body[:6] != b"\x93NUMPY" or version not in (b"\1\0", b"\2\0", b"\3\0"):
        raise BadRequest("the body is not a .npy file of version 1.0, 2.0 or 3.0", code="malformed_npy")
    begin = 10 if version == b"\1\0" else 12
    length = int.from_bytes(body[8:begin], "little")
    if len(body) < begin or length > min(len(body) - begin, _MAX_NPY_HEADER):
        raise BadRequest("the .npy header is truncated or too long", code="malformed_npy")
    return body[begin : begin + length].decode("latin-1"), begin + length


def _read_safetensors(body: bytes, name: str, dtypes: tuple[str, ...]) -> NDArray[Any]:
    if int.from_bytes(body[:8], "little") > min(len(body) - 8, _MAX_SAFETENSORS_HEADER):
        raise BadRequest("the safetensors header is truncated or too long", code="malformed_safetensors")
    try:
        tensors = dict(safetensors.deserialize(body))  # type: ignore[no-untyped-call]
    except (safetensors.SafetensorError, ValueError, OverflowError):
        raise BadRequest(
            "the body is not a sound safetensors file: its header is broken or does not fit its length",
            code="malformed_safetensors",
        ) from None
    if name not in tensors:
        raise Unprocessable(f"the safetensors file has no tensor named {name!r}", code="invalid_field")
    tensor: dict[str, Any] = tensors[name]
    kind = _dtype(_SAFETENSORS.get(tensor["dtype"]), tensor["dtype"], dtypes)
    sides = tuple(tensor["shape"])
    _check_axes(sides)
    _check_sides(sides)
    return np.ndarray(sides, kind, tensor["data"])


def _check_axes(sides: tuple[int, ...]) -> None:
    if len(sides) > _MAX_AXES:
        raise Unprocessable(f"the array has {len(sides)} axes; at most 4 are read", code="wrong_shape")


def _check_sides(sides: tuple[int, ...]) -> None:
    """Refuse an empty array whose other sides are too long for any array."""
    if math.prod(max(side, 1) for side in sides) > _MAX_SIDES:
        raise Unprocessable(f"the array has no numbers and sides of up to {max(sides):,}", code="wrong_shape")


def _dtype(name: str | None, code: str, dtypes: tuple[str, ...]) -> np.dtype[Any]:
    """Return the number type called ``name`` in little-endian order; ``code`` is what the file calls it."""
    if name not in dtypes:
        expected = f"{', '.join(dtypes[:-1])} or {dtypes[-1]}"
        raise Unprocessable(f"the array has the number type {code[:20]}; expected {expected}", code="wrong_dtype")
    return np.dtype(name).newbyteorder("<")
