"""The moving parts of an optimization that are not the loss: schedule, optimizer, moving average, step guard.

They know parameters and gradients, and nothing of images, files or the clock: progress is a number in 0..1.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor, nn

MAX_SKIPS_IN_A_ROW = 10
NORMS_REMEMBERED = 101
NORMS_NEEDED = 20  # before their median says what is usual
OUTLIER = 10.0  # times that median
SCALE_RATE = 20.0


class DivergedError(RuntimeError):
    """Training cannot go on; the text names the first tensor that is not finite."""


def make_optimizer(network: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov & Hutter 2019) that decays matrices and kernels, not biases or scales.

    A likelihood's ``log_scale`` has far to go, and Adam moves every number by about the rate in a step: it gets a
    rate of its own, `SCALE_RATE` times the others', as the group's ``rate`` says.

    Args:
        network: its parameters, in their order, are what a saved state refers to.
        learning_rate: the first one; the caller sets it anew at each step.
        weight_decay: per unit of learning rate.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    scales: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        wanted = scales if name.endswith("log_scale") else kept
        (decayed if name.endswith("weight") and parameter.ndim > 1 else wanted).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    if scales:
        groups.append({"params": scales, "weight_decay": 0.0, "rate": SCALE_RATE})
    fused = decayed[0].device.type == "cuda"
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99), foreach=not fused, fused=fused)


def learning_rate_at(peak: float, step: int, warmup_steps: int, progress: float) -> float:
    """Return the learning rate of a step.

    Linear warm-up by step, times a cosine in ``progress`` that ends at zero: a run that is cut by time ends annealed.

    Args:
        peak: the highest rate.
        step: counted from 0.
        warmup_steps: steps until ``peak``.
        progress: share of the run that is done, 0..1.
    """
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    return peak * warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def kl_weight_at(progress: float, warmup: float, start: float = 0.1) -> float:
    """Return the weight of the KL in the loss: from ``start`` to 1 over the first ``warmup`` of the run, then 1.

    ``progress`` and ``warmup`` are shares of the run, 0..1.
    """
    return 1.0 if progress >= warmup else start + (1 - start) * progress / warmup


class MovingAverage:
    """An exponential moving average of a network's weights; it lags less at the start.

    Attributes:
        decay: share of the old average that is kept at each step, 0..1; less in the first steps.
        values: the averages under their parameters' names, on the parameters' device.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start at the weights of ``network``."""
        self.decay = decay
        self.values = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards the weights of ``network`` after update number ``step``, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [parameter.detach() for _, parameter in network.named_parameters()]
        torch._foreach_lerp_(list(self.values.values()), current, 1 - decay)


class StepGuard:
    """Decides whether a gradient is used: skips those not finite or far above the running median norm.

    At most ten in a row are skipped: then an outlier is taken (clipped), and a norm that is still not finite ends
    the training.

    Attributes:
        norms: the norms of the last gradients that were used.
        skipped: gradients skipped since the start.
        in_a_row: gradients skipped since the last one that was used.
    """

    def __init__(self) -> None:
        """Start without a past."""
        self.norms: deque[float] = deque(maxlen=NORMS_REMEMBERED)
        self.skipped = 0
        self.in_a_row = 0

    def accepts(self, norm: float) -> bool:
        """Return whether a gradient of this global ``norm`` is to be used, and remember it.

        Raises:
            DivergedError: this one is not finite, and the ten before it could not be used either.
        """
        finite = math.isfinite(norm)
        usual = len(self.norms) < NORMS_NEEDED or norm <= OUTLIER * statistics.median(self.norms)
        if finite and (usual or self.in_a_row >= MAX_SKIPS_IN_A_ROW):
            self.norms.append(norm)
            self.in_a_row = 0
            return True
        if self.in_a_row >= MAX_SKIPS_IN_A_ROW:
            raise DivergedError(f"the last {self.in_a_row + 1} gradients could not be used; lower --learning-rate")
        self.skipped += 1
        self.in_a_row += 1
        return False


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor that holds a NaN or an infinity, ``None`` where there is none."""
    return next((name for name, tensor in named if not bool(torch.isfinite(tensor).all())), None)
