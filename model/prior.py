"""p(z): the distribution that new images are drawn from.

A prior knows latents only. ``transform`` carries standard normal noise to latents, so that whoever owns the noise
(a seed, a request) owns the draw.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from model.gaussian import log_prob_standard

PriorName = Literal["standard_normal"]


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


Prior = StandardNormal


def make_prior(name: PriorName, latent_dim: int) -> Prior:
    """Build the prior called ``name`` over ``latent_dim`` latents.

    Raises:
        ValueError: there is no such prior.
    """
    if name == "standard_normal":
        return StandardNormal()
    raise ValueError(f"got prior {name!r} over {latent_dim} latents; expected standard_normal")
