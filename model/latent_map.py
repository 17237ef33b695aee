"""A map of latent space, for people: where held-out images lie in it, and which of its directions matter.

It lies in a file beside the weights (``mnist-map.safetensors`` beside ``mnist.safetensors``) and is bound to them by
their digest, since latents mean nothing under other weights. Training and evaluation write it; for a checkpoint
that has none: ``python -m model.latent_map PATH``. It knows no page and no HTTP.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize
from torch import Tensor

from model import checkpoint
from model.gaussian import kl_diagonal, kl_to_standard_normal
from model.pixels import to_unit
from model.scores import posterior
from model.vae import VAE

if TYPE_CHECKING:
    from model.data import Dataset

FORMAT = "vae-service-map/1"
MAX_FILE_BYTES = 2**26
POINTS = 2000  # images on the map
DECIMALS = 3  # of their means: a hundredth of the narrowest posterior, and half the bytes in JSON
ACTIVE = 0.01  # variance of mu over images above which a latent counts as active (Burda et al. 2016)
Float32 = NDArray[np.float32]


class MapError(ValueError):
    """A map cannot be used; the text says which file and why."""


@dataclass(frozen=True)
class LatentMap:
    """Where held-out images lie in latent space; all but ``mu`` and ``labels`` is over all of them.

    Attributes:
        mu: posterior means of some of the images, ``(M, D)``, rounded to thousandths.
        labels: their classes from 0, ``(M,)`` int64; None where the images have none.
        label_names: the name of each class; None where there are no labels.
        mean: of ``mu``, ``(D,)``.
        axes: the principal axes of ``mu``, unit vectors, ``(2, D)``, the wider first; ``(1, 1)`` for a single latent.
        variance: of ``mu`` along each axis, ``(2,)``.
        kl_per_dimension: mean KL of the posteriors in nats, ``(D,)``: from the standard normal, or, where the prior is
            learned and does not separate, from the normal that fits all posteriors together.
        active_units: latents whose ``mu`` varies by more than 0.01.
    """

    mu: Float32
    labels: NDArray[np.int64] | None
    label_names: tuple[str, ...] | None
    mean: Float32
    axes: Float32
    variance: Float32
    kl_per_dimension: Float32
    active_units: int


def make_map(
    vae: VAE,
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8] | None = None,
    label_names: tuple[str, ...] | None = None,
) -> LatentMap:
    """Return the map of images ``(N, C, H, W)`` as a server encodes them, N of 2 or more; ``vae`` is on the CPU."""
    mu, sigma = (part.double() for part in posterior(vae, torch.from_numpy(to_unit(images))))  # (N, D) each
    variances, directions = torch.linalg.eigh(torch.cov(mu.T).reshape(mu.shape[1], -1))  # ascending
    axes = directions.T.flip(0)[:2]  # (2, D)
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # the sign is free: largest entry positive
    chosen = np.random.default_rng(0).permutation(len(images))[:POINTS]
    return LatentMap(
        np.round(mu.numpy()[chosen], DECIMALS).astype(np.float32),
        None if labels is None else labels[chosen].astype(np.int64),
        None if labels is None else label_names,
        _float32(mu.mean(0)),
        _float32(axes),
        _float32(variances.flip(0)[:2].clamp(min=0)),
        _float32(_kl_per_dimension(vae, mu, sigma)),
        int((mu.var(0) > ACTIVE).sum()),
    )


def map_path(path: Path) -> Path:
    """Return where the map of the checkpoint at ``path`` lies."""
    return path.with_name(f"{path.stem}{checkpoint.MAP_SUFFIX}")


def write_map(path: Path, dataset: Dataset) -> Path:
    """Write the map of the checkpoint at ``path`` beside it, from the held-out images of ``dataset``; return where.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        OSError: the file cannot be written.
    """
    loaded = checkpoint.load(path)
    made = make_map(loaded.vae, dataset.test, dataset.test_labels, dataset.label_names)
    save_map(map_path(path), made, loaded.digest)
    return map_path(path)


def save_map(path: Path, latent_map: LatentMap, digest: str) -> None:
    """Write a map of the weights that have this digest, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    labels = {} if latent_map.labels is None else {"labels": latent_map.labels}
    arrays = {name: getattr(latent_map, name) for name in ("mu", "mean", "axes", "variance", "kl_per_dimension")}
    facts = {"label_names": latent_map.label_names, "active_units": latent_map.active_units}
    metadata = {"format": FORMAT, "digest": digest, "facts": json.dumps(facts)}
    metadata["checksum"] = checkpoint.digest_of(arrays | labels, metadata)
    checkpoint.write_atomically(path, serialize(arrays | labels, metadata))


