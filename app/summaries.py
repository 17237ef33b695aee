"""What was computed for images as the numbers that are answered: divergences and scores.

Plain functions of arrays; the arithmetic is that of ``model/``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.engine import Engine
from model import gaussian
from model.elbo import importance_bound, importance_standard_error

Array = NDArray[Any]


def kl_to_standard_normal(mu: Array, sigma: Array) -> Array:
    """Return ``KL[N(mu, sigma²) || N(0, I)]`` of each row and dimension in nats, ``(N, D)`` float64."""
    return gaussian.kl_to_standard_normal(torch.from_numpy(mu).double(), torch.from_numpy(sigma).double()).numpy()


def mean_and_error(draws: Array) -> tuple[Array, Array]:
    """Return the mean of ``draws (N, K)`` and its standard error, ``(N,)`` each; 0 for K = 1, which shows no spread."""
    count = draws.shape[1]
    spread = draws.std(1, ddof=1) if count > 1 else np.zeros(len(draws))
    return draws.mean(1), spread / math.sqrt(count)


def summarize(engine: Engine, mu: Array, sigma: Array, log_likelihood: Array, ratio: Array) -> dict[str, Array]:
    """Return what ``/score`` says of N images, ``(N,)`` float64 each, from ``K`` weighed draws of each.

    Args:
        engine: for the number of pixels and the held-out scores.
        mu: posterior means, ``(N, D)``.
        sigma: posterior standard deviations, ``(N, D)``.
        log_likelihood: ``log p(x|z)``, ``(N, K)``.
        ratio: ``log p(z) - log q(z|x)``, ``(N, K)``; without a closed form the KL is its negative mean.
    """
    if engine.exact_kl:
        divergence = {"kl": kl_to_standard_normal(mu, sigma).sum(1)}
    else:
        kl, error = mean_and_error(-ratio)
        divergence = {"kl": kl, "kl_standard_error": error}
    reconstruction = log_likelihood.mean(1)
    elbo = reconstruction - divergence["kl"]
    log_w = torch.from_numpy(log_likelihood + ratio)
    bound = importance_bound(log_w).numpy()
    below = np.searchsorted(engine.notes.held_out_elbo, elbo.astype(np.float32), side="left")
    return {
        "elbo": elbo,
        "reconstruction": reconstruction,
        **divergence,
        "log_likelihood": bound,
        "standard_error": importance_standard_error(log_w).numpy(),
        "bits_per_dim": -bound / (math.log(2) * engine.config.pixels),
        "percentile": 100.0 * below / len(engine.notes.held_out_elbo),
    }
