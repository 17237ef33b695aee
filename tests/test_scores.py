"""Scores of given images: the estimators in pieces are those of ``elbo`` in one piece."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from model import scores
from model.elbo import elbo_terms, importance_bound, log_weights
from model.gaussian import kl_to_standard_normal, noise
from model.scores import bounds, frozen_targets, mean_terms, posterior, soft_elbo
from tests.tiny import CONFIG, tiny_vae

D = CONFIG.latent_dim


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *CONFIG.image_shape), np.uint8)


def targets(count: int) -> Tensor:
    return frozen_targets(images(count), True, 7)


def test_targets_are_black_and_white_with_their_grey_as_probability_and_the_seed_repeats_them() -> None:
    grey = np.full((50, 1, 20, 20), 102, np.uint8)
    x = frozen_targets(grey, True, 3)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert abs(float(x.mean()) - 0.4) < 4 * math.sqrt(0.24 / x.numel())
    assert torch.equal(x, frozen_targets(grey, True, 3))
    assert not torch.equal(x, frozen_targets(grey, True, 4))


def test_targets_of_grey_likelihoods_are_the_pixels_in_0_to_1() -> None:
    x = frozen_targets(np.uint8([[[[0, 51, 255]]]]), False, 0)
    torch.testing.assert_close(x, torch.tensor([[[[0, 0.2, 1]]]]))


def test_black_and_white_stay_what_they_are() -> None:
    extreme = np.uint8([0, 255]).reshape(2, 1, 1, 1).repeat(1000, 3)
    assert torch.equal(frozen_targets(extreme, True, 0), torch.from_numpy(extreme / np.float32(255)))


def test_mean_terms_are_the_means_of_the_elbos_terms_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x = tiny_vae(), targets(23)
    whole = elbo_terms(vae, x, torch.from_numpy(noise(5, 23, (D,))))
    for size in (1, 7, 250):
        monkeypatch.setattr(scores, "BATCH", size)
        terms = mean_terms(vae, x, 5)
        assert terms.elbo == pytest.approx(float(whole.elbo.mean()), rel=1e-6)
        assert terms.reconstruction == pytest.approx(float(whole.reconstruction.mean()), rel=1e-6)
        assert terms.kl == pytest.approx(float(whole.kl.mean()), rel=1e-6)


def test_the_posterior_in_pieces_is_that_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x = tiny_vae(), targets(11)
    monkeypatch.setattr(scores, "BATCH", 4)
    for one, other in zip(posterior(vae, x), vae.encode(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 40, 1000])
def test_the_bound_is_brute_force_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    vae, x, draws = tiny_vae(), targets(6), 20
    epsilon = torch.from_numpy(noise(9, 6, (draws, D)))
    brute = importance_bound(log_weights(vae, x, *vae.encode(x), epsilon))
    monkeypatch.setattr(scores, "ROWS", rows)
    got = bounds(vae, x, draws, np.arange(6), 9)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, brute, rtol=1e-5)


def test_an_images_bound_depends_on_its_index_and_the_seed_and_not_on_its_company() -> None:
    vae, x = tiny_vae(), targets(10)
    everything = bounds(vae, x, 8, np.arange(10), 1)
    np.testing.assert_allclose(bounds(vae, x, 8, np.array([7, 2]), 1), everything[[7, 2]], rtol=1e-5)
    assert not np.allclose(bounds(vae, x, 8, np.array([7, 2]), 2), everything[[7, 2]], rtol=1e-5)


def test_few_draws_are_the_first_of_many() -> None:
    vae, x = tiny_vae(), targets(3)
    many = log_weights(vae, x, *vae.encode(x), torch.from_numpy(noise(4, 3, (12, D))))
    np.testing.assert_allclose(bounds(vae, x, 5, np.arange(3), 4), importance_bound(many[:, :5]), rtol=1e-5)


def test_soft_elbos_are_those_of_grey_images_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, pictures = tiny_vae(), images(9)
    x = torch.from_numpy(pictures / np.float32(255))
    mu, sigma = vae.encode(x)
    draws = [
        vae.likelihood.log_prob(x, vae.decode(mu + sigma * torch.from_numpy(noise(3 + k, 9, (D,))))) for k in (1, 2)
    ]
    expected = torch.stack(draws).mean(0) - kl_to_standard_normal(mu, sigma).sum(1)
    for rows in (2, 1000):
        monkeypatch.setattr(scores, "ROWS", rows)
        got = soft_elbo(vae, pictures, 2, 3)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, np.sort(expected.numpy()), rtol=1e-5)
