"""The limit: what the machine's cores give inside a process, with the service's own engine and no HTTP.

``python -m bench.limit`` prints images per second as JSON. As many streams as cores, once as threads of one process
(which share its interpreter lock) and once as processes; the better of both is the limit. With ``--asked`` it answers
lines on standard input, ``KIND SIZE SECONDS``, with the rate of threads: for whoever measures something else in turn.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from app import loading
from app.payloads import parse_images
from app.settings import Settings
from bench.pictures import digits, png
from model.pixels import to_unit

KINDS = ("encode_png", "encode", "decode")
SIZES = {"encode_png": (32,), "encode": (32, 64, 256), "decode": (32, 64, 256)}
MAX_PIXELS = 1_000_000
WARM_S = 0.2
Call = Callable[[], object]


def calls(engine: Any, kind: str, size: int) -> Call:
    """Return one call of the engine.

    Args:
        engine: of the service.
        kind: ``encode_png`` from PNG files, ``encode`` from bytes of an array, ``decode`` from latents.
        size: images in the call.
    """
    images = digits(size)
    if kind == "decode":
        z = np.random.default_rng(0).standard_normal((size, engine.latent_dim), np.float32)
        return lambda: engine.decode.run(z)
    if kind == "encode":
        return lambda: engine.encode.run(to_unit(images))
    files = [png(image) for image in images]

    def encode_files() -> object:
        parsed = (parse_images(file, "image/png") for file in files)
        x = [batch.decode(engine.image_shape, max_pixels=MAX_PIXELS) for batch in parsed]
        return engine.encode.run(np.concatenate(x))

    return encode_files


def stream(call: Call, size: int, seconds: float, start: Any, results: Any) -> None:
    """Call for some time after all streams are at the start; put images per second into ``results``."""
    end = time.perf_counter() + WARM_S
    while time.perf_counter() < end:
        call()
    start.wait()
    begin, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < seconds:
        call()
        done += size
    results.put(done / spent)


def process(precision: str, kind: str, size: int, seconds: float, start: Any, results: Any) -> None:
    """Load an engine of its own and be one stream."""
    engine = loading.load(Settings(precision=precision))
    stream(calls(engine, kind, size), size, seconds, start, results)


def as_threads(precision: str, kinds: list[tuple[str, int]], count: int, seconds: float) -> dict[str, float]:
    """Return images per second of ``count`` threads, by kind and size."""
    engine = loading.load(Settings(precision=precision))
    return {f"{kind}_{size}": together(calls(engine, kind, size), size, count, seconds) for kind, size in kinds}


def together(call: Call, size: int, count: int, seconds: float) -> float:
    """Return images per second of ``count`` threads that call at the same time."""
    start, results = threading.Barrier(count), queue.SimpleQueue[float]()
    threads = [threading.Thread(target=stream, args=(call, size, seconds, start, results)) for _ in range(count)]
    for thread in threads:
        thread.start()
    rate = sum(results.get() for _ in threads)
    for thread in threads:
        thread.join()
    return rate


def answer(precision: str, count: int, asked: Iterable[str]) -> Iterator[float]:
    """Yield the rate that each line asks for."""
    engine = loading.load(Settings(precision=precision))
    for line in asked:
        kind, size, seconds = line.split()
        yield together(calls(engine, kind, int(size)), int(size), count, float(seconds))


def as_processes(precision: str, kinds: list[tuple[str, int]], count: int, seconds: float) -> dict[str, float]:
    """Return images per second of ``count`` processes, by kind and size."""
    context, rates = multiprocessing.get_context("spawn"), {}
    for kind, size in kinds:
        start, results = context.Barrier(count), context.Queue()
        arguments = (precision, kind, size, seconds, start, results)
        running = [context.Process(target=process, args=arguments) for _ in range(count)]
        for one in running:
            one.start()
        rates[f"{kind}_{size}"] = sum(results.get(timeout=120) for _ in running)
        for one in running:
            one.join()
    return rates


def best(results: dict[str, dict[str, float]], kind: str) -> float:
    """Return the most images per second of a kind, of all sizes, as threads or as processes."""
    return max(rate for rates in results.values() for name, rate in rates.items() if name.rpartition("_")[0] == kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    parser.add_argument("--streams", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--asked", action="store_true", help="answer lines on standard input")
    options = parser.parse_args()
    if options.asked:
        for rate in answer(options.precision, options.streams, sys.stdin):
            print(rate, flush=True)
        return
    kinds = [(kind, size) for kind in options.kinds.split(",") for size in SIZES[kind]]
    arguments = (options.precision, kinds, options.streams, options.seconds)
    results: dict[str, Any] = {"threads": as_threads(*arguments)}
    results["processes"] = as_processes(options.precision, [("encode_png", 32)], options.streams, options.seconds)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
