"""Likelihoods against torch.distributions, against one, and against numbers worked by hand."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal

from model.likelihood import Bernoulli, DiscretizedLogistic, Gaussian, make_likelihood

SHAPE = (5, 3, 4, 6)
NAMES = ["bernoulli", "gaussian", "discretized_logistic"]


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def levels(*shape: int, seed: int = 1) -> Tensor:
    """Return pixels as 8-bit images have them."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).float() / 255


def with_scale(likelihood: Gaussian | DiscretizedLogistic, log_scale: float) -> Gaussian | DiscretizedLogistic:
    torch.nn.init.constant_(likelihood.log_scale, log_scale)
    return likelihood.requires_grad_(False)


def test_bernoulli_is_the_sum_of_torchs_log_probabilities() -> None:
    x, logits = (levels(*SHAPE) > 0.5).double(), 4 * seeded(*SHAPE).double()
    expected = TorchBernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    got = Bernoulli().log_prob(x, logits)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_bernoulli_of_grey_pixels_is_the_exact_expectation_over_their_binarizations() -> None:
    x, logits = torch.tensor([0.2, 0.9]).view(1, 1, 1, 2), torch.tensor([-1.5, 0.3]).view(1, 1, 1, 2)
    expected = 0.0
    for first in (0.0, 1.0):
        for second in (0.0, 1.0):
            share = (0.2 if first else 0.8) * (0.9 if second else 0.1)
            pixels = torch.tensor([first, second]).view(1, 1, 1, 2)
            expected += share * float(TorchBernoulli(logits=logits).log_prob(pixels).sum())
    assert float(Bernoulli().log_prob(x, logits)) == pytest.approx(expected, rel=1e-6)


def test_bernoulli_is_linear_in_x() -> None:
    a, b, logits = levels(*SHAPE, seed=1).double(), levels(*SHAPE, seed=2).double(), seeded(*SHAPE).double()
    score = Bernoulli().log_prob
    mixed = score(0.3 * a + 0.7 * b, logits)
    torch.testing.assert_close(mixed, 0.3 * score(a, logits) + 0.7 * score(b, logits), rtol=1e-12, atol=1e-12)


def test_bernoulli_of_coarse_logits_is_summed_in_float32() -> None:
    logits = seeded(2, 1, 28, 28).bfloat16()
    x = (levels(2, 1, 28, 28) > 0.5).float()
    got = Bernoulli().log_prob(x, logits)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), Bernoulli().log_prob(x, logits.double()), rtol=1e-6, atol=0)


def test_bernoulli_stays_exact_where_a_probability_rounds_to_one() -> None:
    wrong = Bernoulli().log_prob(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 200.0))
    assert float(wrong) == -200.0


@pytest.mark.parametrize("log_scale", [-3.0, -1.0, 0.5])
def test_gaussian_is_the_sum_of_torchs_log_densities(log_scale: float) -> None:
    x, center = levels(*SHAPE), seeded(*SHAPE)
    expected = Normal(center.double(), math.exp(log_scale)).log_prob(x.double()).sum((1, 2, 3))
    got = with_scale(Gaussian(), log_scale).log_prob(x, center)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-3)


def test_gaussian_density_is_highest_at_the_residuals_own_deviation() -> None:
    residual = 0.1 * seeded(1, 1, 64, 64)
    best = math.log(float(residual.square().mean().sqrt()))
    scores = [float(with_scale(Gaussian(), best + d).log_prob(residual, 0 * residual)) for d in (-0.2, 0.0, 0.2)]
    assert max(scores) == scores[1]


@pytest.mark.parametrize("log_scale", [-7.0, -5.0, -2.0, 0.0, 2.0])
@pytest.mark.parametrize("center", [-0.4, 0.0, 0.2, 0.5, 1.0, 1.7])
def test_the_256_levels_of_a_discretized_logistic_sum_to_one(center: float, log_scale: float) -> None:
    likelihood = with_scale(DiscretizedLogistic(1), log_scale)
    x = (torch.arange(256.0) / 255).view(256, 1, 1, 1)
    log_levels = likelihood.log_prob(x, torch.full((256, 1, 1, 1), center, dtype=torch.float64))
    assert float(log_levels.double().logsumexp(0)) == pytest.approx(0.0, abs=1e-5)


