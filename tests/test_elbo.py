"""The objective and its estimators on a model whose evidence is known exactly: everything linear and Gaussian.

``z ~ N(0, I)`` and ``x|z ~ N(A z, s² I)`` give ``x ~ N(0, A Aᵀ + s² I)``; with columns of ``A`` at right angles the
posterior is diagonal, so the exact one can be handed in, as well as one that is wrong by a known amount.
"""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from model.elbo import (
    Terms,
    elbo_terms,
    importance_bound,
    importance_standard_error,
    log_likelihood_and_ratio,
    log_weights,
)
from model.gaussian import draw, log_prob_standard
from model.vae import VAE
from tests.tiny import CONFIG, tiny_vae

PIXELS, LATENTS, SPREAD = 6, 3, 0.5
LOADINGS = torch.linalg.qr(torch.arange(36.0).reshape(6, 6).cos().double())[0][:, :LATENTS] * torch.tensor(
    [1.5, 0.8, 0.2], dtype=torch.float64
)  # A, (6, 3), columns at right angles


class Linear:
    """A VAE of plain functions: ``x (N, 1, 1, 6)``, exact posterior, moved by ``shift`` and widened by ``factor``."""

    def __init__(self, shift: float = 0.0, factor: float = 1.0) -> None:
        self.shift, self.factor = shift, factor
        self.prior = SimpleNamespace(closed_form_kl=True, log_prob=lambda z: log_prob_standard(z).sum(-1))
        self.likelihood = SimpleNamespace(
            log_prob=lambda x, output: Normal(output, SPREAD).log_prob(x).flatten(1).sum(1)
        )

    def encode(self, x: Tensor, precision: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        precisions = 1 + LOADINGS.square().sum(0) / SPREAD**2  # (3,)
        mu = x.flatten(1) @ LOADINGS / SPREAD**2 / precisions
        sigma = precisions.rsqrt().expand_as(mu)
        return mu + self.shift * sigma, sigma * self.factor

    def decode(self, z: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
        return (z @ LOADINGS.T)[:, None, None]  # (N, 1, 1, 6)


def fake(shift: float = 0.0, factor: float = 1.0) -> VAE:
    return Linear(shift, factor)  # type: ignore[return-value]


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(count: int, seed: int = 5) -> Tensor:
    noise = SPREAD * seeded(count, PIXELS, seed=seed + 1)
    return (seeded(count, LATENTS, seed=seed) @ LOADINGS.T + noise)[:, None, None]


def evidence(x: Tensor) -> Tensor:
    """Return the exact ``log p(x)``, ``(N,)``."""
    covariance = LOADINGS @ LOADINGS.T + SPREAD**2 * torch.eye(PIXELS, dtype=torch.float64)
    return MultivariateNormal(torch.zeros(PIXELS, dtype=torch.float64), covariance).log_prob(x.flatten(1))


def weights_of(vae: VAE, x: Tensor, draws: int, seed: int = 0) -> Tensor:
    """Return ``(N, K)`` log-weights."""
    mu, sigma = vae.encode(x)
    return log_weights(vae, x, mu, sigma, seeded(len(x), draws, LATENTS, seed=seed))


@pytest.mark.parametrize("draws", [1, 2, 50])
def test_with_the_exact_posterior_the_bound_is_the_evidence_at_any_number_of_draws(draws: int) -> None:
    x = images(20)
    weights = weights_of(fake(), x, draws)
    torch.testing.assert_close(importance_bound(weights), evidence(x), rtol=1e-10, atol=1e-10)
    assert float(importance_standard_error(weights).max()) < 1e-10


def test_with_a_wrong_posterior_the_bound_converges_to_the_evidence() -> None:
    x = images(4)
    weights = weights_of(fake(0.5, 1.3), x, 30_000)
    errors = importance_standard_error(weights)
    assert float(errors.max()) < 0.02
    assert bool(((importance_bound(weights) - evidence(x)).abs() < 4 * errors).all())


def test_the_bound_rises_with_the_number_of_draws_and_stays_below_the_evidence() -> None:
    x = images(1).expand(8000, 1, 1, PIXELS)  # 8000 independent estimates of one bound
    weights = weights_of(fake(0.7, 1.5), x, 16)
    estimates = [importance_bound(weights[:, :draws]) for draws in (1, 2, 4, 8, 16)]
    means = [float(estimate.mean()) for estimate in estimates]
    gains = [after - before for before, after in pairwise(estimates)]
    in_errors = [float(gain.mean() / gain.std() * math.sqrt(len(x))) for gain in gains]
    assert min(in_errors) > 5  # standard errors
    assert means[-1] < float(evidence(x[:1]))


def test_the_bound_of_one_draw_is_the_elbo_in_expectation() -> None:
    x, vae = images(1).expand(20_000, 1, 1, PIXELS), fake(0.4, 1.2)
    terms = elbo_terms(vae, x, seeded(len(x), LATENTS, seed=3))
    gap = evidence(x[:1]) - terms.elbo
    # the gap is KL[q || exact posterior], which the shift and the factor fix
    expected = LATENTS * (0.5 * (0.4**2 + 1.2**2 - 1) - math.log(1.2))
    assert float(gap.mean()) == pytest.approx(expected, abs=4 * float(gap.std()) / math.sqrt(len(x)))
    single = importance_bound(weights_of(vae, x, 1, seed=4))
    error = math.hypot(float(single.std()), float(terms.elbo.std())) / math.sqrt(len(x))
    assert float(single.mean()) == pytest.approx(float(terms.elbo.mean()), abs=4 * error)


def test_the_elbo_is_below_the_evidence_by_nothing_for_the_exact_posterior() -> None:
    x = images(1).expand(20_000, 1, 1, PIXELS)
    elbo = elbo_terms(fake(), x, seeded(len(x), LATENTS)).elbo
    assert float(elbo.mean()) == pytest.approx(float(evidence(x[:1])), abs=4 * float(elbo.std()) / math.sqrt(len(x)))


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.0])
def test_the_kl_is_the_closed_form_of_torch(factor: float) -> None:
    x, vae = images(7), fake(0.3, factor)
    mu, sigma = vae.encode(x)
    expected = kl_divergence(Normal(mu, sigma), Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum(1)
    terms = elbo_terms(vae, x, seeded(7, LATENTS))
    torch.testing.assert_close(terms.kl, expected, rtol=1e-12, atol=1e-12)


def test_a_monte_carlo_kl_from_drawn_samples_equals_the_closed_form() -> None:
    vae, x = fake(0.6, 1.4), images(1).expand(40_000, 1, 1, PIXELS)
    mu, sigma = vae.encode(x)
    _, log_ratio = log_likelihood_and_ratio(vae, x, mu, sigma, seeded(len(x), LATENTS, seed=9))
    closed = float(elbo_terms(vae, x[:1], seeded(1, LATENTS)).kl)
    assert -float(log_ratio.mean()) == pytest.approx(closed, abs=4 * float(log_ratio.std()) / math.sqrt(len(x)))


def test_the_width_that_is_drawn_is_the_width_that_is_penalized() -> None:
    # the classic slip: draw with half the width and put the whole one into the KL
    vae, x = fake(0.0, 1.0), images(1).expand(40_000, 1, 1, PIXELS)
    mu, sigma = vae.encode(x)
    z = draw(mu, sigma, seeded(len(x), LATENTS, seed=2))
    torch.testing.assert_close(z.std(0), sigma[0], rtol=0.02, atol=0)
    slip = -log_likelihood_and_ratio(vae, x, mu, sigma, 0.5 * seeded(len(x), LATENTS, seed=2))[1].mean()
    assert abs(float(slip) - float(elbo_terms(vae, x[:1], seeded(1, LATENTS)).kl)) > 0.1


def test_the_two_terms_of_a_draw_are_its_log_likelihood_and_its_log_ratio() -> None:
    vae, x, epsilon = fake(0.2, 0.9), images(5), seeded(5, LATENTS)
    mu, sigma = vae.encode(x)
    z = mu + epsilon * sigma
    log_likelihood, log_ratio = log_likelihood_and_ratio(vae, x, mu, sigma, epsilon)
    torch.testing.assert_close(log_likelihood, Normal(vae.decode(z), SPREAD).log_prob(x).sum((1, 2, 3)))
    expected = Normal(0.0, 1.0).log_prob(z).sum(1) - Normal(mu, sigma).log_prob(z).sum(1)
    torch.testing.assert_close(log_ratio, expected)


def test_log_weights_of_many_images_are_those_of_each_alone() -> None:
    vae, x, epsilon = fake(0.2, 0.9), images(3), seeded(3, 4, LATENTS)
    mu, sigma = vae.encode(x)
    together = log_weights(vae, x, mu, sigma, epsilon)
    for i in range(3):
        for k in range(4):
            row = slice(i, i + 1)
            terms = log_likelihood_and_ratio(vae, x[row], mu[row], sigma[row], epsilon[row, k])
            assert float(together[i, k]) == pytest.approx(float(sum(terms)), rel=1e-12)


def test_the_standard_error_covers_the_truth_about_as_often_as_it_says() -> None:
    x = images(1).expand(3000, 1, 1, PIXELS)
    weights = weights_of(fake(0.3, 1.2), x, 64)
    errors = (importance_bound(weights) - evidence(x)) / importance_standard_error(weights)
    within = float((errors.abs() < 1).double().mean())
    assert 0.64 < within < 0.72  # 68 % of a normal distribution
    assert float(errors.std()) == pytest.approx(1.0, abs=0.05)


def test_one_draw_has_no_standard_error() -> None:
    assert importance_standard_error(seeded(5, 1)).tolist() == [0.0] * 5


def test_the_bound_of_huge_and_of_tiny_weights_neither_overflows_nor_vanishes() -> None:
    weights = torch.tensor([[1e4, 1e4 - 1], [-1e5, -1e5]], dtype=torch.float64)
    expected = torch.tensor([1e4 + math.log((1 + math.exp(-1)) / 2), -1e5], dtype=torch.float64)
    torch.testing.assert_close(importance_bound(weights), expected, rtol=1e-12, atol=0)
    assert bool(torch.isfinite(importance_standard_error(weights)).all())


def test_a_real_network_is_scored_in_nats_per_image() -> None:
    vae, x = tiny_vae(), torch.rand(4, *CONFIG.image_shape, generator=torch.Generator().manual_seed(0))
    epsilon = torch.zeros(4, CONFIG.latent_dim)
    terms = elbo_terms(vae, x, epsilon)
    assert isinstance(terms, Terms)
    assert terms.reconstruction.shape == terms.kl.shape == (4,)
    torch.testing.assert_close(terms.elbo, terms.reconstruction - terms.kl)
    assert -60 < float(terms.reconstruction.mean()) < -30  # about 64 pixels times ln 2: a sum over one image's pixels


def test_log_weights_of_a_real_network_are_float64_and_agree_with_its_elbo_terms() -> None:
    vae, x = tiny_vae(), torch.rand(3, *CONFIG.image_shape, generator=torch.Generator().manual_seed(1))
    mu, sigma = vae.encode(x)
    epsilon = seeded(3, 2, CONFIG.latent_dim).float()
    weights = log_weights(vae, x, mu, sigma, epsilon)
    assert weights.dtype == torch.float64
    terms = elbo_terms(vae, x, epsilon[:, 1])
    log_likelihood, _ = log_likelihood_and_ratio(vae, x, mu, sigma, epsilon[:, 1])
    torch.testing.assert_close(log_likelihood.float(), terms.reconstruction, rtol=1e-6, atol=1e-5)


def test_gradients_flow_to_encoder_and_decoder() -> None:
    vae = tiny_vae().requires_grad_(True)
    x = torch.rand(2, *CONFIG.image_shape, generator=torch.Generator().manual_seed(2))
    (-elbo_terms(vae, x, torch.ones(2, CONFIG.latent_dim)).elbo.mean()).backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in vae.parameters())
