"""Prometheus metrics on a registry of their own: nine of the service, and what the kernel knows of the process.

Every label value comes from a closed set, so no request can add a series, and each has its place in the tally that
the processes of a service share: whichever is asked tells the sum. Knows neither routes nor batches: it is told
strings and numbers.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from itertools import accumulate, product
from typing import Any, Final

from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from app.errors import CODES, CONNECTION_CODES
from app.tally import Tally

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

ROUTES: Final = (
    *("/encode", "/decode", "/sample", "/kl", "/score", "/reconstruct", "/model"),
    *("/interpolate", "/traverse", "/map"),
    *("/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/static", "/"),
)
OPS: Final = ("encode", "decode", "sample", "score", "kl")
UNMATCHED: Final = "unmatched"  # a route that is none of ours
OTHER: Final = "other"  # anything else that is none of ours
REASONS: Final = (*CODES, *CONNECTION_CODES, OTHER)

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


class _Family:
    """One metric: a place in the tally for each combination of its labels' values.

    A counter or a gauge has one number, a histogram one for each bucket, one beyond the last, and the sum.
    """

    def __init__(
        self, tally: Tally, name: str, meaning: str, labels: Mapping[str, Iterable[str]], buckets: Sequence[float]
    ) -> None:
        self.name, self.meaning, self.labels, self.buckets = name, meaning, list(labels), buckets
        self._tally, self._width = tally, len(buckets) + 2 if buckets else 1
        self._places = {values: tally.reserve(self._width) for values in product(*labels.values())}

    def inc(self, *values: str) -> None:
        self._tally.add(self._places[values], 1)

    def set(self, number: float, *values: str) -> None:
        self._tally.set(self._places[values], number)

    def observe(self, number: float, *values: str) -> None:
        place = self._places[values]
        self._tally.add(place + self._width - 1, number, place + bisect_left(self.buckets, number))

    def totals(self) -> Iterator[tuple[tuple[str, ...], list[float]]]:
        """Yield the numbers of every combination."""
        for values, place in self._places.items():
            yield values, self._tally.totals(place, self._width)


class Metrics:
    """All metrics of one service; its methods may be called from any thread.

    It is a monitor for the batcher: ``queue_wait``, ``device``, ``batch``, ``queue_items`` and ``rejected``.

    Args:
        tally: where to count; by default for this process alone.
    """

    def __init__(self, tally: Tally | None = None) -> None:
        """Take the places of the nine metrics; on Linux the processes tell memory, CPU time, open files and start."""
        self._tally = tally = tally or Tally()
        self._model: tuple[str, ...] | None = None
        self._routes = {prefix + route: route for route in ROUTES for prefix in ("", "/v1")}
        routes: dict[str, Iterable[str]] = {"route": (*ROUTES, UNMATCHED)}
        ops: dict[str, Iterable[str]] = {"op": (*OPS, OTHER)}

        def family(name: str, meaning: str, labels: Mapping[str, Iterable[str]], *buckets: float) -> _Family:
            return _Family(tally, name, meaning, labels, buckets)

        statuses = {"status": (*_STATUSES.values(), OTHER)}
        self._requests = family("vae_requests", "Answers sent.", routes | statuses)
        self._rejected = family("vae_rejected", "Requests and connections refused, by error code.", {"reason": REASONS})
        self._queue_items = family("vae_queue_items", "Items waiting for a batch now.", ops)
        self._request_s = family("vae_request_seconds", "Time from request to answer.", routes, *REQUEST_S)
        self._queue_s = family("vae_queue_wait_seconds", "Time waited for the first batch.", ops, *QUEUE_S)
        self._device_s = family("vae_device_seconds", "Time a batch ran.", ops, *DEVICE_S)
        self._batch_items = family("vae_batch_items", "Items in a batch.", ops, *BATCH_ITEMS)
        self._posterior_kl = family("vae_posterior_kl_nats", "KL[q(z|x) || p(z)] of encoded images.", {}, *KL_NATS)
        for op in OPS:
            self._queue_items.set(0, op)  # what a dead process left waiting waits no more
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count one answer; a route that is not known counts as ``unmatched``."""
        route = self._routes.get(route, UNMATCHED)
        self._requests.inc(route, _STATUSES.get(status, OTHER))
        self._request_s.observe(seconds, route)

    def queue_wait(self, op: str, seconds: float) -> None:
        """Take the time that a submission waited for its first batch."""
        self._queue_s.observe(seconds, _op(op))

    def device(self, op: str, seconds: float) -> None:
        """Take the time that a batch ran."""
        self._device_s.observe(seconds, _op(op))

    def batch(self, op: str, items: int) -> None:
        """Take the number of items of a batch."""
        self._batch_items.observe(items, _op(op))

    def queue_items(self, op: str, n: int) -> None:
        """Take the number of items that wait now."""
        self._queue_items.set(n, _op(op))

    def rejected(self, reason: str) -> None:
        """Count a refused request or connection; the reason is an error code."""
        self._rejected.inc(reason if reason in REASONS else OTHER)

    def observe_posterior_kl(self, values: NDArray[Any]) -> None:
        """Take the divergence of each encoded image, in nats, ``(N,)``."""
        for value in values.tolist():
            self._posterior_kl.observe(value)

    def set_model_info(self, name: str, digest: str, device: str, precision: str) -> None:
        """Say what is loaded now; what was loaded before is forgotten."""
        self._model = (name, digest, device, precision)

    def render(self) -> tuple[bytes, str]:
        """Return everything, of all processes together, in Prometheus's text format, and its media type."""
        return generate_latest(self._registry), CONTENT_TYPE

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; series that never counted anything are left out."""
        for family in (self._requests, self._rejected):
            counter = CounterMetricFamily(family.name, family.meaning, labels=family.labels)
            for values, (count,) in family.totals():
                if count:
                    counter.add_metric(values, count)
            yield counter
        waiting = GaugeMetricFamily(self._queue_items.name, self._queue_items.meaning, labels=self._queue_items.labels)
        for values, (items,) in self._queue_items.totals():
            if items or values != (OTHER,):
                waiting.add_metric(values, items)
        yield waiting
        for family in (self._request_s, self._queue_s, self._device_s, self._batch_items, self._posterior_kl):
            yield _histogram(family)
        info = GaugeMetricFamily(
            "vae_model_info", "1 for the model loaded.", labels=["name", "digest", "device", "precision"]
        )
        if self._model:
            info.add_metric(self._model, 1)
        yield info
        yield from _of_processes(self._tally.processes())


def _op(op: str) -> str:
    return op if op in OPS else OTHER


def _histogram(family: _Family) -> Metric:
    histogram = HistogramMetricFamily(family.name, family.meaning, labels=family.labels)
    bounds = [str(floatToGoString(bound)) for bound in (*family.buckets, math.inf)]  # type: ignore[no-untyped-call]
    for values, (*counts, total) in family.totals():
        if any(counts) or not values:
            up_to = zip(bounds, accumulate(counts), strict=True)
            histogram.add_metric(values, list(up_to), total)
    return histogram


def _of_processes(pids: list[int]) -> Iterator[Metric]:
    """Yield what the kernel tells of processes, added up; of their starts the first.

    Of a process that is gone it tells nothing, of one that is just ending not everything.
    """
    found: dict[str, list[Metric]] = {}
    for pid in pids:
        for part in _of_process(pid):
            found.setdefault(part.name, []).append(part)
    for name, parts in found.items():
        whole, values = parts[0], [part.samples[0].value for part in parts]
        value = min(values) if name == "process_start_time_seconds" else sum(values)
        whole.samples = [whole.samples[0]._replace(value=value)]
        yield whole


def _of_process(pid: int) -> list[Metric]:
    try:
        return list(ProcessCollector(pid=partial(int, pid), registry=None).collect())
    except (LookupError, NameError, ValueError):  # what the collector runs into where a file is suddenly empty
        return []
