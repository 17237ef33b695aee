"""The service on a GPU: ``python -m bench.gpu`` prints one JSON document, in about two minutes.

Images per second of the bare network as CUDA graphs (the limit), of the engine in this process, and through HTTP;
the latency of a single encode; how many single-image requests the front end takes. Needs nothing beside what the
service needs; all clients are on the same machine as the server.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from app import loading
from app.settings import Settings
from bench.client import Connection, Times, closed_loop, closed_threads, percentile, request_bytes
from bench.machine import machine
from bench.pictures import MODEL, digits, npy, png, reference
from bench.processes import Server, environment, free_port, stop_on_sigterm
from model import checkpoint

GRAPH_SIZES = (64, 256, 512, 1024, 2048, 4096)
BULK_SIZES = (512, 1024)  # images in a request
BULK_CONNECTIONS = (1, 2, 4, 8)
SINGLE_CONNECTIONS = (1, 32, 128, 512)
CLIENT_PROCESSES = 4
NPY = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
PNG = {"Content-Type": "image/png"}


def rate(call: Callable[[], object], images: int, seconds: float, rounds: int = 3) -> dict[str, float]:
    """Return images per second of a call: median, least and most of some rounds, after a warm-up."""
    call()
    results = []
    for _ in range(rounds):
        done, begin = 0, time.perf_counter()
        while (spent := time.perf_counter() - begin) < seconds / rounds or not done:
            call()
            done += images
        results.append(done / max(spent, 1e-9))
    return {"median": round(median(results)), "least": round(min(results)), "most": round(max(results))}


def graph_limit(kind: str, precision: torch.dtype, size: int, seconds: float) -> dict[str, Any]:
    """Return images per second of the network as one CUDA graph: data on the GPU, and with copies from and to pinned.

    Args:
        kind: ``encode`` or ``decode``.
        precision: of the convolutions.
        size: images in a batch.
        seconds: of measuring, for each.
    """
    vae = checkpoint.load(checkpoint.resolve(MODEL)).vae.to("cuda")
    shape = (size, *vae.config.image_shape) if kind == "encode" else (size, vae.config.latent_dim)
    source = torch.zeros(shape, dtype=torch.uint8 if kind == "encode" else torch.float32).pin_memory()
    placed = source.to("cuda")

    def compute() -> tuple[torch.Tensor, ...]:
        if kind == "encode":
            return vae.encode(placed.float() / 255, precision)
        return (vae.likelihood.mean(vae.decode(placed, precision)),)

    with torch.inference_mode():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = compute()
        answers = [torch.empty_like(result, device="cpu").pin_memory() for result in results]

        def resident() -> None:
            for _ in range(10):
                graph.replay()
            torch.cuda.synchronize()

        def copied() -> None:
            for _ in range(10):
                placed.copy_(source, non_blocking=True)
                graph.replay()
                for answer, result in zip(answers, results, strict=True):
                    answer.copy_(result, non_blocking=True)
            torch.cuda.synchronize()

        return {
            "resident": rate(resident, 10 * size, seconds),
            "with_copies": rate(copied, 10 * size, seconds),
        }


def engine_limit(settings: Settings, seconds: float) -> dict[str, Any]:
    """Return images per second of the service's own engine, arrays in and arrays out, one call at a time."""
    engine = loading.load(settings)
    x = digits(4096).astype(np.float32) / np.float32(255)
    z = np.random.default_rng(0).standard_normal((len(x), engine.latent_dim), np.float32)
    results: dict[str, Any] = {"device": engine.device, "precision": engine.precision}
    for size in sorted({1, 64, engine.max_batch, 512}):
        results[f"encode_{size}"] = rate(partial(engine.encode.run, x[:size]), size, seconds)
        results[f"decode_{size}"] = rate(partial(engine.decode.run, z[:size]), size, seconds)
    return results


def _loop(port: int, requests: Sequence[bytes], connections: int, seconds: float, pipe: Any) -> None:
    pipe.send(closed_loop(port, requests, connections, seconds))


