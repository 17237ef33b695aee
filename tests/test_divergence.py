"""Divergences of normals against 60 digits, closed forms, torch.distributions and numbers worked by hand."""

import contextlib
import itertools
import math
from collections.abc import Iterator

import mpmath as mp
import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from model.divergence import Gaussian, NotPositiveDefinite, kl
from model.gaussian import noise

DIGITS = mp.MPContext()
DIGITS.dps = 60

Rows = list[list[mp.mpf]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch from splitting small tensors over cores, where its threads mostly wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def exact_cov(g: Gaussian) -> Rows:
    """Return the covariance in 60 digits, a std squared exactly."""
    if g.std is not None:
        return (DIGITS.diag([DIGITS.mpf(s) for s in g.std.tolist()]) ** 2).tolist()
    cov = g.variance.diag() if g.cov is None else g.cov
    return [[DIGITS.mpf(value) for value in row] for row in cov.tolist()]


def factor(cov: Rows) -> Rows:
    """Return the lower Cholesky factor, row by row."""
    rows: Rows = []
    for i, row in enumerate(cov):
        done: list[mp.mpf] = []
        for j in range(i):
            done.append((row[j] - DIGITS.fdot(done, rows[j][:j])) / rows[j][j])
        rows.append([*done, DIGITS.sqrt(row[i] - DIGITS.fdot(done, done))])
    return rows


def solve(lower: Rows, b: list[mp.mpf]) -> list[mp.mpf]:
    """Return the x of ``lower x = b``."""
    x: list[mp.mpf] = []
    for row, value in zip(lower, b, strict=True):
        x.append((value - DIGITS.fdot(x, row[: len(x)])) / row[len(x)])
    return x


def witness(p: Gaussian, q: Gaussian) -> mp.mpf:
    """Return ½ (ln|Σ_q| − ln|Σ_p| − D + tr(Σ_q⁻¹ Σ_p) + δᵀ Σ_q⁻¹ δ) in 60 digits."""
    lower_p, lower_q, d = factor(exact_cov(p)), factor(exact_cov(q)), len(p.mean)
    zeros = [DIGITS.zero] * d
    columns = [zeros[:j] + [lower_p[i][j] for i in range(j, d)] for j in range(d)]
    trace = DIGITS.fsum(value**2 for column in columns for value in solve(lower_q, column))
    shift = solve(
        lower_q,
        [DIGITS.mpf(a) - DIGITS.mpf(b) for a, b in zip(p.mean.tolist(), q.mean.tolist(), strict=True)],
    )
    logs = DIGITS.fsum(DIGITS.log(lower_q[i][i] / lower_p[i][i]) for i in range(d))
    return logs + (trace - d + DIGITS.fdot(shift, shift)) / 2


def relative_error(value: float, exact: mp.mpf) -> float:
    return float(abs(value - exact) / abs(exact))


def normals(seed: int, *shape: int) -> np.ndarray:
    return noise(seed, 1, shape)[0].astype(np.float64)


def symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2


def random_cov(seed: int, d: int, condition: float = 100.0) -> np.ndarray:
    """Return a covariance ``(d, d)`` with eigenvalues from 1 down to 1 / condition, in random directions."""
    directions, _ = np.linalg.qr(normals(seed, d, d))
    return symmetric(directions * np.geomspace(1, 1 / condition, d) @ directions.T)


def nearby(g: Gaussian, relative: float, seed: int) -> Gaussian:
    """Return a normal whose mean and covariance differ from those of g by so much of g's own width."""
    assert g.cov is not None
    lower, d = np.linalg.cholesky(g.cov.numpy()), len(g.mean)
    cov = g.cov.numpy() + lower @ symmetric(normals(seed, d, d)) @ lower.T * relative / math.sqrt(d)
    return Gaussian(g.mean.numpy() + lower @ normals(seed + 1, d) * relative, cov=symmetric(cov), name="p")


def test_kl_of_a_hand_worked_case_and_of_equal_normals_where_a_misprinted_formula_fails() -> None:
    """Of p = N((1, 0), [[2, 1], [1, 2]]) and q = N(0, diag(2, 1)), with k = 2.

    |Σ_p| = 4 − 1 = 3, |Σ_q| = 2, tr(Σ_q⁻¹ Σ_p) = 2/2 + 2/1 = 3, δᵀ Σ_q⁻¹ δ = 1/2, so
    ½ (ln 2 − ln 3 − 2 + 3 + ½) = ½ (1.5 − 0.405465…) = 0.547267….
    A misprint of it, ½ (ln|Σ_q| − ln|Σ_p|) + k + tr + δᵀ Σ_q⁻¹ δ, gives 5.297267…, and 2k = 4 for p = q.
    """
    p, q = Gaussian([1, 0], cov=[[2, 1], [1, 2]]), Gaussian([0, 0], cov=[[2, 0], [0, 1]], name="q")
    assert kl(p, q)[0] == pytest.approx((1.5 + math.log(2 / 3)) / 2, rel=1e-15)
    assert kl(p, q)[0] == pytest.approx(0.547267445945918, rel=1e-14)
    assert kl(p, p)[0] == 0.0


@pytest.mark.parametrize("d", [1, 2, 5, 17, 64])
def test_kl_of_random_covariances_agrees_with_60_digits(d: int) -> None:
    p = Gaussian(normals(d, d), cov=random_cov(d + 1, d))
    q = Gaussian(normals(d + 2, d), cov=random_cov(d + 3, d), name="q")
    assert relative_error(kl(p, q)[0], witness(p, q)) < 1e-13


@pytest.mark.parametrize("relative", [1e-2, 1e-6, 1e-8, 1e-10, 1e-12, 1e-14])
def test_tiny_divergences_keep_their_digits(relative: float) -> None:
    q = Gaussian(normals(1, 12), cov=random_cov(2, 12), name="q")
    p = nearby(q, relative, seed=3)
    exact = witness(p, q)
    assert 0 < exact < 30 * relative**2
    assert relative_error(kl(p, q)[0], exact) < 1e-12


@pytest.mark.parametrize("condition", [1e4, 1e8, 1e12])
@pytest.mark.parametrize("relative", [None, 0.3, 1e-3, 1e-10])
def test_nearly_singular_covariances_keep_nine_digits(condition: float, relative: float | None) -> None:
    q = Gaussian(normals(1, 16), cov=random_cov(2, 16, condition), name="q")
    p = Gaussian(normals(3, 16), cov=random_cov(4, 16, condition))
    if relative is not None:
        p = nearby(q, relative, seed=5)
    assert relative_error(kl(p, q)[0], witness(p, q)) < 1e-10


def test_coordinates_in_very_different_units_keep_nine_digits() -> None:
    units = 10.0 ** np.linspace(-40, 40, 12)
    p, q = (
        Gaussian(normals(s, 12) * units, cov=symmetric(random_cov(s, 12, 1e10) * np.outer(units, units)))
        for s in (1, 2)
    )
    assert relative_error(kl(p, q)[0], witness(p, q)) < 1e-10
    close = nearby(q, 1e-9, seed=3)
    assert relative_error(kl(close, q)[0], witness(close, q)) < 1e-10


@pytest.mark.parametrize("exponent", [-450, -3, 450])
def test_units_that_are_powers_of_two_change_no_bit(exponent: int) -> None:
    def pair(unit: float) -> tuple[Gaussian, Gaussian]:
        p = Gaussian(normals(1, 6) * unit, cov=random_cov(2, 6) * unit * unit)
        return p, Gaussian(normals(3, 6) * unit, cov=random_cov(4, 6) * unit * unit)

    assert kl(*pair(2.0**exponent)) == kl(*pair(1.0))


def walk(steps: np.ndarray) -> Gaussian:
    """Return the normal of a random walk: covariance ``steps stepsᵀ``, of whole numbers, determinant 1."""
    return Gaussian(np.zeros(len(steps)), cov=steps @ steps.T, name="walk")


def test_kl_at_512_dimensions_agrees_with_closed_forms_of_whole_numbers() -> None:
    """A random walk, and a random walk summed up again (condition number 9e10).

    With U the lower triangle of ones their covariances are U Uᵀ and U² U²ᵀ, of determinant 1, so between them
    and N(0, I) KL = ½ (tr − D). The trace of U Uᵀ is D (D + 1) / 2; that of the inverse of the other one, in
    which U⁻² takes second differences, is 1 + 5 + 6 (D − 2). If Σ_p = (1 + e) Σ_q, KL = ½ D (e − ln(1 + e)).
    """
    d = 512
    ones = np.tril(np.ones((d, d)))
    standard = Gaussian(np.zeros(d), std=np.ones(d), name="standard")
    once, twice = walk(ones), walk(ones @ ones)
    assert kl(once, standard)[0] == pytest.approx((d * (d + 1) / 2 - d) / 2, rel=1e-12)
    assert kl(standard, twice)[0] == pytest.approx((6 * d - 6 - d) / 2, rel=1e-12)
    assert kl(twice, twice)[0] == 0.0
    assert twice.cov is not None
    e = 2.0**-20
    larger = Gaussian(np.zeros(d), cov=twice.cov.numpy() * (1 + e))
    assert relative_error(kl(larger, twice)[0], d * (DIGITS.mpf(e) - DIGITS.log1p(e)) / 2) < 1e-12


def test_kl_of_stationary_processes_at_512_dimensions_agrees_with_the_closed_form() -> None:
    """Covariances r^|i − j| have |Σ| = (1 − r²)^(D − 1) and a tridiagonal inverse.

    Times 1 − r² it has 1 at both ends of its diagonal, 1 + r² between, and −r beside it; so
    (1 − r_q²) tr(Σ_q⁻¹ Σ_p) = 2 + (D − 2) (1 + r_q²) − 2 (D − 1) r_q r_p.
    """
    d, r_p, r_q = 512, 0.5, 0.9
    lag = np.abs(np.subtract.outer(np.arange(d), np.arange(d)))
    p, q = (Gaussian(np.zeros(d), cov=r**lag) for r in (r_p, r_q))
    trace = (2 + (d - 2) * (1 + r_q**2) - 2 * (d - 1) * r_q * r_p) / (1 - r_q**2)
    logs = (d - 1) * (math.log1p(-(r_q**2)) - math.log1p(-(r_p**2)))
    assert kl(p, q)[0] == pytest.approx((logs - d + trace) / 2, rel=1e-12)


def test_kl_is_exactly_zero_for_one_normal_in_any_two_representations() -> None:
    mean, std = normals(1, 40), np.exp(normals(2, 40))
    by_std, by_cov = Gaussian(mean, std), Gaussian(mean, cov=np.diag(std * std))
    for p in (by_std, by_cov):
        for q in (by_std, by_cov):
            assert kl(p, q)[0] == 0.0
    assert kl(Gaussian([0.3], [0.1]), Gaussian([0.3], cov=[[0.01]]))[0] == 0.0
    cov = random_cov(3, 40)
    assert kl(Gaussian(mean, cov=cov), Gaussian(mean, cov=cov.copy()))[0] == 0.0
    assert kl(Gaussian(mean, cov=cov), Gaussian(mean, cov=cov.tolist()))[0] == 0.0


def test_mixed_representations_agree_with_60_digits_also_where_they_nearly_coincide() -> None:
    std = np.exp(normals(1, 8))
    for relative in (0.5, 1e-3, 1e-7, 1e-11, 1e-14):
        wide = std * (1 + relative * normals(2, 8))
        full = np.diag(wide * wide) + relative / 50 * np.outer(std, std) * (1 - np.eye(8))
        kinds = {"std": wide, "variance": np.diag(wide * wide), "full": full}
        p = Gaussian(np.zeros(8), std)
        for name, spread in kinds.items():
            q = Gaussian(np.full(8, relative / 3), **{"std" if name == "std" else "cov": spread}, name="q")
            assert relative_error(kl(p, q)[0], witness(p, q)) < 1e-11, (relative, name)
            assert relative_error(kl(q, p)[0], witness(q, p)) < 1e-11, (relative, name)
        a, b = Gaussian(np.zeros(8), cov=np.diag(std)), Gaussian(np.zeros(8), cov=np.diag(wide))
        assert relative_error(kl(a, b)[0], witness(a, b)) < 1e-12, relative


def test_parts_per_dimension_come_where_both_sides_are_diagonal() -> None:
    by_std, by_cov = Gaussian([0, 1], [1, 2]), Gaussian([0, 0], cov=[[1, 0], [0, 9]])
    for p, q in ((by_std, by_std), (by_std, by_cov), (by_cov, by_std), (by_cov, by_cov)):
        total, parts = kl(p, q)
        assert parts is not None
        assert parts.tolist()[0] == 0.0
        assert math.fsum(parts) == total
    assert kl(by_std, Gaussian([0, 0], cov=[[1, 0.5], [0.5, 9]]))[1] is None


def test_kl_agrees_with_torch_distributions() -> None:
    for seed in range(5):
        p, q = (Gaussian(normals(seed + k, 10), cov=random_cov(seed + k, 10)) for k in (10, 20))
        second = kl_divergence(MultivariateNormal(p.mean, p.cov), MultivariateNormal(q.mean, q.cov))
        assert kl(p, q)[0] == pytest.approx(second.item(), rel=1e-11)


def test_a_covariance_is_answered_to_nine_digits_or_refused_as_nearly_singular() -> None:
    answered = []
    for seed in range(40):
        with contextlib.suppress(NotPositiveDefinite):
            answered.append(Gaussian(normals(seed, 5), cov=random_cov(seed, 5, 1e14)))
    assert 10 < len(answered) < 40
    for p, q in itertools.pairwise(answered):
        assert relative_error(kl(p, q)[0], witness(p, q)) < 1e-9


def test_monte_carlo_kl_of_full_covariances_is_within_4_standard_errors() -> None:
    p, q = (Gaussian(normals(seed, 6), cov=random_cov(seed, 6)) for seed in (1, 2))
    first, second = (MultivariateNormal(g.mean, g.cov) for g in (p, q))
    epsilon = torch.from_numpy(normals(3, 20_000, 6))
    draws = p.mean + epsilon @ torch.linalg.cholesky(p.cov).mT
    terms = first.log_prob(draws) - second.log_prob(draws)
    assert abs(terms.mean().item() - kl(p, q)[0]) < 4 * terms.std().item() / math.sqrt(len(terms))
