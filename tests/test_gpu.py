"""The CUDA path: for real where there is a GPU, and as far as a machine without one can go."""

from collections.abc import Callable
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from conftest import client_of

from app import loading
from app.eager import Eager, device_errors
from app.engine import Engine
from app.graphs import CudaGraphs
from app.running import DeviceLost
from app.settings import Settings
from model import checkpoint
from model.gaussian import noise
from model.golden import drawn_images
from tests.service_process import Server
from tests.taped_graphs import tape_graphs
from tests.tiny import CONFIG, save_tiny, tiny_vae

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
CUDA = "cuda:0"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("gpu") / "tiny.safetensors")


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """Images that the bundled model draws, ``(600, 1, 28, 28)`` in 0..1."""
    vae = checkpoint.load(checkpoint.resolve("mnist")).vae
    return drawn_images(vae, 600, 5).astype(np.float32) / np.float32(255)


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

        def __init__(
            self, loaded: checkpoint.Checkpoint, device: str, precision: str, max_batch: int, streams: int, path: str
        ) -> None:
            built.append((device, precision))
            super().__init__(loaded, "cpu", precision, max_batch, streams, path)

        def golden_errors(self) -> tuple[float, float]:
            return (self.error, 0.0) if self.precision == "bf16" else (0.0, 0.0)

    monkeypatch.setattr(loading, "Engine", Pretender)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    settings = Settings(model=str(path), max_batch=2)
    assert loading.load(settings).precision == "bf16"
    Pretender.error = 2 * loading.TOLERATED_MU
    assert loading.load(settings).precision == "fp32"
    assert built == [(CUDA, "bf16"), (CUDA, "bf16"), (CUDA, "fp32")]


