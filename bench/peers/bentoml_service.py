"""BentoML: two workers, adaptive batching, which reads JSON; so the PNG comes as base64.

bentoml serve bench.peers.bentoml_service:Encoder
"""

import base64
import os

import bentoml

from bench.peers import network

BATCH, WAIT_MS = int(os.environ["BENCH_BATCH"]), int(os.environ["BENCH_WAIT_MS"])


@bentoml.service(workers=2, traffic={"timeout": 60, "concurrency": 1024}, resources={"cpu": "2"})
class Encoder:
    """Adaptive batching over ``images``."""

    def __init__(self) -> None:
        """Load the network, in each worker."""
        self.files_to_posterior = network.load()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=WAIT_MS)
    def encode(self, images: list[str]) -> list[list[list[float]]]:
        """Return ``[mu, sigma]`` of each base64 PNG."""
        mu, sigma = self.files_to_posterior([base64.b64decode(image) for image in images])
        return [[m, s] for m, s in zip(mu.tolist(), sigma.tolist(), strict=True)]
