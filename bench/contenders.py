"""Who is measured, and how each is started and asked: the same picture, ``mu`` and ``sigma`` as JSON back."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.client import request_bytes
from bench.environments import FOLDER, python
from bench.processes import Server, environment, free_port

TOLERATED_MU = 0.02  # of sigma
TOLERATED_LOG_SIGMA = 0.02
Posterior = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class Contender:
    """A server that encodes pictures.

    Attributes:
        name: of the row in the table.
        peer: name of its virtual environment; none for this project's own.
        command: from a port to the command line.
        ready: path that answers 200 when it is ready.
        request: from a PNG file to the request.
        read: from the JSON of an answer to ``mu`` and ``sigma`` of its image.
        settings: environment variables.
    """

    name: str
    command: Callable[[int], list[str]]
    ready: str
    request: Callable[[bytes], bytes]
    read: Callable[[Any], tuple[Any, Any]]
    peer: str | None = None
    settings: dict[str, str] = field(default_factory=dict)

    def start(self) -> Server:
        """Start it and return it ready."""
        log = FOLDER / "logs" / f"{self.name.replace(' ', '-')}.log"
        port = free_port()
        return Server(self.command(port), port, self.ready, environment(**self.settings), log)


def check(contender: Contender, answers: Sequence[bytes], expected: Posterior) -> tuple[float, float]:
    """Return the largest errors of answers: of mu in units of sigma, and of log sigma.

    Raises:
        ValueError: one is beyond what is tolerated.
    """
    read = [contender.read(json.loads(answer)) for answer in answers]
    mu, sigma = (np.array([pair[i] for pair in read], np.float64).reshape(expected[i].shape) for i in (0, 1))
    mu_error = float((np.abs(mu - expected[0]) / expected[1]).max())
    log_sigma_error = float(np.abs(np.log(sigma / expected[1])).max())
    if not (mu_error <= TOLERATED_MU and log_sigma_error <= TOLERATED_LOG_SIGMA):
        raise ValueError(f"{contender.name} answers wrongly: mu off by {mu_error} sigma, log sigma {log_sigma_error}")
    return mu_error, log_sigma_error


def own(name: str, *flags: str) -> Contender:
    """Return this service, with flags of ``vae serve``."""
    return Contender(
        name,
        command=lambda port: [sys.executable, "-m", "app.cli", "serve", "--port", str(port), *flags],
        ready="/readyz",
        request=_raw_png,
        read=_plain_answer,
    )


def peers(path: str) -> list[Contender]:
    """Return the peers, each in the best configuration that was found.

    Args:
        path: ``plain`` for the network as PyTorch runs it, ``ours`` for this project's execution path.
    """
    suffix = " + our path" if path == "ours" else ""
    return [
        replace(contender, name=contender.name + suffix, settings={**contender.settings, "BENCH_PATH": path})
        for contender in (naive(), litserve(), bentoml(), mlserver())
    ]


def naive() -> Contender:
    """Return FastAPI as most tutorials leave it."""

    def command(port: int) -> list[str]:
        factory = "bench.peers.naive:create_app"
        return _module("naive", "uvicorn", "--factory", factory, "--port", str(port), "--no-access-log")

    return Contender("naive FastAPI", command, "/ready", _raw_png, _plain_answer, "naive")


def litserve(batch: int = 16, wait_ms: float = 2, fronts: int = 2) -> Contender:
    """Return LitServe with two workers; a batch is closed when it is full, or after ``wait_ms``."""

    def command(port: int) -> list[str]:
        return _module("litserve", "bench.peers.litserve_server", "--port", str(port))

    settings = {"BENCH_BATCH": str(batch), "BENCH_WAIT_MS": str(wait_ms), "BENCH_FRONTS": str(fronts)}
    return Contender("LitServe", command, "/health", _raw_png, _plain_answer, "litserve", settings)


def bentoml(batch: int = 32, wait_ms: int = 10_000) -> Contender:
    """Return BentoML with two workers; ``wait_ms`` bounds latency, and what would exceed it is refused."""

    def command(port: int) -> list[str]:
        return _module("bentoml", "bentoml", "serve", "bench.peers.bentoml_service:Encoder", "--port", str(port))

    def request(png: bytes) -> bytes:
        body = json.dumps({"images": [base64.b64encode(png).decode()]}).encode()
        return request_bytes("POST", "/encode", body, {"Content-Type": "application/json"})

    settings = {"BENCH_BATCH": str(batch), "BENCH_WAIT_MS": str(wait_ms), "BENTOML_DO_NOT_TRACK": "True"}
    return Contender("BentoML", command, "/readyz", request, lambda answer: tuple(answer[0]), "bentoml", settings)


def mlserver(batch: int = 32, wait_ms: float = 5) -> Contender:
    """Return MLServer with two workers; a batch is closed when it is full, or after ``wait_ms``."""

    def command(port: int) -> list[str]:
        return [str(python("mlserver").with_name("mlserver")), "start", str(_mlserver_folder(port, batch, wait_ms))]

    def request(png: bytes) -> bytes:
        data = base64.b64encode(png).decode()
        image = {"name": "images", "datatype": "BYTES", "shape": [1, 1], "data": [data]}
        body = json.dumps({"inputs": [image]}).encode()
        return request_bytes("POST", "/v2/models/vae/infer", body, {"Content-Type": "application/json"})

    def read(answer: Any) -> tuple[Any, Any]:
        outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        return outputs["mu"], outputs["sigma"]

    return Contender("MLServer", command, "/v2/models/vae/ready", request, read, "mlserver")


def _mlserver_folder(port: int, batch: int, wait_ms: float) -> Path:
    """Write the settings of MLServer, which reads them from files, and return their folder."""
    folder = FOLDER / "mlserver-models" / "vae"
    folder.mkdir(parents=True, exist_ok=True)
    server = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    server |= {"parallel_workers": 2, "debug": False, "use_structured_logging": False}
    server |= {"metrics_dir": str(folder / "metrics"), "environments_dir": str(folder / "environments")}
    model: dict[str, Any] = {"name": "vae", "implementation": "bench.peers.mlserver_runtime.Encoder"}
    model |= {"max_batch_size": batch, "max_batch_time": wait_ms / 1000}
    (folder / "settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(model))
    return folder


def _module(peer: str, module: str, *arguments: str) -> list[str]:
    return [str(python(peer)), "-m", module, *arguments]


def _raw_png(png: bytes) -> bytes:
    return request_bytes("POST", "/encode", png, {"Content-Type": "image/png"})


def _plain_answer(answer: Any) -> tuple[Any, Any]:
    return answer["mu"], answer["sigma"]
