"""The compiled network computes what torch's layers compute, in each precision, for every shape of network."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from pages import MODELS
from torch import nn

from app import compiled
from app.compiled import CompiledVAE, parts
from app.engine import Engine
from app.loading import TOLERATED_LOG_SIGMA, TOLERATED_MU
from model import bf16, checkpoint
from model.bf16 import MixedBlock, in_bf16
from model.gaussian import noise
from model.golden import drawn_images
from model.vae import VAE, VAEConfig
from tests.tiny import CONFIG, tiny_vae

pytestmark = pytest.mark.skipif(not compiled.is_available(), reason="there is no OpenVINO for this processor")

COLORED = VAEConfig(3, 16, 24, 5, widths=(8, 16, 12), blocks=(1, 2, 1), hidden=20, likelihood="discretized_logistic")
PLAIN = VAEConfig(1, 8, 8, 2, patch=1, widths=(4, 6), blocks=(1, 1), hidden=7, likelihood="gaussian")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch compute in the thread of its caller, as the service does: several are slower where others want them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def answers(vae: VAE, rows: int) -> list[np.ndarray]:
    """Return mu, sigma, raw outputs and mean images of the same random images and latents."""
    random = np.random.default_rng(1)
    x = torch.from_numpy(random.random((8, *vae.config.image_shape), np.float32)[:rows])
    z = torch.from_numpy(random.standard_normal((8, vae.config.latent_dim), np.float32)[:rows])
    with torch.inference_mode():
        output = vae.decode(z)
        values = [value.numpy() for value in (*vae.encode(x), output)]
        if isinstance(vae, CompiledVAE):
            return [*values, *vae.mean_images(z.numpy())]
        return [*values, vae.likelihood.mean(output).numpy()]


@pytest.mark.parametrize("sizes", [(1, 4, 16, 32), (4, 32), (1,), (3, 7)])
def test_a_batch_is_put_together_from_sizes_at_the_least_cost(sizes: tuple[int, ...]) -> None:
    for rows in range(1, 70):
        chosen = parts(rows, sizes)
        assert set(chosen) <= set(sizes)
        assert sum(chosen[:-1]) < rows <= sum(chosen)
        one_kind = min(-(-rows // size) * (size + 1) for size in sizes)
        assert sum(chosen) + len(chosen) <= one_kind
    assert parts(1000, (1, 4, 16, 32)) == (32,) * 31 + (4, 4)


@pytest.mark.parametrize("config", [CONFIG, COLORED, PLAIN])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_compiled_network_gives_the_answers_of_its_layers(config: VAEConfig, rows: int) -> None:
    vae = tiny_vae(0, config)
    for got, expected in zip(answers(CompiledVAE(vae, 1), rows), answers(vae, rows), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("config", [CONFIG, COLORED, PLAIN])
def test_bf16_rounds_in_the_graph_where_it_rounds_in_torch(config: VAEConfig) -> None:
    exact = tiny_vae(0, config)
    rounded = in_bf16(exact)
    triples = zip(*(answers(vae, 8) for vae in (CompiledVAE(rounded, 1), rounded, exact)), strict=True)
    for got, expected, reference in triples:
        by_torch, by_graph = (np.square(value - reference).mean() for value in (expected, got))
        assert by_torch / 4 < by_graph < 4 * by_torch  # as far off, and neither nothing nor everything is rounded


def in_bf16_within(budget: float, vae: VAE, monkeypatch: pytest.MonkeyPatch) -> tuple[list[bool], VAE]:
    """Return which convolutions of the encoder's blocks are rounded within a budget, and the network."""
    monkeypatch.setattr(bf16, "BUDGET", budget)
    rounded = in_bf16(vae)
    decoder = [layer for layer in rounded.decoder.stages.modules() if isinstance(layer, nn.Conv2d)]
    assert all(layer.weight.dtype is torch.bfloat16 for layer in decoder)
    blocks = [layer for layer in rounded.encoder.trunk if isinstance(layer, MixedBlock)]
    return [layer.weight.dtype is torch.bfloat16 for block in blocks for layer in (block.first, block.second)], rounded


