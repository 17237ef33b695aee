"""What a training step minimizes: each objective against its definition, and its gradient against another way to it."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from model.elbo import elbo_terms, importance_bound, log_weights, training_loss
from model.gaussian import log_prob_standard
from model.vae import VAE
from tests.tiny import CONFIG, tiny_vae

LATENTS, PIXELS = 2, 3
LOADINGS = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 2.0]], dtype=torch.float64)  # (PIXELS, LATENTS)


class Linear:
    """A VAE of plain functions whose every parameter is a tensor that can ask for its gradient.

    ``mu`` and ``log_sigma (N, D)`` are the posterior of each image, so a gradient comes apart by images.
    """

    def __init__(self, mu: Tensor, log_sigma: Tensor) -> None:
        self.mu = mu.clone().requires_grad_()
        self.log_sigma = log_sigma.clone().requires_grad_()
        self.loadings = LOADINGS.clone().requires_grad_()
        self.prior = SimpleNamespace(closed_form_kl=True, log_prob=lambda z: log_prob_standard(z).sum(-1))
        self.likelihood = SimpleNamespace(log_prob=lambda x, output: Normal(output, 1.0).log_prob(x).flatten(1).sum(1))

    def encode(self, x: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.mu, self.log_sigma.exp()

    def decode(self, z: Tensor, precision: torch.dtype) -> Tensor:
        return (z @ self.loadings.T)[:, None, None]


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(count: int, factor: float = 1.0, shift: float = 0.0) -> tuple[Linear, Tensor]:
    """Return a model with its exact posterior of one image, ``count`` times, then moved and widened; and the images."""
    x = torch.tensor([1.0, -0.5, 0.7], dtype=torch.float64)
    covariance = torch.linalg.inv(torch.eye(LATENTS, dtype=torch.float64) + LOADINGS.T @ LOADINGS)
    mean = covariance @ LOADINGS.T @ x
    sigma = covariance.diagonal().sqrt()
    rows = (mean + shift * sigma).expand(count, LATENTS), (sigma * factor).log().expand(count, LATENTS)
    return Linear(*rows), x.expand(count, 1, 1, PIXELS)


def gradients(objective: str, count: int, draws: int, factor: float, shift: float) -> tuple[Tensor, Tensor, Tensor]:
    vae, x = linear(count, factor, shift)
    loss, _ = training_loss(vae, x, seeded(count, draws, LATENTS, seed=3), objective)  # type: ignore[arg-type]
    loss.sum().backward()
    found = (vae.mu.grad, vae.log_sigma.grad, vae.loadings.grad)
    assert all(gradient is not None for gradient in found)
    return found  # type: ignore[return-value]


def test_the_elbo_objective_is_the_mean_over_draws_of_reconstruction_and_weighted_kl() -> None:
    vae, x = tiny_vae(), torch.rand(4, *CONFIG.image_shape, generator=torch.Generator().manual_seed(0))
    epsilon = seeded(4, 3, CONFIG.latent_dim).float()
    loss, bound = training_loss(vae, x, epsilon, kl_weight=0.25)
    terms = [elbo_terms(vae, x, epsilon[:, k]) for k in range(3)]
    expected = torch.stack([0.25 * term.kl - term.reconstruction for term in terms]).mean(0)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(bound, -torch.stack([term.elbo for term in terms]).mean(0))


@pytest.mark.parametrize("objective", ["iwae", "dreg"])
def test_the_bound_of_the_importance_weighted_objectives_is_that_of_the_evaluation(objective: str) -> None:
    vae, x = tiny_vae(), torch.rand(4, *CONFIG.image_shape, generator=torch.Generator().manual_seed(0))
    epsilon = seeded(4, 5, CONFIG.latent_dim).float()
    loss, bound = training_loss(vae, x, epsilon, objective)  # type: ignore[arg-type]
    expected = -importance_bound(log_weights(vae, x, *vae.encode(x), epsilon))
    torch.testing.assert_close(bound, expected)
    if objective == "iwae":
        torch.testing.assert_close(loss, expected)


def test_both_importance_weighted_objectives_have_one_gradient_for_the_decoder() -> None:
    plain, double = (gradients(name, 50, 8, 1.3, 0.4)[2] for name in ("iwae", "dreg"))
    torch.testing.assert_close(plain, double, rtol=1e-10, atol=1e-10)


def test_the_doubly_reparameterized_gradient_has_the_same_mean_and_less_spread() -> None:
    count = 40_000
    plain, double = (gradients(name, count, 8, 1.3, 0.4) for name in ("iwae", "dreg"))
    for one, other in zip(plain[:2], double[:2], strict=True):
        error = ((one.var(0) + other.var(0)) / count).sqrt()
        assert bool(((one.mean(0) - other.mean(0)).abs() < 4 * error).all())
        assert bool((other.std(0) < one.std(0)).all())


def test_an_ordinary_gradient_with_the_second_weight_missing_would_be_told_apart() -> None:
    count = 40_000
    vae, x = linear(count, 1.3, 0.4)
    z = vae.mu + vae.log_sigma.exp() * seeded(count, 8, LATENTS, seed=3).permute(1, 0, 2)  # (K, N, D)
    prior = log_prob_standard(z).sum(-1) + Normal(z @ LOADINGS.T, 1.0).log_prob(x[0, 0, 0]).sum(-1)
    log_w = prior - Normal(vae.mu.detach(), vae.log_sigma.exp().detach()).log_prob(z).sum(-1)
    (-(torch.softmax(log_w.detach(), 0) * log_w).sum()).backward()
    wrong, right = vae.mu.grad, gradients("dreg", count, 8, 1.3, 0.4)[0]
    assert wrong is not None
    error = ((wrong.var(0) + right.var(0)) / count).sqrt()
    assert bool(((wrong.mean(0) - right.mean(0)).abs() > 10 * error).any())


def test_at_the_exact_posterior_the_doubly_reparameterized_gradient_of_each_draw_vanishes() -> None:
    x = torch.tensor([1.0, -0.5, 0.7], dtype=torch.float64).expand(6, 1, 1, PIXELS)
    scale = torch.tensor([1.0, 2.0], dtype=torch.float64)
    diagonal = torch.eye(PIXELS, LATENTS, dtype=torch.float64) * scale  # its exact posterior is diagonal
    precision = 1 + scale.square()
    vae = Linear((x[:, 0, 0] @ diagonal) / precision, -0.5 * precision.log().expand(6, LATENTS))
    vae.loadings = diagonal.requires_grad_()
    loss, bound = training_loss(vae, x, seeded(6, 4, LATENTS), "dreg")  # type: ignore[arg-type]
    loss.sum().backward()
    assert vae.mu.grad is not None
    assert vae.log_sigma.grad is not None
    assert float(vae.mu.grad.abs().max()) < 1e-12
    assert float(vae.log_sigma.grad.abs().max()) < 1e-12
    assert float(bound.std()) < 1e-12


@pytest.mark.parametrize("objective", ["elbo", "iwae", "dreg"])
def test_a_learned_prior_gets_a_gradient_from_every_objective(objective: str) -> None:
    config = replace(CONFIG, prior="realnvp", flow_couplings=3, flow_hidden=8)
    vae: VAE = tiny_vae(config=config).requires_grad_(True)
    x = torch.rand(3, *CONFIG.image_shape, generator=torch.Generator().manual_seed(2))
    loss, _ = training_loss(vae, x, seeded(3, 4, CONFIG.latent_dim).float(), objective)  # type: ignore[arg-type]
    loss.mean().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in vae.parameters())


def test_the_kl_under_a_learned_prior_is_invariant_under_its_bijection() -> None:
    """KL[q || p_f] = KL[f#q || N(0, I)]: the flow's density counts for z what the standard normal counts for f(z)."""
    config = replace(CONFIG, prior="realnvp", flow_couplings=3, flow_hidden=8)
    vae = tiny_vae(config=config)
    assert not vae.prior.closed_form_kl
    count = 20_000
    x = torch.rand(1, *CONFIG.image_shape, generator=torch.Generator().manual_seed(2))
    mu, sigma = (value.expand(count, -1) for value in vae.encode(x))
    z = mu + sigma * seeded(count, CONFIG.latent_dim).float()
    noise, log_det = vae.prior.normalize(z)  # type: ignore[operator]
    entropy = Normal(mu, sigma).log_prob(z).sum(1)
    pushed = entropy - log_det - log_prob_standard(noise).sum(1)
    terms = elbo_terms(vae, x.expand(count, -1, -1, -1), seeded(count, CONFIG.latent_dim, seed=8).float())
    error = math.hypot(float(pushed.std()), float(terms.kl.std())) / math.sqrt(count)
    assert float(pushed.mean()) == pytest.approx(float(terms.kl.mean()), abs=4 * error)
