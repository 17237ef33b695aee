"""What is measured of one server: throughput, latency, bulk requests, memory; each returns JSON values."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import numpy as np
from safetensors.numpy import save

from bench import wrk
from bench.client import Connection, Times, closed_threads, open_loop, percentile, request_bytes
from bench.contenders import Contender, check, own
from bench.environments import FOLDER
from bench.limit import SIZES
from bench.pictures import digits, npy, png, reference
from bench.processes import ROOT, Server, environment, free_port

PICTURES = 512  # distinct ones, sent in turn
CHECKED = 16
BULK, BULK_JSON = 512, 64  # images in a request
BULK_CONNECTIONS = (1, 4)
OPEN_RATE = 300.0
TURN_S = 1.5  # of each turn, some nine requests on each connection
MANY = (1, 10, 32, 100, 316, 1000)


@dataclass(frozen=True)
class Plan:
    """How long everything takes.

    Attributes:
        rounds: how often all servers take their turn.
        seconds: of each closed loop.
        open_seconds: of each open loop.
        levels: connections of the closed loops.
        turns: of bulk requests and the limit.
    """

    rounds: int = 3
    seconds: int = 3
    open_seconds: float = 5.0
    levels: tuple[int, ...] = (1, 8, 32, 128)
    turns: int = 5


QUICK = Plan(rounds=1, seconds=1, open_seconds=2.0, levels=(1, 32, 128), turns=2)


@cache
def files() -> tuple[bytes, ...]:
    """Return the PNG files that all servers are sent."""
    return tuple(png(image) for image in digits(PICTURES))


def serve_and_measure(contender: Contender, plan: Plan, whole: bool = True) -> dict[str, Any]:
    """Start a server, check its answers, measure it, stop it.

    Args:
        contender: the server.
        plan: how long.
        whole: also at few connections, and in open loops.

    Raises:
        ValueError: it answers wrongly.
    """
    requests = [contender.request(file) for file in files()]
    path = wrk.save_requests(contender.name, requests)
    with contender.start() as server:
        results: dict[str, Any] = {"start_s": server.start_s, "errors": ask_and_check(contender, server, requests)}
        wrk.closed_loop(server, path, 32, 2)  # warm
        levels = plan.levels if whole else plan.levels[-2:]
        results["closed"] = {str(n): wrk.closed_loop(server, path, n, plan.seconds) for n in levels}
        results["memory_mib"] = server.memory_mib()
        if whole:
            half = results["closed"]["32"]["per_second"] / 2
            results["open_300"] = open_latency(server, requests, OPEN_RATE, plan)
            results["open_half"] = open_latency(server, requests, half, plan)
    return results


def ask_and_check(contender: Contender, server: Server, requests: Sequence[bytes]) -> dict[str, float]:
    """Return the largest errors of some answers, in tolerated terms; an answer other than 200 is an error."""
    connection, answers = Connection(server.port), []
    for request in requests[:CHECKED]:
        status, body = connection.ask(request)
        if status != 200:
            raise ValueError(f"{contender.name} answered {status}: {body[:300]!r}")
        answers.append(body)
    connection.close()
    mu_error, log_sigma_error = check(contender, answers, reference(digits(PICTURES)[:CHECKED]))
    return {"mu_in_sigmas": mu_error, "log_sigma": log_sigma_error}


def open_latency(server: Server, requests: Sequence[bytes], rate: float, plan: Plan) -> dict[str, Any]:
    """Return latencies in ms of an open loop."""
    try:
        times = open_loop(server.port, requests, rate, plan.open_seconds)
    except TimeoutError:
        return {"rate": rate, "overrun": True}
    return {"rate": rate, "sent_late_p99_ms": 1e3 * percentile(times.late, 0.99), **latencies(times)}


def latencies(times: Times) -> dict[str, Any]:
    """Return requests per second, percentiles in ms and errors."""
    shares = {f"p{share}_ms": 1e3 * percentile(times.latencies, share / 100) for share in (50, 90, 99)}
    per_second = (len(times.latencies) - times.errors) / times.seconds
    return {"per_second": per_second, **shares, "errors": times.errors}


def bulk_requests() -> dict[str, tuple[bytes, int]]:
    """Return requests that hold many items, and how many, by what they are."""
    images = digits(BULK)
    z = np.random.default_rng(0).standard_normal((BULK, 32), np.float32)
    texts = [base64.b64encode(file).decode() for file in files()[:BULK_JSON]]
    bodies = {
        "encode npy": ("/encode", "application/x-npy", npy(images), BULK),
        "encode safetensors": ("/encode", "application/x-safetensors", save({"images": images}), BULK),
        "encode json": ("/encode", "application/json", json.dumps({"images": texts}).encode(), BULK_JSON),
        "decode npy": ("/decode", "application/x-npy", npy(z), BULK),
        "decode safetensors": ("/decode", "application/x-safetensors", save({"z": z}), BULK),
        "decode json": ("/decode", "application/json", json.dumps({"z": z[:BULK_JSON].tolist()}).encode(), BULK_JSON),
    }
    requests = {
        name: (request_bytes("POST", path, body, {"Content-Type": kind, "Accept": kind}), items)
        for name, (path, kind, body, items) in bodies.items()
    }
    requests["sample png"] = (request_bytes("GET", "/sample?n=64", headers={"Accept": "image/png"}), 64)
    return requests


def bulk(contender: Contender, plan: Plan) -> dict[str, Any]:
    """Return images per second of this service's bulk requests, by what and connections."""
    results = {}
    with contender.start() as server:
        for name, (request, items) in bulk_requests().items():
            closed_threads(server.port, [request], 2, 0.5)
            for connections in BULK_CONNECTIONS:
                measured = latencies(closed_threads(server.port, [request], connections, plan.seconds))
                measured["images_per_second"] = items * measured["per_second"]
                results[f"{name}, {connections}"] = measured
    return results


