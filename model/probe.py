"""How much of a label a linear classifier reads off the posterior means."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

STEPS = 200
PENALTY = 1e-4  # on the squared weights


def linear_probe(seen: Tensor, seen_labels: NDArray[Any], met: Tensor, met_labels: NDArray[Any]) -> float:
    """Return the accuracy on ``met`` of a multinomial logistic regression that was fitted on ``seen``.

    Both are standardized by the mean and deviation of ``seen``; the fit is L-BFGS from zero, so nothing is random.

    Args:
        seen: ``(N, D)``.
        seen_labels: classes, integers from 0, ``(N,)``.
        met: ``(M, D)``.
        met_labels: ``(M,)``.

    Returns:
        share of right answers, 0..1.
    """
    mean, deviation = seen.mean(0), seen.std(0).clamp_min(1e-6)
    features, target = (seen - mean) / deviation, torch.tensor(seen_labels, dtype=torch.long)
    weight = torch.zeros(seen.shape[1], int(target.max()) + 1, requires_grad=True)  # (D, classes)
    bias = torch.zeros(weight.shape[1], requires_grad=True)
    fit = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        fit.zero_grad()
        value = F.cross_entropy(features @ weight + bias, target) + PENALTY * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    fit.step(loss)  # type: ignore[no-untyped-call]
    guessed = ((met - mean) / deviation @ weight + bias).argmax(1)
    return float((guessed == torch.tensor(met_labels, dtype=torch.long)).double().mean())
