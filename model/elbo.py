"""The objective: the only place where likelihood, posterior and prior are put together.

Everything is in nats per image: sums over pixels and latents, one number an image. Averaging over a batch is left
to the caller, so training, evaluation and serving cannot disagree about units. Noise is an argument, never drawn
here.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from model.gaussian import draw, kl_to_standard_normal, log_prob, noise
from model.vae import VAE

ObjectiveName = Literal["elbo", "iwae", "dreg"]
QUADRATURE_PAIRS = 4


class Terms(NamedTuple):
    """One single-draw estimate of the evidence lower bound, ``(N,)`` each, in nats.

    Attributes:
        reconstruction: ``log p(x|z)`` of the draw.
        kl: ``KL[q(z|x) || p(z)]``, in closed form where the prior has one, else by the same draw.
    """

    reconstruction: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """``reconstruction - kl``, at most ``log p(x)`` in expectation."""
        return self.reconstruction - self.kl


def elbo_terms(vae: VAE, x: Tensor, epsilon: Tensor, precision: torch.dtype = torch.float32) -> Terms:
    """Return ``E_q[log p(x|z)]`` by one draw and ``KL[q(z|x) || p(z)]`` of each image.

    ``log p(x) >= E_q[log p(x|z)] - KL`` (Kingma & Welling 2014, equation 3).

    Args:
        vae: encoder, decoder, likelihood and prior.
        x: pixels in 0..1, ``(N, C, H, W)``.
        epsilon: standard normal noise, ``(N, D)``.
        precision: of the convolutions; every term is computed in float32.
    """
    mu, sigma = vae.encode(x, precision)
    return _terms(vae, x, mu, sigma, epsilon, precision)


def _terms(vae: VAE, x: Tensor, mu: Tensor, sigma: Tensor, epsilon: Tensor, precision: torch.dtype) -> Terms:
    z = draw(mu, sigma, epsilon)
    reconstruction = vae.likelihood.log_prob(x, vae.decode(z, precision))
    if vae.prior.closed_form_kl:
        return Terms(reconstruction, kl_to_standard_normal(mu, sigma).sum(1))
    return Terms(reconstruction, log_prob(z, mu, sigma).sum(1) - vae.prior.log_prob(z))


def training_loss(
    vae: VAE,
    x: Tensor,
    epsilon: Tensor,
    objective: ObjectiveName = "elbo",
    kl_weight: float | Tensor = 1.0,
    precision: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Return what a training step minimizes, and the negative bound that it stands for, ``(N,)`` each, in nats.

    ``elbo`` is the negative ELBO, averaged over the draws. ``iwae`` is the negative importance-weighted bound (Burda et
    al. 2016). ``dreg`` has the same value and, for the encoder, the doubly reparameterized gradient (Tucker et al.
    2019), whose signal does not drown as ``K`` grows: of the loss only its gradient means something there.

    Args:
        vae: encoder, decoder, likelihood and prior.
        x: pixels in 0..1, ``(N, C, H, W)``.
        epsilon: standard normal noise, ``(N, K, D)``.
        objective: which of the three.
        kl_weight: of the KL, or of ``log p(z) - log q(z|x)``, in the loss; the bound has it at 1.
        precision: of the convolutions; the terms themselves are computed in float32 and float64.
    """
    images, draws = epsilon.shape[:2]
    mu, sigma = vae.encode(x, precision)
    x, mu, sigma = _repeated(draws, x, mu, sigma)
    per_row = epsilon.flatten(0, 1)  # (N*K, D)
    if objective == "elbo":
        terms = _terms(vae, x, mu, sigma, per_row, precision)
        loss = (kl_weight * terms.kl - terms.reconstruction).view(images, draws).mean(1)
        return loss, -terms.elbo.detach().view(images, draws).mean(1)
    z = draw(mu, sigma, per_row)
    if objective == "dreg":
        mu, sigma = mu.detach(), sigma.detach()  # the gradient of q's own parameters goes through z alone
    log_likelihood, ratio = _weigh(vae, x, mu, sigma, z, precision)
    log_w = (log_likelihood + kl_weight * ratio).view(images, draws)
    bound = -importance_bound((log_likelihood + ratio).detach().view(images, draws))
    if objective == "iwae":
        return -importance_bound(log_w), bound
    return _doubly_reparameterized(z, log_w), bound


def _doubly_reparameterized(z: Tensor, log_w: Tensor) -> Tensor:
    """Return ``(N,)`` whose gradient weighs that of a draw by its share, and once more on its way through ``z``."""
    shares = torch.softmax(log_w.detach(), 1)  # (N, K)
    if z.requires_grad:
        per_draw = shares.flatten()[:, None].to(z.dtype)
        z.register_hook(lambda gradient: gradient * per_draw)  # type: ignore[no-untyped-call]
    return -(shares * log_w).sum(1)


