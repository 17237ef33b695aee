"""Images in, in two phases: parse a body (how many images are there?), then decode them.

Between the two the queue can refuse the request, before a single pixel costs anything. No HTTP objects and no
model: bytes and a Content-Type in, arrays out.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.arrays import PIXELS, read_array, shape_text, to_float32
from app.claims import Item, from_base64, most_pixels, told_pixels
from app.errors import BadRequest, ContentTooLarge, Unprocessable
from app.json_bodies import check_lists, read_json
from app.multipart import split_parts
from app.negotiation import IMAGE_TYPES, JPEG, JSON, MULTIPART, PNG, input_type
from app.schemas import MAX_ROWS, ImagesIn
from model.pixels import ImageError, Shape, TooManyPixels, WrongSize, read_file, to_unit

LIGHT_PIXELS: Final = 1_000_000  # decoded in a few milliseconds
PART_BYTES: Final = 16_384  # of image files that are decoded in one go


class ImageBatch(ABC):
    """Images that are parsed but not decoded.

    Attributes:
        count: N, the number of images; 1 or more.
    """

    count: int

    def is_light(self) -> bool:
        """Return whether decoding costs less than a hop to a thread, whatever the few bytes claim to be."""
        return True

    def pixels(self, max_pixels: int, enough: int) -> int:
        """Return the pixels of all files as told, ``max_pixels`` of each at most; up to ``enough`` as an estimate."""
        return 0

    def parts(self) -> "list[ImageBatch]":
        """Return the batch in pieces, in order, so that other requests get their turn while it is decoded."""
        return [self]

    def undecoded(self, shape: Shape) -> "Pixels | None":
        """Return the images as they are, where nothing else needs to be checked than their shape; errors as below."""
        return None

    @abstractmethod
    def decode(self, shape: Shape, *, max_pixels: int, resize: bool = True) -> NDArray[np.float32]:
        """Return the images as ``(N, C, H, W)``, numbers in 0..1.

        Args:
            shape: ``(C, H, W)`` of the model.
            max_pixels: most pixels (width times height) of an image file.
            resize: whether image files of another size are cropped and resized; arrays never are.

        Raises:
            BadRequest: an image file, or its base64, is broken.
            ContentTooLarge: an image file has too many pixels.
            Unprocessable: another shape than the model's, a number outside 0..1 or not finite.
        """


class _Items(ImageBatch):
    """Image files (bytes, or base64 text) and nested lists of numbers, in any mixture."""

    def __init__(self, items: Sequence[Item], field: str, names: Sequence[str] = (), first: int = 0, of: int = 0):
        self.count, self._items, self._field, self._names = len(items), items, field, names
        self._first, self._of = first, of or len(items)  # where these stand in the whole batch

    def is_light(self) -> bool:
        return sum(map(most_pixels, self._items)) <= LIGHT_PIXELS

    def pixels(self, max_pixels: int, enough: int) -> int:
        most = sum(min(most_pixels(item), max_pixels) for item in self._items)
        return most if most <= enough else sum(min(told_pixels(item), max_pixels) for item in self._items)

    def parts(self) -> list[ImageBatch]:
        ends, size = [0], 0
        for i, item in enumerate(self._items):
            if size and size + len(item) > PART_BYTES:
                ends.append(i)
                size = 0
            size += len(item)
        slices = zip(ends, [*ends[1:], self.count], strict=True)
        return [_Items(self._items[a:b], self._field, self._names, self._first + a, self._of) for a, b in slices]

    def decode(self, shape: Shape, *, max_pixels: int, resize: bool = True) -> NDArray[np.float32]:
        images = np.empty((self.count, *shape), np.float32)
        for i, item in enumerate(self._items):
            place = _Place(self._first + i, self._of, self._field, self._names)
            if isinstance(item, list):
                images[i] = _read_nested(item, shape, place)
            else:
                data = item if isinstance(item, bytes) else _from_base64(item, place)
                to_unit(_read_file(data, shape, place, max_pixels, resize), images[i])
        return images


class _Array(ImageBatch):
    """One array of all images."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.count, self._array = len(array) if array.ndim > 2 else 1, array

    def undecoded(self, shape: Shape) -> "Pixels | None":
        return Pixels(self._of_shape(shape)) if self._array.dtype == np.uint8 else None

    def decode(self, shape: Shape, *, max_pixels: int, resize: bool = True) -> NDArray[np.float32]:
        array = self._of_shape(shape)
        if array.dtype == np.uint8:
            return np.ascontiguousarray(to_unit(array))
        images = to_float32(array)
        _check_range(images, "images", "body.images")
        return images

    def _of_shape(self, shape: Shape) -> NDArray[Any]:
        array, plane = self._array, shape[0] == 1
        if not (array.shape[1:] == shape or (plane and array.shape[-2:] == shape[1:] and array.ndim in (2, 3))):
            raise Unprocessable(_wrong_shape("got images of", array, shape, "N, "), code="wrong_shape")
        return array.reshape(self.count, *shape)


