"""POST /score: the identities between its fields, its seeds, its percentile; and GET /model."""

import json
import math
import re
from importlib.metadata import version

import httpx
import numpy as np
import pytest
from service_answers import answer, problem, words
from service_pictures import NPY, from_npy, npy

FIELDS = ("elbo", "reconstruction", "kl", "log_likelihood", "standard_error", "bits_per_dim", "percentile")


def score(http: httpx.Client, x: np.ndarray, **query: object) -> dict[str, np.ndarray]:
    body = answer(http.post("/score", params=query, content=npy(x), headers=NPY))
    return {name: np.array(body[name]) for name in FIELDS} | {"seed": body.get("seed")}


@pytest.fixture(scope="module")
def scores(http: httpx.Client, strokes: np.ndarray) -> dict[str, np.ndarray]:
    return score(http, strokes, seed=1, samples=32)


def test_every_field_is_one_finite_number_per_image(scores: dict, strokes: np.ndarray) -> None:
    for name in FIELDS:
        assert scores[name].shape == (len(strokes),), name
        assert np.isfinite(scores[name]).all(), name


def test_elbo_is_reconstruction_minus_kl(scores: dict) -> None:
    np.testing.assert_allclose(scores["elbo"], scores["reconstruction"] - scores["kl"], rtol=1e-6)


def test_its_kl_is_the_kl_of_the_kl_route(http: httpx.Client, scores: dict, strokes: np.ndarray) -> None:
    kl = answer(http.post("/kl", content=npy(strokes), headers=NPY))["kl"]
    np.testing.assert_allclose(scores["kl"], kl, rtol=1e-5)


def test_the_importance_weighted_bound_is_tighter_than_the_elbo(http: httpx.Client, drawn: np.ndarray) -> None:
    got = score(http, drawn, seed=2, samples=16)
    slack = 4 * got["standard_error"] + 0.5
    assert (got["log_likelihood"] >= got["elbo"] - slack).all()
    assert (got["log_likelihood"] - got["elbo"]).mean() > 0


def test_more_samples_tighten_the_bound(http: httpx.Client, drawn: np.ndarray) -> None:
    few = np.mean([score(http, drawn, seed=s, samples=1)["log_likelihood"].mean() for s in range(6)])
    many = score(http, drawn, seed=1, samples=32)["log_likelihood"].mean()
    assert many > few


def test_reconstruction_of_other_draws_agrees_within_its_noise(http: httpx.Client, drawn: np.ndarray) -> None:
    first, second = (score(http, drawn[:4], seed=s, samples=64)["reconstruction"] for s in (1, 2))
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(first, second, rtol=0.1, atol=3)


def test_images_score_no_better_with_the_seed_that_drew_them(http: httpx.Client) -> None:
    wanted = {"n": 100, "seed": 2, "format": "npy"}
    images = from_npy(http.get("/sample", params=wanted).content)
    same, *others = (score(http, images, seed=s, samples=1)["elbo"] for s in (2, 3, 4))
    difference = same - np.mean(others, 0)
    assert abs(difference.mean()) < 4 * difference.std() / len(images) ** 0.5


def test_bits_per_dim_are_the_log_likelihood_in_bits_over_the_pixels(scores: dict) -> None:
    want = -scores["log_likelihood"] / (784 * math.log(2))
    np.testing.assert_allclose(scores["bits_per_dim"], want, rtol=1e-5)


def test_the_standard_error_is_positive_and_shrinks_with_samples(http: httpx.Client, drawn: np.ndarray) -> None:
    few, many = (score(http, drawn[:4], seed=4, samples=k)["standard_error"] for k in (8, 256))
    assert (few >= 0).all()
    assert many.mean() < few.mean()


def test_one_sample_gives_finite_numbers_too(http: httpx.Client, strokes: np.ndarray) -> None:
    got = score(http, strokes[:3], samples=1, seed=1)
    assert all(np.isfinite(got[name]).all() for name in FIELDS)


def test_noise_is_stranger_than_what_the_model_draws(http: httpx.Client, drawn: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 28, 28)).astype(np.uint8)
    strange, usual = (score(http, x, seed=1, samples=16) for x in (noise, drawn))
    for got in (strange, usual):
        assert ((got["percentile"] >= 0) & (got["percentile"] <= 100)).all()
    assert (strange["percentile"] == 0).all()
    assert usual["percentile"].mean() > 5
    assert strange["elbo"].max() < usual["elbo"].min()


