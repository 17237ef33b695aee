"""Latents in: JSON, npy and safetensors give the same pictures; what is wrong is refused with the reason."""

import json

import httpx
import numpy as np
import pytest
from service_answers import answer, problem
from service_pictures import JSON, NPY, SAFETENSORS, from_npy, from_tensors, npy, tensors


@pytest.fixture(scope="module")
def z(latent_dim: int) -> np.ndarray:
    """Latents on a grid of 1/8, exact in float16 and in JSON, ``(5, D)`` float32."""
    grid = np.random.default_rng(11).integers(-12, 13, (5, latent_dim)) / 8
    return grid.astype(np.float32)


def decoded(http: httpx.Client, body: bytes, headers: dict[str, str]) -> np.ndarray:
    got = http.post("/decode?format=npy", content=body, headers=headers)
    assert got.status_code == 200, got.text
    return from_npy(got.content)


def test_every_form_of_the_same_latents_gives_the_same_bits(http: httpx.Client, z: np.ndarray) -> None:
    want = decoded(http, npy(z), NPY)
    assert want.shape == (5, 1, 28, 28)
    assert want.dtype == np.float32
    assert want.min() >= 0
    assert want.max() <= 1
    in_json = json.dumps({"z": z.tolist()}).encode()
    for body, headers in (
        (in_json, JSON),
        (in_json, {}),
        (npy(z), {}),
        (npy(z.astype(np.float64)), NPY),
        (npy(z.astype(np.float16)), NPY),
        (npy(np.asfortranarray(z)), NPY),
        (tensors(z=z), SAFETENSORS),
        (tensors(z=z.astype(np.float64)), SAFETENSORS),
    ):
        np.testing.assert_array_equal(decoded(http, body, headers), want)


def test_one_row_of_latents_may_come_without_the_first_axis(http: httpx.Client, z: np.ndarray) -> None:
    want = decoded(http, npy(z[:1]), NPY)
    assert want.shape == (1, 1, 28, 28)
    np.testing.assert_array_equal(decoded(http, npy(z[0]), NPY), want)


def test_integers_are_numbers_too(http: httpx.Client, latent_dim: int) -> None:
    whole = json.dumps({"z": [[1, -1] * (latent_dim // 2)]}).encode()
    point = json.dumps({"z": [[1.0, -1.0] * (latent_dim // 2)]}).encode()
    np.testing.assert_array_equal(decoded(http, whole, JSON), decoded(http, point, JSON))


def test_latents_keep_their_order(http: httpx.Client, z: np.ndarray, pixel_tolerance: float) -> None:
    together = decoded(http, npy(z), NPY)
    for i, row in enumerate(z):
        assert abs(decoded(http, npy(row), NPY)[0] - together[i]).max() <= pixel_tolerance
    assert abs(decoded(http, npy(z[::-1]), NPY) - together[::-1]).max() <= pixel_tolerance


def test_what_encode_writes_decode_reads(http: httpx.Client, drawn: np.ndarray, pixel_tolerance: float) -> None:
    mu = from_tensors(http.post("/encode?format=safetensors", content=npy(drawn), headers=NPY).content)["mu"]
    rebuilt = from_npy(http.post("/reconstruct?format=npy", content=npy(drawn), headers=NPY).content)
    assert abs(decoded(http, tensors(z=mu), SAFETENSORS) - rebuilt).max() <= pixel_tolerance


def test_decode_is_a_mean_and_draws_nothing(http: httpx.Client, z: np.ndarray) -> None:
    assert len({http.post("/decode?format=npy", content=npy(z), headers=NPY).content for _ in range(3)}) == 1


def test_latents_of_another_width_are_422_in_the_words_of_the_contract(http: httpx.Client, latent_dim: int) -> None:
    narrow = np.zeros((3, latent_dim - 1), np.float32)
    said = f"({3}, {latent_dim - 1})"
    for body, headers in (
        (json.dumps({"z": narrow.tolist()}).encode(), JSON),
        (npy(narrow), NPY),
        (tensors(z=narrow), SAFETENSORS),
    ):
        detail = problem(http.post("/decode", content=body, headers=headers), 422, "wrong_shape")["detail"]
        assert said in detail
        assert f"(N, {latent_dim})" in detail


def refused(http: httpx.Client, body: object, code: str | None = None) -> None:
    problem(http.post("/decode", content=json.dumps(body).encode(), headers=JSON), 422, code)


def test_json_that_holds_no_matrix_of_numbers_is_422(http: httpx.Client, latent_dim: int) -> None:
    row: list = [0.0] * latent_dim
    for body in ({}, [], None, 5, "z", {"z": []}, {"z": [[]]}, {"z": None}, {"z": "abc"}, {"z": [row, row[:-1]]}):
        refused(http, body)
    for odd in ("1", None, True, [0.0], {}):
        refused(http, {"z": [[odd, *row[1:]]]})
    refused(http, {"z": row})
    refused(http, {"z": [[row]]})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e300", "9" * 400])
def test_a_latent_that_is_no_finite_float32_is_refused(http: httpx.Client, latent_dim: int, number: str) -> None:
    body = json.dumps({"z": [[0.125] + [0.0] * (latent_dim - 1)]}).replace("0.125", number).encode()
    got = http.post("/decode", content=body, headers=JSON)
    assert got.status_code in {400, 422}
    problem(got, got.status_code)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_latent_that_is_not_finite_is_422_in_arrays(http: httpx.Client, z: np.ndarray, value: float) -> None:
    bad = z.copy()
    bad[2, 3] = value
    problem(http.post("/decode", content=npy(bad), headers=NPY), 422, "not_finite")
    problem(http.post("/decode", content=tensors(z=bad), headers=SAFETENSORS), 422, "not_finite")
    problem(http.post("/decode", content=npy(bad.astype(np.float16)), headers=NPY), 422, "not_finite")


def test_a_float64_latent_beyond_float32_is_422(http: httpx.Client, latent_dim: int) -> None:
    got = http.post("/decode", content=npy(np.full((1, latent_dim), 1e300)), headers=NPY)
    problem(got, 422)


@pytest.mark.parametrize("size", [1e3, 1e30, 3e38])
def test_far_latents_give_pixels_or_an_error_and_never_nan(http: httpx.Client, latent_dim: int, size: float) -> None:
    for sign in (1, -1):
        got = http.post("/decode", json={"z": [[sign * size] * latent_dim]})
        if got.status_code == 200:
            answer(got)
            pixels = decoded(http, npy(np.full((1, latent_dim), sign * size, np.float32)), NPY)
            assert np.isfinite(pixels).all()
        else:
            problem(got, 422)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.bool_, np.complex64])
def test_latents_in_an_array_are_floats(http: httpx.Client, z: np.ndarray, kind: type) -> None:
    got = http.post("/decode", content=npy(np.ones(z.shape, kind)), headers=NPY)
    problem(got, 422, "wrong_dtype")


def test_a_tensor_of_another_name_and_an_empty_array_are_422(http: httpx.Client, z: np.ndarray) -> None:
    problem(http.post("/decode", content=tensors(mu=z), headers=SAFETENSORS), 422)
    problem(http.post("/decode", content=npy(z[:0]), headers=NPY), 422)
    problem(http.post("/decode", content=npy(z[None]), headers=NPY), 422, "wrong_shape")


def test_malformed_latents_are_400(http: httpx.Client, z: np.ndarray) -> None:
    for body, headers in ((b"{", JSON), (b"", JSON), (npy(z)[:-3], NPY), (tensors(z=z)[:-3], SAFETENSORS)):
        problem(http.post("/decode", content=body, headers=headers), 400)
