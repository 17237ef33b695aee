"""Latents and distributions in."""

import io
import json
from contextlib import suppress

import numpy as np
import orjson
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.errors import BadRequest, ContentTooLarge, ServiceError, Unprocessable, UnsupportedMediaType
from app.images_in import ImageBatch
from app.numbers_in import MAX_LATENT, DiscretePair, Normal, NormalPair, Posteriors, read_kl, read_latents

JSON, NPY, SAFETENSORS = "application/json", "application/x-npy", "application/x-safetensors"
D = 32
Z = np.random.default_rng(0).standard_normal((3, D)).astype(np.float32)


def npy(array: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def error_of(body: bytes, kind: str | None = None) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        read_latents(body, kind, D)
    return caught.value


def kl_error_of(content: object) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        read_kl(json.dumps(content).encode(), JSON)
    return caught.value


def kl_of(content: object) -> object:
    return read_kl(json.dumps(content).encode(), JSON)


def test_every_form_gives_the_same_latents() -> None:
    for body, kind in (
        (orjson.dumps({"z": Z}, option=orjson.OPT_SERIALIZE_NUMPY), JSON),
        (json.dumps({"z": Z.tolist()}).encode(), None),
        (npy(Z), NPY),
        (npy(Z.astype(">f8")), None),
        (npy(np.asfortranarray(Z)), NPY),
        (safetensors.numpy.save({"z": Z, "images": np.zeros((1, 1), np.uint8)}), SAFETENSORS),
        (safetensors.numpy.save({"z": Z.astype(np.float64)}), SAFETENSORS),
    ):
        got = read_latents(body, kind, D)
        assert got.dtype == np.float32
        assert got.flags.writeable
        np.testing.assert_array_equal(got, Z)


def test_array_of_one_axis_is_one_latent_and_json_of_one_axis_is_not() -> None:
    np.testing.assert_array_equal(read_latents(npy(Z[0]), NPY, D), Z[:1])
    np.testing.assert_array_equal(read_latents(safetensors.numpy.save({"z": Z[0]}), SAFETENSORS, D), Z[:1])
    assert error_of(json.dumps({"z": Z[0].tolist()}).encode(), JSON).code == "invalid_field"


def test_integers_are_numbers_in_json_and_not_in_arrays() -> None:
    np.testing.assert_array_equal(read_latents(json.dumps({"z": [[1] * D]}).encode(), JSON, D), np.ones((1, D)))
    assert error_of(npy(np.ones((1, D), np.int64)), NPY).code == "wrong_dtype"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-MAX_LATENT, MAX_LATENT, width=32), min_size=1, max_size=8))
def test_float32_in_json_is_read_exactly(row: list[float]) -> None:
    body = orjson.dumps({"z": np.array([row], np.float32)}, option=orjson.OPT_SERIALIZE_NUMPY)
    np.testing.assert_array_equal(read_latents(body, JSON, len(row)), np.array([row], np.float32))


def test_latents_with_which_a_network_would_overflow_are_422_and_told() -> None:
    error = error_of(npy(np.array([[0.0] * (D - 1) + [-3e38]], np.float32)), NPY)
    assert (error.status, error.code) == (422, "out_of_range")
    assert f"body.z.0.{D - 1} lies outside" in error.detail


@pytest.mark.parametrize("shape", [(3, 31), (3, 33), (1, 1), (31,), (3, 1, 32), (1, 3, 32), (3, 0), ()])
def test_other_shapes_are_422_and_told(shape: tuple[int, ...]) -> None:
    error = error_of(npy(np.zeros(shape, np.float32)), NPY)
    assert isinstance(error, Unprocessable)
    assert error.code == "wrong_shape"
    told = shape if len(shape) != 1 else (1, *shape)
    assert error.detail == f"got z of shape {told}; this model reads (N, 32)"


def test_rows_of_other_lengths_are_422_and_the_row_is_named() -> None:
    assert error_of(b'{"z": [[1, 2], [3, 4]]}', JSON).detail == "got z of shape (2, 2); this model reads (N, 32)"
    ragged = error_of(b'{"z": [[1, 2], [3, 4], [5]]}', JSON)
    assert (ragged.code, ragged.errors) == ("wrong_shape", (("body.z.2", "has 1 numbers"),))
    assert error_of(b'{"z": [[], []]}', JSON).code == "wrong_shape"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"z": []}', JSON),
        (npy(np.zeros((0, D), np.float32)), NPY),
        (safetensors.numpy.save({"z": np.zeros((0, D), np.float32)}), SAFETENSORS),
    ],
)
def test_no_latent_is_422_empty(body: bytes, kind: str) -> None:
    assert (error_of(body, kind).status, error_of(body, kind).code) == (422, "empty")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e39])
def test_numbers_that_are_no_finite_float32_are_422_and_their_place_is_told(number: float) -> None:
    z = Z.astype(np.float64)
    z[1, 5] = number
    for body, kind in (
        (json.dumps({"z": z.tolist()}).encode(), JSON),
        (npy(z), NPY),
        (safetensors.numpy.save({"z": z}), SAFETENSORS),
    ):
        error = error_of(body, kind)
        assert (error.status, error.code, error.errors[0][0]) == (422, "not_finite", "body.z.1.5")


@pytest.mark.parametrize("text", ["1e999", "9" * 400, "9" * 5000, "1e39"])
def test_numbers_beyond_every_float_are_422_not_finite(text: str) -> None:
    body = b'{"z": [[' + b",".join([text.encode()] * D) + b"]]}"
    assert error_of(body, JSON).code == "not_finite"


def test_too_many_latents_are_413() -> None:
    for body, kind in ((json.dumps({"z": Z.tolist()}).encode(), JSON), (npy(Z), NPY)):
        assert len(read_latents(body, kind, D, max_items=3)) == 3
        with pytest.raises(ContentTooLarge, match="VAE_MAX_ITEMS"):
            read_latents(body, kind, D, max_items=2)