class Pixels:
    """Bytes that become numbers in 0..1 when a batch takes them: a quarter of the memory, and not all of it at once."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        """Keep the bytes, ``(N, C, H, W)``."""
        self._pixels = pixels

    def __len__(self) -> int:
        """Return N."""
        return len(self._pixels)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """Return some of the images as numbers."""
        return np.ascontiguousarray(to_unit(self._pixels[rows]))


class _Place:
    """Where an item stands: for people (``image 3 of 5``) and for programs (``body.images.2``)."""

    def __init__(self, index: int, count: int, field: str, names: Sequence[str] = ()) -> None:
        self.text = f"image {index + 1} of {count}" if count > 1 else "the image"
        self.where = f"{field}.{names[index] if names else index}" if names or field != "body" else field


def parse_images(
    body: bytes, content_type: str | None, *, max_items: int = MAX_ROWS, shape: Shape | None = None
) -> ImageBatch:
    """Return the images of a body, parsed but not decoded.

    Args:
        body: an image file, multipart form, JSON, .npy or safetensors.
        content_type: the Content-Type header; without one the body's first bytes decide.
        max_items: most images in the body.
        shape: ``(C, H, W)`` of the model; with it JSON of far more images is refused before it is read.

    Raises:
        BadRequest: the body is malformed.
        ContentTooLarge: more than ``max_items`` images.
        UnsupportedMediaType: the Content-Type is not one that is read.
        Unprocessable: no image, a wrong field, a wrong number type.
    """
    kind = input_type(content_type, body, IMAGE_TYPES)
    if kind in (PNG, JPEG):
        return _Items([body], "body")
    if kind == JSON:
        check_image_lists(body, max_items, shape)
        return from_json(read_json(ImagesIn, body).images, max_items)
    if kind == MULTIPART:
        return _counted(_Items(split_parts(body, content_type or "", "images", max_items), "body.images"), max_items)
    return _counted(_Array(read_array(body, kind, "images", PIXELS)), max_items)


def check_image_lists(body: bytes, max_items: int, shape: Shape | None) -> None:
    """Refuse JSON with more lists than ``max_items`` images of a shape have; ``ContentTooLarge``."""
    if shape is not None:
        check_lists(body, 1 + max_items * (1 + shape[0] * (1 + shape[1])))


def from_json(items: Sequence[Any], max_items: int = MAX_ROWS) -> ImageBatch:
    """Return the batch of the items of an ``images`` field; errors as for ``parse_images``."""
    return _counted(_Items(items, "body.images"), max_items)


def from_fields(fields: Mapping[str, Any]) -> ImageBatch:
    """Return the batch of a JSON body's own fields, each of which is one item; errors as for ``parse_images``."""
    return _Items(list(fields.values()), "body", list(fields))


def check_count(count: int, max_items: int, noun: str) -> None:
    """Refuse a body with no item, or with more than ``max_items`` of them."""
    if count == 0:
        raise Unprocessable(f"the request holds no {noun}s; send 1 or more", code="empty")
    if count > max_items:
        raise ContentTooLarge(
            f"got {count:,} {noun}s; a request may hold {max_items:,} (VAE_MAX_ITEMS); send them in several",
            code="too_many_items",
        )


