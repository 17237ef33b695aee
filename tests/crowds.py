"""What tests with very many clients share: a server whose device is held, pictures that are all different, figures."""

import asyncio
import os
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import torch
from load_client import Answer, Pool, request
from procfs import connections, family, resident
from service_pictures import from_npy, npy
from service_process import Server

from model import checkpoint

Record = Callable[[str, object], None]
NPY_BOTH = {"content-type": "application/x-npy", "accept": "application/x-npy"}
SIGMAS = 0.05  # how far mu may lie from what the network alone says; other pictures lie further away


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(255))


class GatedServer(Server):
    """A server that computes nothing until it is told to."""

    command = ("tests.gated_server",)

    def open(self) -> None:
        os.kill(self.pid, signal.SIGUSR1)

    def hold(self) -> None:
        os.kill(self.pid, signal.SIGUSR2)


class Figures:
    """What ``/metrics`` says, by the names of its series."""

    def __init__(self, server: Server) -> None:
        self.text = httpx.get(f"{server.url}/metrics", timeout=30).text

    def __getitem__(self, series: str) -> float:
        found = re.findall(rf"^{re.escape(series)} (\S+)$", self.text, re.MULTILINE)
        return float(found[0]) if found else 0.0

    @property
    def waiting(self) -> float:
        """Rows that wait, over all operations."""
        return sum(float(value) for value in re.findall(r"^vae_queue_items\{[^}]*\} (\S+)$", self.text, re.MULTILINE))


def wait_for(server: Server, holds: Callable[[Figures], bool], seconds: float = 60) -> float:
    """Return after how many seconds the metrics were as wanted; raise where they never are."""
    begin = time.monotonic()
    while not holds(Figures(server)):
        assert time.monotonic() - begin < seconds, Figures(server).text
        time.sleep(0.02)
    return time.monotonic() - begin


class Pictures:
    """Very many different pictures that the model draws, and what the model makes of each.

    Picture i is one that the model draws, with i written into its left margin in grey: no two are alike, and their
    means lie apart. The network itself, without the service, says what is right.
    """

    def __init__(self, count: int, drawn: int = 500) -> None:
        vae = checkpoint.load(checkpoint.resolve(os.environ.get("VAE_TEST_MODEL", "mnist"))).vae
        torch.set_num_threads(1)  # on a busy machine the threads of so small a network mostly wait for each other
        z = torch.from_numpy(np.random.default_rng(0).standard_normal((drawn, vae.config.latent_dim), np.float32))
        with torch.inference_mode():
            own = torch.cat([vae.likelihood.mean(vae.decode(part)) for part in z.split(64)]).numpy()
            own = np.rint(own * 255).astype(np.uint8)
            self.pixels = own[np.arange(count) % drawn]  # (count, C, H, W)
            for digit in range(6):
                place = (np.arange(count) // 4**digit % 4 * 85).astype(np.uint8)
                self.pixels[:, :, 1 + digit * 4 : 4 + digit * 4, 1:4] = place[:, None, None, None]
            pairs = [vae.encode(to_tensor(part)) for part in np.array_split(self.pixels, -(-count // 64))]
        self.mu, self.sigma = (torch.cat(column).numpy() for column in zip(*pairs, strict=True))

    def request(self, number: int, **headers: str) -> bytes:
        extra = {name.replace("_", "-"): value for name, value in headers.items()}
        return request("POST", "/encode", NPY_BOTH | extra, npy(self.pixels[number]))

    def check(self, number: int, answer: Answer) -> str | None:
        """Return what is wrong with an answer to picture ``number``; None where it is right or a refusal."""
        status, body = answer
        if status != 200:
            return None
        mu = from_npy(body)[0, 0]
        off = float(np.abs((mu - self.mu[number]) / self.sigma[number]).max())
        return None if off < SIGMAS else f"the answer to picture {number} is off by {off:.3g} sigma"

    def apart(self, numbers: int = 200) -> float:
        """Return how many sigmas, in one dimension, the closest of the pictures lie apart whose numbers are close."""
        steps = (np.abs(self.mu[step:] - self.mu[:-step]) / self.sigma[step:] for step in range(1, numbers))
        return min(float(distance.max(axis=1).min()) for distance in steps)


def allow_files(count: int) -> None:
    """Let this process have so many open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def assert_unharmed(server: Server, pictures: Pictures) -> None:
    """Alive, ready, a known answer right, nobody in line, no failure counted or logged."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 200
        got = client.post("/encode", content=npy(pictures.pixels[0]), headers=NPY_BOTH)
        assert pictures.check(0, (got.status_code, got.content)) is None
        assert got.status_code == 200
    figures = Figures(server)
    assert figures.waiting == 0
    assert 'status="500"' not in figures.text
    server.assert_clean_log()


def assert_all_given_back(server: Server, pictures: Pictures) -> None:
    """No connection is left, and there is room for as many items and as many connections as at the start.

    Of a server that nobody else asks, and that takes as many items in one request as wait at most.
    """
    wait_until_left(server)
    assert_room_for_items(server, pictures)
    wait_until_left(server)
    assert_room_for_connections(server)
    wait_until_left(server)


def assert_room_for_items(server: Server, pictures: Pictures) -> None:
    line = server.setting("max_queue_items", 4096)
    whole = npy(np.repeat(pictures.pixels[:1], line, axis=0))
    got = httpx.post(f"{server.url}/encode", content=whole, headers=NPY_BOTH, timeout=60)
    assert got.status_code == 200, f"no room for {line} items: {got.text[:300]}"


def assert_room_for_connections(server: Server) -> None:
    most = server.setting("max_connections", 4096)
    refused = asyncio.run(refused_of(server.port, most))
    assert refused == 0, f"no room for {refused} of {most} connections"


def wait_until_left(server: Server, seconds: float = 20) -> None:
    """Return when the server holds no connection."""
    end = time.monotonic() + seconds
    while left := connections(server.port):
        assert time.monotonic() < end, f"{left} connections are left"
        time.sleep(0.02)


async def refused_of(port: int, count: int) -> int:
    """Open so many connections, ask on each, and return how many were not answered with 200."""
    allow_files(count + 200)
    async with Pool(port) as pool:
        links = [await pool.take() for _ in range(count)]
        answers = await asyncio.gather(
            *(link.start(request("GET", "/livez")) for link in links), return_exceptions=True
        )
    return sum(not isinstance(answer, tuple) or answer[0] != 200 for answer in answers)


def memory_of(server: Server) -> int:
    """Return the bytes that a server's processes hold."""
    return resident(*family(server.pid))


def gated(folder: Path, **settings: object) -> GatedServer:
    server = GatedServer(folder / "log.txt", {"drain_delay_s": 0, "device": "cpu", **settings})
    server.wait_until_ready()
    return server
