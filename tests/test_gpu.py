"""The CUDA path: for real where there is a GPU, and as far as a machine without one can go."""

from pathlib import Path

import numpy as np
import pytest
import torch

from app import engine as engines
from app.engine import Engine
from app.settings import Settings
from model import checkpoint
from model.gaussian import noise
from tests.tiny import CONFIG, save_tiny, tiny_vae

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("gpu") / "tiny.safetensors")


def test_no_tensor_of_the_network_is_made_on_another_device_than_its_weights() -> None:
    vae = tiny_vae().to("meta")  # any tensor made on the CPU inside would raise
    mu, sigma = vae.encode(torch.empty(3, *CONFIG.image_shape, device="meta"))
    output = vae.decode(mu)
    log_prob = vae.likelihood.log_prob(torch.empty(3, *CONFIG.image_shape, device="meta"), output)
    assert {tensor.device.type for tensor in (mu, sigma, output, log_prob)} == {"meta"}
    assert output.shape == (3, *CONFIG.image_shape)


def test_auto_takes_bf16_on_a_gpu_only_where_the_golden_batch_allows_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[str, str]] = []

    class Pretender(Engine):
        """An engine that computes on the CPU and says that it is on the GPU; bf16 is as wrong as ``error``."""

        error = 0.0

        def __init__(self, loaded: checkpoint.Checkpoint, device: str, precision: str, max_batch: int) -> None:
            built.append((device, precision))
            super().__init__(loaded, "cpu", precision, max_batch)

        def golden_errors(self) -> tuple[float, float]:
            return (self.error, 0.0) if self.precision == "bf16" else (0.0, 0.0)

    monkeypatch.setattr(engines, "Engine", Pretender)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    settings = Settings(model=str(path), max_batch=2)
    assert engines.load(settings).precision == "bf16"
    Pretender.error = 2 * engines.TOLERATED_MU
    assert engines.load(settings).precision == "fp32"
    assert built == [("cuda:0", "bf16"), ("cuda:0", "bf16"), ("cuda:0", "fp32")]


@needs_cuda
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", engines.TOLERATED_MU)])
def test_the_gpu_gives_the_answers_of_the_cpu(path: Path, precision: str, tolerance: float) -> None:
    cpu = Engine(checkpoint.load(path), "cpu", "fp32", 16)
    gpu = Engine(checkpoint.load(path), "cuda:0", precision, 16)
    gpu.warm_up()
    x = np.random.default_rng(0).random((33, *CONFIG.image_shape), np.float32)
    (mu, sigma, _), (got_mu, got_sigma, _) = cpu.encode.run(x), gpu.encode.run(x)
    assert (np.abs(got_mu - mu) <= tolerance * sigma).all()
    assert (np.abs(np.log(got_sigma / sigma)) <= tolerance).all()
    epsilon = noise(1, 16, (CONFIG.latent_dim,))
    z, images = gpu.draw.run(epsilon)
    np.testing.assert_array_equal(z, epsilon)
    np.testing.assert_allclose(images, cpu.draw.run(epsilon)[1], atol=1 / 255)
