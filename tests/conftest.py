"""Fixtures of the service tests: one server for the whole run, others with other settings, all real processes.

``VAE_TEST_MODEL`` names a checkpoint to serve instead of the bundled one.
"""

import faulthandler
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key  # no public way leads to the real stderr
from service_pictures import digits
from service_process import Server

StartServer = Callable[..., Server]
LONG_S = 1800  # after which a test that takes minutes counts as hung


@pytest.fixture
def takes_minutes(request: pytest.FixtureRequest) -> None:
    """Let a test run for longer than ``faulthandler_timeout``, and still end with every thread's stack if it hangs."""
    stderr = request.config.stash[fault_handler_stderr_fd_key]
    faulthandler.dump_traceback_later(LONG_S, exit=True, file=stderr)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of the whole run, with default settings; ended with SIGTERM, held to a clean exit and log."""
    running = Server(tmp_path_factory.mktemp("server") / "log.txt", {})
    running.wait_until_ready()
    yield running
    running.end()


@pytest.fixture(scope="module")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """``start_server(max_items=5, flags=("--port", "0"), …)``: another ready server, ended with the module."""
    started: list[Server] = []

    def start(flags: tuple[str, ...] = (), **settings: object) -> Server:
        log = tmp_path_factory.mktemp("server") / "log.txt"
        running = Server(log, {"drain_delay_s": 0, **settings}, flags)
        running.wait_until_ready()
        started.append(running)
        return running

    yield start
    for running in started:
        running.terminate()
    for running in started:
        running.wait()
    for running in started:
        running.end()


@pytest.fixture(scope="session")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A second process of the run: low limits, an origin that may call, a log in JSON."""
    settings = {
        "max_items": 5,
        "max_body_bytes": 40_000,
        "max_pixels": 10_000,
        "max_queue_items": 500,
        "max_batch": 4,
        "deadline_s": 12.5,
        "cors_origins": "https://pictures.example,http://localhost:5173",
        "log_format": "json",
        "drain_delay_s": 0,
    }
    running = Server(tmp_path_factory.mktemp("small") / "log.txt", settings)
    running.wait_until_ready()
    yield running
    running.end()


@pytest.fixture(scope="session")
def small(small_server: Server) -> Iterator[httpx.Client]:
    """A client on the server of low limits."""
    with client_of(small_server) as client:
        yield client


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    """A client on the server of the whole run."""
    with client_of(server) as client:
        yield client


def client_of(running: Server) -> httpx.Client:
    limits = httpx.Limits(max_connections=256, max_keepalive_connections=256)
    return httpx.Client(base_url=running.url, timeout=60, limits=limits)


@pytest.fixture(scope="session")
def model(http: httpx.Client) -> dict[str, Any]:
    """What ``GET /model`` says."""
    body = http.get("/model").raise_for_status().json()
    assert isinstance(body, dict)
    return body


@pytest.fixture(scope="session")
def latent_dim(model: dict[str, Any]) -> int:
    return int(model["latent_dim"])


@pytest.fixture(scope="session")
def pixel_tolerance(model: dict[str, Any]) -> float:
    """How far pixels of the same latents may lie apart: 1e-5, in bf16 one grey level."""
    return 1e-5 if model["precision"] == "fp32" else 1 / 255 + 1e-6


@pytest.fixture(scope="session")
def mu_tolerance(model: dict[str, Any]) -> float:
    """How far mu of the same image may lie apart in other company, in units of sigma."""
    return 1e-4 if model["precision"] == "fp32" else 0.04


@pytest.fixture(scope="session")
def drawn(http: httpx.Client) -> np.ndarray:
    """Pictures that the model itself draws, ``(16, 1, 28, 28)`` float32."""
    from service_pictures import from_npy

    answer = http.get("/sample", params={"n": 16, "seed": 3, "temperature": 0.7, "format": "npy"})
    return from_npy(answer.raise_for_status().content)


@pytest.fixture(scope="session")
def strokes() -> np.ndarray:
    """Digits drawn with strokes, ``(12, 28, 28)`` uint8."""
    return digits(12)
