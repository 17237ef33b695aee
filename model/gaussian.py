"""Diagonal normal distributions: divergence, density, draws, and noise that a seed repeats; in nats.

Plain functions on tensors of any float type: training calls them in float32, the service in float64. They
know no network and no prior but N(0, I). They check no values, because a GPU would have to wait for the
answer; `model.divergence` checks, and knows covariances.
"""

from __future__ import annotations

import math
import secrets

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

NEAR = 0.25  # where |d| is below it, `excess` sums the series
_TERMS = 9  # of that series: the next one is below 1e-17 of the sum
_SEEDS = 2**63


def kl_to_standard_normal(mu: Tensor, sigma: Tensor) -> Tensor:
    """Return KL[N(mu, sigma²) ‖ N(0, I)] of each row and dimension, in nats.

    ``½ (mu² + sigma² − 1) − ln sigma`` (Kingma & Welling 2014, appendix B), as a sum of terms that are never
    negative: exact to a few units in the last place also where it is tiny, and 0 at mu = 0, sigma = 1.

    Args:
        mu: means, ``(N, D)``.
        sigma: standard deviations, ``(N, D)``, above 0.

    Returns:
        ``(N, D)``; the sum over axis 1 is the divergence of the row.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(mu, sigma)
    d = sigma - 1
    return (mu.square() + d.square()) / 2 + excess(d, sigma.log())


def kl_diagonal(mu_p: Tensor, sigma_p: Tensor, mu_q: Tensor, sigma_q: Tensor) -> Tensor:
    """Return KL[N(mu_p, sigma_p²) ‖ N(mu_q, sigma_q²)] of each row and dimension, in nats.

    It is `kl_to_standard_normal` of ``(mu_p − mu_q) / sigma_q`` and ``sigma_p / sigma_q``; the four arguments
    and the result have one shape, ``(N, D)``.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(mu_p, sigma_p, mu_q, sigma_q)
    shift = (mu_p - mu_q) / sigma_q
    d = (sigma_p - sigma_q) / sigma_q
    return (shift.square() + d.square()) / 2 + excess(d, sigma_p.log() - sigma_q.log())


def excess(d: Tensor, log_ratio: Tensor) -> Tensor:
    """Return ``d − ln(1 + d)``, which is never negative, without the cancellation near d = 0.

    With ``r = d / (2 + d)``, ``ln(1 + d) = 2 artanh r = 2 (r + r³/3 + r⁵/5 + …)``, and ``d − 2r = r d`` takes
    the leading terms together. Both branches have finite gradients.

    Args:
        d: above −1, any shape.
        log_ratio: ``ln(1 + d)`` as the caller knows it best, used where |d| ≥ 0.25.
    """
    r = d / (2 + d)
    y = r.square()
    tail = torch.zeros_like(y)  # y/3 + y²/5 + …
    for n in range(_TERMS, 0, -1):
        tail = y * (tail + 1 / (2 * n + 1))
    return torch.where(d.abs() < NEAR, r * (d - 2 * tail), d - log_ratio)


def draw(mu: Tensor, sigma: Tensor, epsilon: Tensor) -> Tensor:
    """Return ``z = mu + epsilon ⊙ sigma``, drawn from N(mu, sigma²) where epsilon is from N(0, I)."""
    return mu + epsilon * sigma


def log_prob(z: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """Return ln N(z; mu, sigma²) of each dimension, in nats; shapes broadcast."""
    return log_prob_standard((z - mu) / sigma) - sigma.log()


def log_prob_standard(z: Tensor) -> Tensor:
    """Return ln N(z; 0, 1) of each dimension, in nats, in the shape of z."""
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)


def noise(seed: int, items: int, shape: tuple[int, ...], first: int = 0, stream: int = 0) -> npt.NDArray[np.float32]:
    """Return standard normal draws of which item i depends on (seed, i) alone.

    Philox (Salmon et al. 2011) with the seed as its key, the item as the highest word of its counter and the
    stream as the next one. So the items of a call for 4 are the first 4 of a call for 64, and an item of shape
    ``(4, D)`` is the first 4 rows of that item in shape ``(8, D)``.

    Args:
        seed: 0 … 2⁶³ − 1.
        items: how many.
        shape: the shape of one item.
        first: index of the first one, for those who work through many in chunks.
        stream: which noise of that seed; draws from the prior and from a posterior must not be the same.

    Returns:
        float32 ``(items, *shape)``.

    Raises:
        ValueError: seed, items or first is out of range.
    """
    if not 0 <= seed < _SEEDS:
        raise ValueError("seed lies outside 0 … 2**63 − 1")
    if items < 0 or first < 0:
        raise ValueError("items and first are counts, 0 or more")
    philox = np.random.Philox(key=seed)
    fill, state = np.random.Generator(philox).standard_normal, philox.state
    draws = np.empty((items, math.prod(shape)), np.float32)
    for item, row in enumerate(draws, start=first):
        state["state"]["counter"][2:] = stream, item
        philox.state = state  # cheaper than a generator for each item
        fill(dtype=np.float32, out=row)
    return draws.reshape(items, *shape)


def fresh_seed() -> int:
    """Return an unpredictable seed below 2⁵³, so that a JavaScript client can hand it back unchanged."""
    return secrets.randbits(53)


def _check_shapes(first: Tensor, *others: Tensor) -> None:
    shapes = [tuple(first.shape), *(tuple(other.shape) for other in others)]
    if len(set(shapes)) > 1:
        raise ValueError(f"shapes differ: {', '.join(map(str, shapes))}")
