"""Image files of any kind and size: orientation, transparency, color, cropping, resizing, resize=never."""

import io

import httpx
import numpy as np
import pytest
from PIL import Image, ImageOps
from service_answers import answer, as_float32, problem, same_bits, words
from service_pictures import (
    JPEG,
    JSON,
    NPY,
    PNG,
    base64_text,
    digit,
    images_json,
    ink,
    jpeg,
    multipart,
    npy,
    png,
)

INK = ink(2)


def encode(http: httpx.Client, body: bytes, headers: dict[str, str], **query: object) -> np.ndarray:
    """mu and sigma, ``(2, D)``."""
    got = answer(http.post("/encode", content=body, headers=headers, params=query))
    return np.stack([as_float32(got["mu"])[0], as_float32(got["sigma"])[0]])


def of_pixels(http: httpx.Client, pixels: np.ndarray) -> np.ndarray:
    return encode(http, npy(pixels.astype(np.uint8)), NPY)


def close(a: np.ndarray, b: np.ndarray, sigmas: float) -> bool:
    return bool((abs(a[0] - b[0]) <= sigmas * b[1]).all())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_a_jpeg(http: httpx.Client, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = jpeg(INK, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(body))))
    assert same_bits(encode(http, body, JPEG), of_pixels(http, upright))
    assert same_bits(encode(http, images_json(base64_text(body)), JSON), of_pixels(http, upright))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_is_applied_to_a_png(http: httpx.Client, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = png(INK, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(body))))
    assert not np.array_equal(upright, INK)
    assert same_bits(encode(http, body, PNG), of_pixels(http, upright))


def rgba(color: tuple[int, int, int], alpha: np.ndarray) -> Image.Image:
    flat = np.zeros((*alpha.shape, 4), np.uint8)
    flat[..., :3] = color
    flat[..., 3] = alpha
    return Image.fromarray(flat)


TRANSPARENT = {
    "RGBA": png(rgba((255, 255, 255), INK)),
    "LA": png(Image.merge("LA", (Image.new("L", (28, 28), 255), Image.fromarray(INK)))),
    "L with a transparent grey": png(np.where(INK > 0, 255, 77).astype(np.uint8), transparency=77),
    "RGB with a transparent color": png(
        Image.merge("RGB", [Image.fromarray(np.where(INK > 0, 255, 9).astype(np.uint8))] * 3),
        transparency=(9, 9, 9),
    ),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparency_is_composited_on_black(http: httpx.Client, kind: str) -> None:
    assert same_bits(encode(http, TRANSPARENT[kind], PNG), of_pixels(http, INK))


def test_a_palette_with_a_transparent_entry_is_composited_on_black(http: httpx.Client) -> None:
    image = Image.fromarray((INK > 0).astype(np.uint8)).convert("P")
    image.putpalette([200, 100, 50, 255, 255, 255])
    assert same_bits(encode(http, png(image, transparency=0), PNG), of_pixels(http, INK))


def test_half_transparent_white_is_half_grey(http: httpx.Client) -> None:
    body = png(rgba((255, 255, 255), np.where(INK > 0, 128, 0)))
    assert close(encode(http, body, PNG), of_pixels(http, np.where(INK > 0, 128, 0)), 0.05)


def test_color_becomes_luminance(http: httpx.Client) -> None:
    color = np.zeros((28, 28, 3), np.uint8)
    color[INK > 0] = (200, 120, 40)
    grey = np.asarray(Image.fromarray(color).convert("L"))
    assert close(encode(http, png(color), PNG), of_pixels(http, grey), 0.05)


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "LA"])
def test_every_mode_of_the_same_picture_is_the_same_picture(http: httpx.Client, mode: str) -> None:
    body = png(Image.fromarray(INK).convert(mode))
    assert same_bits(encode(http, body, PNG), of_pixels(http, INK))


@pytest.mark.parametrize("deep", [0x8080, 0xFFFF])
def test_a_16_bit_png_is_scaled_and_not_clipped(http: httpx.Client, deep: int) -> None:
    body = png(np.where(INK > 0, deep, 0).astype(np.uint16))
    assert close(encode(http, body, PNG), of_pixels(http, np.where(INK > 0, deep >> 8, 0)), 0.1)