def test_images_and_unknown_types_are_415() -> None:
    with pytest.raises(UnsupportedMediaType):
        read_latents(b"", "image/png", D)
    assert error_of(b"", "application/octet-stream").headers["Accept-Post"].startswith("application/json")


def test_posteriors_are_read_in_float64() -> None:
    got = kl_of({"mu": [[1, 2.5], [0, 1e-300]], "sigma": [[1, 1], [0.5, 3]]})
    assert isinstance(got, Posteriors)
    assert got.items == 2
    np.testing.assert_array_equal(got.mu, np.array([[1, 2.5], [0, 1e-300]]))
    np.testing.assert_array_equal(got.sigma, np.array([[1, 1], [0.5, 3]]))


def test_pairs_of_normals_may_mix_std_and_cov() -> None:
    p, q = {"mean": [1, 2], "std": [1, 1]}, {"mean": [0, 0], "cov": [[2, 1], [1, 2]]}
    assert kl_of({"p": p, "q": q}) == NormalPair(
        Normal([1.0, 2.0], [1.0, 1.0], None), Normal([0.0, 0.0], None, [[2.0, 1.0], [1.0, 2.0]])
    )


def test_pairs_of_discrete_distributions_are_read() -> None:
    pair = kl_of({"p": {"probs": [0.5, 0.5]}, "q": {"probs": [0.25, 0.75]}})
    assert pair == DiscretePair([0.5, 0.5], [0.25, 0.75])
    assert pair.items == 1


def test_images_in_every_form_are_read_as_images() -> None:
    plane = np.full((2, 2), 0.5, np.float32)
    for body, kind in (
        (json.dumps({"images": [plane.tolist()]}).encode(), JSON),
        (npy(plane), NPY),
        (npy(plane), None),
    ):
        batch = read_kl(body, kind)
        assert isinstance(batch, ImageBatch)
        np.testing.assert_array_equal(batch.decode((1, 2, 2), max_pixels=9)[0, 0], plane)


STD, COV, PROBS = {"mean": [1], "std": [1]}, {"mean": [1], "cov": [[1]]}, {"probs": [1]}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"mu": [[1]]},
        {"sigma": [[1]]},
        {"p": STD},
        {"images": ["x"], "mu": [[1]], "sigma": [[1]]},
        {"mu": [[1]], "sigma": [[1]], "p": STD, "q": STD},
        {"mu": [[1]], "q": STD},
        {"p": STD, "q": PROBS},
        {"p": PROBS, "q": COV},
        {"p": {}, "q": {}},
        {"p": {"mean": [1]}, "q": STD},
        {"p": {"std": [1]}, "q": STD},
        {"p": STD | COV, "q": STD},
        {"p": PROBS | STD, "q": PROBS},
    ],
)
def test_mixtures_of_forms_are_422_and_the_four_forms_are_told(content: object) -> None:
    error = kl_error_of(content)
    assert (error.status, error.code) == (422, "invalid_field")
    for form in ('{"images"', '{"mu"', '"std"', '"cov"', '"probs"'):
        assert form in error.detail


@pytest.mark.parametrize(
    ("content", "code", "where"),
    [
        ({"mu": [[1, 2]], "sigma": [[1]]}, "wrong_shape", None),
        ({"mu": [[1], [2]], "sigma": [[1]]}, "wrong_shape", None),
        ({"mu": [[1], [2, 3]], "sigma": [[1], [1]]}, "wrong_shape", "body.mu.1"),
        ({"mu": [[]], "sigma": [[]]}, "wrong_shape", "body.mu.0"),
        ({"mu": [], "sigma": []}, "empty", None),
        ({"mu": [[1, 2]], "sigma": [[1, 0]]}, "out_of_range", "body.sigma.0.1"),
        ({"mu": [[1]], "sigma": [[-1]]}, "out_of_range", "body.sigma.0.0"),
    ],
)
def test_posteriors_that_make_no_sense_are_422(content: object, code: str, where: str | None) -> None:
    error = kl_error_of(content)
    assert (error.status, error.code) == (422, code)
    assert where is None or error.errors[0][0] == where


def test_dimensions_have_caps() -> None:
    row = [1.0] * 1025
    for content in (
        {"p": {"mean": row, "cov": [row]}, "q": STD},
        {"p": {"probs": [0.0] * 65_537}, "q": PROBS},
        {"mu": [[0.0] * 65_537], "sigma": [[1.0]]},
    ):
        assert (kl_error_of(content).status, kl_error_of(content).code) == (413, "too_many_items")


@settings(max_examples=150, deadline=None)
@given(
    seed=st.sampled_from(["z", "mu", "p"]),
    edits=st.lists(
        st.tuples(
            st.integers(0, 90),
            st.integers(0, 3),
            st.sampled_from(
                [b"NaN", b"1e999", b"[]", b"]", b"[", b"{", b"}", b'"', b"null", b"-", b"0", b",", b"\xff"]
            ),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_mutated_bodies_give_numbers_or_a_documented_refusal(seed: str, edits: list[tuple[int, int, bytes]]) -> None:
    content = {
        "z": {"z": [[1, 2], [3, 4]]},
        "mu": {"mu": [[1, 2]], "sigma": [[1, 2]]},
        "p": {"p": STD, "q": COV},
    }[seed]
    body = bytearray(json.dumps(content).encode())
    for at, length, token in edits:
        body[at : at + length] = token
    with suppress(BadRequest, Unprocessable):
        if seed == "z":
            assert np.isfinite(read_latents(bytes(body), JSON, 2)).all()
        else:
            read_kl(bytes(body), JSON)
