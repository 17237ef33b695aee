"""What is no normal distribution is refused by name, and says which side and which entry is wrong."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from model import divergence
from model.divergence import Gaussian, kl


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: Gaussian([0, 1], std=[1, 0], name="q"), "OutOfRange", "q.std[1] is not above 0"),
        (lambda: Gaussian([0, 1], std=[1, -2]), "OutOfRange", "p.std[1] is not above 0"),
        (lambda: Gaussian([0, math.nan], std=[1, 1]), "NotFinite", "p.mean[1] is not a finite number"),
        (lambda: Gaussian([0], cov=[[math.inf]], name="q"), "NotFinite", "q.cov[0][0] is not a finite"),
        (lambda: Gaussian([0, 1], std=[1]), "WrongShape", "p.std has length 1, and the mean 2"),
        (lambda: Gaussian([0], cov=np.eye(2)), "WrongShape", "p.cov has length 2, and the mean 1"),
        (lambda: Gaussian([0, 0], cov=[[1, 0]]), "WrongShape", "p.cov has shape (1, 2); expected (D, D)"),
        (lambda: Gaussian([], std=[]), "WrongShape", "p.mean has shape (0,)"),
        (lambda: Gaussian([[0]], std=[1]), "WrongShape", "p.mean has shape (1, 1); expected (D,)"),
        (lambda: Gaussian([0, 0], cov=[[1, 0], [1]]), "WrongShape", "its rows differ in length"),
        (lambda: Gaussian([0], std=[1], cov=[[1]]), "WrongShape", "p needs one of std and cov"),
        (lambda: Gaussian([0]), "WrongShape", "p needs one of std and cov"),
        (lambda: Gaussian([0, 0], cov=[[1, 2], [2, 1]], name="q"), "NotPositiveDefinite", "q.cov is not"),
        (
            lambda: Gaussian([0, 0], cov=[[1, 0], [0, 0]]),
            "NotPositiveDefinite",
            "its diagonal is not above 0",
        ),
        (
            lambda: Gaussian([0] * 3, cov=np.ones((3, 3))),
            "NotPositiveDefinite",
            "p.cov is not positive definite",
        ),
        (lambda: Gaussian([0, 0], cov=[[1, 0.2], [0.1, 1]]), "NotSymmetric", "p.cov[0][1] differs from its"),
        (lambda: Gaussian([0], cov=[[1e-290]]), "OutOfRange", "p.cov[0] gives a variance outside"),
        (
            lambda: kl(Gaussian([0], [1e-150]), Gaussian([0], cov=[[1]])),
            "OutOfRange",
            "p.std[0] gives a variance",
        ),
        (
            lambda: kl(Gaussian([0], [1e200]), Gaussian([0], [1])),
            "OutOfRange",
            "KL[p ‖ p] is beyond the range",
        ),
        (
            lambda: kl(Gaussian([0], [1]), Gaussian([0, 0], [1, 1], name="q")),
            "WrongShape",
            "1 and 2 dimensions",
        ),
    ],
)
def test_a_wrong_normal_is_refused_by_name(make: Callable[[], object], kind: str, text: str) -> None:
    with pytest.raises(divergence.DistributionError) as caught:
        make()
    assert type(caught.value).__name__ == kind
    assert text in str(caught.value)
    assert str(caught.value).startswith(caught.value.where)


def test_a_covariance_symmetric_within_1e_8_is_read_as_its_symmetric_part() -> None:
    uneven = Gaussian([0, 0], cov=[[1e6, 1 + 1e-9], [1, 1e-6 * 1e7]])
    assert uneven.cov is not None
    assert torch.equal(uneven.cov, uneven.cov.mT)
    with pytest.raises(divergence.NotSymmetric, match=r"p\.cov\[0\]\[1\] differs from its mirror image"):
        Gaussian([0, 0], cov=[[1, 0.5 + 1e-7], [0.5, 1]])