def test_a_wide_picture_loses_its_sides_and_a_tall_one_its_ends(http: httpx.Client) -> None:
    wide = np.full((28, 56), 255, np.uint8)
    wide[:, 14:42] = INK
    assert same_bits(encode(http, png(wide), PNG), of_pixels(http, INK))
    assert same_bits(encode(http, png(np.full((84, 28), 255, np.uint8)), PNG), of_pixels(http, np.full((28, 28), 255)))
    tall = np.full((84, 28), 255, np.uint8)
    tall[28:56] = INK
    assert same_bits(encode(http, png(tall), PNG), of_pixels(http, INK))


def test_cropping_comes_after_orientation(http: httpx.Client) -> None:
    wide = np.full((28, 56), 255, np.uint8)
    wide[:, 14:42] = INK
    exif = Image.Exif()
    exif[0x0112] = 6
    want = np.asarray(Image.fromarray(INK).transpose(Image.Transpose.ROTATE_270))
    assert same_bits(encode(http, png(wide, exif=exif), PNG), of_pixels(http, want))


@pytest.mark.parametrize("factor", [2, 5, 10])
def test_a_larger_picture_is_brought_to_size(http: httpx.Client, factor: int) -> None:
    soft = digit(0)
    large = np.kron(soft, np.ones((factor, factor), np.uint8))
    assert close(encode(http, png(large), PNG), of_pixels(http, soft), 0.6)


def test_resizing_is_antialiased_so_fine_stripes_become_grey(http: httpx.Client) -> None:
    stripes = np.zeros((280, 280), np.uint8)
    stripes[:, ::2] = 255
    stripes[40:] = 0
    grey = np.zeros((28, 28), np.uint8)
    grey[:4] = 127
    assert close(encode(http, png(stripes), PNG), of_pixels(http, grey), 1.0)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (27, 29), (3000, 2000)])
def test_a_file_of_any_size_is_taken(http: httpx.Client, size: tuple[int, int]) -> None:
    assert encode(http, png(np.full(size, 90, np.uint8)), PNG).shape[0] == 2


def test_resize_never_takes_the_size_of_the_model_and_gives_the_same_bits(http: httpx.Client) -> None:
    plain = encode(http, png(INK), PNG)
    assert same_bits(encode(http, png(INK), PNG, resize="never"), plain)


@pytest.mark.parametrize("route", ["/encode", "/reconstruct", "/score", "/kl"])
@pytest.mark.parametrize("size", [(56, 56), (28, 56), (14, 14)])
def test_resize_never_makes_another_size_422(http: httpx.Client, route: str, size: tuple[int, int]) -> None:
    picture = png(np.full(size, 90, np.uint8))
    forms: list[dict] = [
        {"content": picture, "headers": PNG},
        {"content": images_json(base64_text(picture)), "headers": JSON},
        {"files": multipart(picture)},
    ]
    for form in forms:
        body = problem(http.post(route, params={"resize": "never"}, **form), 422, "wrong_shape")
        assert "28" in body["detail"]
        assert str(size[0]) in body["detail"]


def test_resize_takes_no_word_that_the_contract_does_not_know(http: httpx.Client) -> None:
    body = problem(http.post("/encode?resize=sometimes", content=png(INK), headers=PNG), 422)
    assert "resize" in words(body)


@pytest.mark.parametrize("shape", [(27, 28), (28, 27), (56, 56), (1, 56, 56), (2, 3, 28, 28), (28,), (1, 1, 1, 28, 28)])
def test_an_array_must_have_the_shape_of_the_model_exactly(http: httpx.Client, shape: tuple[int, ...]) -> None:
    body = problem(http.post("/encode", content=npy(np.zeros(shape, np.uint8)), headers=NPY), 422, "wrong_shape")
    assert "28" in body["detail"]
    assert str(shape).replace(" ", "") in body["detail"].replace(" ", "")
