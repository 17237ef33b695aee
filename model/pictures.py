"""PNG grids for people: what a model draws, and what it makes of held-out images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.checkpoint import atomic_file
from model.golden import drawn_images
from model.pixels import contact_sheet, to_bytes
from model.vae import VAE

SAMPLE_SEED = 7
COLUMNS = 16


def save_pictures(vae: VAE, x: Tensor, folder: Path, prefix: str = "") -> None:
    """Write ``PREFIXsamples.png`` and, where there are images ``x (N, C, H, W)``, ``PREFIXreconstructions.png``.

    Args:
        vae: on the CPU.
        x: held-out images, pixels in 0..1.
        folder: where to.
        prefix: of the file names.
    """
    save_grid(drawn_images(vae, 8 * COLUMNS, SAMPLE_SEED), COLUMNS, folder / f"{prefix}samples.png")
    if len(x):
        save_grid(reconstruction_rows(vae, x), COLUMNS, folder / f"{prefix}reconstructions.png")


@torch.no_grad()
def reconstruction_rows(vae: VAE, x: Tensor) -> NDArray[np.uint8]:
    """Return rows of originals with their reconstructions ``decode(mu)`` below, as :func:`save_grid` takes them.

    Args:
        vae: on the CPU.
        x: pixels in 0..1, ``(N, C, H, W)``.

    Returns:
        ``(M, C, H, W)``, where M is twice N, N rounded up to whole rows of ``COLUMNS``.
    """
    mu, _ = vae.encode(x)
    pairs = torch.stack([x, vae.likelihood.mean(vae.decode(mu))])  # (2, N, C, H, W)
    black = pairs.new_zeros(2, -len(x) % COLUMNS, *x.shape[1:])  # fills the last row
    rows = torch.cat([pairs, black], dim=1).reshape(2, -1, COLUMNS, *x.shape[1:])  # (2, R, COLUMNS, C, H, W)
    return to_bytes(rows.transpose(0, 1).flatten(0, 2).numpy())


def save_grid(images: NDArray[np.uint8], columns: int, path: Path) -> None:
    """Write images ``(N, C, H, W)``, C of 1 or 3, as one PNG, row by row, without gaps; whole or not at all."""
    sheet = contact_sheet(images, columns)
    picture = Image.fromarray(sheet[0] if len(sheet) == 1 else sheet.transpose(1, 2, 0))
    with atomic_file(path) as file:
        picture.save(file, "PNG")
