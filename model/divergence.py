"""Exact Kullback-Leibler divergences in float64: two multivariate normals, or two discrete distributions.

Every argument is checked. Every divergence is a sum of terms that are never negative, so nothing cancels:
its relative error is below 1e-9 however small it is, and it is exactly 0 for p = q. In nats. Who asks, and in
which format, is not known here.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from model.gaussian import NEAR, excess, kl_diagonal

_SUM = 1e-6  # probabilities sum to 1 within this
_SYMMETRY = 1e-8  # of |cov[i][j] − cov[j][i]| over sqrt(cov[i][i] cov[j][j])
_SMALLEST, _LARGEST = 1e-280, 1e280  # variances between these have quotients of factors inside float64
_RESIDUAL = 1e-3  # of a whitened covariance from I; so far, the divergence was measured to be within 1e-9


class DistributionError(ValueError):
    """A parameter is wrong; ``where`` names it, as in ``p.cov``. One subclass for each kind of mistake."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where} {problem}")
        self.where = where


class WrongShape(DistributionError):
    """Lengths differ, or an array is empty, ragged, no vector, or no square matrix."""


class NotFinite(DistributionError):
    """An array holds NaN or an infinity."""


class OutOfRange(DistributionError):
    """A std is not above 0, a probability is negative, or a number leaves float64."""


class NotSymmetric(DistributionError):
    """A covariance is not symmetric."""


class NotPositiveDefinite(DistributionError):
    """A covariance is not positive definite, or too close to singular for float64."""


class NotNormalized(DistributionError):
    """Probabilities do not sum to 1."""


class InfiniteDivergence(DistributionError):
    """The divergence is infinite: q gives probability 0 to what p gives mass."""


class Gaussian:
    """A multivariate normal: a mean with standard deviations, or with a covariance.

    A covariance that is symmetric within 1e-8 of ``sqrt(cov[i][i] cov[j][j])`` is replaced by the mean of
    itself and its transpose; one with zeros beside its diagonal counts as diagonal.

    Args:
        mean: ``(D,)``, D ≥ 1.
        std: standard deviations, ``(D,)``, above 0.
        cov: instead of std, the covariance, ``(D, D)``, symmetric and positive definite.
        name: what error messages call this distribution.

    Raises:
        DistributionError: the subclass says what is wrong, the text also where.
    """

    def __init__(
        self, mean: ArrayLike, std: ArrayLike | None = None, cov: ArrayLike | None = None, name: str = "p"
    ) -> None:
        self.name = name
        self.mean = _read(mean, f"{name}.mean")
        self.std: Tensor | None = None
        self.cov: Tensor | None = None
        self.whitening: tuple[Tensor, Tensor] | None = None
        if std is not None and cov is None:
            self.std = _read(std, f"{name}.std", length=len(self.mean))
            if (self.std <= 0).any():
                raise OutOfRange(_first(f"{name}.std", self.std <= 0), "is not above 0")
            self.variance, self.variance_rest = _square(self.std)
        elif cov is not None and std is None:
            matrix = _read_cov(cov, f"{name}.cov", len(self.mean))
            self.variance, self.variance_rest = matrix.diagonal(), torch.zeros_like(self.mean)
            if matrix.count_nonzero() > len(matrix):
                self.cov, self.whitening = matrix, _whiten(matrix, f"{name}.cov")
        else:
            raise WrongShape(name, "needs one of std and cov")


def kl(p: Gaussian, q: Gaussian) -> tuple[float, NDArray[np.float64] | None]:
    """Return KL[p ‖ q] in nats, and its parts ``(D,)`` where both are diagonal, else None.

    ``½ (ln|Σ_q| − ln|Σ_p| − D + tr(Σ_q⁻¹ Σ_p) + (m_p − m_q)ᵀ Σ_q⁻¹ (m_p − m_q))``. A std and a variance count
    as equal where the std is the float64 square root of the variance.

    Raises:
        DistributionError: the lengths differ, or the divergence (or the square of a std) leaves float64.
    """
    if len(p.mean) != len(q.mean):
        raise WrongShape(f"{p.name} and {q.name}", f"have {len(p.mean)} and {len(q.mean)} dimensions")
    parts = None
    if p.std is not None and q.std is not None:
        parts = kl_diagonal(p.mean, p.std, q.mean, q.std)
    else:
        for side in (p, q):
            _check_range(side.variance, f"{side.name}.std")
        if p.cov is None and q.cov is None:
            parts = _kl_of_variances(p, q)
    total = float(_kl_of_covariances(p, q) if parts is None else parts.sum())
    if not math.isfinite(total):
        raise OutOfRange(f"KL[{p.name} ‖ {q.name}]", "is beyond the range of float64")
    return total, None if parts is None else parts.numpy()


