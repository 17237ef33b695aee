"""What a batcher tells of its work, and to whom."""

from __future__ import annotations

from typing import Protocol


class Monitor(Protocol):
    """What a batcher reports, from its threads and from the event loop; must not raise."""

    def queue_wait(self, op: str, seconds: float, /) -> None:
        """Take the time that a submission waited for its first batch."""

    def device(self, op: str, seconds: float, /) -> None:
        """Take the time that a batch ran."""

    def batch(self, op: str, items: int, /) -> None:
        """Take the number of rows of a batch."""

    def queue_items(self, op: str, n: int, /) -> None:
        """Take the number of rows that wait now."""

    def rejected(self, reason: str, /) -> None:
        """Count a request that was refused, by the code of the refusal."""


class Silent:
    """A monitor that keeps nothing."""

    def _ignore(self, *_: object) -> None:
        pass

    queue_wait = device = batch = queue_items = rejected = _ignore