def check_pixels(batch: ImageBatch, max_pixels: int, limit: int) -> None:
    """Refuse image files that have more pixels than ``limit`` together, ``max_pixels`` of each; ContentTooLarge."""
    if (total := batch.pixels(max_pixels, limit)) > limit:
        raise ContentTooLarge(
            f"the image files have {total:,} pixels together; at most {limit:,} are read of one request (a multiple "
            "of VAE_MAX_PIXELS); send fewer or smaller ones",
            code="too_many_pixels",
        )


def _counted(batch: ImageBatch, max_items: int) -> ImageBatch:
    check_count(batch.count, max_items, "image")
    return batch


def _read_file(data: bytes, shape: Shape, place: _Place, max_pixels: int, resize: bool) -> NDArray[np.uint8]:
    try:
        return read_file(data, shape, max_pixels=max_pixels, resize=resize)
    except TooManyPixels as error:
        text = f"{place.text} has {error.got:,} pixels; at most {max_pixels:,} are read (VAE_MAX_PIXELS)"
        raise ContentTooLarge(text, code="too_many_pixels", errors=[(place.where, str(error))]) from None
    except WrongSize as error:
        text = f"{place.text}: {error}; leave out resize=never to have it cropped and resized"
        raise Unprocessable(text, code="wrong_shape", errors=[(place.where, str(error))]) from None
    except ImageError as error:
        text = f"{place.text} cannot be read: {error}; send a PNG or JPEG file"
        raise BadRequest(text, code="malformed_image", errors=[(place.where, str(error))]) from None


def _from_base64(text: str, place: _Place) -> bytes:
    try:
        return from_base64(text)
    except ValueError:
        problem = "is not base64 of an image file"
        raise BadRequest(f"{place.text} {problem}", code="malformed_image", errors=[(place.where, problem)]) from None


def _read_nested(item: list[Any], shape: Shape, place: _Place) -> NDArray[np.float32]:
    """Return nested lists of numbers as ``(C, H, W)``."""
    try:
        array = np.array(item, np.float64)
    except ValueError:
        raise Unprocessable(
            f"{place.text} has rows of different lengths",
            code="wrong_shape",
            errors=[(place.where, "is ragged")],
        ) from None
    if array.shape != shape and not (shape[0] == 1 and array.shape == shape[1:]):
        text = _wrong_shape(f"{place.text} has", array, shape)
        raise Unprocessable(text, code="wrong_shape", errors=[(place.where, f"has shape {shape_text(array)}")])
    image = to_float32(array).reshape(shape)
    _check_range(image, place.text, place.where)
    return image


def _wrong_shape(got: str, array: NDArray[Any], shape: Shape, lead: str = "") -> str:
    """Return the text for an array that has not the model's shape; ``lead`` stands before the read shapes."""
    channels, height, width = shape
    read = f"({lead}{channels}, {height}, {width})"
    if channels == 1:
        read += f" or ({lead}{height}, {width})"
    advice = "arrays are never resized: prepare them, or send image files"
    return f"{got} shape {shape_text(array)}; this model reads {read}; {advice}"


def _check_range(images: NDArray[np.float32], subject: str, where: str) -> None:
    """Refuse numbers that are NaN, infinite or outside 0..1, naming the first."""
    with np.errstate(invalid="ignore"):
        inside = (images >= 0) & (images <= 1)  # False for NaN
    if inside.all():
        return
    at = np.unravel_index(int(inside.argmin()), images.shape)
    index = ".".join(str(int(i)) for i in at)
    finite = bool(np.isfinite(images[at]))
    problem = "lies outside 0..1" if finite else "is not a finite number"
    advice = "; floats are 0..1, uint8 is 0..255" if finite else ""
    raise Unprocessable(
        f"a number of {subject} (index {index}) {problem}{advice}",
        code="out_of_range" if finite else "not_finite",
        errors=[(f"{where}.{index}", problem)],
    )
