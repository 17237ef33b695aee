"""The one preprocessing: what the model sees of a file."""

import contextlib
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from model.imagefile import scan
from model.pixels import (
    ImageError,
    TooManyPixels,
    UnreadableImage,
    WrongSize,
    contact_sheet,
    prepare,
    read_file,
    to_bytes,
    to_unit,
)

LIMIT = 25_000_000
GREY, COLOR = (1, 28, 28), (3, 32, 32)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def read(data: bytes, shape: tuple[int, int, int] = GREY, resize: bool = True) -> NDArray[np.uint8]:
    return read_file(data, shape, max_pixels=LIMIT, resize=resize)


def test_grey_png_of_the_exact_size_comes_back_bit_for_bit() -> None:
    grey = noise(28, 28)
    got = read(encode(Image.fromarray(grey)))
    assert (got.shape, got.dtype) == (GREY, np.uint8)
    np.testing.assert_array_equal(got[0], grey)


def test_rgb_png_of_the_exact_size_comes_back_with_channels_first() -> None:
    color = noise(32, 32, 3)
    got = read(encode(Image.fromarray(color)), COLOR)
    np.testing.assert_array_equal(got, color.transpose(2, 0, 1))
    assert got.flags.c_contiguous


def test_path_and_bytes_give_the_same(tmp_path: Path) -> None:
    data = encode(Image.fromarray(noise(40, 50)))
    path = tmp_path / "image.png"
    path.write_bytes(data)
    np.testing.assert_array_equal(read_file(path, GREY, max_pixels=LIMIT), read(data))
    np.testing.assert_array_equal(read_file(str(path), GREY, max_pixels=LIMIT), read(data))
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none.png", GREY, max_pixels=LIMIT)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_gives_the_upright_picture(kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encode(Image.fromarray(noise(60, 90)).rotate(30), kind, exif=exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright.size == ((90, 60) if turn < 5 else (60, 90))
    np.testing.assert_array_equal(read(data), prepare(upright, GREY))


def test_model_that_is_not_square_gets_the_turned_aspect() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(noise(40, 20))  # stored 20 wide, 40 high; seen 40 wide, 20 high
    got = read(encode(image, exif=exif.tobytes()), (1, 20, 40), resize=False)
    np.testing.assert_array_equal(got[0], np.rot90(noise(40, 20), -1))


def transparent() -> dict[str, Image.Image]:
    """Return one picture, half of it transparent, in each mode that can say so."""
    alpha = np.zeros((28, 28), np.uint8)
    alpha[:, 14:] = 255
    grey = np.full((28, 28), 200, np.uint8)
    la = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    keyed = Image.fromarray(np.where(alpha > 0, 200, 77).astype(np.uint8))
    return {
        "LA": la,
        "RGBA": la.convert("RGBA"),
        "L": keyed,
        "RGB": keyed.convert("RGB"),
        "P": keyed.convert("P"),
    }


@pytest.mark.parametrize("mode", ["LA", "RGBA", "L", "RGB", "P", "P bytes", "I;16"])
def test_transparency_becomes_black(mode: str) -> None:
    images = transparent()
    options: dict[str, object] = {}
    image = images[mode.partition(" ")[0]] if mode != "I;16" else images["L"]
    if mode == "I;16":
        image, options = (
            Image.fromarray(np.asarray(image).astype(np.uint16) * 257),
            {"transparency": 77 * 257},
        )
    elif mode == "L":
        options = {"transparency": 77}
    elif mode == "RGB":
        options = {"transparency": (77, 77, 77)}
    elif mode.startswith("P"):
        opaque = bytearray(b"\xff" * 256)
        opaque[77] = 0
        options = {"transparency": bytes(opaque) if mode == "P bytes" else 77}
    file = encode(image, **options)
    for data in [file, transparency_last(file)] if options else [file]:
        got = read(data)[0]
        assert set(got[:, :14].ravel().tolist()) == {0}
        assert set(got[:, 14:].ravel().tolist()) == {200}


def transparency_last(png: bytes) -> bytes:
    """Return the PNG with the chunk of its transparency after its pixels, where no program should write it."""
    name = png.index(b"tRNS")
    start, end = name - 4, name + 8 + int.from_bytes(png[name - 4 : name])
    last = png.index(b"IEND") - 4
    return png[:start] + png[end:last] + png[start:end] + png[last:]


