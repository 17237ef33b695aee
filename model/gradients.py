"""The gradient of one batch: eager on a CPU, replayed as a CUDA graph on a GPU.

A network this small keeps a GPU waiting for its kernels to be launched; a graph launches all of them at once. Which
images and which noise come in, and what is done with the gradient, is the business of ``train``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.elbo import ObjectiveName, training_loss
from model.vae import VAE

WARM_UPS = 3  # eager passes before the capture: libraries choose their kernels in the first ones


class Gradients:
    """Computes the gradient of the mean loss of batches of one size, and leaves it in the parameters' ``grad``."""

    def __init__(self, vae: VAE, objective: ObjectiveName, precision: torch.dtype) -> None:
        """Compute nothing yet: on a GPU the first batch is captured."""
        self._vae, self._objective, self._precision = vae, objective, precision
        self._replay: Callable[[Tensor, Tensor, float], Tensor] | None = None

    def __call__(self, x: Tensor, epsilon: Tensor, kl_weight: float) -> Tensor:
        """Return the negative bound of the batch in nats, averaged over its images (a scalar on the device).

        Args:
            x: targets, ``(B, C, H, W)``, the same shape at each call.
            epsilon: standard normal noise, ``(B, K, D)``.
            kl_weight: of the KL in the loss.
        """
        if x.device.type != "cuda":
            return self._compute(x, epsilon, torch.tensor(kl_weight))
        if self._replay is None:
            self._replay = self._captured(x, epsilon)
        return self._replay(x, epsilon, kl_weight)

    def _captured(self, x: Tensor, epsilon: Tensor) -> Callable[[Tensor, Tensor, float], Tensor]:
        """Return what copies a batch to where the captured graph reads it, and replays the graph."""
        inputs = (x.clone(), epsilon.clone(), torch.ones((), device=x.device))
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._compute(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._vae.zero_grad(set_to_none=True)  # so that the graph owns the gradients, and writes them anew each time
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            bound = self._compute(*inputs)

        def replay(x: Tensor, epsilon: Tensor, kl_weight: float) -> Tensor:
            inputs[0].copy_(x)
            inputs[1].copy_(epsilon)
            inputs[2].fill_(kl_weight)
            graph.replay()
            return bound

        return replay

    def _compute(self, x: Tensor, epsilon: Tensor, kl_weight: Tensor) -> Tensor:
        self._vae.zero_grad(set_to_none=True)
        loss, bound = training_loss(self._vae, x, epsilon, self._objective, kl_weight, self._precision)
        loss.mean().backward()  # type: ignore[no-untyped-call]
        return bound.mean()
