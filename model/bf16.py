"""The same network with its residual blocks in bfloat16: for answers, not for training.

Only what the blocks add is rounded; the stream that they add to, and every layer on its way, stays in float32. On the
bundled digits that halves the error of autocast, which rounds the stream itself: the first convolution and the ones
between stages cost most of the accuracy and hardly any time.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.vae import VAE, ResidualBlock


class Bf16Block(nn.Module):
    """``x + conv(silu(conv(silu(x))))`` with ``x`` in float32 and both convolutions in bfloat16."""

    def __init__(self, block: ResidualBlock) -> None:
        """Take over a block's weights, rounded once."""
        super().__init__()
        self.first = copy.deepcopy(block.first).to(torch.bfloat16)
        self.second = copy.deepcopy(block.second).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of ``x (N, width, H, W)``, in float32."""
        change: Tensor = self.second(F.silu(self.first(F.silu(x).to(torch.bfloat16))))
        return x + change


def in_bf16(vae: VAE) -> VAE:
    """Return a copy of ``vae`` whose residual blocks compute in bfloat16; its inputs and outputs stay in float32."""
    rounded = copy.deepcopy(vae)
    for parent in list(rounded.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ResidualBlock):
                setattr(parent, name, Bf16Block(child))
    return rounded
