"""p(x|z): what the decoder's output says about pixels.

A likelihood turns the decoder's raw output (the same shape as the image) into a log-density in nats and into the
mean image. It knows neither how that output was computed nor the prior. Densities are summed over pixels, never
averaged: every term of the objective is in nats per image.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LikelihoodName = Literal["bernoulli", "gaussian", "discretized_logistic"]

HALF_LEVEL = 0.5 / 255  # half the distance between neighbors among the 256 levels of a pixel


class Bernoulli(nn.Module):
    """Each pixel is black or white; the raw output is the logit of white.

    ``log p`` is linear in ``x``, so a grey ``x`` gives the exact expectation over images binarized with those
    probabilities.

    Attributes:
        discrete_targets: whether training binarizes the images afresh at each step.
    """

    discrete_targets = True

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Return ``log p(x|z)`` of each image in nats, ``(N,)``.

        Computed from logits in float32 or wider: bfloat16 sums or clamped probabilities read too good.

        Args:
            x: pixels in 0..1, ``(N, C, H, W)``.
            output: logits, ``(N, C, H, W)``.
        """
        logits = _at_least_float32(output)
        return -F.binary_cross_entropy_with_logits(logits, x.to(logits.dtype), reduction="none").flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """Return ``E[x|z]`` in 0..1, ``(N, C, H, W)``."""
        return torch.sigmoid(_at_least_float32(output))


class Gaussian(nn.Module):
    """Each pixel is normal around the raw output, with one learned standard deviation for all pixels.

    A density, not a probability: its nats can be negative and do not compare with those of discrete likelihoods.
    The one learned sigma is the "sigma-VAE" of Rybkin, Daniilidis & Levine (2021).

    Attributes:
        discrete_targets: as for :class:`Bernoulli`.
    """

    discrete_targets = False

    def __init__(self) -> None:
        """Start at a standard deviation of ``exp(-1)``."""
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Return ``log p(x|z)`` of each image in nats, ``(N,)``; shapes as for :class:`Bernoulli`."""
        # exp(-5) is 1.7 levels of 255; far below one, a density of pixels that are whole levels has no bound
        log_scale = self.log_scale.clamp(-5.0, 1.0)
        residual = (x - _at_least_float32(output)) * torch.exp(-log_scale)
        return (-0.5 * residual**2 - log_scale - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """Return ``E[x|z]``, clipped to 0..1, ``(N, C, H, W)``."""
        return _at_least_float32(output).clamp(0.0, 1.0)


class DiscretizedLogistic(nn.Module):
    """Each of a pixel's 256 levels has the probability of its bin under a logistic distribution.

    An honest probability of 8-bit pixels (the levels sum to one), hence honest bits per dimension. The density of
    Salimans et al. (2017), "PixelCNN++", with one component and one learned scale per image channel.

    Attributes:
        discrete_targets: as for :class:`Bernoulli`.
    """

    discrete_targets = False

    def __init__(self, channels: int) -> None:
        """Start every one of ``channels`` at a scale of ``exp(-2)``."""
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((1, channels, 1, 1), -2.0))

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Return ``log p(x|z)`` of each image in nats, ``(N,)``; ``x`` is a multiple of 1/255.

        Other shapes as for :class:`Bernoulli`. The lowest and the highest level own the tails.
        """
        inverse_scale = torch.exp(-self.log_scale.clamp(-7.0, 2.0))
        centered = x - _at_least_float32(output)
        upper = (centered + HALF_LEVEL) * inverse_scale
        lower = (centered - HALF_LEVEL) * inverse_scale
        # log(sigmoid(upper) - sigmoid(lower)) without cancellation, as upper - lower is known exactly
        width = (inverse_scale / 255).expand_as(upper)
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-width))
        log_levels = torch.where(x < HALF_LEVEL, F.logsigmoid(upper), inside)
        log_levels = torch.where(x > 1 - HALF_LEVEL, F.logsigmoid(-lower), log_levels)
        return log_levels.flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """Return the center of the distribution, clipped to 0..1, ``(N, C, H, W)``."""
        return _at_least_float32(output).clamp(0.0, 1.0)


Likelihood = Bernoulli | Gaussian | DiscretizedLogistic


def make_likelihood(name: LikelihoodName, channels: int) -> Likelihood:
    """Build the likelihood called ``name`` for images of ``channels`` channels.

    Raises:
        ValueError: there is no such likelihood.
    """
    if name == "bernoulli":
        return Bernoulli()
    if name == "gaussian":
        return Gaussian()
    if name == "discretized_logistic":
        return DiscretizedLogistic(channels)
    raise ValueError(f"got likelihood {name!r}; expected bernoulli, gaussian or discretized_logistic")


def _at_least_float32(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()
