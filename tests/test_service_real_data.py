"""Real handwritten digits through the service, where ``VAE_DATA_DIR`` says that MNIST is at hand."""

import gzip
import os
from pathlib import Path

import httpx
import numpy as np
import pytest
from service_answers import answer
from service_pictures import NPY, from_npy, from_png, npy

NAME = "t10k-images-idx3-ubyte.gz"


def test_file() -> Path | None:
    root = os.environ.get("VAE_DATA_DIR")
    if not root:
        return None
    return next((p for p in (Path(root) / NAME, Path(root) / "mnist" / NAME) if p.is_file()), None)


test_file.__test__ = False  # type: ignore[attr-defined]
FILE = test_file()
pytestmark = pytest.mark.skipif(FILE is None, reason=f"no {NAME} under VAE_DATA_DIR")


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    """The first 100 test images, ``(100, 28, 28)`` uint8."""
    assert FILE is not None
    with gzip.open(FILE) as stream:
        return np.frombuffer(stream.read(16 + 100 * 784)[16:], np.uint8).reshape(100, 28, 28)


@pytest.fixture(scope="module")
def scores(http: httpx.Client, real: np.ndarray) -> dict[str, np.ndarray]:
    body = answer(http.post("/score?samples=32&seed=1", content=npy(real), headers=NPY))
    return {name: np.array(value) for name, value in body.items() if isinstance(value, list)}


def test_real_images_come_back_alike(http: httpx.Client, real: np.ndarray) -> None:
    back = from_npy(http.post("/reconstruct?format=npy", content=npy(real), headers=NPY).content)[:, 0]
    assert abs(back - real / 255).mean() < 0.05
    apart = ((back[:, None] - real[None] / 255) ** 2).mean(axis=(2, 3))
    assert (apart.argmin(axis=1) == np.arange(100)).mean() > 0.9


def test_the_elbo_of_real_images_is_what_is_known_of_such_models(scores: dict) -> None:
    assert -125 < scores["elbo"].mean() < -60
    assert (scores["log_likelihood"] - scores["elbo"]).mean() > 0
    assert 0.05 < scores["bits_per_dim"].mean() < 0.3


def test_the_divergence_of_real_images_is_positive(scores: dict) -> None:
    assert (scores["kl"] > 3).all()
    assert 10 < scores["kl"].mean() < 60


def test_percentiles_of_real_images_spread_over_the_whole_range(scores: dict) -> None:
    percentile = np.sort(scores["percentile"])
    assert percentile.min() < 15
    assert percentile.max() > 85
    assert 35 < percentile.mean() < 65


def test_an_upside_down_inverted_image_is_stranger_than_real_ones(
    http: httpx.Client, real: np.ndarray, scores: dict
) -> None:
    body = answer(http.post("/score?samples=32&seed=1", content=npy(255 - real), headers=NPY))
    assert max(body["percentile"]) < 5
    assert max(body["elbo"]) < scores["elbo"].min()


def test_the_evaluation_that_the_model_route_tells_agrees_with_what_the_service_measures(
    scores: dict, model: dict
) -> None:
    told = [abs(v) for k, v in flat(model["metrics"]).items() if "elbo" in k and isinstance(v, float)]
    assert told
    spread = 5 * scores["elbo"].std() / 10
    assert any(abs(value + scores["elbo"].mean()) < spread for value in told)


def flat(tree: dict, prefix: str = "") -> dict[str, object]:
    out: dict[str, object] = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def test_a_contact_sheet_of_all_of_them_is_ten_by_ten(http: httpx.Client, real: np.ndarray) -> None:
    sheet = from_png(http.post("/reconstruct?format=png", content=npy(real), headers=NPY).content)
    assert sheet.shape == (280, 280)
    left, right = sheet.astype(float).ravel(), real.reshape(10, 10, 28, 28).transpose(0, 2, 1, 3).astype(float).ravel()
    assert np.corrcoef(left, right)[0, 1] > 0.9
