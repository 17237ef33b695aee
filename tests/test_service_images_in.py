"""Images in: every form of the table gives the same answer for the same picture, in order."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image
from service_answers import answer, as_float32, problem, same_bits
from service_pictures import (
    JPEG,
    JSON,
    NPY,
    PNG,
    SAFETENSORS,
    base64_text,
    digit,
    from_npy,
    images_json,
    ink,
    jpeg,
    multipart,
    npy,
    png,
    small_real_digits,
    tensors,
)

INK = ink()
UNIT = INK / 255.0  # float64, 0.0 and 1.0 alone


def mu_of(http: httpx.Client, body: bytes, headers: dict[str, str], **query: object) -> np.ndarray:
    body_out = answer(http.post("/encode", content=body, headers=headers, params=query))
    return as_float32(body_out["mu"])


@pytest.fixture(scope="module")
def ink_mu(http: httpx.Client) -> np.ndarray:
    return mu_of(http, png(INK), PNG)


FORMS = {
    "base64 in JSON": (images_json(base64_text(png(INK))), JSON),
    "a data URL in JSON": (images_json("data:image/png;base64," + base64_text(png(INK))), JSON),
    "nested lists (H, W)": (images_json(UNIT.tolist()), JSON),
    "nested lists (C, H, W)": (images_json(UNIT[None].tolist()), JSON),
    "nested lists of integers": (images_json((INK // 255).tolist()), JSON),
    "JSON with a charset": (images_json(UNIT.tolist()), {"Content-Type": "Application/JSON; charset=UTF-8"}),
    "PNG in capitals": (png(INK), {"Content-Type": "IMAGE/PNG"}),
    "npy uint8 (H, W)": (npy(INK), NPY),
    "npy uint8 (N, H, W)": (npy(INK[None]), NPY),
    "npy uint8 (N, C, H, W)": (npy(INK[None, None]), NPY),
    "npy float16": (npy(UNIT.astype(np.float16)), NPY),
    "npy float32": (npy(UNIT.astype(np.float32)), NPY),
    "npy float64": (npy(UNIT[None, None]), NPY),
    "npy in Fortran order": (npy(np.asfortranarray(UNIT.astype(np.float32))), NPY),
    "safetensors uint8 (H, W)": (tensors(images=INK), SAFETENSORS),
    "safetensors uint8 (N, H, W)": (tensors(images=INK[None]), SAFETENSORS),
    "safetensors float16": (tensors(images=UNIT[None, None].astype(np.float16)), SAFETENSORS),
    "safetensors float32": (tensors(images=UNIT.astype(np.float32)), SAFETENSORS),
    "safetensors float64": (tensors(images=UNIT), SAFETENSORS),
    "a sniffed PNG": (png(INK), {}),
    "sniffed npy": (npy(INK), {}),
    "sniffed JSON": (images_json(UNIT.tolist()), {}),
    "sniffed JSON after white space": (b" \n" + images_json(UNIT.tolist()), {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_picture_gives_the_same_bits(http: httpx.Client, ink_mu: np.ndarray, form: str) -> None:
    body, headers = FORMS[form]
    assert same_bits(mu_of(http, body, headers), ink_mu)


def test_multipart_of_the_same_picture_gives_the_same_bits(http: httpx.Client, ink_mu: np.ndarray) -> None:
    got = answer(http.post("/encode", files=multipart(png(INK))))
    assert same_bits(as_float32(got["mu"]), ink_mu)


def test_another_npy_header_version_is_the_same_array(http: httpx.Client, ink_mu: np.ndarray) -> None:
    for version in ((2, 0), (3, 0)):
        out = io.BytesIO()
        np.lib.format.write_array(out, INK, version=version)
        assert same_bits(mu_of(http, out.getvalue(), NPY), ink_mu)


def test_big_endian_floats_are_read_right_or_refused(http: httpx.Client, ink_mu: np.ndarray) -> None:
    got = http.post("/encode", content=npy(UNIT.astype(">f4")), headers=NPY)
    if got.status_code == 422:
        problem(got, 422, "wrong_dtype")
    else:
        assert same_bits(as_float32(answer(got)["mu"]), ink_mu)


def test_a_jpeg_gives_what_its_decoded_pixels_give(http: httpx.Client) -> None:
    body = jpeg(digit(2))
    pixels = np.asarray(Image.open(io.BytesIO(body)))
    want = mu_of(http, npy(pixels), NPY)
    for headers in (JPEG, {}):
        assert same_bits(mu_of(http, body, headers), want)
    in_json = images_json(base64_text(body), "data:image/jpeg;base64," + base64_text(body))
    for row in mu_of(http, in_json, JSON):
        np.testing.assert_allclose(row, want[0], atol=0.05)


def test_grey_pixels_mean_the_same_in_bytes_and_in_floats(http: httpx.Client) -> None:
    grey = digit(4)
    want = mu_of(http, png(grey), PNG)
    for array in (grey, grey / 255.0, (grey / 255.0).astype(np.float32)):
        np.testing.assert_allclose(mu_of(http, npy(array), NPY), want, atol=2e-2, rtol=0)
    np.testing.assert_allclose(mu_of(http, images_json((grey / 255).tolist()), JSON), want, atol=2e-2, rtol=0)


@pytest.fixture(scope="module")
def each(http: httpx.Client, strokes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mu and sigma of every drawn digit, each sent alone: ``(N, D)``, ``(N, D)``."""
    answers = [from_npy(http.post("/encode?format=npy", content=npy(x), headers=NPY).content) for x in strokes]
    both = np.concatenate(answers, axis=1)
    return both[0], both[1]


