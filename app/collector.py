"""What the garbage collector need not look at: all that is loaded and stays, at which each look would take 0.1 s.

What is kept from it is never freed by it either. A request that fails leaves a cycle that holds its model, so after a
reload everything is shown to the collector again, until nothing of the models before is left.
"""

import asyncio
import gc
from collections.abc import Sized
from typing import Final

LOOK_S: Final = 5.0  # between looks
LOOKS: Final = 24  # after those that the longest request may take


class Collector:
    """Keeps what is loaded from the garbage collector, and for a while after each reload does not."""

    def __init__(self, replaced: Sized, deadline_s: float) -> None:
        """Keep nothing yet.

        Args:
            replaced: models of before a reload that are still there.
            deadline_s: the longest that a request may hold one of them.
        """
        self._replaced, self._deadline_s = replaced, deadline_s
        self._looking: asyncio.Task[None] | None = None

    def keep(self) -> None:
        """Keep all that there is now."""
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    def show_all(self) -> None:
        """Keep nothing until the models before are gone, or for some minutes at most; on the event loop."""
        gc.unfreeze()
        if self._looking:
            self._looking.cancel()
        self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        for _ in range(LOOKS + int(self._deadline_s / LOOK_S)):
            await asyncio.sleep(LOOK_S)
            gc.collect()
            if not self._replaced:
                break
        gc.freeze()
