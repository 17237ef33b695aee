"""A model small enough to build in milliseconds, for tests of everything around the network."""

from pathlib import Path

import numpy as np
import torch

from model import checkpoint
from model.golden import with_golden
from model.vae import VAE, VAEConfig

CONFIG = VAEConfig(height=8, width=8, latent_dim=4, widths=(8,), blocks=(1,), hidden=16)


def tiny_vae(seed: int = 0, config: VAEConfig = CONFIG) -> VAE:
    """Return a network with random weights that do not leave any part of it at zero."""
    torch.manual_seed(seed)
    vae = VAE(config).requires_grad_(False).eval()
    for parameter in vae.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return vae


def save_tiny(path: Path, seed: int = 0, config: VAEConfig = CONFIG) -> Path:
    """Write a checkpoint of :func:`tiny_vae` with a golden batch and held-out scores."""
    vae = tiny_vae(seed, config)
    notes = checkpoint.Notes("tiny", "noise", held_out_elbo=np.linspace(-80, -20, 101).astype(np.float32))
    checkpoint.save(path, vae, with_golden(vae, notes))
    return path
