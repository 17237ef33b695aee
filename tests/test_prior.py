"""The priors against torch.distributions and autograd."""

import pytest
import torch
from torch.distributions import Normal

from model.gaussian import noise
from model.prior import RealNVP, make_prior, shuffle, unshuffle


def trained_flow(latent_dim: int, seed: int = 0) -> RealNVP:
    """Return a flow in float64 that is far from the identity."""
    torch.manual_seed(seed)
    flow = RealNVP(latent_dim, couplings=5, hidden=16).double().requires_grad_(False)
    for parameter in flow.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return flow


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
    with pytest.raises(ValueError, match=r"'cauchy'.*expected standard_normal or realnvp"):
        make_prior("cauchy", 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("latent_dim", [2, 3, 8])
def test_a_flow_is_invertible(latent_dim: int) -> None:
    flow, z = trained_flow(latent_dim), 2 * torch.randn(20, latent_dim, dtype=torch.float64)
    there, _ = flow.normalize(z)
    assert float((there - z).abs().max()) > 0.5
    torch.testing.assert_close(flow.transform(there), z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("latent_dim", [2, 3, 8])
def test_a_flow_knows_the_determinant_that_autograd_finds(latent_dim: int) -> None:
    flow, z = trained_flow(latent_dim), torch.randn(6, latent_dim, dtype=torch.float64)
    _, log_det = flow.normalize(z)
    for row, claimed in zip(z, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda one: flow.normalize(one[None])[0][0], row)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, claimed, rtol=1e-9, atol=1e-9)


def test_a_flow_s_density_integrates_to_one() -> None:
    flow = trained_flow(2, seed=1)
    proposal = Normal(torch.zeros(2, dtype=torch.float64), 4.0)
    z = proposal.sample((200_000,))
    weights = torch.exp(flow.log_prob(z) - proposal.log_prob(z).sum(1))
    error = float(weights.std()) / len(z) ** 0.5
    assert error < 0.05
    assert abs(float(weights.mean()) - 1) < 4 * error


def test_an_untrained_flow_is_the_standard_normal_prior() -> None:
    z = torch.from_numpy(noise(2, 30, (5,)))
    torch.manual_seed(0)
    flow = make_prior("realnvp", 5, couplings=4, hidden=8)
    torch.testing.assert_close(flow.log_prob(z), make_prior("standard_normal", 5).log_prob(z))
    assert sorted(flow.transform(z)[0].tolist()) == sorted(z[0].tolist())


def test_every_latent_conditions_every_other_within_a_dozen_couplings() -> None:
    latent_dim, conditions = 40, torch.eye(40, dtype=torch.float64)
    for _ in range(12):  # row i of `conditions`: what latent i has been influenced by
        kept, moved = conditions[: latent_dim // 2], conditions[latent_dim // 2 :]
        conditions = shuffle(torch.cat([kept, moved + kept.sum(0)]).T).T
    assert bool((conditions > 0).all())


@pytest.mark.parametrize("latent_dim", [2, 5, 40])
def test_shuffling_is_undone(latent_dim: int) -> None:
    rows = torch.arange(3 * latent_dim).view(3, latent_dim)
    assert torch.equal(unshuffle(shuffle(rows)), rows)
    assert not torch.equal(shuffle(rows), rows)