ORDERED = {
    "multipart": lambda x: {"files": multipart(*(png(one) for one in x))},
    "base64 in JSON": lambda x: {"content": images_json(*(base64_text(png(one)) for one in x)), "headers": JSON},
    "lists in JSON": lambda x: {"content": images_json(*((one / 255).tolist() for one in x)), "headers": JSON},
    "npy": lambda x: {"content": npy(x), "headers": NPY},
    "npy in Fortran order": lambda x: {"content": npy(np.asfortranarray(x)), "headers": NPY},
    "safetensors": lambda x: {"content": tensors(images=x[:, None]), "headers": SAFETENSORS},
}


@pytest.mark.parametrize("form", ORDERED)
def test_many_images_keep_their_order(
    http: httpx.Client, strokes: np.ndarray, each: tuple, mu_tolerance: float, form: str
) -> None:
    mu, sigma = each
    for order in (slice(None), slice(None, None, -1)):
        got = answer(http.post("/encode", **ORDERED[form](strokes[order])))
        assert (abs(as_float32(got["mu"]) - mu[order]) <= mu_tolerance * sigma[order]).all()
        assert len(got["sigma"]) == len(strokes)


def test_files_and_lists_may_stand_beside_each_other_in_json(
    http: httpx.Client, strokes: np.ndarray, each: tuple, mu_tolerance: float
) -> None:
    mu, sigma = each
    items = [(one / 255).tolist() if i % 2 else base64_text(png(one)) for i, one in enumerate(strokes)]
    got = mu_of(http, images_json(*items), JSON)
    assert (abs(got - mu) <= mu_tolerance * sigma).all()


def test_png_and_jpeg_parts_stand_beside_each_other_in_multipart(http: httpx.Client, strokes: np.ndarray) -> None:
    files = [
        ("images", ("a.png", png(strokes[0]), "image/png")),
        ("images", ("b.jpg", jpeg(strokes[1]), "image/jpeg")),
        ("images", ("c", png(strokes[2]), "application/octet-stream")),
    ]
    got = answer(http.post("/encode", files=files))
    assert len(got["mu"]) == 3


