"""What the requests hold: digits that the bundled model draws, as distinct PNG files and as arrays."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model import checkpoint
from model.gaussian import noise

MODEL = "mnist"


def digits(count: int, seed: int = 1) -> NDArray[np.uint8]:
    """Return ``count`` images of the bundled model's prior, ``(count, 1, 28, 28)``; the same for the same seed."""
    vae = checkpoint.load(checkpoint.resolve(MODEL)).vae
    with torch.inference_mode():
        z = vae.prior.transform(torch.from_numpy(noise(seed, count, (vae.config.latent_dim,))))
        means = [vae.likelihood.mean(vae.decode(part)) for part in torch.split(z, 256)]
    return (torch.cat(means) * 255).round().byte().numpy()


def reference(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return ``mu`` and ``sigma``, ``(N, D)``, of images ``(N, C, H, W)``, by the plain network in float32."""
    vae = checkpoint.load(checkpoint.resolve(MODEL)).vae
    with torch.inference_mode():
        mu, sigma = vae.encode(torch.from_numpy(images.astype(np.float32) / np.float32(255)))
    return mu.numpy(), sigma.numpy()


def png(image: NDArray[np.uint8]) -> bytes:
    """Return a grey image ``(1, H, W)`` as a PNG file."""
    file = BytesIO()
    Image.fromarray(image[0]).save(file, "PNG")
    return file.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    """Return an array as an ``.npy`` file."""
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()