def test_half_transparent_is_half_as_bright() -> None:
    assert abs(int(read(encode(Image.new("RGBA", (28, 28), (200, 200, 200, 128))))[0, 0, 0]) - 100) <= 1


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    deep = np.arange(784, dtype=np.uint16).reshape(28, 28) * 83
    got = read(encode(Image.fromarray(deep)))[0]
    np.testing.assert_array_equal(got, np.rint(deep / 257).astype(np.uint8))
    in_memory = Image.fromarray(deep.astype(np.int32) * 2 - 30)  # mode I, beyond both ends
    np.testing.assert_array_equal(
        prepare(in_memory, GREY)[0], np.rint(np.clip(deep * 2.0 - 30, 0, 65535) / 257).astype(np.uint8)
    )


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "RGBA"])
@pytest.mark.parametrize("shape", [GREY, COLOR])
def test_every_mode_of_both_formats_is_read_without_a_warning(mode: str, shape: tuple[int, int, int]) -> None:
    image = Image.fromarray(noise(35, 50, 3)).convert(mode)
    kinds = [
        k for k, modes in {"PNG": "1 L P RGB LA RGBA", "JPEG": "1 L RGB CMYK YCbCr"}.items() if mode in modes.split()
    ]
    for kind in kinds:  # warnings are errors in all tests
        assert read(encode(image, kind), shape).shape == shape


def test_center_is_cropped_to_the_aspect_of_the_model() -> None:
    wide = np.zeros((28, 84), np.uint8)
    wide[:, 28:56] = noise(28, 28)
    np.testing.assert_array_equal(read(encode(Image.fromarray(wide)))[0], noise(28, 28))


def test_downscaling_is_antialiased() -> None:
    checkers = np.indices((280, 280)).sum(0).astype(np.uint8) % 2 * 255
    got = read(encode(Image.fromarray(checkers)))
    assert np.abs(got.astype(int) - 128).max() <= 3


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (2, 3), (27, 28), (29, 28), (3000, 3)])
def test_any_size_becomes_the_size_of_the_model(size: tuple[int, int]) -> None:
    got = read(encode(Image.new("L", size, 99)))
    assert got.shape == GREY
    assert set(got.ravel().tolist()) == {99}


def test_another_size_is_refused_without_resizing() -> None:
    with pytest.raises(WrongSize, match=r"the image is 30 x 20 pixels; the model reads 28 x 28") as caught:
        read(encode(Image.new("L", (30, 20))), resize=False)
    assert (caught.value.got, caught.value.expected) == ((20, 30), (28, 28))
    assert read(encode(Image.new("L", (28, 28))), resize=False).shape == GREY


def test_large_jpeg_decoded_small_looks_like_the_full_one() -> None:
    picture = Image.fromarray(noise(12, 16, 3)).resize((1600, 1200), Image.Resampling.BICUBIC)
    data = encode(picture, "JPEG", quality=95)
    full = Image.open(io.BytesIO(data))
    full.load()  # a loaded image is not decoded small
    assert np.abs(read(data, COLOR).astype(int) - prepare(full, COLOR)).max() <= 4


def test_too_many_pixels_are_refused_before_decoding() -> None:
    with pytest.raises(TooManyPixels):
        read_file(encode(Image.new("L", (100, 100))), GREY, max_pixels=9_999)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_broken_picture_in_a_sound_file_is_refused_with_our_own_words(kind: str) -> None:
    data = encode(Image.fromarray(noise(28, 28)), kind)
    if kind == "PNG":
        at = data.index(b"IDAT") + 4
        broken = data[:at] + b"\0" * 40 + data[at + 40 :]
    else:
        at = data.index(b"\xff\xc4") + 5
        broken = data[:at] + b"\xff" * 16 + data[at + 16 :]
    with pytest.raises(UnreadableImage) as caught:
        read(broken)
    assert str(caught.value) == f"the {kind} is broken or truncated"
    assert caught.value.__cause__ is None


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 5),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 4000),
)
def test_mutated_files_give_an_image_or_an_image_error(seed: int, edits: list[tuple[int, int]], cut: int) -> None:
    color = Image.fromarray(noise(20, 30, 3))
    data = [
        encode(color),
        encode(color.convert("RGBA")),
        encode(color.quantize(16), transparency=b"\0\x80"),
        encode(color, "JPEG"),
        encode(color, "JPEG", progressive=True),
        encode(color.convert("CMYK"), "JPEG"),
    ][seed]
    changed = bytearray(data)
    for at, value in edits:
        changed[at % len(data)] = value
    try:
        got = read(bytes(changed[: max(cut, 8)]))
    except ImageError:
        return
    assert (got.shape, got.dtype) == (GREY, np.uint8)


