"""The discrete divergence against 60 digits, a number worked by hand, and its limits."""

import math

import mpmath as mp
import numpy as np
import pytest

from model import divergence
from model.divergence import kl_discrete

DIGITS = mp.MPContext()
DIGITS.dps = 60


def witness(p: np.ndarray, q: np.ndarray) -> mp.mpf:
    """Return Σ p ln(p / q) in 60 digits, p and q divided by their sums."""
    p, q = ([DIGITS.mpf(value) for value in probs.tolist()] for probs in (p, q))
    p, q = ([value / DIGITS.fsum(probs) for value in probs] for probs in (p, q))
    return DIGITS.fsum(a * DIGITS.log(a / b) for a, b in zip(p, q, strict=True) if a)


def relative_error(value: float, exact: mp.mpf) -> float:
    return float(abs(value - exact) / abs(exact))


def random_probs(seed: int, n: int, spread: float = 1.0) -> np.ndarray:
    """Return n probabilities whose logarithms are spread by so much."""
    weights = np.exp(spread * np.random.default_rng(seed).standard_normal(n))
    return weights / weights.sum()


def test_kl_of_a_hand_worked_case() -> None:
    """Of p = (½, ½, 0) and q = (¼, ½, ¼): ½ ln 2 + ½ ln 1 + 0 ln 0 = 0.346573…; backwards infinite."""
    assert kl_discrete([0.5, 0.5, 0], [0.25, 0.5, 0.25]) == pytest.approx(math.log(2) / 2, rel=1e-15)
    with pytest.raises(divergence.InfiniteDivergence, match=r"q\.probs\[2\] is 0 where p has mass"):
        kl_discrete([0.25, 0.5, 0.25], [0.5, 0.5, 0])


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_kl_is_exactly_zero_for_equal_distributions(n: int) -> None:
    for seed in range(5):
        probs = random_probs(seed, n)
        assert kl_discrete(probs, probs) == 0.0
        assert kl_discrete(probs * (1 + 5e-7), probs * (1 + 5e-7)) == 0.0
    assert kl_discrete([1, 0, 0], [1, 0, 0]) == 0.0


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 100.0])
def test_kl_of_random_distributions_agrees_with_60_digits(spread: float) -> None:
    for seed in range(4):
        p, q = random_probs(seed, 50, spread), random_probs(seed + 10, 50, spread)
        p[:3] = 0
        p /= p.sum()
        assert relative_error(kl_discrete(p, q), witness(p, q)) < 1e-13


@pytest.mark.parametrize("relative", [1e-1, 1e-4, 1e-7, 1e-10, 1e-13])
def test_tiny_divergences_keep_their_digits(relative: float) -> None:
    for seed in range(4):
        q = random_probs(seed, 30)
        p = q * (1 + relative * np.random.default_rng(seed).standard_normal(30))
        p += (q.sum() - p.sum()) * q
        exact = witness(p, q)
        assert 0 < exact < 3 * relative**2
        assert relative_error(kl_discrete(p, q), exact) < 1e-9


def test_sums_off_by_less_than_1e_6_are_divided_out() -> None:
    p, q = random_probs(1, 20), random_probs(2, 20)
    assert kl_discrete(p * (1 + 9e-7), q * (1 - 9e-7)) == pytest.approx(kl_discrete(p, q), rel=1e-13)
    close = q * (1 + 1e-5 * np.random.default_rng(3).standard_normal(20))
    close *= (1 + 9e-7) / close.sum()
    assert relative_error(kl_discrete(close, q), witness(close, q)) < 1e-10


def test_probabilities_down_to_the_smallest_float_give_finite_answers() -> None:
    p, q = np.array([1 - 1e-16, 5e-324]), np.array([5e-324, 1.0])
    assert relative_error(kl_discrete(p, q), witness(p, q)) < 1e-13
    assert relative_error(kl_discrete(q, p), witness(q, p)) < 1e-13


def test_kl_of_a_hundred_thousand_outcomes_agrees_with_the_closed_form() -> None:
    """Uniform on n outcomes from uniform on the first half of them: ln 2."""
    n = 100_000
    half = np.where(np.arange(n) < n // 2, 2 / n, 0.0)
    assert kl_discrete(half, np.full(n, 1 / n)) == pytest.approx(math.log(2), rel=1e-14)


@pytest.mark.parametrize(
    ("p", "q", "kind", "text"),
    [
        ([0.5, 0.4], [0.5, 0.5], "NotNormalized", "p.probs sums to 0.9; probabilities sum to 1 within 1e-06"),
        ([0.5, 0.5], [0.5, 0.500002], "NotNormalized", "q.probs sums to 1.000002"),
        ([1.5, -0.5], [0.5, 0.5], "OutOfRange", "p.probs[1] is negative"),
        ([0.5, 0.5], [math.nan, 1], "NotFinite", "q.probs[0] is not a finite number"),
        ([0.5, 0.5], [1], "WrongShape", "p.probs and q.probs have 2 and 1 entries"),
        ([], [], "WrongShape", "p.probs has shape (0,)"),
        ([[1.0]], [1.0], "WrongShape", "p.probs has shape (1, 1)"),
    ],
)
def test_what_is_no_distribution_is_refused_by_name(p: list[float], q: list[float], kind: str, text: str) -> None:
    with pytest.raises(divergence.DistributionError) as caught:
        kl_discrete(p, q)
    assert type(caught.value).__name__ == kind
    assert text in str(caught.value)
