"""LitServe: worker processes with batching behind API server processes, queues in between (ZeroMQ).

python -m bench.peers.litserve_server --port PORT
"""

import argparse
import os
from collections.abc import Sequence
from typing import Annotated, Any

import litserve
from fastapi import Body

from bench.peers import network


class Encoder(litserve.LitAPI):
    """One raw PNG a request; a batch is decoded and encoded in the worker."""

    def setup(self, device: str) -> None:
        """Load the network, in each worker."""
        self.encode = network.load()

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/png")]) -> bytes:
        """Return the body as it came."""
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """Leave the files a list."""
        return inputs

    def predict(self, x: Sequence[bytes]) -> Any:
        """Return one answer an image."""
        mu, sigma = self.encode(x)
        return [{"mu": [m], "sigma": [s]} for m, s in zip(mu.tolist(), sigma.tolist(), strict=True)]

    def unbatch(self, output: Any) -> Any:
        """Return the answers, which are separate already."""
        return output

    def encode_response(self, output: Any) -> Any:
        """Return the answer as it is."""
        return output


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    batch, wait_s = int(os.environ["BENCH_BATCH"]), float(os.environ["BENCH_WAIT_MS"]) / 1000
    api = Encoder(max_batch_size=batch, batch_timeout=wait_s, api_path="/encode")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2, fast_queue=True, timeout=60)
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=int(os.environ["BENCH_FRONTS"]),
        generate_client_file=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
