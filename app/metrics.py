"""Prometheus metrics on a registry of their own: nine of the service, and what the kernel knows of the process.

Every label value comes from a closed set, so no request can add a series; a series is looked up once, so that
counting costs little. Knows neither routes nor batches: it is told strings and numbers.
"""

from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from app.errors import CODES

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

ROUTES: Final = (
    *("/encode", "/decode", "/sample", "/kl", "/score", "/reconstruct", "/model"),
    *("/interpolate", "/traverse", "/map"),
    *("/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/static", "/"),
)
OPS: Final = ("encode", "decode", "sample", "score", "kl")
UNMATCHED: Final = "unmatched"  # a route that is none of ours
OTHER: Final = "other"  # anything else that is none of ours

# Three steps a decade, from a refusal (under a millisecond) to the default deadline, 30 s.
REQUEST_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# A free device takes a row in well under a millisecond; in a full line it waits up to the deadline.
QUEUE_S: Final = (0.0001, 0.0002, 0.0005, *REQUEST_S)
# One batch: from a replayed CUDA graph, under half a millisecond, to a large network on an old CPU.
DEVICE_S: Final = (0.0002, 0.0005, *REQUEST_S[:-2])
# Powers of two, as batch shapes are, up to the largest that can be configured.
BATCH_ITEMS: Final = tuple(2**i for i in range(13))
# Digits lie between 15 and 35 nats; near 0 the posterior says nothing, far above the data has drifted.
KL_NATS: Final = (0.5, 1, 2, 5, 10, 15, 20, 25, 30, 35, 40, 50, 70, 100, 150, 200, 500, 1000)

_STATUSES: Final = {int(status): str(int(status)) for status in HTTPStatus} | {499: "499"}  # 499: the caller left


class Metrics:
    """All metrics of one service; its methods may be called from any thread.

    It is a monitor for the batcher: ``queue_wait``, ``device``, ``batch``, ``queue_items`` and ``rejected``.

    Args:
        routes: paths that have a series of their own; ``/v1/encode`` counts as ``/encode``.
        ops: names of the operations that run in batches.
    """

    def __init__(self, routes: Iterable[str] = ROUTES, ops: Iterable[str] = OPS) -> None:
        """Register the nine metrics, and on Linux those of the process: memory, CPU time, open files, start."""
        # Without it each counter has a second series; the switch is the whole process's, and has no types.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._routes = {prefix + route: route for route in routes for prefix in ("", "/v1")}
        self._ops = frozenset(ops)
        self._requests = cache(Counter("vae_requests", "Answers sent.", ["route", "status"], registry=registry).labels)
        self._rejected = cache(
            Counter("vae_rejected", "Requests refused, by error code.", ["reason"], registry=registry).labels
        )
        self._queue_items = cache(
            Gauge("vae_queue_items", "Items waiting for a batch now.", ["op"], registry=registry).labels
        )
        self._model_info = Gauge(
            "vae_model_info",
            "1 for the model loaded.",
            ["name", "digest", "device", "precision"],
            registry=registry,
        )
        self._posterior_kl = Histogram(
            "vae_posterior_kl_nats",
            "KL[q(z|x) || p(z)] of encoded images.",
            registry=registry,
            buckets=KL_NATS,
        )

        def histogram(name: str, meaning: str, label: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(name, meaning, [label], registry=registry, buckets=tuple(buckets))

        self._request_s = cache(
            histogram("vae_request_seconds", "Time from request to answer.", "route", REQUEST_S).labels
        )
        self._queue_s = cache(
            histogram("vae_queue_wait_seconds", "Time waited for the first batch.", "op", QUEUE_S).labels
        )
        self._device_s = cache(histogram("vae_device_seconds", "Time a batch ran.", "op", DEVICE_S).labels)
        self._batch_items = cache(histogram("vae_batch_items", "Items in a batch.", "op", BATCH_ITEMS).labels)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count one answer; a route that is not known counts as ``unmatched``."""
        route = self._routes.get(route, UNMATCHED)
        self._requests(route, _STATUSES.get(status, OTHER)).inc()
        self._request_s(route).observe(seconds)

    def queue_wait(self, op: str, seconds: float) -> None:
        """Take the time that a submission waited for its first batch."""
        self._queue_s(self._op(op)).observe(seconds)

    def device(self, op: str, seconds: float) -> None:
        """Take the time that a batch ran."""
        self._device_s(self._op(op)).observe(seconds)

    def batch(self, op: str, items: int) -> None:
        """Take the number of items of a batch."""
        self._batch_items(self._op(op)).observe(items)

    def queue_items(self, op: str, n: int) -> None:
        """Take the number of items that wait now."""
        self._queue_items(self._op(op)).set(n)

    def rejected(self, reason: str) -> None:
        """Count a refused request; the reason is an error code."""
        self._rejected(reason if reason in CODES else OTHER).inc()

    def observe_posterior_kl(self, values: Iterable[float]) -> None:
        """Take the divergence of each encoded image, in nats, ``(N,)``."""
        for value in values:
            self._posterior_kl.observe(value)

    def set_model_info(self, name: str, digest: str, device: str, precision: str) -> None:
        """Say what is loaded now; what was loaded before is forgotten."""
        self._model_info.clear()
        self._model_info.labels(name, digest, device, precision).set(1)

    def render(self) -> tuple[bytes, str]:
        """Return everything in Prometheus's text format, and its media type."""
        return generate_latest(self._registry), CONTENT_TYPE

    def _op(self, op: str) -> str:
        return op if op in self._ops else OTHER
