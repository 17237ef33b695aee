"""Answers: exact numbers, pictures in their places, and no NaN in any format."""

import base64
import io
import json
import subprocess
import sys

import numpy as np
import orjson
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from app.negotiation import Format
from app.payloads import parse_images, read_latents, write_json, write_png, write_tensors

finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
SHAPES = [(1, 28, 28), (3, 8, 12)]


def unit(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).random(shape, dtype=np.float32)


def picture(data: bytes) -> NDArray[np.uint8]:
    """Return a PNG file as ``(H, W)`` or ``(H, W, C)``."""
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    assert image.mode in ("L", "RGB")
    return np.asarray(image)


def nearest(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(x.astype(np.float64) * 255).astype(np.uint8)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, (2, 5), elements=finite32))
def test_json_gives_back_the_same_float32(mu: NDArray[np.float32]) -> None:
    body = write_tensors(Format.JSON, {"mu": mu})
    for parse in (json.loads, orjson.loads):
        np.testing.assert_array_equal(np.array(parse(body)["mu"], np.float32), mu)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float64, 5, elements=st.floats(allow_nan=False, allow_infinity=False)))
def test_json_gives_back_the_same_float64(kl: NDArray[np.float64]) -> None:
    np.testing.assert_array_equal(np.array(json.loads(write_tensors(Format.JSON, {"kl": kl}))["kl"]), kl)


