"""What a pixel means: image file -> ``(C, H, W)`` bytes -> numbers in 0..1; the one preprocessing there is.

Training on a folder and serving a request go through ``read_file``, so both see the same picture of the same
file. NumPy and Pillow alone: no network, no torch.
"""

import math
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from model.imagefile import ImageError, ImageFile, TooManyPixels, UnreadableImage, orientation, scan

__all__ = [
    "ImageError",
    "Shape",
    "TooManyPixels",
    "UnreadableImage",
    "WrongSize",
    "contact_sheet",
    "prepare",
    "read_file",
    "to_bytes",
    "to_pillow",
    "to_unit",
]

Shape = tuple[int, int, int]
"""``(C, H, W)`` of a model's images."""

_MODES: Final = {1: "L", 3: "RGB"}
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's two decoders raise for broken files; their texts (some hold memory addresses) end here.
_DECODER_ERRORS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AssertionError,  # a palette image without its palette
    struct.error,
    zlib.error,
)


class WrongSize(ImageError):
    """The image would have to be resized, and the caller does not want that.

    Attributes:
        got: ``(H, W)`` of the image, orientation applied.
        expected: ``(H, W)`` of the model.
    """

    def __init__(self, got: tuple[int, int], expected: tuple[int, int]) -> None:
        """Keep both sizes."""
        super().__init__(f"the image is {got[1]} x {got[0]} pixels; the model reads {expected[1]} x {expected[0]}")
        self.got, self.expected = got, expected


def read_file(source: bytes | str | Path, shape: Shape, *, max_pixels: int, resize: bool = True) -> NDArray[np.uint8]:
    """Return a PNG or JPEG file as an image of the model's shape.

    The file is judged by its header before a pixel is decoded; no Pillow message or warning passes through.

    Args:
        source: the contents of a file, or the path of one.
        shape: ``(C, H, W)`` of the model.
        max_pixels: most pixels (width times height) that are decoded.
        resize: whether another size is cropped and resized; else it is refused.

    Returns:
        ``(C, H, W)``, 0..255.

    Raises:
        UnreadableImage: not a PNG or JPEG, broken, truncated, or dishonest about its size; over 100 scans.
        TooManyPixels: larger than ``max_pixels``.
        WrongSize: another size than the model's, with ``resize=False``.
        OSError: the path cannot be read.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    file = scan(data, max_pixels)
    try:
        image = _opened(file, shape)
        if file.mode == _MODES[shape[0]] and image.size == (shape[2], shape[1]) and not file.exif:
            return _pixels(image, shape)
        if file.exif:
            image.info["exif"] = file.exif
        if image.size != (file.width, file.height):
            raise UnreadableImage(f"the {file.format} contradicts itself about its size")
        return prepare(image, shape, resize)
    except ImageError:
        raise
    except _DECODER_ERRORS:
        raise UnreadableImage(f"the {file.format} is broken or truncated") from None


def prepare(image: Image.Image, shape: Shape, resize: bool = True) -> NDArray[np.uint8]:
    """Return an opened image as the model sees it.

    Exif orientation is applied, transparency is composited on black, the colors become grey (C = 1) or RGB
    (C = 3), 16-bit grey is scaled to 8 bits, the center is cropped to the model's aspect and resized with an
    antialiasing (bicubic) filter. The last step leaves an image alone that has the size already.

    Args:
        image: any Pillow image; a JPEG that is not loaded yet is decoded at an eighth, a quarter or a half of
            its size where that leaves twice the model's, which saves most of the work and memory.
        shape: ``(C, H, W)`` of the model, C of 1 or 3.
        resize: whether another size is cropped and resized; else it is refused.

    Returns:
        ``(C, H, W)``, 0..255.

    Raises:
        WrongSize: another size than the model's, with ``resize=False``.
        OSError, ValueError: Pillow cannot decode the image.
    """
    channels, height, width = shape
    turn = _TURNS.get(_orientation(image))
    swapped = turn is not None and _orientation(image) >= 5
    got = image.size if not swapped else image.size[::-1]
    if got != (width, height):
        if not resize:
            raise WrongSize((got[1], got[0]), (height, width))
        image.draft(None, (2 * height, 2 * width) if swapped else (2 * width, 2 * height))
    image = _opaque(image, _MODES[channels])
    if turn is not None:
        image = image.transpose(turn)
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height))
    return _pixels(image, shape)


def to_unit(pixels: NDArray[np.uint8], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Return bytes 0..255 as float32 in 0..1, of the same shape, in ``out`` where it is given."""
    return np.divide(pixels, np.float32(255), out, dtype=np.float32)


