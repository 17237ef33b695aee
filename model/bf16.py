"""The same network with most of its residual blocks' convolutions in bfloat16: for answers, not for training.

Only what the blocks add is rounded; the stream that they add to, and every layer on its way, stays in float32. On the
bundled digits that halves the error of autocast, which rounds the stream itself: the first convolution and the ones
between stages cost most of the accuracy and hardly any time.

How much rounding an encoder bears depends on its weights: the better it is trained, the smaller is sigma, and the more
an error of mu counts. So the error of each convolution is measured on images that the model draws, and those that
cost most accuracy stay in float32 until the rest is within a budget for every latent. The errors are independent: their
squares add up.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.golden import drawn_images
from model.pixels import to_unit
from model.vae import VAE, ResidualBlock

BUDGET = 0.0045
"""Root mean square error of mu, in sigmas, of the latent that has most.

The largest of 320,000 errors was three to five times that. A mean over all latents says less: those that are not active
have no error, and are many or few.
"""
EXAMPLES, EXAMPLES_SEED = 32, 2


class MixedBlock(nn.Module):
    """A residual block that takes and gives float32; each convolution computes in the precision of its weights."""

    def __init__(self, block: ResidualBlock) -> None:
        """Take over a block's layers."""
        super().__init__()
        self.first, self.second = block.first, block.second

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + second(silu(first(silu(x))))``, of the shape of ``x (N, width, H, W)``, in float32."""
        inner = self.first(F.silu(x).to(self.first.weight.dtype))
        change: Tensor = self.second(F.silu(inner).to(self.second.weight.dtype))
        return x + change


@torch.no_grad()
def in_bf16(vae: VAE) -> VAE:
    """Return a copy of ``vae``, which is on the CPU, with convolutions in bfloat16; inputs and outputs are float32.

    In the decoder these are all of the residual blocks'; in the encoder as many as `BUDGET` allows, the ones with the
    smallest errors first.
    """
    mixed = copy.deepcopy(vae)
    for parent in list(mixed.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ResidualBlock):
                setattr(parent, name, MixedBlock(child))
    for block, name in _convolutions(mixed.decoder):
        getattr(block, name).to(torch.bfloat16)
    sum_of_squares = torch.zeros(vae.config.latent_dim)
    for error, block, name in sorted(errors_alone(mixed), key=lambda found: float(found[0].max())):
        if (sum_of_squares + error).max() <= BUDGET**2:
            sum_of_squares += error
            getattr(block, name).to(torch.bfloat16)
    return mixed


def _convolutions(network: nn.Module) -> Iterator[tuple[MixedBlock, str]]:
    for block in network.modules():
        if isinstance(block, MixedBlock):
            yield from ((block, name) for name in ("first", "second"))


@torch.no_grad()
def errors_alone(mixed: VAE) -> list[tuple[Tensor, MixedBlock, str]]:
    """Return for each convolution of the encoder's blocks the error that it has if it alone is in bfloat16.

    The mean over images of the square of the error of mu in sigmas, ``(D,)``, with the block and the layer's name.
    """
    x = torch.from_numpy(to_unit(drawn_images(mixed, EXAMPLES, EXAMPLES_SEED)))
    mu, sigma = mixed.encode(x)
    errors = []
    for block, name in list(_convolutions(mixed.encoder)):
        exact = getattr(block, name)
        setattr(block, name, copy.deepcopy(exact).to(torch.bfloat16))
        errors.append((((mixed.encode(x)[0] - mu) / sigma).square().mean(0), block, name))
        setattr(block, name, exact)
    return errors