def test_bf16_rounds_as_much_of_the_encoder_as_its_budget_allows_the_least_errors_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vae = tiny_vae(0, replace(CONFIG, blocks=(3,)))
    assert in_bf16_within(1, vae, monkeypatch)[0] == [True] * 6
    none, exact = in_bf16_within(0, vae, monkeypatch)
    assert none == [False] * 6
    errors = sorted(bf16.errors_alone(exact), key=lambda found: float(found[0].max()))
    least, most = (sum(error for error, _, _ in errors[:n]) for n in (3, 4))
    budget = float((least.max() + most.max()) / 2) ** 0.5
    some, rounded = in_bf16_within(budget, vae, monkeypatch)
    assert sum(some) == 3
    x = torch.from_numpy(drawn_images(vae, 500, 9).astype(np.float32) / 255)
    (mu, sigma), (got, _) = vae.encode(x), rounded.encode(x)
    assert ((got - mu) / sigma).square().mean(0).max().sqrt() == pytest.approx(budget, rel=0.5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_image_has_one_answer_bit_for_bit_from_graphs_of_every_size(precision: str) -> None:
    vae = tiny_vae(0, COLORED)
    made = CompiledVAE(in_bf16(vae) if precision == "bf16" else vae, 1)
    expected = answers(made, 8)
    for sizes in ((1,), (8,), (32,), (1, 8)):
        made.use_only(sizes)
        for got, whole in zip(answers(made, 7), expected, strict=True):
            np.testing.assert_array_equal(got, whole[:7])
        made = CompiledVAE(in_bf16(vae) if precision == "bf16" else vae, 1)


def test_the_encoder_of_another_network_can_be_shared() -> None:
    vae = tiny_vae()
    first = CompiledVAE(in_bf16(vae), 1)
    second = CompiledVAE(vae, 1, encoder=first.graphs[0])
    for got, expected in zip(answers(second, 3)[:2], answers(first, 3)[:2], strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(answers(second, 3)[2], answers(vae, 3)[2], atol=2e-6)


def test_an_unknown_layer_is_refused_by_name() -> None:
    vae = tiny_vae()
    vae.encoder.trunk.append(torch.nn.Dropout())
    with pytest.raises(TypeError, match="a layer Dropout that has no operation"):
        CompiledVAE(vae, 1)


def test_more_threads_than_streams_get_their_own_answers() -> None:
    vae = CompiledVAE(tiny_vae(), 2)
    images = [torch.rand(3, *CONFIG.image_shape) for _ in range(4)]
    expected = [vae.encode(x)[0] for x in images]
    wrong: list[int] = []

    def ask(i: int) -> None:
        for turn in range(50):
            part = (i + turn) % 4
            if not torch.equal(vae.encode(images[part])[0], expected[part]):
                wrong.append(part)

    threads = [Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_answer_is_not_overwritten_by_the_next_one() -> None:
    vae = CompiledVAE(tiny_vae(), 1)
    x = torch.rand(2, *CONFIG.image_shape)
    mu, _ = vae.encode(x)
    kept = mu.clone()
    vae.encode(1 - x)
    assert torch.equal(mu, kept)


def test_the_use_of_the_compiler_is_reported_to_nobody(tmp_path: Path) -> None:
    program = "import sys; from app import compiled; compiled.has_bf16(); print(sys.modules['openvino_telemetry'])"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
    assert not list(tmp_path.rglob("*"))  # an identifier of this machine would be kept there


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_ten_thousand_images_are_within_tolerance_of_fp32_in_every_company(one_thread: None, name: str) -> None:
    file = checkpoint.resolve(name)
    vae = checkpoint.load(file).vae
    images = drawn_images(vae, 10_000, 5).astype(np.float32) / np.float32(255)
    reference = [vae.encode(torch.from_numpy(images[i : i + 100])) for i in range(0, len(images), 100)]
    mu, sigma = (torch.cat(parts).numpy() for parts in zip(*reference, strict=True))
    z = noise(6, 2000, (vae.config.latent_dim,))
    decoded = np.concatenate(
        [vae.likelihood.mean(vae.decode(torch.from_numpy(z[i : i + 100]))) for i in range(0, 2000, 100)]
    )
    for precision, far_mu, far_pixels in (("fp32", 1e-4, 1e-5), ("bf16", TOLERATED_MU, 0.02)):
        engine = Engine(checkpoint.load(file), "cpu", precision, path=compiled.NAME)
        engine.warm_up()
        got = answers_in_company(engine, images)
        mu_error = np.abs(got[0] - mu) / sigma
        assert mu_error.max() <= far_mu
        assert np.abs(np.log(got[1] / sigma)).max() <= min(far_mu, TOLERATED_LOG_SIGMA)
        again = engine.encode.run(images[:500])[0]
        np.testing.assert_array_equal(again, got[0][:500])
        np.testing.assert_allclose(engine.decode.run(z)[0], decoded, atol=far_pixels)


def answers_in_company(engine: Engine, images: np.ndarray) -> list[np.ndarray]:
    """Return mu and sigma of images that come in batches of 1 to 64, of ever changing size."""
    sizes, parts, at = np.random.default_rng(2).integers(1, 65, len(images)), [], 0
    for size in sizes:
        if at >= len(images):
            break
        parts.append(engine.encode.run(images[at : at + size])[:2])
        at += size
    return [np.concatenate(column) for column in zip(*parts, strict=True)]
