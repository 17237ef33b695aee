"""What a PNG or JPEG file says about itself, read without decoding it: pixels, orientation, scans.

An image file is the one input whose cost is set by a few bytes of its header, and whose side information
(profiles, texts, thumbnails) can be far larger than its picture. ``scan`` walks over the parts of the file,
refuses what lies about itself, and keeps only the parts that a decoder needs. Nothing here decodes a pixel or
knows a model.

Sources: PNG specification (third edition), ITU-T T.81 (JPEG), TIFF 6.0 and Exif 2.3 (orientation).
"""

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Final

MAX_SCANS: Final = 100
"""Most scans of a JPEG; encoders write about ten, and each one costs a pass over the whole picture."""

JPEG_PIXELS_PER_BYTE: Final = 64 * 8
"""Most pixels that a byte of a JPEG can stand for: each block of 8 x 8 has at least one bit of its own."""

DEFLATED: Final = 1032
"""Most bytes that deflate packs into one."""

PNG_PIXELS_PER_BYTE: Final = DEFLATED * 8
"""Most pixels that a byte of a PNG can stand for: those of one bit each."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
_MAX_CHUNKS: Final = 100_000
_MAX_SEGMENTS: Final = 5_000
_FULL_PASSES: Final = 16  # scans that a picture of the largest size may have

_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # PNG color type -> samples per pixel
_CHUNK: Final = struct.Struct(">I4s")
_PLAIN: Final = {b"\x08\0\0\0\0": "L", b"\x08\x02\0\0\0": "RGB"}  # depth, color, packing, filters, interlacing -> mode
_KEPT_CHUNKS: Final = frozenset({b"PLTE", b"tRNS", b"IDAT", b"IEND"})

_MARKER: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither fill, nor a stuffed byte, nor a restart
_COLORS: Final = {(8, 1, 11): "L", (8, 3, 17): "RGB"}  # bits, colors and length of a start of frame -> mode
_SOF, _OTHER_SOF = (
    frozenset({0xC0, 0xC1, 0xC2}),
    frozenset({0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xD0)} - {0xCC}),
)
_SOI, _EOI, _SOS, _TEM, _COM = 0xD8, 0xD9, 0xDA, 0x01, 0xFE
_KEPT_APPS: Final = frozenset({0xE0, 0xEE})  # JFIF and Adobe: they say what the color channels are


class ImageError(ValueError):
    """An image that cannot be taken; its text is written for the person who sent it."""


class UnreadableImage(ImageError):
    """The bytes are no PNG or JPEG, or a broken, truncated or dishonest one."""


class TooManyPixels(ImageError):
    """The image is larger than the caller allows.

    Attributes:
        got: width times height of the image.
        limit: the most pixels allowed.
    """

    def __init__(self, got: int, limit: int) -> None:
        """Keep both numbers."""
        super().__init__(f"the image has {got:,} pixels; at most {limit:,} are read")
        self.got, self.limit = got, limit


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file of which only what a decoder needs is left.

    Attributes:
        format: ``"PNG"`` or ``"JPEG"``.
        width: pixels of a row, before the orientation is applied.
        height: rows, before the orientation is applied.
        exif: the Exif block, or empty.
        data: the file without profiles, texts, comments, thumbnails and whatever follows its end.
        mode: ``L`` or ``RGB`` of a PNG that is nothing but rows of grey or RGB bytes, and of a JPEG of one or three
            colors of 8 bits, else empty.
        rows: those rows of a PNG as they are in the file: filtered and deflated.
    """

    format: str
    width: int
    height: int
    exif: bytes
    data: bytes
    mode: str = ""
    rows: bytes = b""


def scan(data: bytes, max_pixels: int) -> ImageFile:
    """Return what the file is, without decoding it.

    Raises:
        UnreadableImage: it is neither PNG nor JPEG, it ends early, or it claims more pixels than it can hold.
        TooManyPixels: width times height is above ``max_pixels``.
    """
    if data.startswith(_PNG):
        return _scan_png(data, max_pixels)
    if data.startswith(_JPEG):
        return _scan_jpeg(data, max_pixels)
    raise UnreadableImage("the file is neither PNG nor JPEG")


