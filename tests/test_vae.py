"""The network: shapes, independence of the images of a batch, extremes, configuration."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.vae import VAE, VAEConfig, soft_clamp
from tests.tiny import CONFIG, tiny_vae

CONFIGS = [
    CONFIG,
    VAEConfig(latent_dim=5, widths=(8, 8), blocks=(1, 2), hidden=16),
    VAEConfig(channels=3, height=32, width=32, latent_dim=7, patch=2, widths=(8, 12, 16), blocks=(1, 1, 1), hidden=16),
    VAEConfig(height=12, width=20, latent_dim=1, patch=4, widths=(8,), blocks=(2,), hidden=8, likelihood="gaussian"),
    VAEConfig(channels=3, height=6, width=9, patch=3, widths=(4,), blocks=(1,), likelihood="discretized_logistic"),
    VAEConfig(height=8, width=16, patch=1, widths=(4, 4), blocks=(1, 1), hidden=8),
]


def images(config: VAEConfig, count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *config.image_shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", CONFIGS)
def test_encode_gives_d_means_and_deviations_and_decode_gives_an_image(config: VAEConfig) -> None:
    vae = tiny_vae(config=config)
    mu, sigma = vae.encode(images(config, 3))
    assert mu.shape == sigma.shape == (3, config.latent_dim)
    assert mu.dtype == sigma.dtype == torch.float32
    assert bool((sigma > 0).all())
    output = vae.decode(mu)
    assert output.shape == (3, *config.image_shape)
    assert output.dtype == torch.float32
    assert vae.likelihood.log_prob(images(config, 3), output).shape == (3,)


def test_the_default_configuration_reads_mnist() -> None:
    assert VAEConfig().image_shape == (1, 28, 28)
    assert VAEConfig().pixels == 784
    assert VAEConfig().stride == 4


def test_the_network_never_draws() -> None:
    vae, x = tiny_vae().train(), images(CONFIG, 4)
    state = torch.random.get_rng_state()
    first = (*vae.encode(x), vae.decode(torch.ones(4, CONFIG.latent_dim)))
    second = (*vae.encode(x), vae.decode(torch.ones(4, CONFIG.latent_dim)))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("config", CONFIGS)
def test_an_image_has_the_same_posterior_in_any_company(config: VAEConfig) -> None:
    vae, x = tiny_vae(config=config), images(config, 6)
    poisoned = x.clone()
    poisoned[1] = torch.nan
    whole, among = vae.encode(x), vae.encode(poisoned)
    for one, other, alone in zip(whole, among, vae.encode(x[4:5]), strict=True):
        torch.testing.assert_close(one[4:5], alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one[[0, 2, 3, 4, 5]], other[[0, 2, 3, 4, 5]], rtol=1e-5, atol=1e-6)
        assert bool(other[1].isnan().all())


def test_a_latent_has_the_same_image_in_any_company() -> None:
    vae, z = tiny_vae(), torch.randn(6, CONFIG.latent_dim, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(vae.decode(z)[3:4], vae.decode(z[3:4]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -1e3, 1e6])
def test_extreme_images_have_finite_posteriors_with_bounded_sigma(value: float) -> None:
    vae = tiny_vae()
    mu, sigma = vae.encode(torch.full((2, *CONFIG.image_shape), value))
    assert bool(torch.isfinite(mu).all())
    assert torch.exp(torch.tensor(-7.0)) <= sigma.min()
    assert sigma.max() <= torch.exp(torch.tensor(2.001))
    assert bool(torch.isfinite(vae.decode(mu)).all())


@pytest.mark.parametrize("size", [0.0, 1.0, -50.0, 1e4])
def test_extreme_latents_have_finite_images_in_0_to_1(size: float) -> None:
    vae = tiny_vae()
    mean = vae.likelihood.mean(vae.decode(torch.full((2, CONFIG.latent_dim), size)))
    assert bool(torch.isfinite(mean).all())
    assert 0 <= float(mean.min()) <= float(mean.max()) <= 1


def test_bfloat16_changes_the_convolutions_a_little_and_the_results_stay_float32() -> None:
    vae, x = tiny_vae(), images(CONFIG, 4)
    (mu, sigma), (coarse_mu, coarse_sigma) = vae.encode(x), vae.encode(x, torch.bfloat16)
    assert coarse_mu.dtype == coarse_sigma.dtype == vae.decode(mu, torch.bfloat16).dtype == torch.float32
    assert not torch.equal(mu, coarse_mu)
    torch.testing.assert_close(mu, coarse_mu, rtol=0.05, atol=0.05)
    torch.testing.assert_close(sigma.log(), coarse_sigma.log(), rtol=0.05, atol=0.05)


def test_the_memory_layout_of_images_and_weights_makes_no_difference() -> None:
    config = CONFIGS[2]
    vae, x = tiny_vae(config=config), images(config, 3)
    plain = tiny_vae(config=config).to(memory_format=torch.contiguous_format)
    expected = vae.encode(x)
    for network, pixels in ((vae, x.contiguous(memory_format=torch.channels_last)), (plain, x)):
        for one, other in zip(expected, network.encode(pixels), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_z_reaches_every_stage_of_the_decoder() -> None:
    vae = tiny_vae(config=CONFIGS[2])
    vae.decoder.hidden.weight.zero_()  # what is left of z enters by the biases of the stages
    z = torch.zeros(2, CONFIGS[2].latent_dim)
    z[1] = 1
    for kept in range(3):
        for stage, bias in enumerate(vae.decoder.bias):
            bias.weight.fill_(0.1 if stage == kept else 0.0)
        first, second = vae.decode(z)
        assert not torch.equal(first, second), kept


def test_residual_blocks_start_as_the_identity() -> None:
    torch.manual_seed(0)
    block = VAE(CONFIG).encoder.trunk[1]
    features = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(features), features)


def test_soft_clamp_is_the_identity_inside_and_keeps_a_gradient_outside() -> None:
    value = torch.tensor([-30.0, -8.0, -3.0, 0.0, 3.0, 60.0], dtype=torch.float64, requires_grad=True)
    clamped = soft_clamp(value, -7.0, 2.0)
    clamped.sum().backward()
    assert value.grad is not None
    assert bool((clamped >= -7).all())
    assert bool((clamped < 2 + torch.exp(torch.tensor(-9.0))).all())
    assert bool((value.grad[1:5] > 0).all())
    torch.testing.assert_close(clamped[2:4].detach(), value[2:4].detach(), atol=0.15, rtol=0)


def test_parameters_are_counted() -> None:
    linear, conv = 16 * 128 + 16 + 2 * (4 * 16 + 4), 8 * 4 * 9 + 8 + 2 * (8 * 8 * 9 + 8)
    decoder = 4 * 16 + 16 + 16 * 128 + 128 + 4 * 8 + 2 * (8 * 8 * 9 + 8) + 4 * 8 * 9 + 4
    assert VAE(CONFIG).parameter_count() == linear + conv + decoder


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_survives_json(config: VAEConfig) -> None:
    assert VAEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"height": 30}, "30x28; with patch 2 and 2 stages both sides must be multiples of 4"),
        ({"width": 27}, "28x27"),
        ({"patch": 3}, "multiples of 6"),
        ({"widths": (8, 8, 8, 8), "blocks": (1, 1, 1, 1)}, "multiples of 16"),
        ({"widths": (8,)}, "1 widths and 2 numbers of blocks"),
        ({"widths": (), "blocks": ()}, "0 widths"),
        ({"widths": (8,) * 9, "blocks": (1,) * 9}, "1 to 8 stages"),
        ({"blocks": (1, 0)}, "integer from 1"),
        ({"blocks": (200, 200)}, "400 residual blocks and 20 couplings; expected at most 256 of each"),
        ({"latent_dim": 0}, "integer from 1"),
        ({"latent_dim": 10**9}, "integer from 1 to 65536"),
        ({"latent_dim": True}, "integer from 1"),
        ({"hidden": 2.5}, "integer from 1"),
        ({"likelihood": "beta"}, "'beta'; expected one of bernoulli"),
        ({"prior": ["x"]}, "expected one of standard_normal"),
    ],
)
def test_a_configuration_that_makes_no_network_is_refused_in_words(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(VAEConfig(), **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": 3}, "unknown to this release: depth"),
        ({"widths": None}, "wrong kind"),
        ({"widths": 32}, "wrong kind"),
        ({"height": "28"}, "integer from 1"),
    ],
)
def test_a_strangers_configuration_is_refused_in_words(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VAEConfig.from_dict(VAEConfig().to_dict() | change)


def test_a_configuration_with_a_field_missing_is_refused_by_its_name() -> None:
    values = VAEConfig().to_dict()
    del values["patch"]
    with pytest.raises(ValueError, match="patch"):
        VAEConfig.from_dict(values)