def test_bytes_become_the_nearest_float32_in_0_to_1_and_back() -> None:
    every = np.arange(256, dtype=np.uint8)
    unit = to_unit(every)
    assert unit.dtype == np.float32
    np.testing.assert_array_equal(unit, (np.arange(256) / 255).astype(np.float32))
    np.testing.assert_array_equal(to_bytes(unit), every)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, 20, elements=st.floats(-2, 3, width=32)))
def test_numbers_become_the_nearest_byte_and_are_clipped(x: NDArray[np.float32]) -> None:
    expected = np.clip(x.astype(float), 0, 1) * 255
    assert (np.abs(to_bytes(x) - expected) <= 0.5 + 1e-4).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("count", "columns", "rows", "across"),
    [(1, None, 1, 1), (5, None, 2, 3), (9, None, 3, 3), (10, None, 3, 4), (5, 2, 3, 2), (3, 7, 1, 7)],
)
def test_contact_sheet_puts_cell_i_at_its_row_and_column(
    channels: int, count: int, columns: int | None, rows: int, across: int
) -> None:
    images = np.maximum(noise(count, channels, 4, 6), 1)
    sheet = contact_sheet(images, columns)
    assert sheet.shape == (channels, rows * 4, across * 6)
    for i in range(rows * across):
        row, column = divmod(i, across)
        cell = sheet[:, row * 4 : row * 4 + 4, column * 6 : column * 6 + 6]
        np.testing.assert_array_equal(cell, images[i] if i < count else 0)


def test_preprocessing_does_not_import_torch() -> None:
    code = "import sys, model.pixels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_palette_image_without_its_palette_is_refused() -> None:
    data = encode(Image.fromarray(noise(28, 28)).convert("P"))
    at = data.index(b"PLTE") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4])
    with pytest.raises(UnreadableImage):
        read_file(data[:at] + data[end:], GREY, max_pixels=LIMIT)


@settings(max_examples=150, deadline=None)
@given(
    channels=st.sampled_from([1, 3]), edits=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), max_size=3)
)
def test_plain_png_is_read_or_refused_as_the_files_own_reader_does(channels: int, edits: list[tuple[int, int]]) -> None:
    pixels = noise(20, 30, 3) if channels == 3 else noise(20, 30)
    data = bytearray(encode(Image.fromarray(pixels)))
    for at, value in edits:
        data[at % len(data)] = value

    def outcome(plain: bool) -> object:
        with pytest.MonkeyPatch.context() as patch:
            if not plain:
                patch.setattr("model.pixels.scan", lambda *args: replace(scan(*args), mode="", rows=b""))
            try:
                return read_file(bytes(data), (channels, 20, 30), max_pixels=LIMIT).tolist()
            except ImageError as error:
                return str(error)

    assert outcome(plain=True) == outcome(plain=False)


@settings(max_examples=150, deadline=None)
@given(
    channels=st.sampled_from([1, 3]),
    form=st.sampled_from([{}, {"progressive": True}, {"subsampling": 0}]),
    edits=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), max_size=3),
)
def test_jpeg_of_the_size_of_the_model_is_read_as_its_own_reader_does(
    channels: int, form: dict[str, object], edits: list[tuple[int, int]]
) -> None:
    pixels = noise(20, 30, 3) if channels == 3 else noise(20, 30)
    data = bytearray(encode(Image.fromarray(pixels), "JPEG", **form))
    for at, value in edits:
        data[at % len(data)] = value
    try:
        own = prepare(JpegImageFile(io.BytesIO(scan(bytes(data), LIMIT).data)), (channels, 20, 30))
    except Exception:
        with contextlib.suppress(ImageError):  # the decoder may mend what the reader of the header refuses
            read_file(bytes(data), (channels, 20, 30), max_pixels=LIMIT)
    else:
        assert np.array_equal(read_file(bytes(data), (channels, 20, 30), max_pixels=LIMIT), own)
