"""p(z): the distribution that new images are drawn from.

A prior knows latents only. ``transform`` carries standard normal noise to latents, so that whoever owns the noise
(a seed, a request) owns the draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.gaussian import log_prob_standard

PriorName = Literal["standard_normal", "realnvp"]

LOG_SCALE_BOUND = 3.0  # of one coupling: no layer stretches a latent by more than exp(3)


class StandardNormal(nn.Module):
    """N(0, I), the prior of Kingma & Welling (2014); nothing to learn.

    Attributes:
        closed_form_kl: whether KL[q(z|x) || p(z)] of a diagonal normal q has a closed form.
    """

    closed_form_kl = True

    def log_prob(self, z: Tensor) -> Tensor:
        """Return ``log p(z)`` of each row of ``z (N, D)`` in nats, ``(N,)``."""
        return log_prob_standard(z).sum(-1)

    def transform(self, noise: Tensor) -> Tensor:
        """Return the latents that the standard normal ``noise (N, D)`` stands for: itself."""
        return noise


class RealNVP(nn.Module):
    """A learned prior: standard normal noise through a chain of invertible affine couplings (Dinh et al. 2017).

    ``log p(z) = log N(f(z); 0, I) + log |det df/dz|``, where ``f`` goes through the couplings towards the noise and
    ``transform`` is its inverse. A KL is invariant under bijections, so training it is training a standard normal
    prior over ``f(z)``. It starts as the identity up to the order of the latents: as N(0, I).

    Attributes:
        closed_form_kl: as for :class:`StandardNormal`.
    """

    closed_form_kl = False

    def __init__(self, latent_dim: int, couplings: int, hidden: int) -> None:
        """Build ``couplings`` layers with one hidden layer of ``hidden`` units each, over ``latent_dim`` latents."""
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(latent_dim, hidden) for _ in range(couplings))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return ``log p(z)`` of each row of ``z (N, D)`` in nats, ``(N,)``; computed in the weights' precision."""
        noise, log_det = self.normalize(z)
        return log_prob_standard(noise).sum(-1) + log_det

    def normalize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noise ``f(z)``, ``(N, D)``, and ``log |det df/dz|``, ``(N,)``, of latents ``z (N, D)``."""
        value = z.to(next(self.parameters()).dtype)
        log_det = value.new_zeros(len(value))
        for coupling in self._chain():
            value, change = coupling(value)
            value, log_det = shuffle(value), log_det + change
        return value, log_det

    def transform(self, noise: Tensor) -> Tensor:
        """Return the latents that the standard normal ``noise (N, D)`` stands for, the inverse of ``normalize``."""
        value = noise
        for coupling in reversed(list(self._chain())):
            value = coupling.inverse(unshuffle(value))
        return value

    def _chain(self) -> Iterator[Coupling]:
        return cast(Iterator[Coupling], iter(self.couplings))


class Coupling(nn.Module):
    """``y = x * exp(a) + b`` for each latent, then the second half again with ``a, b`` that the first half decides.

    The first is the ActNorm of Glow (Kingma & Dhariwal 2018), started at the identity instead of from data. The second
    bounds its logarithm of scale by a tanh, so that the inverse is finite everywhere.
    """

    def __init__(self, latent_dim: int, hidden: int) -> None:
        """Start as the identity."""
        super().__init__()
        self.kept = latent_dim // 2
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))
        self.shift = nn.Parameter(torch.zeros(latent_dim))
        self.hidden = nn.Linear(self.kept, hidden)
        self.output = nn.Linear(hidden, 2 * (latent_dim - self.kept))
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``y (N, D)`` and the logarithm of the determinant of dy/dx, ``(N,)``."""
        x = x * torch.exp(self.log_scale) + self.shift
        kept, moved = x[:, : self.kept], x[:, self.kept :]
        log_scale, shift = self._conditioned(kept)
        moved = moved * torch.exp(log_scale) + shift
        return torch.cat([kept, moved], 1), self.log_scale.sum() + log_scale.sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        """Return the ``x (N, D)`` of which :meth:`forward` makes ``y``."""
        kept, moved = y[:, : self.kept], y[:, self.kept :]
        log_scale, shift = self._conditioned(kept)
        moved = (moved - shift) * torch.exp(-log_scale)
        return (torch.cat([kept, moved], 1) - self.shift) * torch.exp(-self.log_scale)

    def _conditioned(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.output(F.silu(self.hidden(kept))).chunk(2, 1)
        return LOG_SCALE_BOUND * torch.tanh(raw / LOG_SCALE_BOUND), shift


def shuffle(value: Tensor) -> Tensor:
    """Return ``value (N, D)`` with its odd columns first: so all columns meet within a dozen couplings."""
    return torch.cat([value[:, 1::2], value[:, 0::2]], 1)


def unshuffle(value: Tensor) -> Tensor:
    """Return the ``(N, D)`` of which :func:`shuffle` makes ``value``."""
    odd = value.shape[1] // 2
    result = torch.empty_like(value)
    result[:, 1::2], result[:, 0::2] = value[:, :odd], value[:, odd:]
    return result


Prior = StandardNormal | RealNVP


def make_prior(name: PriorName, latent_dim: int, couplings: int = 0, hidden: int = 0) -> Prior:
    """Build the prior called ``name`` over ``latent_dim`` latents; the sizes are those of a RealNVP.

    Raises:
        ValueError: there is no such prior.
    """
    if name == "standard_normal":
        return StandardNormal()
    if name == "realnvp":
        return RealNVP(latent_dim, couplings, hidden)
    raise ValueError(f"got prior {name!r} over {latent_dim} latents; expected standard_normal or realnvp")
