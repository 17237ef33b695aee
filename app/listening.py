"""The listening socket: taken before anything is loaded, so that a port in use is told at once."""

import os
import socket
import sys
from typing import Final

EXIT_NO_PORT: Final = 3
BACKLOG: Final = 2048  # connections that the kernel accepts ahead of us


def listen(host: str, port: int) -> socket.socket | None:
    """Return a listening socket; None, with one line on the standard error, where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:
        print(f"cannot listen on {host} port {port}: {_reason(error)}", file=sys.stderr)
        return None


def url(listener: socket.socket) -> str:
    """Return where the socket listens."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _reason(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number and number > 0 else str(getattr(error, "strerror", None) or error)
