"""What one connection may cost, and all of them together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of one connection, and the number of connections.

    Attributes:
        header_bytes: of a request's path and header fields, and of anything else that is not a body.
        receive_s: seconds from the first byte of a request (at first: from the connection) to its last.
        chunks: chunks of one body; 32 MiB in pieces of a kilobyte.
        connections: open at the same time.
        keep_alive_s: seconds that an idle connection is kept.
        send_s: seconds in which ``send_bytes`` of an answer must have been taken, or the rest of it.
        send_bytes: see ``send_s``; who takes less is cut.
        unsent_bytes: of answers that wait for their readers, over all connections; beyond, who waits longest is cut.
        behind_bytes: behind requests that wait for an earlier one's answer, likewise; who brings one too many is cut.
    """

    header_bytes: int = 16_384
    receive_s: float = 10.0
    chunks: int = 32_768
    connections: int = 4096
    keep_alive_s: int = 30
    send_s: float = 30.0
    send_bytes: int = 262_144
    unsent_bytes: int = 268_435_456
    behind_bytes: int = 67_108_864