def kl_discrete(probs_p: ArrayLike, probs_q: ArrayLike) -> float:
    """Return ``Σ p ln(p / q)`` of two discrete distributions, in nats, with ``0 ln 0 = 0``.

    Both are ``(n,)`` and sum to 1 within 1e-6; each is divided by its sum first. As their sums are then
    equal, this is ``Σ q ((1 + d) ln(1 + d) − d)`` with ``d = p/q − 1``, of which no term is negative.

    Raises:
        DistributionError: p or q is no distribution, or their lengths differ.
        InfiniteDivergence: q is 0 where p is not.
    """
    p, q = _read_probabilities(probs_p, "p.probs"), _read_probabilities(probs_q, "q.probs")
    if len(p) != len(q):
        raise WrongShape("p.probs and q.probs", f"have {len(p)} and {len(q)} entries")
    outside = (q == 0) & (p > 0)
    if outside.any():
        raise InfiniteDivergence(_first("q.probs", outside), "is 0 where p has mass: KL[p ‖ q] is infinite")
    p, q = p[q > 0], q[q > 0]
    sum_p, sum_q = math.fsum(p.tolist()), math.fsum(q.tolist())
    surplus = math.fsum(torch.cat([p, -q]).tolist()) / sum_q  # sum_p = sum_q (1 + surplus)
    d = ((p - q) / q - surplus) / (1 + surplus)
    p, q = p / sum_p, q / sum_q
    near = q * (d.square() - (1 + d) * excess(d, d))
    far = torch.xlogy(p, p) - torch.xlogy(p, q) - (p - q)
    return math.fsum(torch.where(d.abs() < NEAR, near, far).tolist())


def _kl_of_variances(p: Gaussian, q: Gaussian) -> Tensor:
    """Return the divergence per dimension ``(D,)`` of two diagonal normals, at least one given by a cov."""
    gap, rest = _exact_difference(p.variance, q.variance)
    gap = gap + (rest + (p.variance_rest - q.variance_rest))
    if p.std is not None or q.std is not None:
        gap = torch.where(p.variance.sqrt() == q.variance.sqrt(), 0.0, gap)
    shift = (p.mean - q.mean) / q.variance.sqrt()
    return (shift.square() + excess(gap / q.variance, p.variance.log() - q.variance.log())) / 2


def _kl_of_covariances(p: Gaussian, q: Gaussian) -> Tensor:
    """Return the divergence of two normals as a scalar.

    The factor F of ``Σ_q = F Fᵀ`` is ``X⁻¹ C`` (see `_whiten`), and likewise for p. Where
    ``E = F_q⁻¹ (Σ_p − Σ_q) F_q⁻ᵀ`` is small, its eigenvalues λ give ``½ Σ (λ − ln(1 + λ))``. Elsewhere the
    lower triangular ``A = F_q⁻¹ F_p`` gives ``½ Σ a²`` off its diagonal and ``Σ ½ (a² − 1) − ln a`` on it.
    """
    x_q, c_q = q.whitening or _whiten(q.variance.diag(), q.name)
    high, low = _product(x_q, (p.mean - q.mean)[:, None])
    shift = _solve(c_q, high + low)
    cov_p, cov_q = (g.variance.diag() if g.cov is None else g.cov for g in (p, q))
    gap, rest = _exact_difference(cov_p, cov_q)
    rest = rest + (p.variance_rest - q.variance_rest).diag()
    e = _congruence(x_q, gap, x_q) + x_q @ rest @ x_q.mT
    e = _solve(c_q, _solve(c_q, e).mT)
    if torch.linalg.matrix_norm(e) < 0.5:
        eigenvalues = torch.linalg.eigvalsh(e)
        return (shift.square().sum() + excess(eigenvalues, eigenvalues.log1p()).sum()) / 2
    x_p, c_p = p.whitening or _whiten(p.variance.diag(), p.name)
    a = _solve(c_q, _solve(c_p, _congruence(x_p, cov_p, x_q)).mT)
    ratio = (c_p.diagonal() / x_p.diagonal()) / (c_q.diagonal() / x_q.diagonal())
    squares = shift.square().sum() + a.tril(-1).square().sum() + (ratio - 1).square().sum()
    return squares / 2 + excess(ratio - 1, ratio.log()).sum()


