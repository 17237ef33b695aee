"""What all connections of a process share, and the last words of one that is refused."""

from asyncio import Transport
from typing import Protocol

from uvicorn.server import ServerState

from app.errors import CONNECTION_CODES
from app.problems import plain_answer


class Writer(Protocol):
    """A connection whose answer waits for its reader."""

    transport: Transport

    @property
    def unsent(self) -> int:
        """Bytes that the other side has not taken."""


class State(ServerState):
    """What all connections share."""

    draining = False  # answers from now on end their connection

    def __init__(self) -> None:
        """Start without a connection."""
        super().__init__()
        self.unread: dict[Writer, None] = {}  # connections whose answers wait for their readers, the longest first
        self.behind_bytes = 0  # of what came behind requests that wait

    def digest(self) -> str | None:
        """Return what ``X-Model-Digest`` says; none where nothing is loaded."""
        return None

    def rejected(self, code: str) -> None:
        """Count a refusal."""


def refusal(code: str, state: State) -> bytes:
    """Return the last answer of a connection, for a key of ``CONNECTION_CODES``."""
    return plain_answer(code, *CONNECTION_CODES[code], state.digest())
