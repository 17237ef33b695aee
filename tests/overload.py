"""More than can be served: an open loop at a multiple of the measured capacity, and what came of it.

Knows requests as bytes and answers as statuses; used by the tests of overload and by the soak.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from load_client import Check, Outcome, closed_loop, open_loop

Make = Callable[[int], bytes]
REFUSALS = {429, 503, 504}


@dataclass
class Overload:
    """What came of a load.

    Attributes:
        capacity: answers a second before it, to clients who wait for each other.
        times: the load, in capacities.
        outcome: of the load itself.
        after: of the first requests after it.
        recovery_s: from the last request that was sent to the moment when all were answered.
    """

    capacity: float
    times: float
    outcome: Outcome
    after: Outcome
    recovery_s: float

    @property
    def share(self) -> float:
        """Goodput during the overload as a share of the capacity."""
        return self.outcome.goodput / self.capacity

    @property
    def documented(self) -> bool:
        """Whether there were only answers and documented refusals, and every answer was right."""
        return (
            set(self.outcome.statuses) <= {200, *REFUSALS}
            and not self.outcome.wrong
            and set(self.after.statuses) == {200}
        )


async def overload(port: int, make: Make, times: float, seconds: float, width: int, check: Check | None) -> Overload:
    """Measure the capacity of a server, send ``times`` as much for ``seconds``, and look how it is afterwards."""
    warm = await closed_loop(port, make, 4 * width, width, check)
    whole = await closed_loop(port, make, max(4 * width, int(warm.goodput * seconds / 2)), width, check)
    begin = time.monotonic()
    outcome = await open_loop(port, make, times * whole.goodput, seconds, check)
    recovery_s = time.monotonic() - begin - outcome.span_s
    after = await closed_loop(port, make, 4 * width, width, check)
    return Overload(whole.goodput, times, outcome, after, recovery_s)


def run(port: int, make: Make, times: float, seconds: float, width: int = 4, check: Check | None = None) -> Overload:
    return asyncio.run(overload(port, make, times, seconds, width, check))
