"""The model's negative log-likelihood as a client finds it: ``python -m bench.nll_over_http``.

``POST /encode`` gives mu and sigma of binarized test images; draws, densities and weights are NumPy in float64;
``POST /decode`` gives the pixel probabilities of every draw. The result is the importance-weighted bound
(Burda et al. 2016) of docs/maths.md, computed without a line of the model's own code, and compared with
the figure of ``GET /model`` for the same targets and the same number of draws.

All 10,000 images are compared with that figure itself. Of fewer images the mean says little, since images differ by
20 nats; they are compared image by image with ``model.scores``, which wrote the figure.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from bench.client import Connection, request_bytes
from bench.contenders import own
from bench.pictures import npy
from bench.processes import stop_on_sigterm
from model import checkpoint, data
from model.scores import bounds, frozen_targets

NPY = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
AGREES = 0.3  # nats
SMALLEST = 2.0**-126  # probability; the smallest normal float32
HALF_STEP = 2.0**-25  # of float32 below 1: what is known of a probability that was rounded to 1
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Caller:
    """Asks one server, with a connection for each thread.

    Attributes:
        port: where it listens, on this machine.
        rows: items that a request may hold.
    """

    port: int
    rows: int
    _local: threading.local

    def post(self, path: str, array: NDArray[Any]) -> NDArray[np.float32]:
        """Return the answer to an array.

        Raises:
            ValueError: the answer is not 200; the text is its body.
        """
        if not hasattr(self._local, "connection"):
            self._local.connection = Connection(self.port)
        status, body = self._local.connection.ask(request_bytes("POST", path, npy(array), NPY))
        if status != 200:
            raise ValueError(f"{path} answered {status}: {body[:300]!r}")
        return read_npy(body)

    def get(self, path: str) -> Any:
        """Return a JSON answer."""
        connection = Connection(self.port)
        status, body = connection.ask(request_bytes("GET", path))
        connection.close()
        if status != 200:
            raise ValueError(f"{path} answered {status}")
        return json.loads(body)


def bound(caller: Caller, targets: NDArray[np.uint8], draws: int, seed: tuple[int, ...]) -> Array:
    """Return the importance-weighted bound of some images in nats, ``(n,)``.

    Args:
        caller: of the server.
        targets: 0 or 1, ``(n, C, H, W)``; ``n * draws`` at most what a request may hold.
        draws: ``K``.
        seed: of the draws.
    """
    mu, sigma = caller.post("/encode", targets * np.uint8(255)).astype(np.float64)  # (n, D) each
    noise = np.random.default_rng(seed).standard_normal((len(mu), draws, mu.shape[1]))
    z = (mu[:, None] + sigma[:, None] * noise).astype(np.float32)  # rounded as the server will see it
    p = caller.post("/decode", z.reshape(-1, mu.shape[1]))
    likelihood = log_bernoulli(targets, p.reshape(len(mu), draws, -1))
    exact = z.astype(np.float64)
    log_w = likelihood + log_normal(exact, 0.0, 1.0) - log_normal(exact, mu[:, None], sigma[:, None])
    most = log_w.max(1, keepdims=True)
    mean: Array = np.log(np.exp(log_w - most).mean(1)) + most[:, 0]
    return mean


def log_bernoulli(targets: NDArray[np.uint8], p: NDArray[np.float32]) -> Array:
    """Return ``log p(x|z)``, ``(n, K)``, of binary targets ``(n, C, H, W)`` under probabilities ``(n, K, C*H*W)``.

    A float32 probability that was rounded to 1 may have been anything above 1 - 2⁻²⁵, so that is what it counts as.
    """
    x = targets.reshape(len(targets), 1, -1).astype(bool)
    held = np.where(x, p.astype(np.float64), 1.0 - p.astype(np.float64))
    floors = np.where(x, SMALLEST, HALF_STEP)
    total: Array = np.log(np.maximum(held, floors)).sum(-1)
    return total


def log_normal(z: Array, mean: Array | float, deviation: Array | float) -> Array:
    """Return the log-density of independent normals, summed over the last axis."""
    terms = -0.5 * ((z - mean) / deviation) ** 2 - np.log(deviation) - 0.5 * math.log(2 * math.pi)
    total: Array = terms.sum(-1)
    return total


def bounds_over_http(caller: Caller, targets: NDArray[np.uint8], draws: int, seed: int, threads: int = 3) -> Array:
    """Return the bound of every image, ``(N,)``, several requests at a time."""
    step = max(1, caller.rows // draws)
    starts = range(0, len(targets), step)
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(lambda i: bound(caller, targets[i : i + step], draws, (seed, i)), starts)
        return np.concatenate(list(parts))


def read_npy(body: bytes) -> NDArray[np.float32]:
    """Return the array of an ``.npy`` answer, without copying it."""
    length = int.from_bytes(body[8:10], "little")
    header = body[10 : 10 + length].decode()
    shape = tuple(int(part) for part in header.split("(")[1].split(")")[0].split(",") if part.strip())
    return np.frombuffer(body, np.float32, offset=10 + length).reshape(shape)


def compare(caller: Caller, count: int, draws: int, seed: int, data_dir: Path | None) -> dict[str, Any]:
    """Return both estimates and whether they agree.

    Raises:
        ValueError: the model's likelihood or prior has no such estimate through HTTP, or has no figure to compare.
    """
    model = caller.get("/model")
    if (model["likelihood"], model["prior"]) != ("bernoulli", "standard_normal"):
        raise ValueError(f"a client knows the densities of bernoulli and standard_normal only, not of {model['name']}")
    shape = (model["image"]["channels"], model["image"]["height"], model["image"]["width"])
    metrics, name = model["metrics"], model["name"]
    test = data.load(metrics["data"].lower(), shape, data_dir).test
    targets = frozen_targets(test, True, metrics["seed"])
    items = np.sort(np.random.default_rng(seed).permutation(len(test))[:count])
    found = bounds_over_http(caller, targets.numpy().astype(np.uint8)[items], draws, seed)
    result = {"model": name, "precision": model["precision"], "images": len(items), "draws": draws}
    result["nll_over_http"] = -float(found.mean())
    if len(items) == len(test):
        result["nll"] = metrics[f"nll_{draws}"]
    else:
        vae = checkpoint.load(checkpoint.resolve(name)).vae
        gaps = found - bounds(vae, targets, draws, items, metrics["seed"])
        result["nll"] = result["nll_over_http"] + float(gaps.mean())
        result["standard_error_of_difference"] = float(gaps.std(ddof=1) / math.sqrt(len(gaps)))
    result["difference"] = result["nll_over_http"] - result["nll"]
    return result | {"agrees": abs(result["difference"]) <= AGREES}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="of a running service on this machine; by default one is started")
    parser.add_argument("--images", type=int, default=10_000, help="of the test images, at random")
    parser.add_argument("--draws", type=int, default=100, help="of z for each image")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data-dir", type=Path, default=None, help="folder of the data set; default $VAE_DATA_DIR")
    options = parser.parse_args()
    stop_on_sigterm()
    server = None if options.url else own("vae-service").start()
    try:
        port = server.port if server else urlsplit(options.url).port or 80
        rows = Caller(port, 1, threading.local()).get("/model")["limits"]["max_items"]
        caller = Caller(port, rows, threading.local())
        result = compare(caller, options.images, options.draws, options.seed, options.data_dir)
    except (OSError, ValueError, KeyError) as error:
        print(f"nll_over_http: {error!r}", file=sys.stderr)
        return 2
    finally:
        if server:
            server.stop()
    print(json.dumps(result, indent=1))
    return 0 if result["agrees"] else 1


if __name__ == "__main__":
    sys.exit(main())
