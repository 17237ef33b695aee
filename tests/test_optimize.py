"""Schedule, optimizer, moving average and step guard."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from model.optimize import (
    MAX_SKIPS_IN_A_ROW,
    NORMS_NEEDED,
    DivergedError,
    MovingAverage,
    StepGuard,
    first_not_finite,
    kl_weight_at,
    learning_rate_at,
    make_optimizer,
)
from model.vae import VAE
from tests.tiny import CONFIG


def test_the_learning_rate_warms_up_by_step_and_ends_at_zero() -> None:
    warm = [learning_rate_at(1e-3, step, 10, 0.0) for step in range(12)]
    assert warm[0] == pytest.approx(1e-4)
    assert warm[9:] == pytest.approx([1e-3] * 3)
    assert all(a <= b for a, b in pairwise(warm))
    cosine = [learning_rate_at(1e-3, 1000, 10, progress / 10) for progress in range(11)]
    assert all(a > b for a, b in pairwise(cosine))
    assert cosine[5] == pytest.approx(5e-4)
    assert cosine[10] == 0
    assert learning_rate_at(1e-3, 1000, 10, 1.5) == 0
    assert learning_rate_at(1e-3, 0, 0, 0.0) == 1e-3


def test_the_kls_weight_rises_to_one_and_stays() -> None:
    assert [kl_weight_at(progress, 0.1) for progress in (0.0, 0.05, 0.1, 0.5, 1.0)] == pytest.approx(
        [0.1, 0.55, 1, 1, 1]
    )
    assert kl_weight_at(0.0, 0.0) == 1


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "discretized_logistic"])
def test_weight_decay_pulls_matrices_and_kernels_only(likelihood: str) -> None:
    vae = VAE(type(CONFIG)(**{**CONFIG.to_dict(), "likelihood": likelihood, "channels": 3}))
    for parameter in vae.parameters():
        nn.init.constant_(parameter, 0.5)
        parameter.grad = torch.zeros_like(parameter)
    optimizer = make_optimizer(vae, 0.1, 0.01)
    optimizer.step()
    pulled = {name for name, parameter in vae.named_parameters() if float(parameter.detach().max()) < 0.5}
    assert pulled == {name for name, _ in vae.named_parameters() if name.endswith("weight")}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(vae.parameters()))


def test_the_moving_average_follows_the_textbooks_recursion() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    average = MovingAverage(network, 0.9)
    expected = network.weight.detach().clone()
    for step in range(120):
        with torch.no_grad():
            network.weight.add_(0.1 * torch.randn(2, 3))
        average.update(network, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.weight.detach()
    torch.testing.assert_close(average.values["weight"], expected)
    assert not torch.equal(average.values["weight"], network.weight)


def test_the_moving_average_of_weights_that_stand_still_is_the_weights() -> None:
    network = nn.Linear(3, 2)
    average = MovingAverage(network, 0.999)
    for step in range(5):
        average.update(network, step)
    torch.testing.assert_close(average.values["bias"], network.bias.detach())
    assert not average.values["bias"].requires_grad


def settled(norm: float = 1.0) -> StepGuard:
    guard = StepGuard()
    for _ in range(NORMS_NEEDED):
        assert guard.accepts(norm)
    return guard


def test_the_guard_takes_any_finite_gradient_before_it_knows_what_is_usual() -> None:
    guard = StepGuard()
    assert [guard.accepts(10.0**power) for power in range(NORMS_NEEDED)] == [True] * NORMS_NEEDED


def test_the_guard_skips_what_is_not_finite_or_far_above_the_median() -> None:
    guard = settled()
    assert [guard.accepts(norm) for norm in (10.0, 10.1, math.nan, 1.0, math.inf, 0.0)] == [
        True, False, False, True, False, True,
    ]  # fmt: skip
    assert guard.skipped == 3
    assert guard.in_a_row == 0


def test_the_guard_takes_an_outlier_after_ten_skips_so_that_training_cannot_stand_still() -> None:
    guard = settled()
    answers = [guard.accepts(1000.0) for _ in range(MAX_SKIPS_IN_A_ROW + 1)]
    assert answers == [False] * MAX_SKIPS_IN_A_ROW + [True]
    assert not guard.accepts(1000.0)


def test_the_guard_ends_a_training_whose_gradients_stay_not_finite() -> None:
    guard = settled()
    assert [guard.accepts(math.nan) for _ in range(MAX_SKIPS_IN_A_ROW)] == [False] * MAX_SKIPS_IN_A_ROW
    with pytest.raises(DivergedError, match="the last 11 gradients could not be used; lower --learning-rate"):
        guard.accepts(math.inf)


def test_the_first_tensor_that_is_not_finite_is_named() -> None:
    good, nan, inf = torch.zeros(2), torch.tensor([0.0, math.nan]), torch.tensor([math.inf])
    assert first_not_finite([("a", good), ("b", nan), ("c", inf)]) == "b"
    assert first_not_finite([("c", inf)]) == "c"
    assert first_not_finite([("a", good)]) is None
    assert first_not_finite([]) is None
