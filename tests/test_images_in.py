"""Images in: every form of the contract gives the same array, and every fault its own answer."""

import base64
import io
import json
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from app.errors import BadRequest, ContentTooLarge, ServiceError, Unprocessable, UnsupportedMediaType
from app.images_in import parse_images
from model.pixels import Shape, read_file, to_unit

GREY, COLOR = (1, 28, 28), (3, 16, 20)
LIMIT = 1_000_000
JSON, NPY, SAFETENSORS = "application/json", "application/x-npy", "application/x-safetensors"


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(len(shape)).integers(0, 256, shape, dtype=np.uint8)


def file_of(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, kind)
    return file.getvalue()


def npy(array: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def form(*files: bytes) -> bytes:
    head = b'--XX\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    return b"".join(head + file + b"\r\n" for file in files) + b"--XX--\r\n"


def as_json(items: object) -> bytes:
    return json.dumps({"images": items}).encode()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def decode(body: bytes, kind: str | None, shape: Shape = GREY, resize: bool = True) -> NDArray[np.float32]:
    return parse_images(body, kind).decode(shape, max_pixels=LIMIT, resize=resize)


def error_of(body: bytes, kind: str | None, shape: Shape = GREY, resize: bool = True) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        decode(body, kind, shape, resize)
    return caught.value


@pytest.mark.parametrize("shape", [GREY, COLOR])
def test_every_form_gives_the_same_images(shape: Shape) -> None:
    pixels = noise(3, *shape)
    unit = pixels.astype(np.float32) / 255
    files = [file_of(image) for image in pixels]
    bodies = [
        (form(*files), "multipart/form-data; boundary=XX"),
        (as_json([base64_of(file) for file in files]), JSON),
        (as_json(["data:image/png;base64," + base64_of(file) for file in files]), JSON),
        (orjson.dumps({"images": unit}, option=orjson.OPT_SERIALIZE_NUMPY), JSON),
        (as_json([base64_of(files[0]), unit[1].tolist(), base64_of(files[2])]), None),
        (npy(pixels), NPY),
        (npy(unit), NPY),
        (npy(np.asfortranarray(unit.astype(">f8"))), None),
        (safetensors.numpy.save({"images": unit, "labels": np.zeros(3, np.int64)}), SAFETENSORS),
        (safetensors.numpy.save({"images": pixels}), SAFETENSORS),
    ]
    for body, kind in bodies:
        batch = parse_images(body, kind)
        assert batch.count == 3
        got = batch.decode(shape, max_pixels=LIMIT)
        assert (got.shape, got.dtype) == ((3, *shape), np.float32)
        assert got.flags.c_contiguous
        assert got.flags.writeable
        np.testing.assert_array_equal(got, unit)


@pytest.mark.parametrize("order", ["C", "F"])
def test_bytes_of_an_array_are_left_as_they_are_until_rows_are_taken(order: Any) -> None:
    pixels = np.asarray(noise(5, *COLOR), order=order)
    for body, kind in ((npy(pixels), NPY), (safetensors.numpy.save({"images": pixels.copy("C")}), SAFETENSORS)):
        rows = parse_images(body, kind).undecoded(COLOR)
        assert rows is not None
        assert len(rows) == 5
        for part in (slice(0, 5), slice(1, 4), slice(4, 5)):
            assert rows[part].dtype == np.float32
            assert rows[part].flags.c_contiguous
            np.testing.assert_array_equal(rows[part], to_unit(pixels[part]))


def test_what_has_to_be_decoded_or_checked_is_not_left_as_it_is() -> None:
    pixels = noise(2, *GREY)
    for body, kind in (
        (file_of(pixels[0]), "image/png"),
        (npy(to_unit(pixels)), NPY),
        (as_json([base64_of(file_of(pixels[0]))]), JSON),
    ):
        assert parse_images(body, kind).undecoded(GREY) is None
    with pytest.raises(Unprocessable, match=r"shape \(2, 1, 28, 28\)"):
        parse_images(npy(pixels), NPY).undecoded(COLOR)


@pytest.mark.parametrize(("kind", "content_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("PNG", None)])
def test_single_file_is_one_image_prepared_like_a_training_image(kind: str, content_type: str | None) -> None:
    body = file_of(noise(3, 50, 70), kind)
    batch = parse_images(body, content_type)
    assert batch.count == 1
    expected = to_unit(read_file(body, GREY, max_pixels=LIMIT))
    np.testing.assert_array_equal(batch.decode(GREY, max_pixels=LIMIT), expected[None])


def test_one_channel_may_be_left_out() -> None:
    plane = noise(28, 28)
    unit = plane.astype(np.float32) / 255
    for body, kind, count in (
        (npy(plane), NPY, 1),
        (npy(plane[None]), NPY, 1),
        (npy(np.stack([plane, plane])), NPY, 2),
        (as_json([unit.tolist(), unit[None].tolist()]), JSON, 2),
        (safetensors.numpy.save({"images": unit}), SAFETENSORS, 1),
    ):
        np.testing.assert_array_equal(decode(body, kind), np.broadcast_to(unit, (count, 1, 28, 28)))


def test_half_precision_is_read() -> None:
    half = (noise(2, *GREY) / 255).astype(np.float16)
    np.testing.assert_array_equal(decode(npy(half), NPY), half.astype(np.float32))


DATA_URLS = ("data:image/png;base64,{}", "DATA:IMAGE/PNG;charset=x;BASE64,{}", "data:;base64,\r\n{}")


@pytest.mark.parametrize("text", ["{}", " {}\n", *DATA_URLS])
def test_base64_may_have_the_prefix_of_a_data_url_and_white_space(text: str) -> None:
    pixels = noise(1, 28, 28)
    encoded = "\n".join(base64.encodebytes(file_of(pixels)).decode().split())
    np.testing.assert_array_equal(decode(as_json([text.format(encoded)]), JSON)[0], to_unit(pixels))


@pytest.mark.parametrize(
    "text",
    ["", "!", "aGk", "aGk=a", "aGk==", "a-_=", "ä", "data:,x", "data:image/png,aGk=", "data:image/png;base64", "aGk="],
)
def test_what_is_not_base64_of_an_image_is_400(text: str) -> None:
    error = error_of(as_json([base64_of(file_of(noise(1, 28, 28))), text]), JSON)
    assert isinstance(error, BadRequest)
    assert error.code == "malformed_image"
    assert error.detail.startswith("image 2 of 2 ")
    assert error.errors[0][0] == "body.images.1"


def test_parsing_decodes_nothing() -> None:
    assert parse_images(b"\x89PNG\r\n\x1a\n no png", None).count == 1
    assert parse_images(as_json(["no base64"] * 5), JSON).count == 5
    assert parse_images(form(b"no", b"image"), "multipart/form-data; boundary=XX").count == 2


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (as_json([]), JSON),
        (b"--XX--", "multipart/form-data; boundary=XX"),
        (npy(np.zeros((0, 28, 28), np.float32)), NPY),
        (safetensors.numpy.save({"images": np.zeros((0, 1, 28, 28), np.uint8)}), SAFETENSORS),
    ],
)
def test_no_image_is_422_empty(body: bytes, kind: str) -> None:
    error = error_of(body, kind)
    assert isinstance(error, Unprocessable)
    assert error.code == "empty"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (as_json(["x"] * 5), JSON),
        (form(*[b"x"] * 5), "multipart/form-data; boundary=XX"),
        (npy(np.zeros((5, 28, 28), np.uint8)), NPY),
    ],
)
def test_too_many_images_are_413_and_name_limit_and_setting(body: bytes, kind: str) -> None:
    assert parse_images(body, kind, max_items=5).count == 5
    with pytest.raises(ContentTooLarge, match=r"4.*VAE_MAX_ITEMS") as caught:
        parse_images(body, kind, max_items=4)
    assert caught.value.code == "too_many_items"


