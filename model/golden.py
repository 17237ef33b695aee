"""The golden batch: images that the model itself drew, with the posterior they must have, kept in the checkpoint.

At start a server encodes them again: a damaged, mismatched or too coarsely rounded network shows itself here
rather than in its answers. No image of the training data is in it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from model.checkpoint import Notes
from model.gaussian import noise
from model.pixels import to_bytes, to_unit
from model.vae import VAE

GOLDEN_SEED = 1
GOLDEN_IMAGES = 16


@torch.no_grad()
def with_golden(vae: VAE, notes: Notes) -> Notes:
    """Return ``notes`` with the golden batch of ``vae``, which is on the CPU in float32."""
    images = drawn_images(vae, GOLDEN_IMAGES, GOLDEN_SEED)
    mu, sigma = vae.encode(torch.from_numpy(to_unit(images)))
    return replace(notes, golden_images=images, golden_mu=mu.numpy(), golden_sigma=sigma.numpy())


@torch.no_grad()
def drawn_images(vae: VAE, count: int, seed: int) -> NDArray[np.uint8]:
    """Return ``count`` mean images drawn from the prior with ``seed``, ``(count, C, H, W)``; ``vae`` is on the CPU."""
    epsilon = torch.from_numpy(noise(seed, count, (vae.config.latent_dim,)))
    return to_bytes(vae.likelihood.mean(vae.decode(vae.prior.transform(epsilon))).numpy())
