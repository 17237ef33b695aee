"""The same network with most residual blocks in bfloat16: for answers, not for training.

Only what the blocks add is rounded; the stream that they add to, and every layer on its way, stays in float32. On the
bundled digits that halves the error of autocast, which rounds the stream itself: the first convolution and the ones
between stages cost most of the accuracy and hardly any time. The better a model is trained, the smaller is its sigma
and the more a rounding counts; so the two blocks that cost most accuracy for their time, the first and the last one of
the encoder's last stage, stay in float32 too (docs/experiments.md).
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
    """Return a copy of ``vae`` with residual blocks that compute in bfloat16; inputs and outputs stay in float32.

    The first and the last block of the encoder's last stage are as they were.
    """
    rounded = copy.deepcopy(vae)
    last_stage = list(rounded.encoder.trunk)[-vae.config.blocks[-1] :]
    exact = last_stage[0], last_stage[-1]
    for parent in list(rounded.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ResidualBlock) and child not in exact:
                setattr(parent, name, Bf16Block(child))
    return rounded
