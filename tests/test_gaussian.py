"""Diagonal normals against 60 digits, torch.distributions, Monte Carlo and numbers worked by hand."""

import math
from collections.abc import Iterator

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from model.gaussian import (
    draw,
    excess,
    fresh_seed,
    kl_diagonal,
    kl_to_standard_normal,
    log_prob,
    log_prob_standard,
    noise,
)

DIGITS = mp.MPContext()
DIGITS.dps = 60

NEAR_ONE = [1 + sign * 10.0**-k for k in range(1, 16) for sign in (-1, 1)]
SERIES_ENDS = [0.75 - 1e-16, 0.75, 0.75 + 1e-16, 1.25 - 3e-16, 1.25, 1.25 + 3e-16]
FAR = [1e-300, 1e-30, 1e-8, 0.01, 0.3, 0.5, 2.0, 3.7, 1e3, 1e8, 1e150]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch from splitting small tensors over cores, where its threads mostly wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def column(values: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    """Return values as ``(N, 1)``."""
    return torch.tensor(values, dtype=dtype)[:, None]


def witness(mu: float, sigma: float) -> mp.mpf:
    """Return KL[N(mu, sigma²) ‖ N(0, 1)] by the textbook's formula, in 60 digits."""
    mu, sigma = DIGITS.mpf(mu), DIGITS.mpf(sigma)
    return (mu**2 + sigma**2 - 1) / 2 - DIGITS.log(sigma)


def relative_error(value: float, exact: mp.mpf) -> float:
    return float(abs(value - exact) / abs(exact))


def random_pair(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return mu and sigma ``(n, d)``, sigma over two orders of magnitude."""
    a = torch.from_numpy(noise(seed, n, (2, d))).double()
    return a[:, 0], a[:, 1].exp()


@pytest.mark.parametrize("mu", [0.0, 1e-9, 0.7])
def test_kl_agrees_with_60_digits_for_sigma_from_1e_300_to_1e150(mu: float) -> None:
    sigmas = NEAR_ONE + SERIES_ENDS + FAR
    got = kl_to_standard_normal(torch.full((len(sigmas), 1), mu, dtype=torch.float64), column(sigmas))
    for value, sigma in zip(got[:, 0].tolist(), sigmas, strict=True):
        assert relative_error(value, witness(mu, sigma)) < 1e-15, sigma


def test_kl_in_float32_keeps_the_type_and_the_digits_of_a_tiny_divergence() -> None:
    sigma = column([0.5, 0.9, 1 - 2.0**-12, 1 + 2.0**-20, 1.2, 4.0], torch.float32)
    got = kl_to_standard_normal(torch.full_like(sigma, 1e-4), sigma)
    assert got.dtype == torch.float32
    mu = float(torch.tensor(1e-4, dtype=torch.float32))
    for value, s in zip(got[:, 0].tolist(), sigma[:, 0].tolist(), strict=True):
        assert relative_error(value, witness(mu, s)) < 5e-7, s


def test_kl_is_exactly_zero_for_the_standard_normal_and_never_negative() -> None:
    assert kl_to_standard_normal(torch.zeros(2, 3), torch.ones(2, 3)).abs().max() == 0
    around_one = 1 + torch.arange(-2000, 2001, dtype=torch.float32)[:, None] * 2.0**-23
    assert (kl_to_standard_normal(torch.zeros_like(around_one), around_one) >= 0).all()


def test_kl_of_a_hand_worked_case() -> None:
    """Both directions between N(1, 2²) and N(0, 1).

    KL[N(1, 2²) ‖ N(0, 1)] = ½ (1² + 2² − 1) − ln 2 = 2 − 0.693147… = 1.306853…, and
    KL[N(0, 1) ‖ N(1, 2²)] = ½ ((0 − 1)²/2² + 1/2² − 1) − ln ½ = −0.25 + 0.693147… = 0.443147….
    """
    one, two, zero = column([1.0]), column([2.0]), column([0.0])
    assert kl_to_standard_normal(one, two).item() == pytest.approx(1.3068528194400547, rel=1e-15)
    assert kl_diagonal(zero, one, one, two).item() == pytest.approx(0.4431471805599453, rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_has_the_gradients_mu_and_sigma_minus_its_inverse_in_both_branches(dtype: torch.dtype) -> None:
    sigma = column([1e-8, 0.2, 0.7499, 0.7501, 0.99, 1.0, 1.001, 1.2499, 1.2501, 9.0, 1e8], dtype)
    mu = torch.linspace(-3, 3, len(sigma), dtype=dtype)[:, None]
    sigma.requires_grad_()
    mu.requires_grad_()
    kl_to_standard_normal(mu, sigma).sum().backward()
    exact = (sigma.detach() - 1) * (sigma.detach() + 1) / sigma.detach()
    tolerance = 8 * torch.finfo(dtype).eps
    np.testing.assert_allclose(sigma.grad, exact, rtol=tolerance, atol=0)
    np.testing.assert_allclose(mu.grad, mu.detach(), rtol=0, atol=0)


def test_kl_passes_the_numerical_check_of_first_and_second_derivatives() -> None:
    mu, sigma = (t.requires_grad_() for t in random_pair(3, 4, seed=1))
    assert torch.autograd.gradcheck(kl_to_standard_normal, (mu, sigma))
    assert torch.autograd.gradgradcheck(kl_to_standard_normal, (mu, sigma))


def test_kl_agrees_with_torch_distributions() -> None:
    mu, sigma = random_pair(50, 8, seed=2)
    mu_q, sigma_q = random_pair(50, 8, seed=3)
    standard = kl_divergence(Normal(mu, sigma), Normal(0.0, 1.0))
    np.testing.assert_allclose(kl_to_standard_normal(mu, sigma), standard, rtol=1e-12, atol=1e-14)
    general = kl_divergence(Normal(mu, sigma), Normal(mu_q, sigma_q))
    np.testing.assert_allclose(kl_diagonal(mu, sigma, mu_q, sigma_q), general, rtol=1e-12, atol=1e-14)


def test_kl_of_two_normals_agrees_with_60_digits_also_where_they_nearly_coincide() -> None:
    for sigma_q in (1e-200, 0.3, 1.0, 7e5, 1e200):
        for ratio in NEAR_ONE + SERIES_ENDS + FAR[2:-1]:
            sigma_p = sigma_q * ratio
            mu_q, mu_p = sigma_q / 3, sigma_q / 3 * (1 + (ratio - 1) / 7)
            got = kl_diagonal(column([mu_p]), column([sigma_p]), column([mu_q]), column([sigma_q])).item()
            q = DIGITS.mpf(sigma_q)
            exact = witness((DIGITS.mpf(mu_p) - DIGITS.mpf(mu_q)) / q, DIGITS.mpf(sigma_p) / q)
            assert relative_error(got, exact) < 1e-12, (sigma_q, ratio)


def test_kl_of_two_normals_is_zero_for_equal_ones_and_the_standard_one_for_q_standard() -> None:
    mu, sigma = random_pair(20, 5, seed=4)
    assert kl_diagonal(mu, sigma, mu, sigma).abs().max() == 0
    against_standard = kl_diagonal(mu, sigma, torch.zeros_like(mu), torch.ones_like(mu))
    assert torch.equal(against_standard, kl_to_standard_normal(mu, sigma))


def test_kl_refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\), \(1, 2\)"):
        kl_to_standard_normal(torch.zeros(3, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="shapes differ"):
        kl_diagonal(torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(2), torch.ones(3, 2))


def test_excess_is_d_minus_its_logarithm_on_both_sides_of_the_branch() -> None:
    for d in [-0.9999, -0.5, -0.25, -0.2499999, -1e-3, 1e-300, 1e-12, 0.2499999, 0.25, 0.2500001, 40.0]:
        x = torch.tensor(d, dtype=torch.float64)
        exact = DIGITS.mpf(d) - DIGITS.log1p(DIGITS.mpf(d))
        assert excess(x, x.log1p()).item() == pytest.approx(float(exact), rel=3e-15, abs=0), d


def test_log_probabilities_agree_with_torch_distributions() -> None:
    mu, sigma = random_pair(30, 6, seed=5)
    z = torch.from_numpy(noise(6, 30, (6,))).double() * 3
    np.testing.assert_allclose(log_prob(z, mu, sigma), Normal(mu, sigma).log_prob(z), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(log_prob_standard(z), Normal(0.0, 1.0).log_prob(z), rtol=1e-13, atol=1e-13)


def test_draws_are_mu_plus_epsilon_sigma_for_many_draws_of_each_row() -> None:
    mu, sigma = random_pair(4, 3, seed=7)
    epsilon = torch.from_numpy(noise(8, 5, (4, 3))).double()
    z = draw(mu, sigma, epsilon)
    assert z.shape == (5, 4, 3)
    assert z[2, 1, 0] == mu[1, 0] + epsilon[2, 1, 0] * sigma[1, 0]


def monte_carlo_distance(mu: Tensor, sigma_drawn: Tensor, sigma: Tensor, draws: int = 40_000) -> float:
    """Return how many standard errors the KL estimated from draws lies from the closed form.

    The estimate is the mean of ``ln q(z) − ln p(z)`` with q = N(mu, sigma²), over draws of width sigma_drawn.
    """
    epsilon = torch.from_numpy(noise(9, draws, (len(mu),))).double()
    z = draw(mu, sigma_drawn, epsilon)
    terms = (log_prob(z, mu, sigma) - log_prob_standard(z)).sum(1)
    exact = kl_to_standard_normal(mu, sigma).sum()
    return float((terms.mean() - exact).abs() / (terms.std() / math.sqrt(draws)))


def test_monte_carlo_kl_of_seeded_draws_is_within_4_standard_errors_of_the_closed_form() -> None:
    for log_variance in (-4.0, -1.0, 0.5, 1.5):
        sigma = torch.full((8,), math.exp(log_variance / 2), dtype=torch.float64)
        assert monte_carlo_distance(torch.linspace(-2, 2, 8).double(), sigma, sigma) < 4


def test_monte_carlo_kl_exposes_draws_whose_width_is_not_the_one_that_the_kl_reads() -> None:
    """The classic slip: drawing with ``0.5 · s`` while the KL reads ``exp(s)`` as the variance."""
    for s in (0.5, 1.5, 2.5):
        drawn, read = torch.full((8,), 0.5 * s).double(), torch.full((8,), math.exp(s / 2)).double()
        assert monte_carlo_distance(torch.linspace(-2, 2, 8).double(), drawn, read) > 100


def test_items_of_a_seed_depend_on_seed_and_index_alone() -> None:
    many = noise(7, 64, (32,))
    assert many.dtype == np.float32
    assert np.array_equal(noise(7, 4, (32,)), many[:4])
    assert np.array_equal(noise(7, 10, (32,), first=30), many[30:40])
    assert np.array_equal(noise(7, 64, (32,)), many)


def test_draws_of_an_item_are_the_first_of_its_more_draws() -> None:
    assert np.array_equal(noise(7, 3, (4, 5)), noise(7, 3, (8, 5))[:, :4])
    assert np.array_equal(noise(7, 3, (5,)), noise(7, 3, (1, 5))[:, 0])


def test_noise_takes_every_shape_and_every_seed() -> None:
    assert noise(0, 3, ()).shape == (3,)
    assert noise(0, 0, (2, 3)).shape == (0, 2, 3)
    assert noise(0, 2, (0,)).shape == (2, 0)
    assert np.isfinite(noise(2**63 - 1, 2, (3,), first=2**63)).all()


@pytest.mark.parametrize(
    ("seed", "item", "values"),
    [
        (0, 0, [0.059911035001277924, 0.015559634193778038, -1.1644384860992432]),
        (7, 0, [-0.2933390140533447, 1.703830599784851, 1.5391918420791626]),
        (7, 63, [-0.5516783595085144, 1.349926471710205, -0.1490233689546585]),
        (2**63 - 1, 5, [1.0048410892486572, -0.857890784740448, 1.5397999286651611]),
    ],
)
def test_seeds_mean_the_same_numbers_under_every_numpy(seed: int, item: int, values: list[float]) -> None:
    """NumPy may change its generators' streams; a published seed must then not change in silence."""
    assert noise(seed, 1, (3,), first=item)[0].tolist() == values


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 10**30])
def test_a_seed_outside_63_bits_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="seed lies outside 0 … 2\\*\\*63 − 1"):
        noise(seed, 1, (1,))


