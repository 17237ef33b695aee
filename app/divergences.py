"""Answers to questions about distributions, in nats: from a ``/kl`` body that was read to its divergences.

The arithmetic is ``model.divergence``'s; here its complaints get the stable codes of the contract.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import Unprocessable
from app.numbers_in import DiscretePair, Normal, NormalPair, Posteriors
from app.summaries import kl_to_standard_normal
from model import divergence

Array = NDArray[Any]

CODES: dict[type[divergence.DistributionError], str] = {
    divergence.WrongShape: "wrong_shape",
    divergence.NotFinite: "not_finite",
    divergence.OutOfRange: "out_of_range",
    divergence.NotSymmetric: "not_symmetric",
    divergence.NotPositiveDefinite: "not_positive_definite",
    divergence.NotNormalized: "not_normalized",
    divergence.InfiniteDivergence: "infinite_divergence",
}


def answer(question: Posteriors | NormalPair | DiscretePair) -> dict[str, Array]:
    """Return the ``kl (N,)`` of each of N items, and ``per_dimension (N, D)`` where both sides are diagonal.

    Raises:
        Unprocessable: a side is no distribution, the sides do not fit, or a divergence is infinite; it says which.
    """
    if isinstance(question, Posteriors):
        return _of_posteriors(question)
    try:
        if isinstance(question, DiscretePair):
            return {"kl": np.array([divergence.kl_discrete(question.p, question.q)])}
        total, parts = divergence.kl(_normal(question.p, "p"), _normal(question.q, "q"))
    except divergence.DistributionError as error:
        where = f"body.{error.where}" if error.where.startswith(("p.", "q.")) else "body"
        raise Unprocessable(str(error), code=CODES[type(error)], errors=[(where, str(error))]) from None
    return {"kl": np.array([total])} | ({} if parts is None else {"per_dimension": parts[None]})


def _of_posteriors(question: Posteriors) -> dict[str, Array]:
    parts = kl_to_standard_normal(question.mu, question.sigma)
    totals = parts.sum(1)
    if not np.isfinite(totals).all():
        row = int(np.isfinite(totals).argmin())
        text = f"the divergence of row {row} is beyond the range of float64"
        raise Unprocessable(text, code="out_of_range", errors=[(f"body.mu.{row}", text)])
    return {"kl": totals, "per_dimension": parts}


def _normal(side: Normal, name: str) -> divergence.Gaussian:
    return divergence.Gaussian(side.mean, side.std, side.cov, name)