def orientation(exif: bytes) -> int:
    """Return the orientation of an Exif block, 1 to 8; 1 (upright) where it has none or cannot be read."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
        if (tag, kind) == (0x0112, 3):
            return int(value) if 1 <= value <= 8 else 1
    return 1


def _scan_png(data: bytes, max_pixels: int) -> ImageFile:
    """Walk over the chunks: 4 bytes length, 4 bytes name, contents, 4 bytes checksum."""
    width, height, row_bits = _png_header(data, max_pixels)
    exif, packed, kept, copied = b"", [], [], 0
    mode = _PLAIN.get(data[24:29], "") if zlib.crc32(data[12:29]) == int.from_bytes(data[29:33]) else ""
    at = 33
    for _ in range(_MAX_CHUNKS):
        if at + 12 > len(data):
            raise UnreadableImage("the PNG ends early: it is truncated")
        length, name = _CHUNK.unpack_from(data, at)
        end = at + 12 + length
        if name == b"IDAT":
            packed.append(data[at + 8 : end - 4])
        elif name == b"IEND":
            break
        elif name in _KEPT_CHUNKS:
            mode = ""  # a palette or a transparent color
        else:
            if name == b"IHDR":
                raise UnreadableImage("the PNG has two headers")
            if name == b"eXIf":
                exif = data[at + 8 : end - 4]
            kept.append(data[copied:at])
            copied = end
        at = end
    else:
        raise UnreadableImage(f"the PNG has more than {_MAX_CHUNKS:,} chunks")
    # Each row has a filter byte before its pixels.
    rows = packed[0] if len(packed) == 1 else b"".join(packed)
    if height * (1 + (width * row_bits + 7) // 8) > DEFLATED * len(rows) + 1024:
        raise UnreadableImage("the PNG claims more pixels than its data can hold")
    clean = _joined(data, kept, copied, at + 12 + length)
    return ImageFile("PNG", width, height, exif, clean, mode, rows if mode else b"")


def _png_header(data: bytes, max_pixels: int) -> tuple[int, int, int]:
    """Return width, height and bits per pixel of a PNG."""
    if len(data) < 33 or data[8:16] != b"\0\0\0\x0dIHDR":
        raise UnreadableImage("the PNG has no complete header")
    width, height, depth, kind = struct.unpack_from(">IIBB", data, 16)
    if width == 0 or height == 0 or kind not in _CHANNELS or depth not in (1, 2, 4, 8, 16):
        raise UnreadableImage("the header of the PNG is not valid")
    _check_pixels(width, height, max_pixels)
    return width, height, depth * _CHANNELS[kind]


def _scan_jpeg(data: bytes, max_pixels: int) -> ImageFile:
    """Walk over the segments: 0xFF, marker, 2 bytes length, contents; coded data follow a start of scan."""
    size: tuple[int, int] | None = None
    mode, exif, scans, kept, copied = "", b"", 0, [], 0
    at = 2
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None:
            raise UnreadableImage("the JPEG ends early: it is truncated")
        marker, at = data[found.end() - 1], found.end()
        if marker == _EOI:
            break
        if marker == _TEM:
            continue
        end = at + int.from_bytes(data[at : at + 2])
        if marker == _SOI or end < at + 2 or end > len(data):
            raise UnreadableImage("a segment of the JPEG is broken or truncated")
        if marker in _SOF and size is None:
            size = _jpeg_size(data[at:end], max_pixels)
            mode = _COLORS.get((data[at + 2], data[at + 7], end - at), "")
        elif marker in _SOF or marker in _OTHER_SOF:
            raise UnreadableImage("the JPEG is of an unusual kind; baseline and progressive ones are read")
        elif marker == _SOS:
            scans += 1
            _check_scans(scans, size, max_pixels)
        elif (0xE0 <= marker <= 0xEF and marker not in _KEPT_APPS) or marker == _COM:
            if marker == 0xE1 and not exif and data.startswith(b"Exif\0\0", at + 2):
                exif = data[at + 2 : end]
            kept.append(data[copied : found.start()])
            copied = end
        at = end
    else:
        raise UnreadableImage(f"the JPEG has more than {_MAX_SEGMENTS:,} segments")
    if size is None or scans == 0:
        raise UnreadableImage("the JPEG holds no picture")
    # A Huffman code has at least one bit, and each block of 8 x 8 pixels has its own in the DC scan.
    if size[0] * size[1] > JPEG_PIXELS_PER_BYTE * len(data):
        raise UnreadableImage("the JPEG claims more pixels than its data can hold")
    return ImageFile("JPEG", *size, exif, _joined(data, kept, copied, at), mode)


def _jpeg_size(segment: bytes, max_pixels: int) -> tuple[int, int]:
    """Return width and height from a start-of-frame segment."""
    if len(segment) < 8:
        raise UnreadableImage("the header of the JPEG is broken")
    height, width = struct.unpack_from(">HH", segment, 3)
    if width == 0 or height == 0:
        raise UnreadableImage("the header of the JPEG is not valid")
    _check_pixels(width, height, max_pixels)
    return width, height


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooManyPixels(width * height, max_pixels)


def _check_scans(scans: int, size: tuple[int, int] | None, max_pixels: int) -> None:
    if size is None:
        raise UnreadableImage("the JPEG has data before its header")
    if scans > MAX_SCANS or scans * size[0] * size[1] > _FULL_PASSES * max_pixels:
        raise UnreadableImage("the JPEG has too many scans")


def _joined(data: bytes, kept: list[bytes], copied: int, end: int) -> bytes:
    """Return the kept parts and the rest up to ``end``; the very same object where nothing was left out."""
    if not kept and end == len(data):
        return data
    return b"".join([*kept, data[copied:end]])