def test_json_has_the_tensors_then_the_fields() -> None:
    mu = unit(2, 3)
    body = json.loads(write_tensors(Format.JSON, {"mu": mu, "sigma": mu.T}, fields={"seed": 2**63 - 1}))
    assert list(body) == ["mu", "sigma", "seed"]
    assert body["seed"] == 2**63 - 1
    assert np.array(body["sigma"]).shape == (3, 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_json_images_are_png_files_in_order(shape: tuple[int, int, int]) -> None:
    images = unit(3, *shape)
    body = json.loads(write_tensors(Format.JSON, {"images": images, "z": unit(3, 2)}, fields={"seed": 7}))
    assert list(body) == ["images", "z", "seed"]
    for text, image in zip(body["images"], nearest(images), strict=True):
        expected = image[0] if shape[0] == 1 else image.transpose(1, 2, 0)
        np.testing.assert_array_equal(picture(base64.b64decode(text, validate=True)), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_images_written_in_any_format_can_be_sent_back(shape: tuple[int, int, int]) -> None:
    images = unit(4, *shape)
    for form, exact in ((Format.JSON, False), (Format.NPY, True), (Format.SAFETENSORS, True)):
        body = write_tensors(form, {"images": images})
        got = parse_images(body, form.media_type).decode(shape, max_pixels=10_000)
        expected = images if exact else nearest(images).astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(got, expected)
    single = parse_images(write_png(images[:1]), "image/png").decode(shape, max_pixels=10_000)
    np.testing.assert_array_equal(single, nearest(images[:1]).astype(np.float32) / np.float32(255))


def test_latents_written_as_safetensors_can_be_sent_back() -> None:
    z = unit(5, 32)
    np.testing.assert_array_equal(
        read_latents(write_tensors(Format.SAFETENSORS, {"z": z}), Format.SAFETENSORS.media_type, 32), z
    )


def test_npy_of_a_posterior_is_mu_then_sigma_in_float32() -> None:
    mu, sigma = unit(3, 4), unit(3, 4) + 1
    body = write_tensors(Format.NPY, {"mu": mu, "sigma": sigma, "z": unit(3, 2, 4)})
    assert body[:8] == b"\x93NUMPY\x01\x00"
    got = np.load(io.BytesIO(body), allow_pickle=False)
    assert (got.shape, got.dtype) == ((2, 3, 4), np.float32)
    np.testing.assert_array_equal(got, np.stack([mu, sigma]))


def test_npy_of_images_is_the_images_alone() -> None:
    images = unit(3, 1, 4, 4)
    got = np.load(io.BytesIO(write_tensors(Format.NPY, {"images": images, "z": unit(3, 2)})), allow_pickle=False)
    np.testing.assert_array_equal(got, images)


def test_safetensors_hold_every_tensor_as_contiguous_float32() -> None:
    tensors = {"kl": np.arange(3.0), "per_dimension": np.arange(6.0).reshape(2, 3).T}
    got = safetensors.numpy.load(write_tensors(Format.SAFETENSORS, tensors, fields={"unit": "nats"}))
    assert {name: array.dtype for name, array in got.items()} == dict.fromkeys(tensors, np.dtype(np.float32))
    np.testing.assert_array_equal(got["per_dimension"], tensors["per_dimension"])


@pytest.mark.parametrize("shape", SHAPES)
def test_single_image_is_written_as_it_is_whatever_the_columns(shape: tuple[int, int, int]) -> None:
    images = unit(1, *shape)
    expected = nearest(images)[0]
    expected = expected[0] if shape[0] == 1 else expected.transpose(1, 2, 0)
    np.testing.assert_array_equal(picture(write_tensors(Format.PNG, {"images": images}, columns=5)), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("columns", "across", "rows"), [(None, 3, 3), (2, 2, 4), (7, 7, 1), (9, 9, 1)])
def test_several_images_are_one_contact_sheet(
    shape: tuple[int, int, int], columns: int | None, across: int, rows: int
) -> None:
    images = unit(7, *shape)
    sheet = picture(write_tensors(Format.PNG, {"images": images}, columns=columns))
    height, width = shape[1:]
    assert sheet.shape[:2] == (rows * height, across * width)
    for i in range(rows * across):
        row, column = divmod(i, across)
        cell = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width]
        expected = nearest(images)[i].transpose(1, 2, 0).squeeze() if i < 7 else 0
        np.testing.assert_array_equal(cell, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", list(Format))
def test_no_format_lets_nan_or_infinity_out(form: Format, bad: float) -> None:
    images = unit(2, 1, 4, 4)
    images[1, 0, 2, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        write_tensors(form, {"images": images})


def test_double_that_float32_cannot_hold_is_refused_as_safetensors_and_exact_in_json() -> None:
    tensors = {"kl": np.array([1e300])}
    assert json.loads(write_tensors(Format.JSON, tensors))["kl"] == [1e300]
    with pytest.raises(ValueError, match="not finite"):
        write_tensors(Format.SAFETENSORS, tensors)


@pytest.mark.parametrize(
    "content",
    [
        float("nan"),
        {"a": [1, {"b": float("inf")}]},
        {"a": (np.float32("nan"),)},
        [np.array([1.0, np.nan])],
    ],
)
def test_nan_is_found_wherever_it_stands_in_json(content: object) -> None:
    with pytest.raises(ValueError, match="not finite"):
        write_json(content)


def test_plain_values_are_written_as_json() -> None:
    content = {"a": None, "b": [1, 2.5, True], "c": {"d": "ä"}, "e": np.float32(0.1)}
    assert json.loads(write_json(content)) == {"a": None, "b": [1, 2.5, True], "c": {"d": "ä"}, "e": 0.1}


@pytest.mark.parametrize("shape", [(200_000,), (3_000, 32), (7, 300, 64), (1, 300, 256), (65_537, 1), (100_000, 0)])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_a_large_array_is_written_piece_by_piece_and_is_the_same(
    shape: tuple[int, ...], kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = (1000 * np.random.default_rng(1).normal(size=shape)).astype(kind)
    option = orjson.OPT_SERIALIZE_NUMPY
    whole = orjson.dumps({"z": numbers, "seed": 7, "mu": numbers[:1]}, option=option)
    sizes, dumps = [], orjson.dumps

    def counted(content: object, option: int) -> bytes:
        arrays = content.values() if isinstance(content, dict) else [content]
        sizes.append(sum(one.size for one in arrays if isinstance(one, np.ndarray)))
        return dumps(content, option=option)

    monkeypatch.setattr(orjson, "dumps", counted)
    assert write_json({"z": numbers, "seed": 7, "mu": numbers[:1]}) == whole
    one_row = numbers[:1].size
    assert max(sizes) <= max(65_536, one_row) + one_row


def test_payloads_do_not_import_torch_or_the_web_framework() -> None:
    code = "import sys, app.payloads; sys.exit(bool({'torch', 'fastapi', 'starlette'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
