"""What the service answers, as the client gives it: arrays by name, read from JSON, safetensors or PNG.

Each ``read_*`` raises ``ValueError``, ``LookupError``, ``TypeError`` or ``SafetensorError`` where an answer is none of
the service's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import httpx
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as read_tensors

Array = NDArray[Any]


class Posterior(NamedTuple):
    """The posterior ``q(z|x)`` of each image, float32."""

    mu: Array  # (N, D): the latents
    sigma: Array  # (N, D)
    z: Array | None  # (N, S, D): draws, where some were asked for
    seed: int | None  # of the draws


class Samples(NamedTuple):
    """New images and the latents that they were decoded from, float32."""

    images: Array  # (N, C, H, W) in 0..1
    z: Array  # (N, D)
    seed: int


class Divergence(NamedTuple):
    """KL divergence of each item, float64."""

    kl: Array  # (N,); N = 1 for two distributions
    per_dimension: Array | None  # (N, D), where both sides are diagonal
    unit: str  # nats or bits
    method: str = "closed_form"  # or monte_carlo: a mean over draws, under a learned prior
    standard_error: Array | None = None  # (N,): of kl, where it is such a mean
    seed: int | None = None  # of these draws


class Scores(NamedTuple):
    """How well the model explains each image, ``(N,)`` float32 each; nats but for bits_per_dim and percentile."""

    elbo: Array
    reconstruction: Array
    kl: Array
    log_likelihood: Array
    standard_error: Array  # of log_likelihood
    bits_per_dim: Array
    percentile: Array  # of elbo among held-out images, 0..100; 0: stranger than all of them
    seed: int
    kl_standard_error: Array | None = None  # of kl, where it is a mean over the draws


class Picture(NamedTuple):
    """Images drawn by the server: one as it is, several as a contact sheet."""

    png: bytes
    seed: int | None  # of a sample


class Walk(NamedTuple):
    """Images on the way from one latent to another, float32."""

    images: Array  # (steps, C, H, W) in 0..1
    z: Array  # (steps, D); the first and last are the ends


class Traversal(NamedTuple):
    """Images in rows, one row for each dimension, float32."""

    images: Array  # (rows, steps, C, H, W) in 0..1
    z: Array  # (rows, steps, D)
    dims: Array  # (rows,): which dimension changes, int64
    values: Array  # (steps,): what it is set to


class LatentMap(NamedTuple):
    """Where held-out images lie in latent space, float32."""

    mu: Array  # (M, D), M at most 2,000
    labels: Array | None  # (M,): class of each, int64, where the data have classes
    label_names: tuple[str, ...] | None  # of the classes
    mean: Array  # (D,): of mu
    axes: Array  # (2, D): principal axes of mu
    variance: Array  # (2,): of mu along them
    kl_per_dimension: Array  # (D,): nats
    active_units: int  # latents whose mu varies
    digest: str  # of the weights


def read_posterior(response: httpx.Response) -> Posterior:
    """Return the answer of ``/encode``, in safetensors."""
    tensors = read_tensors(response.content)
    return Posterior(tensors["mu"], tensors["sigma"], tensors.get("z"), seed_of(response))


def read_images(response: httpx.Response) -> Array:
    """Return the images of an answer, ``(N, C, H, W)``, in safetensors."""
    return read_tensors(response.content)["images"]


def read_samples(response: httpx.Response) -> Samples:
    """Return the answer of ``/sample``, in safetensors."""
    tensors = read_tensors(response.content)
    return Samples(tensors["images"], tensors["z"], int(response.headers["X-Seed"]))


def read_scores(response: httpx.Response) -> Scores:
    """Return the answer of ``/score``, in safetensors."""
    tensors = read_tensors(response.content)
    always = [name for name in Scores._fields if name not in ("seed", "kl_standard_error")]
    arrays = {name: tensors[name] for name in always}
    seed = int(response.headers["X-Seed"])
    return Scores(**arrays, seed=seed, kl_standard_error=tensors.get("kl_standard_error"))


def read_divergence(response: httpx.Response) -> Divergence:
    """Return the answer of ``/kl``, in JSON."""
    body = read_object(response)
    rows, errors = body.get("per_dimension"), body.get("standard_error")
    return Divergence(
        np.array(body["kl"], np.float64),
        None if rows is None else np.array(rows, np.float64),
        str(body["unit"]),
        str(body["method"]),
        None if errors is None else np.array(errors, np.float64),
        body.get("seed"),
    )


def read_walk(response: httpx.Response) -> Walk:
    """Return the answer of ``/interpolate``, in safetensors."""
    tensors = read_tensors(response.content)
    return Walk(tensors["images"], tensors["z"])


def read_traversal(response: httpx.Response) -> Traversal:
    """Return the answer of ``/traverse``, in safetensors."""
    tensors = read_tensors(response.content)
    grid = len(tensors["dims"]), len(tensors["values"])
    images, z = (tensors[name].reshape(*grid, *tensors[name].shape[1:]) for name in ("images", "z"))
    return Traversal(images, z, tensors["dims"], tensors["values"])


def read_map(response: httpx.Response) -> LatentMap:
    """Return the answer of ``/map``, in JSON."""
    body = read_object(response)
    labels, names = body["labels"], body["label_names"]
    return LatentMap(
        mu=np.array(body["mu"], np.float32),
        labels=None if labels is None else np.array(labels, np.int64),
        label_names=None if names is None else tuple(map(str, names)),
        mean=np.array(body["mean"], np.float32),
        axes=np.array(body["axes"], np.float32),
        variance=np.array(body["variance"], np.float32),
        kl_per_dimension=np.array(body["kl_per_dimension"], np.float32),
        active_units=int(body["active_units"]),
        digest=str(body["digest"]),
    )


def read_object(response: httpx.Response) -> dict[str, Any]:
    """Return a JSON object; ``TypeError`` where it is another value."""
    body = response.json()
    if not isinstance(body, dict):
        raise TypeError("not a JSON object")
    return body


def read_picture(response: httpx.Response) -> Picture:
    """Return an answer in PNG."""
    if not response.content.startswith(b"\x89PNG"):
        raise ValueError("not a PNG")
    return Picture(response.content, seed_of(response))


def seed_of(response: httpx.Response) -> int | None:
    """Return the seed that an answer was drawn with."""
    seed = response.headers.get("X-Seed")
    return None if seed is None else int(seed)
