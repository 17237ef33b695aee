"""``vae encode FOLDER`` beside the bulk rate of the same server: ``python -m bench.folder``, two minutes.

10,000 JPEG files, drawn by the bundled model, are encoded by the command, start of the program included; before and
after it the same images are sent as arrays, by two threads. Once with server and command on the same cores, once with
cores of their own, as where the server is another machine. Prints rates and ratios as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.client import Client
from bench.contenders import own
from bench.pictures import digits
from bench.processes import environment, stop_on_sigterm

AT_ONCE = 256  # images in a bulk request, as many as the command sends
THREADS = 2


def bulk(url: str, images: NDArray[np.uint8]) -> None:
    """Encode images as arrays."""
    parts = [images[i : i + AT_ONCE] for i in range(0, len(images), AT_ONCE)]
    with Client(url) as client, ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(client.encode, parts))


def command(url: str, folder: Path) -> None:
    """Encode the files of a folder by ``vae encode``."""
    arguments = ["encode", str(folder), "--url", url, "--out", str(folder.parent / "latents.safetensors"), "--restart"]
    subprocess.run([sys.executable, "-m", "app.cli", *arguments], env=environment(), check=True, capture_output=True)


def compare(images: NDArray[np.uint8], folder: Path, rounds: int, apart: bool) -> dict[str, Any]:
    """Return images per second of both, and the ratio taken within each round.

    Args:
        images: of the files, ``(N, 1, 28, 28)``.
        folder: of the files.
        rounds: each is bulk, command, bulk.
        apart: whether server and client have a half of the cores each.
    """
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    options = ("--streams", str(half)) if apart else ()
    found: dict[str, list[float]] = {"bulk": [], "command": [], "ratio": []}
    try:
        if apart:
            os.sched_setaffinity(0, cores[:half])  # the server inherits it
        with own("vae-service", *options).start() as server:
            if apart:
                os.sched_setaffinity(0, cores[half:])
            url = f"http://127.0.0.1:{server.port}"
            bulk(url, images)  # warm
            for _ in range(rounds):
                seconds = []
                for run in (bulk, command, bulk):
                    began = time.perf_counter()
                    run(url, folder if run is command else images)  # type: ignore[operator]
                    seconds.append(time.perf_counter() - began)
                found["bulk"] += [len(images) / seconds[0], len(images) / seconds[2]]
                found["command"].append(len(images) / seconds[1])
                found["ratio"].append((seconds[0] + seconds[2]) / 2 / seconds[1])
    finally:
        os.sched_setaffinity(0, cores)
    return {name: round(median(values), 3) for name, values in found.items()} | {"ratios": found["ratio"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    stop_on_sigterm()
    images = digits(options.images)
    with TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image[0]).save(folder / f"{i:05}.jpg")
        results = {
            "same cores": compare(images, folder, options.rounds, apart=False),
            "cores of their own": compare(images, folder, options.rounds, apart=True),
        }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
