"""From a folder of images to a scatter plot of their latents, and a list of the strangest ones.

    vae serve &
    python docs/examples/latent_scatter.py folder/ scatter.png --worst 10

Every image is drawn where its latent lies along the two directions in which the latents of this folder vary most
(principal components of mu). A frame marks the outliers: red around the images whose ELBO is below that of 99 % of the
images that the model was tested on. They are listed by score, strangest first.

Needs the client and Pillow; no torch, no plotting library.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from app.client import DEFAULT_URL, Client
from app.folders import image_files

SIDE = 1200  # pixels of the plot
THUMB = 28  # pixels of an image in it
MARGIN = 40
PER_REQUEST = 64
STRANGE = 1.0  # percentile below which an image is an outlier

Array = NDArray[np.float32]


def latents_and_percentiles(client: Client, files: Sequence[str]) -> tuple[Array, Array]:
    """Return ``mu (N, D)`` and the percentile ``(N,)`` of the ELBO among held-out images, of N files."""
    mu, percentiles = [], []
    for start in range(0, len(files), PER_REQUEST):
        batch = list(files[start : start + PER_REQUEST])
        mu.append(client.encode(batch).mu)
        percentiles.append(client.score(batch, samples=16, seed=0).percentile)
    return np.concatenate(mu), np.concatenate(percentiles)


def plane(mu: Array) -> Array:
    """Return the coordinates ``(N, 2)`` of latents ``(N, D)`` along their two principal components, in 0..1."""
    centered = mu - mu.mean(0)
    axes = np.linalg.svd(centered, full_matrices=False)[2][:2]  # (2, D), or fewer where there are fewer images
    along = np.zeros((len(mu), 2), np.float32)
    along[:, : len(axes)] = centered @ axes.T
    spread = np.ptp(along, axis=0)
    return (along - along.min(0)) / np.where(spread > 0, spread, 1)


def draw(files: Sequence[str], places: Array, strange: NDArray[np.bool_]) -> Image.Image:
    """Return the plot: a thumbnail of every file at its place, outliers on top and framed."""
    plot = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(plot)
    room = SIDE - 2 * MARGIN - THUMB
    for i in np.argsort(strange, kind="stable"):
        x, y = (int(MARGIN + room * places[i, 0]), int(MARGIN + room * (1 - places[i, 1])))
        with Image.open(files[i]) as image:
            plot.paste(ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (THUMB, THUMB)), (x, y))
        if strange[i]:
            pen.rectangle((x - 2, y - 2, x + THUMB + 1, y + THUMB + 1), outline="red", width=2)
    return plot


def main() -> None:
    """Read the arguments, ask the server, write the plot, print the outliers."""
    parser = argparse.ArgumentParser(description="Scatter plot of the latents of a folder's images, and its outliers.")
    parser.add_argument("folder", type=Path, help="folder of PNG and JPEG files")
    parser.add_argument("out", type=Path, help="plot to write, such as scatter.png")
    parser.add_argument("--worst", type=int, default=10, help="how many images to list at most")
    parser.add_argument("--url", default=DEFAULT_URL, help="URL of the server")
    arguments = parser.parse_args()
    files = list(image_files([arguments.folder]))
    if not files:
        parser.error(f"there is no PNG or JPEG file in '{arguments.folder}'")
    with Client(arguments.url, retries=5) as client:
        mu, percentiles = latents_and_percentiles(client, files)
    strange = percentiles < STRANGE
    draw(files, plane(mu), strange).save(arguments.out)
    print(f"{arguments.out}: {len(files)} images, {int(strange.sum())} outliers")
    for i in np.argsort(percentiles, kind="stable")[: arguments.worst]:
        print(f"{percentiles[i]:6.2f} %  {files[i]}{'  outlier' if strange[i] else ''}")


if __name__ == "__main__":
    main()