@pytest.mark.parametrize("route", ["/reconstruct", "/score?samples=4", "/kl"])
@pytest.mark.parametrize("form", ["base64 in JSON", "npy uint8 (H, W)", "safetensors float32", "a sniffed PNG"])
def test_every_route_that_takes_images_takes_every_form(http: httpx.Client, route: str, form: str) -> None:
    body, headers = FORMS[form]
    assert http.post(route, content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("route", ["/reconstruct", "/score?samples=4", "/kl"])
def test_every_route_that_takes_images_takes_multipart(http: httpx.Client, route: str) -> None:
    got = answer(http.post(route, files=multipart(png(INK), png(digit(4)))))
    assert all(len(values) == 2 for name, values in got.items() if name in {"images", "kl", "elbo"})


def test_the_same_image_gives_the_same_bytes_every_time(http: httpx.Client) -> None:
    bodies = {http.post("/encode", content=png(digit(0)), headers=PNG).content for _ in range(5)}
    assert len(bodies) == 1


def crowded(http: httpx.Client, body: bytes) -> set[bytes]:
    """Answers to the same PNG while many other pictures are encoded."""

    def other(i: int) -> int:
        return http.post("/encode", content=npy(np.full((1 + i % 7, 28, 28), i, np.uint8)), headers=NPY).status_code

    with ThreadPoolExecutor(24) as pool:
        company = [pool.submit(other, i) for i in range(80)]
        mine = [pool.submit(http.post, "/encode", content=body, headers=PNG) for _ in range(24)]
        assert {future.result() for future in company} == {200}
        return {future.result().content for future in mine}


def test_the_same_image_gives_the_same_latents_in_company_of_other_requests(
    http: httpx.Client, each: tuple, strokes: np.ndarray, mu_tolerance: float
) -> None:
    mu, sigma = each[0][0], each[1][0]
    for content in crowded(http, png(strokes[0])):
        assert (abs(as_float32(json.loads(content)["mu"])[0] - mu) <= mu_tolerance * sigma).all()


def test_the_same_image_gives_the_same_bytes_in_company_of_other_requests(http: httpx.Client) -> None:
    body = png(digit(0))
    alone = http.post("/encode", content=body, headers=PNG).content
    assert crowded(http, body) == {alone}


def test_other_handwriting_scaled_up_is_encoded_and_comes_back_alike(http: httpx.Client) -> None:
    x = small_real_digits(6)
    back = from_npy(http.post("/reconstruct?format=npy", content=npy(x), headers=NPY).content)
    own = abs(back[:, 0] - x / 255).mean(axis=(1, 2))
    others = abs(np.roll(back[:, 0], 1, axis=0) - x / 255).mean(axis=(1, 2))
    assert own.mean() < others.mean()


def test_encode_tells_mu_and_a_positive_sigma_of_every_latent(
    http: httpx.Client, strokes: np.ndarray, latent_dim: int
) -> None:
    got = json.loads(http.post("/encode", content=npy(strokes), headers=NPY).content)
    assert set(got) == {"mu", "sigma"}
    mu, sigma = np.array(got["mu"]), np.array(got["sigma"])
    assert mu.shape == sigma.shape == (len(strokes), latent_dim)
    assert np.isfinite(mu).all()
    assert (sigma > 0).all()


@pytest.mark.parametrize("path", ["/encode", "/reconstruct", "/kl?seed=1", "/score?seed=1&samples=5"])
@pytest.mark.parametrize("count", [3, 150])
def test_bytes_of_many_images_give_what_their_numbers_give(http: httpx.Client, path: str, count: int) -> None:
    pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
    unit = pixels.astype(np.float32) / np.float32(255)
    answers = [http.post(path, content=npy(x), headers=NPY).json() for x in (pixels, unit, np.asfortranarray(pixels))]
    assert answers[0] == answers[1] == answers[2]
    assert len(next(value for value in answers[0].values() if isinstance(value, list))) == count
