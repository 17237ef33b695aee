"""Image, npy and safetensors bodies that somebody has tampered with, repeatable by a seed.

Half of the changes know the format: they keep checksums and lengths right, so that they get past the first look.
"""

import json
import random
import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image
from service_pictures import ink, jpeg, npy, png, tensors

PNG_TYPE, JPEG_TYPE, NPY_TYPE, TENSORS_TYPE = (
    "image/png",
    "image/jpeg",
    "application/x-npy",
    "application/x-safetensors",
)
Body = tuple[str, bytes]
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
HEADER_WORDS = [
    b"'<f4'", b"'|O'", b"'>f8'", b"'<f2'", b"'|u1'", b"'<U9'", b"[('a','<f4')]", b"True", b"False", b"(", b")", b"()",
    b"(28, 28)", b"(-1, 28)", b"(4294967296, 4294967296)", b"(0,)", b"(1,1,1,1,1,1,1,1,1)", b"9" * 200, b"__import__",
    b"(0, 999999999999999, 999999999999999)",
    b"descr", b"shape", b"fortran_order", b"{", b"}", b"\x00", b"\xff", b"1L", b" " * 300,
]  # fmt: skip
FIELDS = ["dtype", "shape", "data_offsets", "__metadata__", "images", "z", "x"]
FIELD_VALUES = [
    "F32", "F64", "U8", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "nonsense", None, -1, 0, 1.5, [], [0], [0, 0], [-1, 4],
    [0, 10**18], [0, 10**15, 10**15], [0, 2**63], [10**18, 10**18],
    [28, 28], [1] * 70, {}, {"a": "b"}, {"a": 1}, "é" * 50, 10**25,
]  # fmt: skip


def good_files(latent_dim: int) -> list[Body]:
    """Return a file of each kind that is read, small ones, so that most changes hit something."""
    grey = ink()
    color = np.stack([grey, grey.T, 255 - grey], axis=-1)
    palette, alpha = Image.fromarray(color).quantize(16), np.concatenate([color, color[..., :1]], axis=-1)
    z = np.linspace(-1, 1, 2 * latent_dim, dtype=np.float32).reshape(2, latent_dim)
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        (PNG_TYPE, png(grey)),
        (PNG_TYPE, png(color, exif=exif)),
        (PNG_TYPE, png(alpha)),
        (PNG_TYPE, png(palette, transparency=3)),
        (PNG_TYPE, png(Image.fromarray(grey.astype(np.uint16) * 257))),
        (PNG_TYPE, png(Image.fromarray(grey > 0))),
        (JPEG_TYPE, jpeg(grey)),
        (JPEG_TYPE, jpeg(color, exif=exif)),
        (JPEG_TYPE, jpeg(color, progressive=True)),
        (JPEG_TYPE, jpeg(Image.fromarray(color).convert("CMYK"))),
        (JPEG_TYPE, jpeg(grey, restart_marker_blocks=2)),
        (NPY_TYPE, npy(grey)),
        (NPY_TYPE, npy(np.asfortranarray(grey / 255))),
        (NPY_TYPE, npy((grey[None, None] / 255).astype(">f2"))),
        (NPY_TYPE, npy(z)),
        (TENSORS_TYPE, tensors(images=grey[None], z=z)),
        (TENSORS_TYPE, tensors(images=(grey / 255).astype(np.float16), other=np.arange(5))),
    ]


def tampered(files: list[Body], seed: int) -> Iterator[Body]:
    """Yield files without an end, each a good one to which something has been done."""
    chance = random.Random(seed)
    knowing = {PNG_TYPE: _png, JPEG_TYPE: _jpeg, NPY_TYPE: _npy, TENSORS_TYPE: _tensors}
    while True:
        kind, data = chance.choice(files)
        for _ in range(chance.choice((1, 1, 2, 3))):
            data = knowing[kind](data, chance) if chance.random() < 0.5 else _bytes(data, chance)
        yield kind, data


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG with its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _bytes(data: bytes, chance: random.Random) -> bytes:
    at, way = chance.randrange(len(data) + 1), chance.randrange(6)
    if way == 0:
        return data[:at]
    if way == 1:
        return data[:at] + chance.randbytes(chance.randrange(1, 9)) + data[at:]
    if way == 2:
        return data[:at] + data[at + chance.randrange(1, 65) :]
    if way == 3:
        return data[:at] + data[chance.randrange(len(data) + 1) :]
    edge = chance.choice(EDGES).to_bytes(4, chance.choice(("big", "little")))[-chance.choice((1, 2, 4)) :]
    return data[:at] + edge + data[at + len(edge) :]


def _png(data: bytes, chance: random.Random) -> bytes:
    """Change, double, drop or reorder a chunk; its checksum is right again."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return _bytes(data, chance)
    i = chance.randrange(len(chunks))
    name, inner = chunks[i]
    way = chance.randrange(6)
    if way == 0:
        chunks.insert(chance.randrange(len(chunks)), chunks[i])
    elif way == 1:
        del chunks[i]
    elif way == 2:
        chunks[i] = (
            chance.choice((b"IDAT", b"PLTE", b"tRNS", b"eXIf", b"zTXt", b"iCCP", b"acTL", b"fdAT", b"gAMA")),
            inner,
        )
    elif way == 3 and name == b"IDAT":
        raw = chance.randbytes(chance.randrange(2000))
        chunks[i] = (name, zlib.compress(raw))
    else:
        chunks[i] = (name, _bytes(inner, chance) if inner else chance.randbytes(9))
    return data[:8] + b"".join(chunk(*one) for one in chunks)


def _jpeg(data: bytes, chance: random.Random) -> bytes:
    """Change, double or drop a segment; its length is right again."""
    starts = [match.start() for match in re.finditer(rb"\xff[\xc0-\xcf\xda-\xef\xfe]", data)]
    if not starts:
        return _bytes(data, chance)
    at = chance.choice(starts)
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
    way = chance.randrange(5)
    if way == 0:
        return data[:at] + data[at:end] + data[at:]
    if way == 1:
        return data[:at] + data[end:]
    if way == 2:
        return data[: at + 1] + bytes([chance.randrange(0xC0, 0xFF)]) + data[at + 2 :]
    inner = _bytes(data[at + 4 : end], chance) if end > at + 4 else b""
    return data[: at + 2] + min(len(inner) + 2, 65535).to_bytes(2) + inner + data[end:]


def _npy(data: bytes, chance: random.Random) -> bytes:
    """Change the text of the header; its length is right again."""
    length = int.from_bytes(data[8:10], "little")
    header, rest = data[10 : 10 + length], data[10 + length :]
    words = [match.span() for match in re.finditer(rb"'[^']*'|[\w.]+|[(){}:,]", header)] or [(0, 0)]
    start, stop = chance.choice(words)
    header = header[:start] + chance.choice(HEADER_WORDS) + header[stop if chance.random() < 0.8 else start :]
    return data[:8] + min(len(header), 65535).to_bytes(2, "little") + header + rest


def _tensors(data: bytes, chance: random.Random) -> bytes:
    """Change the JSON of the header; its length is right again."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        place = chance.choice([header, *(one for one in header.values() if isinstance(one, dict))])
    except (ValueError, AttributeError):
        return _bytes(data, chance)
    way = chance.randrange(3)
    if way == 0 and place:
        del place[chance.choice(list(place))]
    elif way == 1:
        place[chance.choice(FIELDS)] = chance.choice(FIELD_VALUES)
    elif place:
        place[chance.choice(list(place))] = chance.choice(FIELD_VALUES)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]
