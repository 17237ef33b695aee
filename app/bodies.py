"""Images, latents and numbers as request bodies: what the client sends.

A ``Body`` is what httpx takes; nothing is checked that the server checks better.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.negotiation import JPEG, JSON, NPY, PNG

_PNG_MODES: Final = frozenset({"1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"})  # of Pillow, in PNG files


@runtime_checkable
class PilImage(Protocol):
    """What is used of a ``PIL.Image.Image``, so that Pillow need not be imported."""

    @property
    def mode(self) -> str:
        """Kind of pixels, such as ``L`` or ``RGB``."""

    def convert(self, mode: str) -> PilImage:
        """Return the image in another mode."""

    def getexif(self) -> Any:
        """Return the EXIF data; empty where there are none."""

    def save(self, fp: BytesIO, format: str, *, exif: Any) -> None:
        """Write the image."""


ImageFile: TypeAlias = str | PathLike[str] | bytes | PilImage
Images: TypeAlias = ImageFile | ArrayLike | Iterable[ImageFile] | Iterable[NDArray[Any]]
"""One image or many: paths or bytes of PNG and JPEG files, PIL images, or arrays of the model's shape.

An array is ``uint8`` 0..255 or float 0..1, of shape ``(N, C, H, W)``, ``(N, H, W)`` or ``(H, W)``; several arrays of
one shape are stacked. Files and arrays do not mix.
"""


@dataclass(frozen=True)
class Body:
    """A request body: ``content`` of a type, or ``files`` for a form."""

    content_type: str | None = None
    content: bytes | None = None
    files: list[tuple[str, tuple[str, bytes]]] | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the body as keyword arguments of ``httpx.Client.request``."""
        return {"files": self.files} if self.files else {"content": self.content}


def images_body(images: Images) -> Body:
    """Return images as a body: arrays as npy, one file as it is, several as a form.

    Raises:
        OSError: a file cannot be read.
        TypeError: files and arrays are mixed.
        ValueError: an array holds no numbers, or arrays differ in shape.
    """
    if _is_file(images):
        return _files_body([images])
    if hasattr(images, "__array__") or not isinstance(images, Iterable):
        return npy_body(np.asarray(images))
    items = list(images)
    files = [item for item in items if _is_file(item)]
    if files and len(files) < len(items):
        raise TypeError("files and arrays cannot be mixed in one request")
    return _files_body(files) if files else npy_body(np.asarray(items))


def latents_body(z: ArrayLike) -> Body:
    """Return latents ``(N, D)`` or ``(D,)`` as a body; integers are numbers too."""
    latents = np.asarray(z)
    return npy_body(latents if latents.dtype.kind == "f" else latents.astype(np.float32))


def npy_body(array: NDArray[Any]) -> Body:
    """Return an array as a body, in native byte order; ``ValueError`` where it holds no numbers."""
    file = BytesIO()
    np.save(file, np.ascontiguousarray(array, array.dtype.newbyteorder("=")), allow_pickle=False)
    return Body(NPY, file.getvalue())


def walk_end(end: ArrayLike | ImageFile) -> str | list[Any]:
    """Return one end of an interpolation as JSON has it: D numbers, base64 of an image file, or pixels in 0..1.

    An array of one axis, or of a single row, is a latent.

    Raises:
        OSError: a file cannot be read.
    """
    if _is_file(end):
        return base64.b64encode(_file_bytes(end)).decode()
    array: NDArray[Any] = np.asarray(end)
    if array.ndim == 1 or (array.ndim == 2 and len(array) == 1):
        return list(array.ravel().tolist())
    return list((array / 255 if array.dtype == np.uint8 else array).tolist())


def json_body(value: object) -> Body:
    """Return a body of JSON; arrays and NumPy's numbers become lists and numbers, exact in float64."""
    return Body(JSON, json.dumps(value, default=lambda item: item.tolist()).encode())


def _is_file(item: object) -> TypeGuard[ImageFile]:
    return isinstance(item, str | PathLike | bytes | PilImage)


def _files_body(items: list[ImageFile]) -> Body:
    files = [_file_bytes(item) for item in items]
    if len(files) > 1:
        return Body(files=[("images", (f"{i}", data)) for i, data in enumerate(files)])
    return Body(JPEG if files[0].startswith(b"\xff\xd8\xff") else PNG, files[0])


def _file_bytes(item: ImageFile) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, str | PathLike):
        return Path(item).read_bytes()
    file = BytesIO()
    image = item if item.mode in _PNG_MODES else item.convert("RGB")
    image.save(file, "PNG", exif=item.getexif())
    return file.getvalue()
