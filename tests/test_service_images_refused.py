"""Images refused: which media type, which malformed file, which wrong array, and what the refusal says."""

import struct
import zlib
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from service_answers import INPUT_TYPES, problem, words
from service_pictures import (
    JPEG,
    JSON,
    NPY,
    PNG,
    SAFETENSORS,
    base64_text,
    digit,
    file_bytes,
    images_json,
    ink,
    jpeg,
    multipart,
    npy,
    png,
    tensors,
)

UNIT = (ink() / 255).astype(np.float32)
ROUTES = ("/encode", "/reconstruct", "/score", "/kl")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "media_type", ["application/octet-stream", "text/plain", "image/gif", "application/xml", "image/*", "nonsense"]
)
def test_another_media_type_is_415_and_lists_the_types_that_are_read(
    http: httpx.Client, route: str, media_type: str
) -> None:
    answer = http.post(route, content=png(ink()), headers={"Content-Type": media_type})
    body = problem(answer, 415, "unsupported_media_type")
    assert all(name in body["detail"] for name in INPUT_TYPES)
    assert {name.strip() for name in answer.headers["accept-post"].split(",")} >= set(INPUT_TYPES)


@pytest.mark.parametrize("media_type", ["application/octet-stream", "image/png", "multipart/form-data; boundary=x"])
def test_decode_reads_no_images_and_says_in_accept_post_what_it_reads(http: httpx.Client, media_type: str) -> None:
    answer = http.post("/decode", content=png(ink()), headers={"Content-Type": media_type})
    problem(answer, 415, "unsupported_media_type")
    listed = {name.strip() for name in answer.headers["accept-post"].split(",")}
    assert listed >= {"application/json", "application/x-npy", "application/x-safetensors"}
    assert not listed & {"image/png", "image/jpeg", "multipart/form-data"}


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data


