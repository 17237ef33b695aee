"""The engine: numpy in, numpy out, whatever the batch size; and what it says when it cannot run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from app import compiled
from app.batching import Op
from app.engine import Engine
from app.loading import TOLERATED_LOG_SIGMA, TOLERATED_MU
from app.running import DeviceLost
from app.summaries import summarize
from model import checkpoint
from model.elbo import log_weights
from model.gaussian import noise
from tests.tiny import CONFIG, save_tiny, tiny_vae


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("engine") / "tiny.safetensors")


@pytest.fixture(scope="module", params=["torch", "openvino"])
def way(request: pytest.FixtureRequest) -> str:
    """An execution path on the CPU."""
    if request.param == compiled.NAME and not compiled.is_available():
        pytest.skip("there is no OpenVINO for this processor")
    return str(request.param)


@pytest.fixture(scope="module")
def engine(path: Path, way: str) -> Engine:
    return Engine(checkpoint.load(path), "cpu", "fp32", max_batch=16, path=way)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).random((19, *CONFIG.image_shape), np.float32)


def test_answers_are_those_of_the_network(engine: Engine, images: np.ndarray) -> None:
    mu, sigma = tiny_vae().encode(torch.from_numpy(images))
    got_mu, got_sigma, _ = engine.encode.run(images)
    np.testing.assert_allclose(got_mu, mu, atol=1e-6)
    np.testing.assert_allclose(got_sigma, sigma, rtol=1e-5)
    (decoded,) = engine.decode.run(got_mu)
    np.testing.assert_allclose(decoded, torch.sigmoid(tiny_vae().decode(mu)), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 19])
def test_an_image_has_one_answer_in_every_batch_size(engine: Engine, images: np.ndarray, rows: int) -> None:
    whole = engine.encode.run(images)
    part = engine.encode.run(images[:rows])
    for expected, got in zip(whole, part, strict=True):
        assert got.shape[0] == rows
        np.testing.assert_allclose(got, expected[:rows], atol=2e-6)


def test_a_view_that_cannot_be_written_to_is_read_without_a_warning(engine: Engine, images: np.ndarray) -> None:
    size = 8  # a batch size, so that nothing is padded
    same = np.broadcast_to(images[0], (size, *images.shape[1:]))
    np.testing.assert_allclose(engine.encode.run(same)[0][0], engine.encode.run(images[:1])[0][0], atol=1e-3)
    frozen = images[:1].copy()
    frozen.flags.writeable = False
    engine.encode.run(frozen)


def test_draw_gives_the_latents_and_their_images(engine: Engine) -> None:
    epsilon = noise(3, 5, (CONFIG.latent_dim,))
    z, images = engine.draw.run(epsilon)
    np.testing.assert_array_equal(z, epsilon)  # a standard normal prior hands the noise through
    np.testing.assert_allclose(images, engine.decode.run(epsilon)[0], atol=1e-6)
    assert images.min() >= 0
    assert images.max() <= 1


def test_weigh_gives_the_two_parts_of_the_log_weight(engine: Engine, images: np.ndarray) -> None:
    mu, sigma, _ = engine.encode.run(images)
    epsilon = noise(1, len(images), (CONFIG.latent_dim,))
    likelihood, ratio = engine.weigh.run(images, mu, sigma, epsilon)
    assert likelihood.dtype == ratio.dtype == np.float64
    tensors = [torch.from_numpy(array) for array in (images, mu, sigma, epsilon[:, None])]
    expected = log_weights(tiny_vae(), *tensors)[:, 0]
    np.testing.assert_allclose(likelihood + ratio, expected, rtol=1e-5)


def test_summary_keeps_its_identities(engine: Engine, images: np.ndarray) -> None:
    mu, sigma, kl = engine.encode.run(images)
    weighed = [
        engine.weigh.run(*(np.broadcast_to(c[i], (32, *c.shape[1:])) for c in (images, mu, sigma)), noise(i, 32, (4,)))
        for i in range(len(images))
    ]
    likelihood, ratio = (np.stack(column) for column in zip(*weighed, strict=True))
    fields = summarize(engine, mu, sigma, likelihood, ratio)
    np.testing.assert_allclose(fields["elbo"], fields["reconstruction"] - fields["kl"])
    np.testing.assert_allclose(fields["kl"], kl, rtol=1e-4)
    assert (fields["log_likelihood"] >= likelihood.mean(1) + ratio.mean(1)).all()  # Jensen, for the same draws
    assert (fields["standard_error"] > 0).all()
    np.testing.assert_allclose(fields["bits_per_dim"] * np.log(2) * CONFIG.pixels, -fields["log_likelihood"])


def test_percentile_counts_the_held_out_images_that_are_stranger(engine: Engine) -> None:
    columns = np.zeros((3, 4), np.float32), np.ones((3, 4), np.float32)
    elbo = np.array([-90.0, -50.0, -10.0])
    likelihood = np.repeat(elbo[:, None], 2, axis=1)  # the KL of N(0, I) from itself is 0
    fields = summarize(engine, *columns, likelihood, np.zeros((3, 2)))
    held_out = engine.notes.held_out_elbo
    np.testing.assert_allclose(fields["percentile"], [0, 100 * (held_out < -50).mean(), 100])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_image_has_one_answer_bit_for_bit_in_whatever_company(
    path: Path, images: np.ndarray, way: str, precision: str
) -> None:
    warm = Engine(checkpoint.load(path), "cpu", precision, max_batch=16, path=way)
    warm.warm_up()
    alone = [warm.encode.run(image[None])[0][0] for image in images]
    for rows in (2, 3, 7, 16):
        np.testing.assert_array_equal(warm.encode.run(images[:rows])[0], alone[:rows])


def test_sizes_that_round_differently_are_not_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Engine(checkpoint.load(path), "cpu", "fp32", max_batch=16)
    seen: list[int] = []
    run = odd.decode.run

    def decode(z: np.ndarray) -> tuple[np.ndarray, ...]:
        seen.append(len(z))
        return (run(z)[0] + (1e-6 if len(z) < 8 else 0),)

    object.__setattr__(odd.decode, "run", decode)
    odd.warm_up()
    assert seen == [16, 1, 2, 4, 6, 8, 12, 16]  # the largest first
    assert odd._buckets == [8, 12, 16]


def test_every_image_of_the_golden_batch_is_within_tolerance(engine: Engine) -> None:
    mu_error, log_sigma_error = engine.golden_errors()
    assert mu_error < 1e-4
    assert log_sigma_error < 1e-4


def test_bf16_stays_within_its_tolerance_of_fp32(engine: Engine, path: Path, images: np.ndarray, way: str) -> None:
    rounded = Engine(checkpoint.load(path), "cpu", "bf16", max_batch=16, path=way)
    mu, sigma, _ = engine.encode.run(images)
    got_mu, got_sigma, _ = rounded.encode.run(images)
    assert (np.abs(got_mu - mu) <= TOLERATED_MU * sigma).all()
    assert (np.abs(np.log(got_sigma / sigma)) <= TOLERATED_LOG_SIGMA).all()
    assert not np.array_equal(got_mu, mu)  # it really is another precision


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(torch.OutOfMemoryError("2 GiB"), MemoryError), (torch.AcceleratorError("device-side assert"), DeviceLost)],
)
def test_failures_of_the_device_get_names_that_the_batcher_knows(
    engine: Engine, images: np.ndarray, raised: Exception, expected: type[Exception]
) -> None:
    def fail(*_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise raised

    op = Op("encode", engine._runner(fail))
    with pytest.raises(expected):
        op.run(images)