def test_other_types_are_415() -> None:
    with pytest.raises(UnsupportedMediaType, match="image/png"):
        parse_images(b"", "application/octet-stream")


@pytest.mark.parametrize(
    ("shape", "got"),
    [
        (GREY, (2, 28, 27)),
        (GREY, (2, 3, 28, 28)),
        (GREY, (2, 28, 28, 1)),
        (GREY, (784,)),
        (GREY, ()),
        (GREY, (1, 1, 1, 28, 28)),
        (COLOR, (3, 16, 20)),
        (COLOR, (16, 20)),
        (COLOR, (2, 16, 20, 3)),
        (COLOR, (2, 1, 16, 20)),
    ],
)
def test_arrays_of_another_shape_are_422_and_tell_both_shapes(shape: Shape, got: tuple[int, ...]) -> None:
    error = error_of(npy(np.zeros(got, np.float32)), NPY, shape)
    assert isinstance(error, Unprocessable)
    assert error.code == "wrong_shape"
    assert f"got images of shape {got}; this model reads (N, {shape[0]}, {shape[1]}, {shape[2]})" in error.detail
    assert ("or (N, 28, 28)" in error.detail) == (shape == GREY)


@pytest.mark.parametrize("item", [[], [[]], [[0.5]], [[[0.5] * 28] * 28] * 3, [[0.5] * 28] * 27])
def test_nested_lists_of_another_shape_are_422(item: object) -> None:
    error = error_of(as_json([item]), JSON)
    assert error.code == "wrong_shape"
    assert "the image has shape" in error.detail
    assert "(1, 28, 28) or (28, 28)" in error.detail


