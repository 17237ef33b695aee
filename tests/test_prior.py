"""The prior against torch.distributions."""

import pytest
import torch
from torch.distributions import Normal

from model.gaussian import noise
from model.prior import make_prior


def test_log_prob_is_the_sum_of_standard_normal_densities_of_each_row() -> None:
    z = 3 * torch.from_numpy(noise(0, 50, (7,))).double()
    expected = Normal(0.0, 1.0).log_prob(z).sum(1)
    got = make_prior("standard_normal", 7).log_prob(z)
    assert got.shape == (50,)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_transform_hands_standard_normal_noise_through() -> None:
    epsilon = torch.from_numpy(noise(1, 4, (3,)))
    assert torch.equal(make_prior("standard_normal", 3).transform(epsilon), epsilon)


def test_the_standard_normal_prior_has_nothing_to_learn() -> None:
    assert list(make_prior("standard_normal", 3).parameters()) == []


def test_an_unknown_prior_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'cauchy'.*expected standard_normal"):
        make_prior("cauchy", 3)  # type: ignore[arg-type]