def shares(contender: Contender, plan: Plan) -> dict[str, dict[str, float]]:
    """Return images per second of bulk requests as .npy, and of the limit at each size, by kind: medians of turns.

    In turn, as the machine's speed moves by a twentieth within seconds; see ``bench.limit``.
    """
    command, requests, results = [sys.executable, "-m", "bench.limit", "--asked"], bulk_requests(), {}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with contender.start() as server, subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes) as asked:

        def rate(kind: str, size: int | None) -> float:
            if size is None:
                request, items = requests[f"{kind} npy"]
                return items * float(latencies(closed_threads(server.port, [request], 4, TURN_S))["per_second"])
            asked.stdin.write(f"{kind} {size} {TURN_S}\n")
            return float(asked.stdout.readline())

        for kind in ("encode", "decode"):
            turns: dict[int | None, list[float]] = {size: [] for size in (None, *SIZES[kind])}
            rate(kind, None)  # warm
            for number in range(plan.turns):
                for size in turns if number % 2 else reversed(turns):
                    turns[size].append(rate(kind, size))
            results[kind] = {f"limit_{size}" if size else "http": median(rates) for size, rates in turns.items()}
    return results


def sheets(contender: Contender, plan: Plan) -> dict[str, Any]:
    """Return what ``/sample?n=64`` as PNG gives at each number of connections."""
    request = request_bytes("GET", "/sample?n=64", headers={"Accept": "image/png"})
    with contender.start() as server:
        closed_threads(server.port, [request], 2, 0.5)
        return {str(n): latencies(closed_threads(server.port, [request], n, plan.seconds)) for n in BULK_CONNECTIONS}


def many_connections(contender: Contender, plan: Plan) -> dict[str, Any]:
    """Return the closed loop from 1 to 1000 connections, on one server."""
    path = wrk.save_requests(contender.name, [contender.request(file) for file in files()])
    with contender.start() as server:
        wrk.closed_loop(server, path, 32, 2)
        return {str(n): wrk.closed_loop(server, path, n, 2 * plan.seconds) for n in MANY}


def floor(plan: Plan) -> dict[str, Any]:
    """Return the closed loop at 32 connections of the HTTP server with nothing behind it, and of our ``/livez``."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "bench.floor:create_app", "--port", str(port)]
    command += ["--no-access-log", "--log-level", "warning"]
    requests = [own("").request(file) for file in files()]
    path = wrk.save_requests("floor", requests)
    with Server(command, port, "/", environment(), FOLDER / "logs" / "floor.log") as server:
        bare = wrk.closed_loop(server, path, 32, plan.seconds)
    path = wrk.save_requests("livez", [request_bytes("GET", "/livez")])
    with own("vae-service").start() as server:
        return {"uvicorn": bare, "livez": wrk.closed_loop(server, path, 32, plan.seconds)}


def limit(precision: str, plan: Plan) -> Any:
    """Return what the machine gives in process; see ``bench.limit``."""
    seconds = min(plan.seconds, 2) / 2
    command = [sys.executable, "-m", "bench.limit", "--precision", precision, "--seconds", str(seconds)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
