"""What every peer computes: PNG files to ``mu`` and ``sigma``, by the bundled weights.

``BENCH_PATH=plain`` is what a project has without further work: the network as PyTorch runs it, in float32.
``BENCH_PATH=ours`` is this project's execution path and precision, given to the peer.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model import checkpoint

MODEL = "mnist"
Encode = Callable[[Sequence[bytes]], tuple[NDArray[np.float32], NDArray[np.float32]]]


def pixels(files: Sequence[bytes]) -> NDArray[np.float32]:
    """Return PNG files of the model's size as ``(N, 1, H, W)``, numbers in 0..1."""
    images = np.stack([np.asarray(Image.open(BytesIO(file)).convert("L")) for file in files])
    return images[:, None].astype(np.float32) / np.float32(255)


def load() -> Encode:
    """Return a function from PNG files to ``mu`` and ``sigma``, ``(N, D)`` each; one thread computes."""
    torch.set_num_threads(1)
    encode = _ours() if os.environ.get("BENCH_PATH") == "ours" else _plain()
    encode([_blank()])
    return encode


def load_sample() -> Callable[[int], NDArray[np.uint8]]:
    """Return a function from a number of images to new images of the prior, ``(N, H, W)``, by the plain network."""
    vae = checkpoint.load(checkpoint.resolve(MODEL)).vae

    def sample(count: int) -> NDArray[np.uint8]:
        with torch.inference_mode():
            z = vae.prior.transform(torch.randn(count, vae.config.latent_dim))
            images = vae.likelihood.mean(vae.decode(z))[:, 0]
            return (images * 255).round().byte().numpy()

    return sample


def _plain() -> Encode:
    vae = checkpoint.load(checkpoint.resolve(MODEL)).vae

    def encode(files: Sequence[bytes]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.inference_mode():
            mu, sigma = vae.encode(torch.from_numpy(pixels(files)))
        return mu.numpy(), sigma.numpy()

    return encode


def _ours() -> Encode:
    from app.loading import load as load_engine
    from app.settings import load_settings

    engine = load_engine(load_settings({}))
    streams = threading.Semaphore(engine.streams)

    def encode(files: Sequence[bytes]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        x = pixels(files)
        with streams:
            mu, sigma, *_ = engine.encode.run(x)
        return mu, sigma

    return encode


def _blank() -> bytes:
    file = BytesIO()
    Image.new("L", (28, 28)).save(file, "PNG")
    return file.getvalue()