def test_percentiles_stand_in_the_order_of_the_elbos(
    http: httpx.Client, drawn: np.ndarray, strokes: np.ndarray
) -> None:
    got = score(http, np.concatenate([drawn[:, 0], strokes / 255]), seed=1, samples=8)
    order = np.argsort(got["elbo"])
    assert (np.diff(got["percentile"][order]) >= 0).all()


def test_the_same_seed_gives_the_same_answer_and_another_does_not(http: httpx.Client, strokes: np.ndarray) -> None:
    def raw(seed: int) -> bytes:
        path = f"/score?seed={seed}&samples=16"
        return http.post(path, content=npy(strokes[:3]), headers=NPY).content

    assert raw(5) == raw(5)
    assert raw(5) != raw(6)


def test_without_a_seed_the_one_that_was_drawn_is_told_and_replays(http: httpx.Client, strokes: np.ndarray) -> None:
    got = http.post("/score?samples=8", content=npy(strokes[:2]), headers=NPY)
    body = answer(got)
    assert got.headers["x-seed"] == str(body["seed"])
    again = http.post("/score", params={"samples": 8, "seed": body["seed"]}, content=npy(strokes[:2]), headers=NPY)
    assert answer(again) == body


def test_an_image_scores_the_same_at_its_place_in_other_company(http: httpx.Client, strokes: np.ndarray) -> None:
    alone, together = (score(http, strokes[:n], seed=3, samples=16) for n in (1, 6))
    for name in ("elbo", "log_likelihood"):
        assert alone[name][0] == pytest.approx(together[name][0], rel=1e-3, abs=0.05)


def test_sixty_four_samples_are_drawn_when_none_are_asked_for(http: httpx.Client, strokes: np.ndarray) -> None:
    plain, asked = score(http, strokes[:2], seed=9), score(http, strokes[:2], seed=9, samples=64)
    assert all(np.array_equal(plain[name], asked[name]) for name in FIELDS)


@pytest.mark.parametrize("samples", ["0", "-1", "1025", "x", "1.5", "", "9" * 400])
def test_samples_go_from_1_to_1024(http: httpx.Client, strokes: np.ndarray, samples: str) -> None:
    got = http.post("/score", params={"samples": samples}, content=npy(strokes[0]), headers=NPY)
    assert "samples" in words(problem(got, 422))


def test_1024_samples_are_allowed(http: httpx.Client, strokes: np.ndarray) -> None:
    assert score(http, strokes[0], samples=1024)["elbo"].shape == (1,)


def test_the_model_route_has_every_field_of_the_contract(http: httpx.Client) -> None:
    got = answer(http.get("/model"))
    assert got["name"] == "mnist"
    assert re.fullmatch(r"[0-9a-f]{16}", got["digest"])
    assert got["image"] == {"channels": 1, "height": 28, "width": 28}
    assert isinstance(got["latent_dim"], int)
    assert got["latent_dim"] >= 1
    assert got["likelihood"] == "bernoulli"
    assert isinstance(got["prior"], str)
    assert got["parameters"] > 100_000
    assert got["device"] == "cpu" or got["device"].startswith(("cuda", "mps"))
    assert got["precision"] in {"fp32", "bf16"}
    assert got["trained_on"] == "MNIST"
    assert got["version"] == version("vae-service")


def test_the_model_route_tells_the_default_limits(http: httpx.Client) -> None:
    limits = answer(http.get("/model"))["limits"]
    assert set(limits) >= {"max_body_bytes", "max_items", "max_pixels", "max_queue_items", "deadline_s"}
    assert all(value > 0 for value in limits.values())


def test_the_model_route_tells_what_the_evaluation_measured_with_sample_counts(http: httpx.Client) -> None:
    metrics = answer(http.get("/model"))["metrics"]
    assert metrics
    assert re.search(r"\d", json.dumps(metrics))
    assert [
        name for name in re.findall(r'"(\w+)":', json.dumps(metrics)) if re.search(r"(^n$|images|count|samples)", name)
    ]
