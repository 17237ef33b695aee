"""Image files judged without decoding: sizes, orientation, lies and bombs."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.imagefile import MAX_SCANS, TooManyPixels, UnreadableImage, orientation, scan

LIMIT = 25_000_000


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def exif_of(turn: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif.tobytes()


PNG = encode(Image.new("L", (28, 20)), "PNG")
JPEG = encode(Image.new("RGB", (48, 32), "red"), "JPEG")


def with_size(jpeg: bytes, width: int, height: int) -> bytes:
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def test_size_and_format_are_read_without_decoding() -> None:
    png, jpeg = scan(PNG, LIMIT), scan(JPEG, LIMIT)
    assert (png.format, png.width, png.height, png.exif) == ("PNG", 28, 20, b"")
    assert (jpeg.format, jpeg.width, jpeg.height, jpeg.exif) == ("JPEG", 48, 32, b"")


def test_rows_are_offered_of_plain_grey_and_color_alone() -> None:
    rows = zlib.decompress(scan(PNG, LIMIT).rows)
    assert (scan(PNG, LIMIT).mode, len(rows)) == ("L", 20 * 29)
    assert scan(encode(Image.new("RGB", (8, 8)), "PNG"), LIMIT).mode == "RGB"
    others = [Image.new(mode, (8, 8)) for mode in ("1", "P", "LA", "RGBA", "I;16")]
    assert [scan(encode(image, "PNG"), LIMIT).mode for image in others] == [""] * 5
    assert scan(encode(Image.new("L", (8, 8)), "PNG", transparency=3), LIMIT).mode == ""
    assert scan(PNG[:29] + b"\0\0\0\0" + PNG[33:], LIMIT).mode == ""  # a wrong checksum of the header
    assert scan(PNG[:33] + chunk(b"PLTE", b"\0\0\0") + PNG[33:], LIMIT).mode == ""
    halves = chunk(b"IDAT", zlib.compress(rows)[:9]) + chunk(b"IDAT", zlib.compress(rows)[9:])
    split = scan(PNG[:33] + halves + chunk(b"IEND", b""), LIMIT)
    assert zlib.decompress(split.rows) == rows


def test_file_without_side_information_is_not_copied() -> None:
    assert scan(PNG, LIMIT).data is PNG
    assert scan(JPEG, LIMIT).data is JPEG


def test_texts_profiles_and_comments_never_reach_the_decoder() -> None:
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 1_000_000))
    profile = chunk(b"iCCP", b"k\0\0" + zlib.compress(b"b" * 1_000_000))
    assert scan(PNG[:33] + text * 30 + profile + PNG[33:], LIMIT).data == PNG
    comment = b"\xff\xfe" + struct.pack(">H", 1002) + b"c" * 1000
    app2 = b"\xff\xe2" + struct.pack(">H", 1002) + b"d" * 1000
    assert scan(JPEG[:20] + (comment + app2) * 30 + JPEG[20:], LIMIT).data == JPEG


def test_bytes_after_the_end_are_cut_off() -> None:
    assert scan(PNG + b"GIF89a" * 100, LIMIT).data == PNG
    assert scan(JPEG + b"\xff\xd8 a whole film", LIMIT).data == JPEG


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_orientation_of_a_real_exif_block_is_read(kind: str, turn: int) -> None:
    file = scan(encode(Image.new("L", (9, 5)), kind, exif=exif_of(turn)), LIMIT)
    assert orientation(file.exif) == turn


def test_big_endian_exif_is_read() -> None:
    block = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHH", 1, 0x0112, 3, 1, 6, 0)
    assert orientation(block) == orientation(b"Exif\0\0" + block) == 6


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.sampled_from([b"", b"II*\0", b"MM\0*", b"Exif\0\0II*\0\x08\0\0\0"]))
def test_broken_exif_counts_as_upright(data: bytes, prefix: bytes) -> None:
    assert 1 <= orientation(prefix + data) <= 8


def test_exif_bomb_costs_nothing() -> None:
    entries = b"".join(struct.pack("<HHII", i + 1000, 7, 60_000, 8) for i in range(5000))
    assert orientation(b"II*\0" + struct.pack("<IH", 8, 65535) + entries) == 1


def test_giant_png_is_refused_by_its_header() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 6, 0, 0, 0))
    with pytest.raises(TooManyPixels, match="at most 25,000,000") as caught:
        scan(PNG[:8] + header + PNG[33:], LIMIT)
    assert (caught.value.got, caught.value.limit) == ((2**31 - 1) ** 2, LIMIT)


def test_jpeg_that_claims_a_giant_size_is_refused_by_its_header() -> None:
    with pytest.raises(TooManyPixels):
        scan(with_size(JPEG, 9400, 9400), LIMIT)


def test_size_within_the_limit_but_beyond_what_the_bytes_can_hold_is_refused() -> None:
    with pytest.raises(UnreadableImage, match="more pixels than its data can hold"):
        scan(with_size(JPEG, 5000, 4900), LIMIT)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 5000, 4900, 8, 0, 0, 0, 0))
    with pytest.raises(UnreadableImage, match="more pixels than its data can hold"):
        scan(PNG[:8] + header + PNG[33:], LIMIT)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True})])
def test_emptiest_honest_pictures_pass_the_bound(mode: str, kind: str, options: dict[str, object]) -> None:
    if (mode, kind) == ("P", "JPEG"):
        mode = "L"
    image = Image.new(mode, (3000, 2000))
    assert scan(encode(image, kind, quality=1, optimize=True, **options), LIMIT).width == 3000


def test_exactly_the_pixel_limit_is_allowed() -> None:
    assert scan(PNG, 28 * 20).width == 28
    with pytest.raises(TooManyPixels):
        scan(PNG, 28 * 20 - 1)


def test_second_header_cannot_smuggle_another_size_in() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    with pytest.raises(UnreadableImage, match="two headers"):
        scan(PNG[:33] + header + PNG[33:], LIMIT)
    at = JPEG.index(b"\xff\xc0")
    with pytest.raises(UnreadableImage, match="unusual kind"):
        scan(JPEG[: at + 19] + with_size(JPEG, 60_000, 60_000)[at:], LIMIT)


def test_scans_are_counted_and_limited() -> None:
    jpeg = encode(Image.effect_noise((64, 64), 50), "JPEG", progressive=True)
    at = jpeg.index(b"\xff\xda")
    last = jpeg[at:-2]
    assert scan(jpeg, LIMIT).width == 64
    with pytest.raises(UnreadableImage, match="too many scans"):
        scan(jpeg[:-2] + last * MAX_SCANS + jpeg[-2:], LIMIT)


def test_large_picture_may_have_fewer_scans_than_a_small_one() -> None:
    jpeg = encode(Image.new("L", (64, 64)), "JPEG", progressive=True)
    at = jpeg.index(b"\xff\xda")
    many = jpeg[:-2] + jpeg[at:-2] * 8 + jpeg[-2:]
    assert scan(many, 100 * 64 * 64).width == 64
    with pytest.raises(UnreadableImage, match="too many scans"):
        scan(many, 64 * 64)


def test_scan_marker_inside_a_thumbnail_is_not_counted() -> None:
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + 600) + b"\xff\xda\0\x02" * 150
    assert scan(JPEG[:2] + thumbnail + JPEG[2:], LIMIT).data == JPEG


@pytest.mark.parametrize("data", [PNG, JPEG, encode(Image.effect_noise((40, 40), 90), "JPEG", progressive=True)])
def test_every_truncation_is_refused(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(UnreadableImage):
            scan(data[:length], LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a\x01\0\x01\0\0\0\0;",
        b"II*\0\x08\0\0\0",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"8BPS\0\x01",
        b"BM",
        b"RIFF\0\0\0\0WEBP",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xd9",
    ],
)
def test_other_formats_and_stubs_are_refused(data: bytes) -> None:
    with pytest.raises(UnreadableImage):
        scan(data, LIMIT)


def test_endless_chunks_and_segments_are_refused() -> None:
    with pytest.raises(UnreadableImage, match="chunks"):
        scan(PNG[:33] + chunk(b"tEXt", b"") * 100_001 + PNG[33:], LIMIT)
    with pytest.raises(UnreadableImage, match="segments"):
        scan(JPEG[:2] + b"\xff\xfe\0\x02" * 5001 + JPEG[2:], LIMIT)


@settings(max_examples=100, deadline=None)
@given(
    data=st.sampled_from([PNG, JPEG]),
    edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_mutated_files_give_a_result_or_an_image_error(data: bytes, edits: list[tuple[int, int]]) -> None:
    changed = bytearray(data)
    for at, value in edits:
        changed[at % len(data)] = value
    try:
        file = scan(bytes(changed), LIMIT)
    except (UnreadableImage, TooManyPixels):
        return
    assert 0 < file.width * file.height <= LIMIT
    assert len(file.data) <= len(data)


def test_random_bytes_after_the_magic_are_survived() -> None:
    noise = np.random.default_rng(0)
    for _ in range(300):
        for magic in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"):
            with pytest.raises((UnreadableImage, TooManyPixels)):
                scan(magic + noise.bytes(200), LIMIT)
