"""POST /kl of two normals, against 50 digits: exact to 1e-9 relative, also tiny, also large, also D = 512."""

import math

import httpx
import numpy as np
import pytest
from service_answers import answer, as_float32
from service_pictures import NPY, npy
from service_witness import kl_diagonal, kl_normals, relative_error

EXACT = 1e-9
RNG = np.random.default_rng(2024)


def ask(http: httpx.Client, body: dict, **query: str) -> dict:
    return answer(http.post("/kl", json=body, params=query))


def one(http: httpx.Client, p: dict, q: dict) -> float:
    got = ask(http, {"p": p, "q": q})
    assert len(got["kl"]) == 1
    assert got["unit"] == "nats"
    return float(got["kl"][0])


def random_cov(size: int, rng: np.random.Generator) -> list[list[float]]:
    root = rng.standard_normal((size, size)) / math.sqrt(size)
    cov = root @ root.T + np.diag(rng.uniform(0.3, 2, size))
    return ((cov + cov.T) / 2).tolist()


def side(kind: str, size: int, rng: np.random.Generator) -> dict:
    mean = rng.standard_normal(size).tolist()
    if kind == "cov":
        return {"mean": mean, "cov": random_cov(size, rng)}
    return {"mean": mean, "std": rng.uniform(0.2, 3, size).tolist()}


@pytest.mark.parametrize("size", [1, 2, 7, 32, 64])
def test_full_covariances_agree_with_50_digits(http: httpx.Client, size: int) -> None:
    rng = np.random.default_rng(size)
    p, q = side("cov", size, rng), side("cov", size, rng)
    assert relative_error(one(http, p, q), kl_normals(p, q)) <= EXACT


@pytest.mark.parametrize(("first", "second"), [("std", "cov"), ("cov", "std"), ("std", "std")])
def test_std_and_cov_may_be_mixed_freely(http: httpx.Client, first: str, second: str) -> None:
    rng = np.random.default_rng(5)
    p, q = side(first, 9, rng), side(second, 9, rng)
    got = ask(http, {"p": p, "q": q})
    assert relative_error(got["kl"][0], kl_normals(p, q)) <= EXACT
    assert ("per_dimension" in got) == (first == second == "std")


def test_a_covariance_is_a_square_of_std(http: httpx.Client) -> None:
    rng = np.random.default_rng(6)
    p, q = side("std", 5, rng), side("std", 5, rng)
    as_cov = {"mean": p["mean"], "cov": np.diag(np.square(p["std"])).tolist()}
    assert one(http, as_cov, q) == pytest.approx(one(http, p, q), rel=1e-12)


def test_a_hand_worked_case(http: httpx.Client) -> None:
    p = {"mean": [1, 2], "cov": [[1, 0], [0, 4]]}
    q = {"mean": [0, 0], "std": [1, 1]}
    assert one(http, p, q) == pytest.approx(4 - math.log(2), rel=1e-12)  # ½(0 − log 4 − 2 + 5 + 5)
    back = one(http, q, p)  # ½(log 4 − 2 + 1 + ¼ + 1 + 1)
    assert back == pytest.approx(math.log(2) + 0.625, rel=1e-12)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_a_distribution_has_no_divergence_from_itself(http: httpx.Client, size: int) -> None:
    rng = np.random.default_rng(size)
    full, flat = side("cov", size, rng), side("std", size, rng)
    assert one(http, flat, flat) == 0
    assert abs(one(http, full, full)) <= 1e-12
    assert ask(http, {"mu": [[0] * size], "sigma": [[1] * size]})["kl"] == [0]


@pytest.mark.parametrize("delta", [1e-2, 1e-4, 1e-6, 1e-8, 1e-12])
def test_a_tiny_divergence_of_a_std_keeps_its_digits(http: httpx.Client, delta: float) -> None:
    for std in (1 + delta, 1 - delta):
        want = kl_diagonal([0.0], [std])
        got = ask(http, {"mu": [[0.0]], "sigma": [[std]]})
        assert relative_error(got["kl"][0], want[0]) <= EXACT
        pair = one(http, {"mean": [3], "std": [5 * std]}, {"mean": [3], "std": [5.0]})
        assert relative_error(pair, kl_diagonal([3.0], [5 * std], [3.0], [5.0])[0]) <= EXACT