def clients(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> dict[str, Any]:
    """Return requests per second and latencies of a closed loop, whose connections several processes share."""
    count = min(CLIENT_PROCESSES, connections)
    context, pipes, running = multiprocessing.get_context("fork"), [], []
    for i in range(count):
        ours, theirs = context.Pipe(duplex=False)
        share = connections // count + (i < connections % count)
        running.append(context.Process(target=_loop, args=(port, requests[i::count], share, seconds, theirs)))
        pipes.append(ours)
    for process in running:
        process.start()
    parts: list[Times] = [pipe.recv() for pipe in pipes]
    for process in running:
        process.join()
    return summary(parts)


def summary(parts: Sequence[Times]) -> dict[str, Any]:
    """Return answered requests per second, latencies in milliseconds and errors of loops that ran at the same time."""
    latencies = [latency for part in parts for latency in part.latencies]
    errors = sum(part.errors for part in parts)
    return {
        "per_second": round((len(latencies) - errors) / max(part.seconds for part in parts), 1),
        **{f"p{share:g}_ms": round(1e3 * percentile(latencies, share / 100), 3) for share in (50, 90, 99)},
        "errors": errors,
    }


def bulk(port: int, seconds: float) -> dict[str, Any]:
    """Return images per second of requests that hold many images or latents, by kind, size and connections."""
    results = {}
    for size in BULK_SIZES:
        pictures = request_bytes("POST", "/encode", npy(digits(size)), NPY)
        z = np.random.default_rng(0).standard_normal((size, 32), np.float32)
        latents = request_bytes("POST", "/decode", npy(z), NPY)
        for kind, body in (("encode", pictures), ("decode", latents)):
            for connections in BULK_CONNECTIONS:
                measured = summary([closed_threads(port, [body], connections, seconds)])
                measured["images_per_second"] = round(measured["per_second"] * size)
                results[f"{kind}_npy_{size}_connections_{connections}"] = measured
    return results


def check(port: int) -> dict[str, float]:
    """Return the largest errors of answers against the plain network in float32 on the CPU, in tolerated units."""
    images = digits(512)
    mu, sigma = reference(images)
    connection = Connection(port)
    status, body = connection.ask(request_bytes("POST", "/encode", npy(images), NPY))
    if status != 200:
        raise SystemExit(f"/encode answered {status}: {body[:300]!r}")
    got = np.frombuffer(body[-mu.nbytes * 2 :], np.float32).reshape(2, *mu.shape)
    return {
        "mu_in_sigmas": float((np.abs(got[0] - mu) / sigma).max()),
        "log_sigma": float(np.abs(np.log(got[1] / sigma)).max()),
    }


def serve(flags: Sequence[str], seconds: float) -> dict[str, Any]:
    """Start the service and return everything that is measured through HTTP."""
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), *flags]
    singles = [request_bytes("POST", "/encode", png(image), PNG) for image in digits(512)]
    array = request_bytes("POST", "/encode", npy(digits(1)), NPY)
    with Server(command, port, "/readyz", environment(), Path(".bench") / "logs" / "gpu.log") as server:
        connection = Connection(port)
        told = json.loads(connection.ask(request_bytes("GET", "/model"))[1])
        results: dict[str, Any] = {
            "start_s": round(server.start_s, 2),
            "device": told["device"],
            "precision": told["precision"],
            "errors_against_cpu_fp32": check(port),
        }
        closed_loop(port, singles, 32, 1.0)
        results["single_npy"] = summary([closed_loop(port, [array], 1, seconds)])
        for connections in SINGLE_CONNECTIONS:
            before, begin = server.cpu_s(), time.perf_counter()
            measured = clients(port, singles, connections, seconds)
            measured["server_cores"] = round((server.cpu_s() - before) / (time.perf_counter() - begin), 2)
            results[f"single_png_connections_{connections}"] = measured
        results["bulk"] = bulk(port, seconds)
        results["memory_mib"] = round(server.memory_mib())
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--max-batch", type=int, default=512)
    parser.add_argument("--device", default="cuda", help="cpu only tries the script out")
    parser.add_argument("--serve", default="", help="further flags of `vae serve`, separated by spaces")
    options = parser.parse_args()
    stop_on_sigterm()
    flags = ["--device", options.device, "--max-batch", str(options.max_batch), "--max-queue-items", "65536"]
    flags += options.serve.split()
    began = time.monotonic()
    document: dict[str, Any] = {"machine": machine(), "cpu_count": os.cpu_count(), "flags": flags}
    document["http"] = serve(flags, options.seconds)  # before CUDA is touched here: client processes are forked
    settings = Settings(device=options.device, max_batch=options.max_batch)
    document["engine"] = engine_limit(settings, options.seconds / 2)
    if options.device.startswith("cuda"):
        document["cuda_graphs"] = {
            f"{kind}_{name}_{size}": graph_limit(kind, precision, size, options.seconds / 4)
            for kind in ("encode", "decode")
            for name, precision in (("bf16", torch.bfloat16), ("fp32", torch.float32))
            for size in GRAPH_SIZES
        }
    document["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