def test_ragged_lists_are_422() -> None:
    error = error_of(as_json([[[0.5] * 28] * 27 + [[0.5] * 27]]), JSON)
    assert error.code == "wrong_shape"
    assert "rows of different lengths" in error.detail


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (1.001, "out_of_range"),
        (-0.5, "out_of_range"),
        (255, "out_of_range"),
        (np.nan, "not_finite"),
        (np.inf, "not_finite"),
    ],
)
def test_numbers_outside_0_to_1_are_422_and_their_place_is_told(value: float, code: str) -> None:
    images = np.full((2, 1, 28, 28), 0.5)
    images[1, 0, 3, 4] = value
    error = error_of(npy(images), NPY)
    assert (error.status, error.code, error.errors[0][0]) == (422, code, "body.images.1.0.3.4")
    if code == "out_of_range":
        error = error_of(as_json(images.tolist()), JSON)
        assert (error.code, error.errors[0][0]) == (code, "body.images.1.0.3.4")
        assert "uint8 is 0..255" in error.detail


def test_double_beyond_float32_is_not_finite_and_no_warning() -> None:
    assert error_of(npy(np.full((28, 28), 1e300)), NPY).code == "not_finite"
    assert error_of(as_json([[[1e300] * 28] * 28]), JSON).code == "not_finite"


def test_too_many_pixels_are_413_and_name_limit_and_setting() -> None:
    error = error_of(file_of(np.zeros((1, 1001, 1000), np.uint8)), "image/png")
    assert isinstance(error, ContentTooLarge)
    assert error.code == "too_many_pixels"
    assert error.detail == "the image has 1,001,000 pixels; at most 1,000,000 are read (VAE_MAX_PIXELS)"


def test_resize_never_refuses_files_of_another_size_and_takes_the_right_ones() -> None:
    error = error_of(file_of(noise(1, 20, 30)), "image/png", resize=False)
    assert (error.status, error.code) == (422, "wrong_shape")
    assert "30 x 20 pixels; the model reads 28 x 28; leave out resize=never" in error.detail
    assert decode(file_of(noise(1, 28, 28)), "image/png", resize=False).shape == (1, *GREY)


@pytest.mark.parametrize("body", [b"", b"GIF89a", file_of(noise(1, 28, 28))[:-10], b"%PDF-1.7", b"\x89PNG\r\n\x1a\n"])
def test_broken_and_foreign_files_are_400(body: bytes) -> None:
    for kind in ("image/png", "image/jpeg"):
        error = error_of(body, kind)
        assert (error.status, error.code) == (400, "malformed_image")
        assert error.detail.startswith("the image cannot be read: ")


def test_one_broken_file_of_many_is_named() -> None:
    good = file_of(noise(1, 28, 28))
    error = error_of(form(good, good, good[:60]), "multipart/form-data; boundary=XX")
    assert error.detail.startswith("image 3 of 3 cannot be read: the PNG ends early")
    assert error.errors == (("body.images.2", "the PNG ends early: it is truncated"),)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 5),
    edits=st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 4), st.binary(max_size=3)), min_size=1, max_size=4),
)
def test_mutated_bodies_give_good_images_or_a_documented_refusal(
    seed: int, edits: list[tuple[int, int, bytes]]
) -> None:
    pixels = noise(2, 1, 28, 28)
    files = [file_of(image) for image in pixels]
    body, kind = [
        (files[0], "image/png"),
        (file_of(pixels[0], "JPEG"), "image/jpeg"),
        (form(*files), "multipart/form-data; boundary=XX"),
        (as_json([base64_of(files[0]), (pixels[1] / 255).tolist()]), JSON),
        (npy(pixels), NPY),
        (safetensors.numpy.save({"images": pixels}), SAFETENSORS),
    ][seed]
    changed = bytearray(body)
    for at, length, data in edits:
        changed[at : at + length] = data
    with suppress(BadRequest, ContentTooLarge, Unprocessable):
        got = decode(bytes(changed), kind)
        assert got.shape[1:] == GREY
        assert 0 <= got.min() <= got.max() <= 1


def test_a_batch_in_parts_is_the_same_batch_and_its_errors_name_the_same_places() -> None:
    files = [file_of(noise(1, 40 + i, 50)) for i in range(40)]
    batch = parse_images(form(*files), "multipart/form-data; boundary=XX")
    limits = {"max_pixels": 1_000_000}
    parts = batch.parts()
    assert len(parts) > 3
    assert sum(part.count for part in parts) == 40
    np.testing.assert_array_equal(
        np.concatenate([part.decode(GREY, **limits) for part in parts]), batch.decode(GREY, **limits)
    )
    broken = parse_images(form(*files[:39], files[39][:60]), "multipart/form-data; boundary=XX").parts()[-1]
    with pytest.raises(BadRequest, match="image 40 of 40 cannot be read") as caught:
        broken.decode(GREY, **limits)
    assert caught.value.errors[0][0] == "body.images.39"


@pytest.mark.parametrize("pack", [bytes, lambda data: as_json([base64_of(data)])])
def test_few_bytes_that_claim_many_pixels_are_not_light(pack: Any) -> None:
    kind = "image/png" if pack is bytes else JSON
    assert parse_images(pack(file_of(noise(1, 28, 28))), kind).is_light()
    assert not parse_images(pack(file_of(np.zeros((1, 2000, 1000), np.uint8))), kind).is_light()
    assert parse_images(as_json(np.zeros((2, 28, 28)).tolist()), JSON).is_light()