def halved(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return x / 2 + y, y


def test_a_replay_computes_what_its_caller_sent_and_gives_each_its_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    tapes = tape_graphs(monkeypatch)
    execute = CudaGraphs(torch.device("cpu"), largest=8).executor(halved)
    answers = []
    for rows in (8, 3, 1, 8, 3, 4):
        x, y = (np.random.default_rng(rows + i).random((rows, 5), np.float32) for i in range(2))
        answers.append((execute((x, y), 8 if rows > 4 else 4), x / 2 + y, y))
    assert len(tapes) == 2  # one for each size
    for (got, same), expected, y in answers:  # of all calls, after all calls: nothing is overwritten
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(same, y)


def test_as_many_calls_as_slots_record_a_size_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    tapes = tape_graphs(monkeypatch)
    execute = CudaGraphs(torch.device("cpu"), largest=4, slots=3).executor(halved)
    column = np.ones((4, 2), np.float32)
    for calls, recorded in ((1, 1), (1, 2), (1, 3), (5, 3)):
        for _ in range(calls):
            execute((column, column), 4)
        assert len(tapes) == recorded


def test_a_batch_above_the_largest_is_computed_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    tapes = tape_graphs(monkeypatch)
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    got, _ = CudaGraphs(torch.device("cpu"), largest=4).executor(halved)((x, x), 6)
    np.testing.assert_array_equal(got, x * np.float32(1.5))
    assert not tapes


def test_a_failed_batch_gives_its_slot_back(monkeypatch: pytest.MonkeyPatch) -> None:
    tape_graphs(monkeypatch)
    wanted = [torch.OutOfMemoryError("80 GiB")]

    def compute(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if wanted:
            raise wanted.pop()
        return (x + 1,)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    execute = CudaGraphs(torch.device("cpu"), largest=4).executor(compute)
    with pytest.raises(MemoryError):
        execute((np.zeros((2, 3), np.float32),), 2)
    np.testing.assert_array_equal(execute((np.zeros((2, 3), np.float32),), 2)[0], np.ones((2, 3)))


def test_any_error_after_which_the_gpu_is_silent_means_that_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_: torch.device) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    with pytest.raises(RuntimeError, match="CUDNN"), device_errors(torch.device(CUDA)):
        raise RuntimeError("CUDNN_STATUS_BAD_PARAM")
    monkeypatch.setattr(torch.cuda, "synchronize", silent)
    with pytest.raises(DeviceLost, match="unspecified"), device_errors(torch.device(CUDA)):
        raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def gpu(request: pytest.FixtureRequest) -> Engine:
    engine = Engine(checkpoint.load(checkpoint.resolve("mnist")), CUDA, request.param, max_batch=256, streams=2)
    engine.warm_up()
    return engine


@needs_cuda
def test_the_gpu_gives_the_answers_of_the_cpu(gpu: Engine, digits: np.ndarray) -> None:
    cpu = Engine(checkpoint.load(checkpoint.resolve("mnist")), "cpu", "fp32")
    far = 1e-3 if gpu.precision == "fp32" else 2 * loading.TOLERATED_MU
    (mu, sigma, _), (got_mu, got_sigma, _) = cpu.encode.run(digits), gpu.encode.run(digits)
    assert (np.abs(got_mu - mu) <= far * sigma).all()
    assert (np.abs(np.log(got_sigma / sigma)) <= far).all()
    epsilon = noise(1, 100, (32,))
    z, images = gpu.draw.run(epsilon)
    np.testing.assert_array_equal(z, epsilon)
    np.testing.assert_allclose(images, cpu.draw.run(epsilon)[1], atol=1e-5 if gpu.precision == "fp32" else 4 / 255)


@needs_cuda
def test_a_replay_gives_the_answer_of_the_plain_path_for_every_operation_and_size(
    gpu: Engine, digits: np.ndarray
) -> None:
    plain = Eager(torch.device(CUDA))
    epsilon = noise(2, 256, (32,))
    mu, sigma, _ = gpu.encode.run(digits[:256])
    calls: list[tuple[Callable[..., tuple[np.ndarray, ...]], Callable[..., tuple[torch.Tensor, ...]], tuple]] = [
        (gpu.encode.run, gpu._encode, (digits[:256],)),
        (gpu.decode.run, gpu._decode, (epsilon,)),
        (gpu.draw.run, gpu._draw, (epsilon,)),
        (gpu.weigh.run, gpu._weigh, (digits[:256], mu, sigma, epsilon)),
    ]
    for size in gpu._buckets:
        for replayed, compute, columns in calls:
            cut = tuple(column[:size] for column in columns)
            for got, expected in zip(replayed(*cut), plain.executor(compute)(cut, size), strict=True):
                np.testing.assert_array_equal(got, expected)


@needs_cuda
def test_company_changes_an_answer_of_the_gpu_by_rounding_at_most(gpu: Engine, digits: np.ndarray) -> None:
    mu, sigma, _ = gpu.encode.run(digits[:256])
    epsilon = noise(3, 256, (32,))
    (images,) = gpu.decode.run(epsilon)
    for rows in (1, 2, 3, 5, 8, 31, 32, 33, 100, 255):
        got_mu, _, _ = gpu.encode.run(digits[:rows])
        assert (np.abs(got_mu - mu[:rows]) <= (1e-4 if gpu.precision == "fp32" else 0.04) * sigma[:rows]).all()
        far = 1e-5 if gpu.precision == "fp32" else 1 / 255
        np.testing.assert_allclose(gpu.decode.run(epsilon[:rows])[0], images[:rows], atol=far)
        np.testing.assert_array_equal(gpu.encode.run(digits[:rows])[0], got_mu)  # the same again, bit for bit


@needs_cuda
def test_two_threads_get_their_own_answers_from_one_gpu(gpu: Engine, digits: np.ndarray) -> None:
    expected = [gpu.encode.run(digits[i : i + 64])[0] for i in range(0, 512, 64)]
    wrong: list[int] = []

    def ask(start: int) -> None:
        for turn in range(200):
            part = (start + turn) % 8
            if not np.array_equal(gpu.encode.run(digits[part * 64 : part * 64 + 64])[0], expected[part]):
                wrong.append(part)

    threads = [Thread(target=ask, args=(start,)) for start in (0, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_cuda
def test_the_golden_batch_of_the_bundled_model_is_within_tolerance_on_the_gpu(gpu: Engine) -> None:
    mu_error, log_sigma_error = gpu.golden_errors()
    assert mu_error <= (1e-3 if gpu.precision == "fp32" else loading.TOLERATED_MU)
    assert log_sigma_error <= loading.TOLERATED_LOG_SIGMA


@needs_cuda
def test_the_gpu_goes_on_after_it_ran_out_of_memory(gpu: Engine, digits: np.ndarray) -> None:
    before = gpu.encode.run(digits[:16])[0]

    def greedy(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.empty(1 << 42, device=x.device),)

    for size in (16, 10_000):  # with a graph, and without
        with pytest.raises(MemoryError, match="out of memory"):
            gpu._path.executor(greedy)((digits[:16],), size)
    np.testing.assert_array_equal(gpu.encode.run(digits[:16])[0], before)


@needs_cuda
def test_sizes_that_do_not_fit_on_the_gpu_are_given_up_at_the_start() -> None:
    engine = Engine(checkpoint.load(checkpoint.resolve("mnist")), CUDA, "fp32", max_batch=4096)
    compute = engine._encode

    def limited(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.empty((1 << 42) if len(x) > 100 else 1, device=x.device)
        return compute(x)

    object.__setattr__(engine.encode, "run", engine._runner(limited))
    engine.warm_up()
    assert engine.max_batch == 96


@needs_cuda
def test_a_server_on_the_gpu_answers_as_its_engine_does(digits: np.ndarray, tmp_path: Path) -> None:
    server = Server(tmp_path / "log.txt", {"device": "cuda", "precision": "fp32", "drain_delay_s": 0})
    server.wait_until_ready()
    with client_of(server) as client:
        said = client.get("/model").json()
        assert (said["device"], said["precision"], said["path"]) == (CUDA, "fp32", "cuda-graphs")
        body = {"z": noise(4, 3, (32,)).tolist()}
        first, second = (client.post("/decode", json=body, headers={"Accept": "application/x-npy"}) for _ in "12")
        assert first.status_code == 200
        assert first.content == second.content
        assert client.get("/sample", params={"n": 64, "seed": 1, "format": "png"}).status_code == 200
        scores = client.post("/score", json={"images": digits[:4].tolist()}).json()
        assert all(np.isfinite(scores["elbo"]))
    server.end()
