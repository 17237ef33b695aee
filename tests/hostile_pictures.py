"""Image files that are built to cost far more than they weigh, and files that only look like images."""

import io
import struct
import zlib
from functools import cache

import numpy as np
from hostile_files import chunk
from PIL import Image
from service_pictures import ink, jpeg, png

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_of(width: int, height: int, packed: bytes, *, depth: int = 8, kind: int = 0, more: bytes = b"") -> bytes:
    """Return a PNG that claims a size, with whatever data."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + more + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int) -> bytes:
    """Return a small JPEG whose header claims another size."""
    data = jpeg(ink())
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def jpeg_of_scans(count: int, side: int = 64) -> bytes:
    """Return a progressive JPEG whose last scan comes ``count`` times more."""
    noise = Image.effect_noise((side, side), 50)
    out = io.BytesIO()
    noise.save(out, "JPEG", progressive=True)
    data = out.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * count + data[-2:]


def foreign(form: str) -> bytes:
    """Return a picture as a file of another format that Pillow could read."""
    out = io.BytesIO()
    Image.fromarray(np.stack([ink()] * 3, axis=-1)).save(out, form)
    return out.getvalue()


def inserted(data: bytes, name: bytes, inner: bytes) -> bytes:
    """Return a PNG with one chunk more, after its header."""
    return data[:33] + chunk(name, inner) + data[33:]


@cache
def zeros(count: int) -> bytes:
    return zlib.compress(bytes(count), 9)


@cache
def refused() -> dict[str, tuple[bytes, int]]:
    """Return files that must not be read, each with the status of its refusal."""
    svg = (
        b'<svg xmlns="http://www.w3.org/2000/svg" width="99999" height="99999"><image href="file:///etc/passwd"/></svg>'
    )
    psd = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 4, 30000, 30000, 8, 3) + bytes(12)
    return {
        "giant PNG": (png_of(2**31 - 1, 2**31 - 1, zeros(1000)), 413),
        "PNG of 100 megapixels": (png_of(10_000, 10_000, zeros(10_000 * 10_001)), 413),
        "PNG just over the limit": (png_of(5000, 5001, zeros(5001 * 5001)), 413),
        "lying PNG within the limit": (png_of(5000, 4900, zeros(1000)), 400),
        "PNG that is one endless row": (png_of(2**31 - 1, 1, zeros(1000)), 413),
        "interlaced giant": (SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 65535, 65535, 16, 6, 0, 0, 1)), 413),
        "lying JPEG": (jpeg_claiming(9400, 9400), 413),
        "lying JPEG within the limit": (jpeg_claiming(5000, 4900), 400),
        "largest JPEG there is": (jpeg_claiming(65535, 65535), 413),
        "JPEG of 5,000 scans": (jpeg_of_scans(5000), 400),
        "PNG of a million chunks": (SIGNATURE + png(ink())[8:33] + chunk(b"tEXt", b"") * 1_000_000, 400),
        "GIF": (foreign("GIF"), 400),
        "GIF that claims 65535 x 65535": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(20), 400),
        "TIFF": (foreign("TIFF"), 400),
        "TIFF with an endless directory": (b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + bytes(100_000), 400),
        "PSD": (psd, 400),
        "SVG": (svg, 400),
        "SVG with entities": (b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">]><svg>&a;</svg>', 400),
        "BMP": (foreign("BMP"), 400),
        "ICO": (foreign("ICO"), 400),
        "PPM": (b"P6 99999 99999 255\n", 400),
        "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\n", 400),
        "PDF": (b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj", 400),
        "ZIP": (b"PK\x03\x04" + bytes(1000), 400),
    }


@cache
def harmless() -> dict[str, bytes]:
    """Return good pictures that carry a bomb beside the pixels; it is never opened, and the picture is read."""
    good = png(ink())
    thumbnail = jpeg_claiming(60_000, 60_000)
    return {
        "zTXt of 100 MB": inserted(good, b"zTXt", b"bomb\0\0" + zeros(100_000_000)),
        "iTXt of 100 MB": inserted(good, b"iTXt", b"bomb\0\1\0\0\0" + zeros(100_000_000)),
        "color profile of 100 MB": inserted(good, b"iCCP", b"bomb\0\0" + zeros(100_000_000)),
        "pixel data of 100 MB for 784 pixels": png_of(28, 28, zeros(100_000_000)),
        "Exif that points in circles": inserted(good, b"eXIf", b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) * 30_000),
        "thumbnail that lies": jpeg(ink(), exif=b"Exif\0\0II*\0\x08\0\0\0\0\0" + thumbnail),
        "a megabyte after the end": good + bytes(1_000_000),
    }