MALFORMED: dict[str, tuple[bytes, dict[str, str]]] = {
    "an empty PNG": (b"", PNG),
    "a truncated PNG": (png(digit())[:-40], PNG),
    "a PNG cut in its header": (png(digit())[:20], PNG),
    "a PNG with a broken checksum": (png(digit()).replace(b"IDAT", b"IDAU"), PNG),
    "a truncated JPEG": (jpeg(digit())[:300], JPEG),
    "text as PNG": (b"these are no pixels", PNG),
    "text as JPEG": (b"these are no pixels", JPEG),
    "a GIF as PNG": (file_bytes(digit(), "GIF"), PNG),
    "a BMP as PNG": (file_bytes(digit(), "BMP"), PNG),
    "a TIFF as JPEG": (file_bytes(digit(), "TIFF"), JPEG),
    "a PNG of no height": (claiming(28, 0), PNG),
    "a truncated file in base64": (images_json(base64_text(png(digit())[:-40])), JSON),
    "a GIF in base64": (images_json(base64_text(file_bytes(digit(), "GIF"))), JSON),
    "an empty npy": (b"", NPY),
    "npy without its magic": (b"NUMPY" * 30, NPY),
    "npy with a broken header": (npy(UNIT)[:60].replace(b"descr", b"descx") + npy(UNIT)[60:], NPY),
    "npy cut in its data": (npy(UNIT)[:-1], NPY),
    "npy cut in its header": (npy(UNIT)[:40], NPY),
    "npy with a lying shape": (npy(UNIT).replace(b"(28, 28)", b"(99, 99)"), NPY),
    "npy with code in its header": (npy(UNIT).replace(b"(28, 28)", b"exit(99)"), NPY),
    "empty safetensors": (b"", SAFETENSORS),
    "safetensors cut in its data": (tensors(images=UNIT)[:-1], SAFETENSORS),
    "safetensors with a header of 2^60 bytes": (struct.pack("<Q", 1 << 60) + b"{}", SAFETENSORS),
    "safetensors whose header is no JSON": (struct.pack("<Q", 4) + b"nope", SAFETENSORS),
    "an empty JSON body": (b"", JSON),
    "broken JSON": (b'{"images": [', JSON),
    "JSON in UTF-16": ('{"images": []}'.encode("utf-16"), JSON),
    "JSON with bad UTF-8": (b'{"images": ["\xff\xfe"]}', JSON),
    "JSON of great depth": (b'{"images": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", JSON),
    "an empty body without a type": (b"", {}),
    "noise without a type": (b"\x00\x01\x02\x03" * 20, {}),
    "multipart without a boundary": (b"--x\r\n\r\n--x--", {"Content-Type": "multipart/form-data"}),
    "multipart that never ends": (
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\nabc',
        {"Content-Type": "multipart/form-data; boundary=x"},
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_body_is_400(http: httpx.Client, name: str) -> None:
    body, headers = MALFORMED[name]
    problem(http.post("/encode", content=body, headers=headers), 400)


@pytest.mark.parametrize("text", ["no base64 at all!", "AAA", "data:image/png;base64,", "data:image/png,abc", ""])
def test_a_string_that_holds_no_image_file_is_refused(http: httpx.Client, text: str) -> None:
    answer = http.post("/encode", content=images_json(text), headers=JSON)
    assert answer.status_code in {400, 422}
    problem(answer, answer.status_code)


def test_the_failing_item_of_many_is_named(http: httpx.Client) -> None:
    items = [base64_text(png(digit())) for _ in range(4)]
    items[2] = base64_text(b"no image")
    assert "2" in words(problem(http.post("/encode", content=images_json(*items), headers=JSON), 400))
    files = [png(digit()), png(digit()), b"no image"]
    assert "2" in words(problem(http.post("/encode", files=multipart(*files)), 400))


def with_one(value: object) -> bytes:
    pixels: list = UNIT.tolist()
    pixels[3][4] = value
    return images_json(pixels)


LIST = UNIT.tolist()
WRONG: dict[str, tuple[bytes, dict[str, str], str | None]] = {
    "no images in JSON": (b'{"images": []}', JSON, None),
    "JSON without images": (b"{}", JSON, None),
    "JSON that is a list": (b"[]", JSON, None),
    "JSON that is null": (b"null", JSON, None),
    "JSON that is a number": (b"3", JSON, None),
    "images that are a string": (b'{"images": "abc"}', JSON, None),
    "images that are null": (b'{"images": null}', JSON, None),
    "an item that is null": (b'{"images": [null]}', JSON, None),
    "an item that is an object": (b'{"images": [{}]}', JSON, None),
    "an item that is a number": (b'{"images": [1]}', JSON, None),
    "a ragged list": (images_json([*LIST[:-1], LIST[-1][:-1]]), JSON, None),
    "a list of another size": (images_json(LIST[:-1]), JSON, None),
    "a list of two channels": (images_json([LIST, LIST]), JSON, None),
    "a pixel of 255 in a list": (with_one(255), JSON, "out_of_range"),
    "a pixel below 0 in a list": (with_one(-0.01), JSON, "out_of_range"),
    "a pixel that is text": (with_one("0.5"), JSON, None),
    "a pixel that is true": (with_one(True), JSON, None),
    "a pixel that is null": (with_one(None), JSON, None),
    "a float array above 1": (npy(UNIT * 1.5), NPY, "out_of_range"),
    "a float array below 0": (npy(UNIT - 0.5), NPY, "out_of_range"),
    "a float array in 0..255": (npy(UNIT * 255), NPY, "out_of_range"),
    "NaN in an array": (npy(np.where(UNIT > 0, np.nan, UNIT)), NPY, "not_finite"),
    "infinity in an array": (npy(np.where(UNIT > 0, np.inf, UNIT)), NPY, None),
    "no images in npy": (npy(UNIT[None][:0]), NPY, None),
    "an array of int64": (npy(UNIT.astype(np.int64)), NPY, "wrong_dtype"),
    "an array of bool": (npy(UNIT > 0), NPY, "wrong_dtype"),
    "an array of complex": (npy(UNIT.astype(complex)), NPY, "wrong_dtype"),
    "an array of int8": (npy(UNIT.astype(np.int8)), NPY, "wrong_dtype"),
    "an array of text": (npy(UNIT.astype("U3")), NPY, "wrong_dtype"),
    "safetensors of another name": (tensors(image=UNIT), SAFETENSORS, None),
    "safetensors without a tensor": (tensors(), SAFETENSORS, None),
    "safetensors of int32": (tensors(images=UNIT.astype(np.int32)), SAFETENSORS, "wrong_dtype"),
    "safetensors out of range": (tensors(images=UNIT * 2), SAFETENSORS, "out_of_range"),
    "NaN in safetensors": (tensors(images=UNIT * np.float32(np.nan)), SAFETENSORS, "not_finite"),
    "safetensors of another shape": (tensors(images=UNIT[:14]), SAFETENSORS, "wrong_shape"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_well_formed_body_that_is_wrong_is_422(http: httpx.Client, name: str) -> None:
    body, headers, code = WRONG[name]
    problem(http.post("/encode", content=body, headers=headers), 422, code)


def test_an_array_of_python_objects_is_refused_unread(http: httpx.Client) -> None:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (28, 28), }"
    header += b" " * (117 - len(header)) + b"\n"
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"cos\nsystem\n(S'id'\ntR."
    answer = http.post("/encode", content=body, headers=NPY)
    assert answer.status_code in {400, 422}
    problem(answer, answer.status_code)


PARTS: dict[str, Callable[[], list]] = {
    "no part named images": lambda: multipart(png(ink()), name="image"),
    "a part named images that is no file": lambda: [("images", (None, "abc"))],
    "no part at all": lambda: [("other", (None, "abc"))],
}


@pytest.mark.parametrize("name", PARTS)
def test_multipart_without_a_file_part_named_images_is_refused(http: httpx.Client, name: str) -> None:
    answer = http.post("/encode", files=PARTS[name]())
    assert answer.status_code in {400, 422}
    assert "images" in words(problem(answer, answer.status_code))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400])
def test_a_pixel_that_is_no_finite_number_is_refused(http: httpx.Client, number: str) -> None:
    body = with_one(0.125).replace(b"0.125", number.encode())
    answer = http.post("/encode", content=body, headers=JSON)
    assert answer.status_code in {400, 422}
    problem(answer, answer.status_code)


@pytest.mark.parametrize("headers", [PNG, JPEG])
def test_a_file_under_the_other_image_type_is_taken_or_refused_and_never_fails(
    http: httpx.Client, headers: dict[str, str]
) -> None:
    body = jpeg(digit()) if headers is PNG else png(digit())
    assert http.post("/encode", content=body, headers=headers).status_code in {200, 400, 415}


def test_a_small_file_that_claims_a_huge_picture_is_413(http: httpx.Client) -> None:
    for body in (claiming(60_000, 60_000), claiming(2**31 - 1, 2**31 - 1)):
        answer = http.post("/encode", content=body, headers=PNG)
        assert answer.status_code in {400, 413}
        problem(answer, answer.status_code)
    assert "VAE_MAX_PIXELS" in http.post("/encode", content=claiming(6000, 6000), headers=PNG).text


@pytest.mark.parametrize("route", ROUTES)
def test_after_all_that_a_good_image_is_answered(http: httpx.Client, route: str) -> None:
    assert http.post(route, content=png(ink()), headers=PNG).status_code == 200
