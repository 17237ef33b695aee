"""The model on its device: numpy in, numpy out. The only part of the service that knows torch.

An engine is immutable: new weights are a new engine, whose operations are new ``Op`` objects. Its operations run in
the batcher's threads; each pads its rows to a fixed batch size, so the device sees few shapes and an image's answer
does not depend on how many others came along. How a batch is executed is the business of an execution path.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app import compiled
from app.batching import Columns, Op
from app.cores import usable_cores
from app.eager import Compute, Eager
from app.graphs import CudaGraphs
from model import checkpoint
from model.bf16 import in_bf16
from model.elbo import log_likelihood_and_ratio, log_ratio, posterior_kl, quadrature
from model.latent_map import LatentMap

Array = NDArray[Any]
log = logging.getLogger("vae")
BUCKETS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072)
MAX_BATCH = {"cuda": 512}  # where nothing else is asked for; on other devices 64
LARGEST_SMALLEST_BATCH = 8  # to which a single image is padded, if need be, for the sake of exactness
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
        self,
        loaded: checkpoint.Checkpoint,
        device: str,
        precision: str,
        max_batch: int = 0,
        streams: int = 0,
        path: str = "torch",
    ) -> None:
        """Move a checkpoint to ``device``.

        Args:
            loaded: the checkpoint; it is used up.
            device: as for `choose_device`, but ``auto``.
            precision: ``fp32`` or ``bf16``.
            max_batch: rows of the largest batch; 0 lets the device decide.
            streams: batches that run at the same time; 0 lets the device decide.
            path: on the CPU, ``openvino`` to compile the network; a GPU has a path of its own.
        """
        self._device = torch.device(device)
        self.max_batch = max_batch or MAX_BATCH.get(self._device.type, 64)
        self.streams = streams or (min(MAX_STREAMS, usable_cores()) if self._device.type == "cpu" else 1)
        network = in_bf16(loaded.vae) if precision == "bf16" else loaded.vae
        self._vae = loaded.vae.to(self._device)  # what scores are computed with, always in fp32
        self._network = network.to(self._device)
        self.parameters = self._vae.parameter_count()
        self.name, self.digest = loaded.notes.name, loaded.digest[:16]
        self.notes, self.config = loaded.notes, loaded.vae.config
        self.image_shape, self.latent_dim = self.config.image_shape, self.config.latent_dim
        self.device, self.precision = str(self._device), precision
        self._compiled: list[compiled.CompiledVAE] = []
        self._path, self.path = self._choose_path(path)
        self.map: LatentMap | None = None
        self.exact_kl = self._vae.prior.closed_form_kl
        graphs = self._compiled[0] if self._compiled else None
        self.encode = Op("encode", graphs.encode_with_kl if graphs and self.exact_kl else self._runner(self._encode))
        self.decode = Op("decode", graphs.mean_images if graphs else self._runner(self._decode))
        self.draw = Op("sample", self._runner(self._draw))
        self.weigh = Op("score", self._runner(self._weigh))
        self._pads = not self._compiled or not self.exact_kl  # a learned prior's layers are torch's on every path
        sizes = BUCKETS if self._pads else compiled.ENCODER_SIZES
        self._buckets = sorted({*(size for size in sizes if size < self.max_batch), self.max_batch})
        self._points = quadrature(self.latent_dim).to(self._device)
        self.relate = Op("kl", self._runner(self._relate))

    def _choose_path(self, path: str) -> tuple[Eager | CudaGraphs, str]:
        if self._device.type == "cuda":
            return CudaGraphs(self._device, self.max_batch, self.streams), CudaGraphs.name
        if path == compiled.NAME:
            encoder_sizes, decoder_sizes = (
                tuple(size for size in sizes if size <= self.max_batch)
                for sizes in (compiled.ENCODER_SIZES, compiled.DECODER_SIZES)
            )
            first = compiled.CompiledVAE(self._network, self.streams, encoder_sizes, decoder_sizes)
            self._compiled.append(first)
            if self.precision == "bf16":
                largest = decoder_sizes[-1:]
                self._compiled.append(compiled.CompiledVAE(self._vae, self.streams, (), largest, first.graphs[0]))
            self._network, self._vae = self._compiled[0], self._compiled[-1]
        return Eager(self._device), path

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
            for network in self._compiled:
                network.use_only(agreeing)

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
            return execute(
                columns, next((size for size in self._buckets if size >= rows), rows) if self._pads else rows
            )

        return run

    def _encode(self, x: Tensor) -> tuple[Tensor, ...]:
        mu, sigma = self._network.encode(x)
        if self.exact_kl:  # the metric's; whoever asks for the KL gets that of `model.gaussian`, which never cancels
            return mu, sigma, ((mu.square() + sigma.square() - 1) / 2 - sigma.log()).sum(1)
        return mu, sigma, posterior_kl(self._vae, mu, sigma, self._points)

    def _decode(self, z: Tensor) -> tuple[Tensor, ...]:
        if self._compiled:
            return tuple(map(torch.from_numpy, self._compiled[0].mean_images(z.numpy())))
        return (self._vae.likelihood.mean(self._network.decode(z)),)

    def _draw(self, noise: Tensor) -> tuple[Tensor, ...]:
        z = self._vae.prior.transform(noise)
        return (z, *self._decode(z))

    def _weigh(self, x: Tensor, mu: Tensor, sigma: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return log_likelihood_and_ratio(self._vae, x, mu, sigma, noise)

    def _relate(self, mu: Tensor, sigma: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return (log_ratio(self._vae, mu, sigma, noise),)