@pytest.mark.parametrize("delta", [1e-3, 1e-8, 1e-100])
def test_a_tiny_divergence_of_a_mean_keeps_its_digits(http: httpx.Client, delta: float) -> None:
    want = kl_diagonal([delta], [1.0])
    assert relative_error(ask(http, {"mu": [[delta]], "sigma": [[1]]})["kl"][0], want[0]) <= EXACT
    p = {"mean": [delta, 0.0], "cov": [[2.0, 0.5], [0.5, 1.0]]}
    q = p | {"mean": [0.0, 0.0]}
    assert relative_error(one(http, p, q), kl_normals(p, q)) <= EXACT


@pytest.mark.parametrize("delta", [2.0**-10, 2.0**-20, 2.0**-26])
def test_a_tiny_divergence_of_full_covariances_keeps_its_digits(http: httpx.Client, delta: float) -> None:
    size = 6
    base = np.eye(size) * 2 + np.fromfunction(lambda i, j: ((i + j) % 3 - 1) / 8, (size, size))
    bent = base + delta * np.fromfunction(lambda i, j: ((i * j) % 5 - 2) / 4, (size, size))
    p, q = ({"mean": [0.0] * size, "cov": cov.tolist()} for cov in (bent, base))
    assert np.array_equal(bent, bent.T)
    assert relative_error(one(http, p, q), kl_normals(p, q)) <= EXACT
    mixed = {"mean": [0.0] * size, "std": [1 + delta] * size}
    flat = {"mean": [0.0] * size, "cov": np.eye(size).tolist()}
    assert relative_error(one(http, mixed, flat), kl_normals(mixed, flat)) <= EXACT


@pytest.mark.parametrize("std", [1e-200, 1e-150, 1e-30, 1e30, 1e150])
def test_a_std_far_from_1_keeps_its_digits(http: httpx.Client, std: float) -> None:
    want = kl_diagonal([0.5], [std])[0]
    got = ask(http, {"mu": [[0.5]], "sigma": [[std]]})
    assert relative_error(got["kl"][0], want) <= EXACT
    assert one(http, {"mean": [0], "std": [std]}, {"mean": [0], "std": [std]}) == 0


def test_a_divergence_beyond_float64_is_an_error_and_no_infinity(http: httpx.Client) -> None:
    for body in (
        {"mu": [[1e200]], "sigma": [[1]]},
        {"mu": [[0]], "sigma": [[1e200]]},
        {"p": {"mean": [0], "std": [1e200]}, "q": {"mean": [0], "std": [1e-200]}},
        {"p": {"mean": [1e300], "std": [1]}, "q": {"mean": [-1e300], "cov": [[1]]}},
    ):
        got = http.post("/kl", json=body)
        assert got.status_code == 422, got.text


def rank_one(scale: float, direction: np.ndarray) -> list[list[float]]:
    return (scale * np.eye(len(direction)) + np.outer(direction, direction)).tolist()


def test_512_dimensions_with_full_covariance_are_exact(http: httpx.Client) -> None:
    """aI + uuᵀ against bI + vvᵀ, entries exact in float64: closed forms by Sherman and Morrison."""
    size = 512
    u, v, apart = (RNG.integers(-8, 9, size) / 8 for _ in range(3))
    a, b = 3.0, 0.5
    uu, vv, uv, dd, ud = u @ u, v @ v, u @ v, apart @ apart, u @ apart  # exact: multiples of 1/64
    log_q = size * math.log(a) + math.log1p(uu / a)
    log_p = size * math.log(b) + math.log1p(vv / b)
    shrink = a * a + a * uu
    trace = (b * size + vv) / a - (b * uu + uv * uv) / shrink
    want = 0.5 * (log_q - log_p - size + trace + dd / a - ud * ud / shrink)
    p = {"mean": apart.tolist(), "cov": rank_one(b, v)}
    q = {"mean": [0] * size, "cov": rank_one(a, u)}
    assert one(http, p, q) == pytest.approx(want, rel=EXACT)
    assert abs(one(http, q, q)) <= 1e-9