def _whiten(cov: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Return lower triangular X and C ``(D, D)`` with ``X cov Xᵀ = C Cᵀ``, almost I.

    X inverts the Cholesky factor of cov, only roughly where cov is nearly singular. That is enough: the
    divergence is the same in all coordinates, the product is as good as exact, and C holds what X misses. If
    X misses much, float64 hardly tells cov from a singular matrix.
    """
    identity = torch.eye(len(cov), dtype=cov.dtype)
    factor, failed = torch.linalg.cholesky_ex(cov)
    if failed:
        raise NotPositiveDefinite(where, "is not positive definite")
    x = _solve(factor, identity)
    white = _congruence(x, cov, x)
    c, failed = torch.linalg.cholesky_ex(white)
    if failed or not torch.linalg.matrix_norm(white - identity) < _RESIDUAL:
        raise NotPositiveDefinite(where, "is not positive definite, or too close to singular for float64")
    return x, c


def _congruence(x: Tensor, middle: Tensor, y: Tensor) -> Tensor:
    """Return ``x middle yᵀ`` ``(D, D)``, rounded as if from about 75 bits."""
    high, low = _product(x, middle)
    highest, rest = _product(high, y.mT)
    return highest + (rest + low @ y.mT)


def _product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``a @ b`` as an exact product of leading bits and a rounded rest (Ozaki et al. 2012)."""
    bits = (53 - len(b).bit_length()) // 2  # so that a sum of len(b) products of two heads fits 53 bits
    balance = _power_of_two(b.abs().amax(1).sqrt() / a.abs().amax(0).sqrt())
    a, b = a * balance, b / balance[:, None]
    head_a, head_b = _head(a, bits, 1), _head(b, bits, 0)
    return head_a @ head_b, head_a @ (b - head_b) + (a - head_a) @ b


def _head(a: Tensor, bits: int, axis: int) -> Tensor:
    """Return a rounded to so many bits below the largest of each row (axis 1) or column (axis 0)."""
    unit = _power_of_two(a.abs().amax(axis, keepdim=True)) * 2.0**-bits
    return torch.round(a / unit) * unit


def _power_of_two(a: Tensor) -> Tensor:
    """Return the power of two above a, where a is neither tiny nor huge."""
    a = a.clamp(_SMALLEST, _LARGEST)
    return a / torch.frexp(a).mantissa


def _solve(lower: Tensor, b: Tensor) -> Tensor:
    return cast(Tensor, torch.linalg.solve_triangular(lower, b, upper=False))


def _exact_difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``a − b`` rounded, and what the rounding took away (Knuth's two-sum)."""
    difference = a - b
    back = difference - a
    return difference, (a - (difference - back)) - (b + back)


def _square(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``a²`` rounded, and what the rounding took away (Dekker's product)."""
    square = a * a
    head = a * (2.0**27 + 1)
    head = head - (head - a)
    tail = a - head
    return square, ((head * head - square) + 2 * head * tail) + tail * tail


def _read(values: ArrayLike, where: str, shape: str = "(D,)", length: int | None = None) -> Tensor:
    """Return values as a float64 copy, after checking its shape and that it is finite."""
    try:
        array = np.array(values, dtype=np.float64, order="C")
    except (TypeError, ValueError, OverflowError):
        raise WrongShape(where, "is not an array of numbers, or its rows differ in length") from None
    if array.ndim != shape.count("D") or array.size == 0 or len(set(array.shape)) > 1:
        raise WrongShape(where, f"has shape {array.shape}; expected {shape} with D ≥ 1")
    if length is not None and len(array) != length:
        raise WrongShape(where, f"has length {len(array)}, and the mean {length}")
    tensor = torch.from_numpy(array)
    if not tensor.isfinite().all():
        raise NotFinite(_first(where, ~tensor.isfinite()), "is not a finite number")
    return tensor


def _read_cov(values: ArrayLike, where: str, length: int) -> Tensor:
    cov = _read(values, where, "(D, D)", length)
    variance = cov.diagonal()
    if (variance <= 0).any():
        raise NotPositiveDefinite(where, "is not positive definite: its diagonal is not above 0")
    _check_range(variance, where)
    skew = (cov - cov.mT).abs() > _SYMMETRY * variance.sqrt() * variance.sqrt()[:, None]
    if skew.any():
        raise NotSymmetric(_first(where, skew), "differs from its mirror image: a covariance is symmetric")
    return (cov + cov.mT) / 2


def _read_probabilities(values: ArrayLike, where: str) -> Tensor:
    probs = _read(values, where)
    if (probs < 0).any():
        raise OutOfRange(_first(where, probs < 0), "is negative, so no probability")
    total = math.fsum(probs.tolist())
    if not abs(total - 1) <= _SUM:
        raise NotNormalized(where, f"sums to {total:.9g}; probabilities sum to 1 within {_SUM:g}")
    return probs


def _check_range(variance: Tensor, where: str) -> None:
    bad = ~((variance >= _SMALLEST) & (variance <= _LARGEST))
    if bad.any():
        raise OutOfRange(_first(where, bad), f"gives a variance outside {_SMALLEST:g} … {_LARGEST:g}")


def _first(where: str, bad: Tensor) -> str:
    """Return the name of the first entry that is bad, as in ``p.cov[2][0]``."""
    return where + "".join(f"[{int(index)}]" for index in bad.nonzero()[0])