def test_discretized_logistic_is_a_difference_of_two_sigmoids() -> None:
    x, center = 100 / 255, 0.35
    scale = math.exp(-2.0)

    def below(value: float) -> float:
        return 1 / (1 + math.exp(-(value - center) / scale))

    expected = math.log(below(x + 0.5 / 255) - below(x - 0.5 / 255))
    image, output = torch.full((1, 1, 1, 1), x), torch.full((1, 1, 1, 1), center)
    assert float(with_scale(DiscretizedLogistic(1), -2.0).log_prob(image, output)) == pytest.approx(expected, rel=1e-5)


def test_discretized_logistic_has_one_scale_a_channel() -> None:
    likelihood = with_scale(DiscretizedLogistic(2), -2.0)
    x, center = levels(1, 2, 4, 4), levels(1, 2, 4, 4, seed=3)
    before = likelihood.log_prob(x, center)
    likelihood.log_scale[0, 1] = -4.0
    alone = with_scale(DiscretizedLogistic(1), -2.0).log_prob(x[:, :1], center[:, :1])
    other = with_scale(DiscretizedLogistic(1), -4.0).log_prob(x[:, 1:], center[:, 1:])
    after = likelihood.log_prob(x, center)
    torch.testing.assert_close(after, alone + other)
    assert float(after) != float(before)


def test_discretized_logistic_far_from_its_center_stays_finite_with_a_gradient() -> None:
    center = torch.full((1, 1, 1, 2), 0.5, requires_grad=True)
    likelihood = with_scale(DiscretizedLogistic(1), -7.0)
    score = likelihood.log_prob(torch.tensor([0.0, 200 / 255]).view(1, 1, 1, 2), center)
    score.sum().backward()
    assert center.grad is not None
    assert bool(torch.isfinite(score).all())
    assert bool((center.grad.abs() > 1).all())


@pytest.mark.parametrize("name", NAMES)
def test_nats_are_summed_over_pixels_and_never_averaged(name: str) -> None:
    likelihood = make_likelihood(name, 3)  # type: ignore[arg-type]
    x, output = (levels(*SHAPE) > 0.5).float(), seeded(*SHAPE)
    whole = likelihood.log_prob(x, output)
    assert whole.shape == (SHAPE[0],)
    parts = [likelihood.log_prob(x[..., i : i + 1], output[..., i : i + 1]) for i in range(SHAPE[-1])]
    torch.testing.assert_close(whole, torch.stack(parts).sum(0))


@pytest.mark.parametrize("name", NAMES)
def test_an_images_nats_do_not_depend_on_its_neighbors(name: str) -> None:
    likelihood = make_likelihood(name, 3)  # type: ignore[arg-type]
    x, output = levels(*SHAPE), seeded(*SHAPE)
    torch.testing.assert_close(likelihood.log_prob(x, output)[2:3], likelihood.log_prob(x[2:3], output[2:3]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_the_mean_image_lies_in_0_to_1_and_keeps_its_shape(name: str, kind: torch.dtype) -> None:
    mean = make_likelihood(name, 3).mean((50 * seeded(*SHAPE)).to(kind))  # type: ignore[arg-type]
    assert mean.shape == SHAPE
    assert mean.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    assert 0 <= float(mean.min()) <= float(mean.max()) <= 1


def test_the_mean_of_a_bernoulli_is_the_probability_of_white() -> None:
    assert float(Bernoulli().mean(torch.tensor(math.log(3.0)))) == pytest.approx(0.75)


def test_an_unknown_likelihood_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'beta'; expected bernoulli, gaussian or discretized_logistic"):
        make_likelihood("beta", 1)  # type: ignore[arg-type]
