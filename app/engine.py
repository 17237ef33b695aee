"""The model on its device: numpy in, numpy out. The only part of the service that knows torch.

An engine is immutable: new weights are a new engine, whose operations are new ``Op`` objects. Its operations run in
the batcher's threads; each pads its rows to a fixed batch size, so the device sees few shapes and an image's answer
does not depend on how many others came along. How a batch is executed is the business of an execution path.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.batching import Columns, Op
from app.eager import Compute, Eager
from app.graphs import CudaGraphs
from app.settings import Settings, SettingsError
from model import checkpoint
from model.bf16 import in_bf16
from model.elbo import log_likelihood_and_ratio, log_ratio, posterior_kl, quadrature
from model.latent_map import LatentMap, MapError, load_map, map_path

Array = NDArray[Any]
log = logging.getLogger("vae")
BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072)
MAX_BATCH = {"cuda": 512}  # where nothing else is asked for; on other devices 64
LARGEST_SMALLEST_BATCH = 8  # to which a single image is padded, if need be, for the sake of exactness
TOLERATED_MU = 0.02  # of sigma
TOLERATED_LOG_SIGMA = 0.02
DAMAGED = 10  # times what is tolerated: no rounding goes so far
MAX_STREAMS = 4


class Engine:
    """A verified checkpoint on a device, ready to compute.

    Attributes:
        name: what the checkpoint calls itself.
        digest: SHA-256 of the weights, first 16 hex digits.
        image_shape: ``(C, H, W)``.
        latent_dim: ``D``.
        device: ``cpu``, ``cuda:0`` or ``mps``.
        precision: ``fp32`` or ``bf16``, of the residual blocks.
        path: name of the execution path.
        max_batch: rows of the largest batch.
        streams: batches that run at the same time.
        notes: what the checkpoint remembers beside its weights.
        map: of the latent space; None where none lies beside the weights.
        exact_kl: whether the KL of a posterior from the prior has a closed form, and so falls apart by dimension.
        encode: ``x (n, C, H, W)`` to ``mu, sigma``, ``(n, D)`` each, and the KL of each posterior in nats, ``(n,)``, by
            quadrature where it has no closed form.
        decode: ``z (n, D)`` to mean images ``(n, C, H, W)`` in 0..1.
        draw: standard normal noise ``(n, D)`` to latents ``(n, D)`` of the prior and their mean images.
        weigh: ``x, mu, sigma, noise (n, D)`` to ``log p(x|z)`` and ``log p(z) - log q(z|x)``, ``(n,)`` float64.
        relate: ``mu, sigma, noise`` to the latter alone; for a prior without a closed form.
    """

    def __init__(
        self, loaded: checkpoint.Checkpoint, device: str, precision: str, max_batch: int = 0, streams: int = 0
    ) -> None:
        """Move a checkpoint to ``device``; ``precision`` is ``fp32`` or ``bf16``, 0 lets the device decide."""
        self._device = torch.device(device)
        self._vae = loaded.vae.to(self._device)
        self._network = in_bf16(self._vae) if precision == "bf16" else self._vae
        self.max_batch = max_batch or MAX_BATCH.get(self._device.type, 64)
        self.streams = streams or (1 if self._device.type != "cpu" else min(MAX_STREAMS, len(os.sched_getaffinity(0))))
        self._buckets = sorted({*(size for size in BUCKETS if size < self.max_batch), self.max_batch})
        self._path = self._choose_path()
        self.name, self.digest = loaded.notes.name, loaded.digest[:16]
        self.notes, self.config = loaded.notes, loaded.vae.config
        self.image_shape, self.latent_dim = self.config.image_shape, self.config.latent_dim
        self.device, self.precision, self.path = str(self._device), precision, self._path.name
        self.parameters = self._vae.parameter_count()
        self.map: LatentMap | None = None
        self.encode = Op("encode", self._runner(self._encode))
        self.decode = Op("decode", self._runner(self._decode))
        self.draw = Op("sample", self._runner(self._draw))
        self.weigh = Op("score", self._runner(self._weigh))
        self.exact_kl = self._vae.prior.closed_form_kl
        self._points = quadrature(self.latent_dim).to(self._device)
        self.relate = Op("kl", self._runner(self._relate))

    def _choose_path(self) -> Eager | CudaGraphs:
        if self._device.type == "cuda":
            return CudaGraphs(self._device, self.max_batch, self.streams)
        return Eager(self._device)

    def warm_up(self) -> None:
        """Run every operation at every batch size, and keep the sizes that agree with the largest bit for bit.

        Then an image has one answer, whatever company it is computed in. (Libraries choose other kernels for the
        smallest batches, which round differently.) Where only large sizes agree, all are kept: speed goes first.
        Sizes that do not fit into memory are given up.
        """
        while True:
            try:
                expected = self._try(self.max_batch)
                break
            except MemoryError:
                if len(self._buckets) == 1:
                    raise
                self._buckets.pop()
                self.max_batch = self._buckets[-1]
                log.warning("batches are limited to %d items: larger ones do not fit into memory", self.max_batch)

        def agrees(size: int) -> bool:
            return all(np.array_equal(a, b[:size]) for a, b in zip(self._try(size), expected, strict=True))

        agreeing = [size for size in self._buckets if agrees(size)]
        if agreeing[0] > LARGEST_SMALLEST_BATCH:
            log.warning("batch sizes round differently on %s: company may change an answer's last bits", self.device)
        else:
            self._buckets = agreeing

    def _try(self, size: int) -> list[Array]:
        """Return the columns of every operation for ``size`` rows that are always the same, from every slot."""
        random = np.random.default_rng(0)
        x = random.random((self.max_batch, *self.image_shape), np.float32)[:size]
        noise = random.standard_normal((self.max_batch, self.latent_dim), np.float32)[:size]
        for _ in range(self._path.slots):
            mu, sigma, kl = self.encode.run(x)
            others = [self.decode.run(noise), self.draw.run(noise), self.weigh.run(x, mu, sigma, noise)]
            if not self.exact_kl:
                others.append(self.relate.run(mu, sigma, noise))
        return [mu, sigma, kl, *(column for columns in others for column in columns)]

    def golden_errors(self) -> tuple[float, float]:
        """Return the golden batch's largest error of mu, in units of sigma, and of log sigma.

        Both are 0 where the checkpoint has no golden batch.
        """
        notes = self.notes
        if not len(notes.golden_images):
            return 0.0, 0.0
        mu, sigma, _ = self.encode.run(notes.golden_images.astype(np.float32) / np.float32(255))
        mu_error = np.abs(mu - notes.golden_mu) / notes.golden_sigma
        return float(mu_error.max()), float(np.abs(np.log(sigma / notes.golden_sigma)).max())

    def _runner(self, compute: Compute) -> Callable[..., Columns]:
        """Return a computation of tensors as one of arrays, in batches of few sizes."""
        execute = self._path.executor(compute)

        def run(*columns: Array) -> Columns:
            rows = len(columns[0])
            return execute(columns, next((size for size in self._buckets if size >= rows), rows))

        return run

    def _encode(self, x: Tensor) -> tuple[Tensor, ...]:
        mu, sigma = self._network.encode(x)
        return mu, sigma, posterior_kl(self._vae, mu, sigma, self._points)

    def _decode(self, z: Tensor) -> tuple[Tensor, ...]:
        return (self._vae.likelihood.mean(self._network.decode(z)),)

    def _draw(self, noise: Tensor) -> tuple[Tensor, ...]:
        z = self._vae.prior.transform(noise)
        return (z, *self._decode(z))

    def _weigh(self, x: Tensor, mu: Tensor, sigma: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return log_likelihood_and_ratio(self._vae, x, mu, sigma, noise)

    def _relate(self, mu: Tensor, sigma: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return (log_ratio(self._vae, mu, sigma, noise),)


def load(settings: Settings) -> Engine:
    """Read, verify, place and warm the model that ``settings`` name.

    Raises:
        SettingsError: no such device, or a checkpoint that cannot be used; one line per problem.
    """
    device = choose_device(settings.device)
    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())  # one thread a stream
    path = checkpoint_path(settings.model)
    engine = _in_force(path, device, settings)
    if not len(engine.notes.held_out_elbo):
        raise SettingsError(
            [f"VAE_MODEL: {path}: it remembers no scores of held-out images; run `vae evaluate {path}`"]
        )
    engine.map = _map_beside(path, engine)
    engine.warm_up()
    return engine


def checkpoint_path(model: str) -> Any:
    """Return the file of a bundled name or a path.

    Raises:
        SettingsError: there is none.
    """
    try:
        return checkpoint.resolve(model)
    except checkpoint.CheckpointError as error:
        raise SettingsError([f"VAE_MODEL: {error}"]) from error


def choose_device(wanted: str) -> str:
    """Return the device to use for a setting of ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        SettingsError: the named device is not there.
    """
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            [f"VAE_DEVICE: got '{wanted}'; there are {torch.cuda.device_count()} CUDA devices; use auto or cpu"]
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError(["VAE_DEVICE: got 'mps'; this machine has no such device; use auto or cpu"])
    return f"cuda:{device.index or 0}" if device.type == "cuda" else wanted


def _in_force(path: Any, device: str, settings: Settings) -> Engine:
    """Return an engine in the precision asked for; ``auto`` is bf16 on a GPU where the golden batch allows it.

    bf16 that was asked for by name is used, with a warning where it is coarser than ``auto`` would take.
    """
    try:
        if settings.precision == "auto" and device.startswith("cuda") and torch.cuda.is_bf16_supported():
            engine = Engine(checkpoint.load(path), device, "bf16", settings.max_batch, settings.streams)
            if _tolerable(engine):
                return engine
        wanted = "fp32" if settings.precision == "auto" else settings.precision
        engine = Engine(checkpoint.load(path), device, wanted, settings.max_batch, settings.streams)
    except checkpoint.CheckpointError as error:
        raise SettingsError([f"VAE_MODEL: {error}"]) from error
    if not _tolerable(engine):
        mu_error, log_sigma_error = engine.golden_errors()
        text = (
            f"{path}: on {device} in {engine.precision} the golden batch is off by {mu_error:.3g} sigma in mu and "
            f"{log_sigma_error:.3g} in log sigma (tolerated: {TOLERATED_MU:g} and {TOLERATED_LOG_SIGMA:g})"
        )
        if engine.precision == "fp32" or not _tolerable(engine, DAMAGED):
            raise SettingsError([f"VAE_MODEL: {text}; the file is damaged, or not of this release"])
        log.warning("VAE_PRECISION: %s", text)
    return engine


def _map_beside(path: Any, engine: Engine) -> LatentMap | None:
    """Return the map beside a checkpoint; one that cannot be used is as good as none, but for a warning."""
    try:
        return load_map(map_path(path), engine.digest, engine.latent_dim)
    except MapError as error:
        log.warning("ignored: %s; `vae evaluate` writes a new one", error)
        return None


def _tolerable(engine: Engine, times: float = 1) -> bool:
    mu_error, log_sigma_error = engine.golden_errors()
    return mu_error <= times * TOLERATED_MU and log_sigma_error <= times * TOLERATED_LOG_SIGMA