def log_likelihood_and_ratio(
    vae: VAE, x: Tensor, mu: Tensor, sigma: Tensor, epsilon: Tensor, precision: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return ``log p(x|z)`` and ``log p(z) - log q(z|x)`` of one draw a row, ``(N,)`` float64 each.

    Their sum is the draw's log-weight; the mean of the first estimates ``E_q[log p(x|z)]``, the negative mean of the
    second the KL.

    Args:
        vae: decoder, likelihood and prior.
        x: pixels in 0..1, ``(N, C, H, W)``.
        mu: posterior means, ``(N, D)``.
        sigma: posterior standard deviations, ``(N, D)``.
        epsilon: standard normal noise, ``(N, D)``.
        precision: of the convolutions; the terms themselves are computed in float32 and float64.
    """
    return _weigh(vae, x, mu, sigma, draw(mu, sigma, epsilon), precision)


def _weigh(vae: VAE, x: Tensor, mu: Tensor, sigma: Tensor, z: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    log_likelihood = vae.likelihood.log_prob(x, vae.decode(z, precision))
    return log_likelihood.double(), _ratio(vae, mu, sigma, z)


def log_ratio(vae: VAE, mu: Tensor, sigma: Tensor, epsilon: Tensor) -> Tensor:
    """Return ``log p(z) - log q(z|x)`` of one draw a row, ``(N,)`` float64; its negative mean estimates the KL.

    Arguments as for :func:`log_likelihood_and_ratio`; nothing is decoded.
    """
    return _ratio(vae, mu, sigma, draw(mu, sigma, epsilon))


def _ratio(vae: VAE, mu: Tensor, sigma: Tensor, z: Tensor) -> Tensor:
    return vae.prior.log_prob(z.double()) - log_prob(z.double(), mu.double(), sigma.double()).sum(1)


def quadrature(latent_dim: int) -> Tensor:
    """Return eight points that stand for N(0, I), ``(8, latent_dim)``: opposite pairs, of unit variance everywhere."""
    half = torch.from_numpy(noise(0, QUADRATURE_PAIRS, (latent_dim,)))
    points = torch.cat([half, -half])
    return points / points.square().mean(0).sqrt()


def posterior_kl(vae: VAE, mu: Tensor, sigma: Tensor, points: Tensor) -> Tensor:
    """Return ``KL[q(z|x) || p(z)]`` of each row of ``mu`` and ``sigma (N, D)``, ``(N,)``, without drawing anything.

    Exact where there is a closed form. Elsewhere ``log q - log p`` is averaged over ``mu + points * sigma``, ``points``
    from :func:`quadrature`: ``log q`` then has its expectation exactly, and so has a quadratic ``log p`` in which no
    latents are multiplied. The same image gives the same number, some percent off: good to watch, not to report.
    """
    if vae.prior.closed_form_kl:
        return kl_to_standard_normal(mu, sigma).sum(1)
    mu, sigma = (value.repeat(len(points), 1) for value in (mu, sigma))  # (P*N, D)
    epsilon = points.repeat_interleave(len(mu) // len(points), 0)
    return -log_ratio(vae, mu, sigma, epsilon).view(len(points), -1).mean(0).float()


def log_weights(
    vae: VAE, x: Tensor, mu: Tensor, sigma: Tensor, epsilon: Tensor, precision: torch.dtype = torch.float32
) -> Tensor:
    """Return ``log p(x|z) + log p(z) - log q(z|x)`` of ``K`` draws for each image, ``(N, K)`` float64.

    Arguments as for :func:`log_likelihood_and_ratio`, but ``epsilon`` is ``(N, K, D)``.
    """
    images, draws = epsilon.shape[:2]
    rows = _repeated(draws, x, mu, sigma)
    log_likelihood, ratio = log_likelihood_and_ratio(vae, rows[0], rows[1], rows[2], epsilon.flatten(0, 1), precision)
    return (log_likelihood + ratio).view(images, draws)  # (N, K)


def _repeated(draws: int, *values: Tensor) -> list[Tensor]:
    """Return each of ``values (N, ...)`` with every row ``draws`` times in a row, ``(N*draws, ...)``."""
    return [value[:, None].expand(len(value), draws, *value.shape[1:]).flatten(0, 1) for value in values]


def importance_bound(log_w: Tensor) -> Tensor:
    """Return ``log (1/K) sum_k w_k`` over the last axis, in nats.

    The bound of Burda, Grosse & Salakhutdinov (2016): at most ``log p(x)`` in expectation, rising with ``K``.
    """
    return torch.logsumexp(log_w, dim=-1) - math.log(log_w.shape[-1])


def importance_standard_error(log_w: Tensor) -> Tensor:
    """Return the standard error of :func:`importance_bound` over the last axis, in nats, by the delta method.

    ``sqrt(var(w) / K) / mean(w)``; 0 for ``K = 1``, where one draw says nothing about its spread. It is honest where
    the weights have a variance that ``K`` draws can see; a posterior that misses a region cannot know of it.
    """
    draws = log_w.shape[-1]
    if draws == 1:
        return torch.zeros_like(log_w[..., 0])
    weights = torch.exp(log_w - log_w.amax(dim=-1, keepdim=True))
    return weights.std(dim=-1) / weights.mean(dim=-1) / math.sqrt(draws)