def load_map(path: Path, digest: str, latent_dim: int) -> LatentMap | None:
    """Read and verify a map; None where there is no such file.

    Args:
        path: of the map.
        digest: of the weights that it has to be of, the whole or its first digits.
        latent_dim: D of these weights.

    Raises:
        MapError: the file is damaged, or of another kind, other weights or another D.
    """
    if not path.is_file():
        return None
    arrays, metadata = _read(path)
    claimed = metadata.pop("checksum", "")
    if metadata.get("format") != FORMAT or checkpoint.digest_of(arrays, metadata) != claimed:
        raise MapError(f"{path}: not a map of this project ({FORMAT}), or damaged")
    if not metadata.get("digest", "").startswith(digest):
        raise MapError(f"{path}: the map is of other weights")
    try:
        facts = json.loads(metadata["facts"])
        active, names = int(facts["active_units"]), facts["label_names"]
        labels = arrays.pop("labels", None)
        made = LatentMap(labels=labels, label_names=names and tuple(names), active_units=active, **arrays)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise MapError(f"{path}: the map is incomplete") from error
    _check(path, made, latent_dim)
    return made


def _kl_per_dimension(vae: VAE, mu: Tensor, sigma: Tensor) -> Tensor:
    """Return the mean KL of posteriors ``(N, D)`` by dimension, ``(D,)``."""
    if vae.prior.closed_form_kl:
        return kl_to_standard_normal(mu, sigma).mean(0)
    spread = (mu.var(0, correction=0) + sigma.square().mean(0)).sqrt()
    return kl_diagonal(mu, sigma, mu.mean(0).expand_as(mu), spread.expand_as(mu)).mean(0)


def _float32(values: Tensor) -> Float32:
    return np.ascontiguousarray(values.numpy(), np.float32)


def _read(path: Path) -> tuple[checkpoint.Arrays, dict[str, str]]:
    try:
        if path.stat().st_size <= MAX_FILE_BYTES:
            with safe_open(path, framework="np") as file:
                names = file.keys()  # a method of the file, which is no dictionary
                return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise MapError(f"{path}: not a readable safetensors file") from error
    raise MapError(f"{path}: a map has at most {MAX_FILE_BYTES} bytes")


def _check(path: Path, made: LatentMap, latent_dim: int) -> None:
    """Compare shapes, number types and values with what a map has: the file is a stranger's word."""
    points, axes = len(made.mu), min(2, latent_dim)
    shapes = {
        "mu": (points, latent_dim),
        "mean": (latent_dim,),
        "axes": (axes, latent_dim),
        "variance": (axes,),
        "kl_per_dimension": (latent_dim,),
    }
    for name, shape in shapes.items():
        array = getattr(made, name)
        if array.dtype != np.float32 or array.shape != shape or not math.isfinite(float(np.abs(array).max(initial=0))):
            raise MapError(f"{path}: {name} is {array.dtype} {array.shape}, expected finite float32 {shape}")
    labels, names = made.labels, made.label_names
    if labels is not None and (labels.dtype != np.int64 or labels.shape != (points,) or labels.min(initial=0) < 0):
        raise MapError(f"{path}: its labels are not one class for each of {points} images")
    if names is not None and (labels is None or labels.max(initial=0) >= len(names) or not _texts(names)):
        raise MapError(f"{path}: its label names are not one text for each class")


def _texts(names: tuple[Any, ...]) -> bool:
    return all(isinstance(name, str) for name in names)


@click.command("map")
@click.argument("path", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--data", "name", default=None, help="mnist, fashion-mnist or a folder; default: what it was trained on.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=None, help="Folder of idx files.")
def main(path: Path, name: str | None, data_dir: Path | None) -> None:
    """Write the map of a checkpoint beside it; print where."""
    from model import data  # with all that downloads need, which a server, that reads maps, has no use for

    try:
        loaded = checkpoint.load(path)
        trained_on = str(loaded.notes.training.get("data", "mnist"))
        click.echo(write_map(path, data.load(name or trained_on, loaded.vae.config.image_shape, data_dir)))
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