def to_bytes(x: NDArray[Any]) -> NDArray[np.uint8]:
    """Return finite numbers as bytes: 0..1 becomes 0..255, rounded to nearest, clipped; the shape stays."""
    grey: NDArray[np.uint8] = np.rint(np.clip(x, 0, 1) * np.float32(255)).astype(np.uint8)
    return grey


def to_pillow(images: NDArray[Any]) -> list[Image.Image]:
    """Return images ``(N, C, H, W)`` in 0..1 as images of Pillow, grey (C = 1) or RGB (C = 3)."""
    return [
        Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        for pixels in to_bytes(images)
    ]


def contact_sheet(images: NDArray[np.uint8], columns: int | None = None) -> NDArray[np.uint8]:
    """Return images side by side without gaps: image i in row ``i // columns``, column ``i % columns``.

    Args:
        images: ``(N, C, H, W)``, N ≥ 1.
        columns: images in a row, 1 or more; by default those of the smallest square that holds N.

    Returns:
        ``(C, rows * H, columns * W)``; cells after the last image are black.
    """
    count, channels, height, width = images.shape
    columns = columns or math.isqrt(count - 1) + 1  # the square root, rounded up
    rows = -(-count // columns)
    cells = np.zeros((rows * columns, channels, height, width), np.uint8)
    cells[:count] = images
    grid = cells.reshape(rows, columns, channels, height, width)
    grid = grid.transpose(2, 0, 3, 1, 4)  # (C, rows, H, columns, W)
    return grid.reshape(channels, rows * height, columns * width)


def _opened(file: ImageFile, shape: Shape) -> Image.Image:
    """Return the file as an image; the most common ones are decoded at once, which takes half the time.

    Those are PNGs of nothing but rows, and JPEGs of the model's size, which are never decoded smaller than they are.
    """
    size = (file.width, file.height)
    if file.format == "PNG" and file.mode:
        return Image.frombytes(file.mode, size, file.rows, "zip", file.mode, 0)
    if file.mode and size == (shape[2], shape[1]):
        return Image.frombytes(file.mode, size, file.data, "jpeg", file.mode, "")
    return (PngImageFile if file.format == "PNG" else JpegImageFile)(BytesIO(file.data))


def _pixels(image: Image.Image, shape: Shape) -> NDArray[np.uint8]:
    """Return an image that has the model's mode and size as ``(C, H, W)``."""
    channels, height, width = shape
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (H, W, C) -> (C, H, W)


def _orientation(image: Image.Image) -> int:
    exif = image.info.get("exif")
    return orientation(exif) if isinstance(exif, bytes) else 1


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in ``mode``, L or RGB, composited on black where it has transparency."""
    image.load()  # a PNG may tell of transparency after its pixels
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    elif image.has_transparency_data:
        colors = image if image.mode == "RGBA" else image.convert("RGBA")  # a large copy saved
        image = Image.new("RGB", image.size)
        image.paste(colors, mask=colors)  # the alpha channel is the mask
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return 16-bit grey as 8-bit grey: scaled and rounded, the transparent value black."""
    grey = ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)  # of each of the 65,536 values
    if "transparency" in image.info:
        grey[image.info["transparency"]] = 0
    deep = np.asarray(image)  # (H, W), uint16, or int32 in mode I
    return Image.fromarray(grey[deep if deep.dtype == np.uint16 else deep.clip(0, 65535)])