@pytest.mark.parametrize(("items", "first"), [(-1, 0), (1, -1)])
def test_negative_counts_are_refused(items: int, first: int) -> None:
    with pytest.raises(ValueError, match="counts"):
        noise(0, items, (1,), first)


def test_noise_is_standard_normal_and_unrelated_between_neighboring_items_and_seeds() -> None:
    """Moments and correlations of 200,000 numbers, each within 4.5 standard errors."""
    a = noise(11, 2000, (100,)).astype(np.float64)
    bound = 4.5 / math.sqrt(a.size)
    assert abs(a.mean()) < bound
    assert abs((a**2).mean() - 1) < bound * math.sqrt(2)
    assert abs((a**4).mean() - 3) < bound * math.sqrt(96)
    assert abs((a[1:] * a[:-1]).mean()) < bound * 1.001
    assert abs((a[:, 1:] * a[:, :-1]).mean()) < bound * 1.01
    assert abs((a * noise(12, 2000, (100,))).mean()) < bound


def test_fresh_seeds_differ_and_survive_javascript() -> None:
    seeds = [fresh_seed() for _ in range(100)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed <= 2**53 - 1 for seed in seeds)


def test_streams_of_one_seed_have_nothing_in_common() -> None:
    first, second = noise(7, 500, (32,)), noise(7, 500, (32,), stream=1)
    assert np.array_equal(second, noise(7, 500, (32,), stream=1))
    assert abs(float(np.corrcoef(first.ravel(), second.ravel())[0, 1])) < 4 / first.size**0.5
    assert not np.intersect1d(first, second).size > first.size / 1000  # float32 has few values near zero