def test_512_dimensions_of_a_small_scale_neither_under_nor_overflow(http: httpx.Client) -> None:
    size = 512
    for scale in (1e-3, 1e3):  # the determinants are 10^∓3072
        p = {"mean": [0] * size, "cov": (scale**2 * np.eye(size)).tolist()}
        want = sum(kl_diagonal([0.0], [scale])) * size
        assert relative_error(one(http, p, {"mean": [0] * size, "std": [1] * size}), want) <= EXACT


@pytest.mark.parametrize("size", [1, 2, 3, 32, 512])
def test_rows_of_mu_and_sigma_of_any_width_agree_with_50_digits(http: httpx.Client, size: int) -> None:
    rng = np.random.default_rng(size)
    mu, sigma = rng.standard_normal((4, size)), np.exp(rng.standard_normal((4, size)))
    got = ask(http, {"mu": mu.tolist(), "sigma": sigma.tolist()})
    assert len(got["kl"]) == len(got["per_dimension"]) == 4
    for i in range(4):
        want = kl_diagonal(mu[i].tolist(), sigma[i].tolist())
        assert relative_error(got["kl"][i], sum(want)) <= EXACT
        errors = [relative_error(a, b) for a, b in zip(got["per_dimension"][i], want, strict=True)]
        assert max(errors) <= EXACT


def test_two_diagonal_normals_tell_each_dimension(http: httpx.Client) -> None:
    rng = np.random.default_rng(8)
    p, q = side("std", 6, rng), side("std", 6, rng)
    got = ask(http, {"p": p, "q": q})
    want = kl_diagonal(p["mean"], p["std"], q["mean"], q["std"])
    assert np.array(got["per_dimension"]).shape == (1, 6)
    assert max(relative_error(a, b) for a, b in zip(got["per_dimension"][0], want, strict=True)) <= EXACT


def test_bits_are_nats_over_log_2(http: httpx.Client) -> None:
    body = {"mu": [[1.5, -0.3], [0, 0]], "sigma": [[0.5, 2], [1, 1]]}
    nats, also_nats, bits = ask(http, body), ask(http, body, unit="nats"), ask(http, body, unit="bits")
    assert nats == also_nats
    assert (nats["unit"], bits["unit"]) == ("nats", "bits")
    np.testing.assert_allclose(np.array(bits["kl"]) * math.log(2), nats["kl"], rtol=1e-14)
    np.testing.assert_allclose(np.array(bits["per_dimension"]) * math.log(2), nats["per_dimension"], rtol=1e-14)


def test_the_divergence_of_images_is_that_of_their_posterior(http: httpx.Client, strokes: np.ndarray) -> None:
    got = answer(http.post("/kl", content=npy(strokes), headers=NPY))
    posterior = answer(http.post("/encode", content=npy(strokes), headers=NPY))
    mu, sigma = as_float32(posterior["mu"]).astype(float), as_float32(posterior["sigma"]).astype(float)
    want = 0.5 * (mu**2 + sigma**2 - 1) - np.log(sigma)
    np.testing.assert_allclose(got["per_dimension"], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["kl"], want.sum(axis=1), rtol=1e-6)
    again = ask(http, {"mu": posterior["mu"], "sigma": posterior["sigma"]})
    np.testing.assert_allclose(again["kl"], got["kl"], rtol=1e-6)
    in_bits = answer(http.post("/kl?unit=bits", content=npy(strokes), headers=NPY))
    np.testing.assert_allclose(np.array(in_bits["kl"]) * math.log(2), got["kl"], rtol=1e-9)
    assert min(got["kl"]) > 0
