"""An event loop in a program that is not asynchronous, which Ctrl-C ends between two of its steps.

``asyncio.Runner`` raises ``KeyboardInterrupt`` wherever the program is once its main task is done. Where other tasks go
on from one ``run`` to the next, that is within one of them: it ends there, and those who wait for it with an error of
their own. Here the signal is a call like any other that the loop makes when it comes to it.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class InterruptibleLoop:
    """A loop for several runs; leaving it cancels what is left of its tasks and closes its generators.

    A second Ctrl-C, the first one in another thread than the main one, and one in a program that has a handler of its
    own are as without this class.
    """

    def __init__(self) -> None:
        """Make no loop yet."""
        self._runner = asyncio.Runner()
        self._main: asyncio.Task[Any] | None = None
        self._interrupted = self._handles = False

    def __enter__(self) -> Self:
        """Make the loop, which answers Ctrl-C from now on."""
        self._loop = self._runner.__enter__().get_loop()
        mine = threading.current_thread() is threading.main_thread()
        if mine and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handles = True
            signal.signal(signal.SIGINT, self._signaled)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End what is left, and let Ctrl-C be what it was.

        Raises:
            KeyboardInterrupt: Ctrl-C came after the last run, or is what that was not stopped by.
        """
        try:
            self._runner.__exit__(kind, error, at)
        finally:
            self._let_go()
        if self._interrupted and kind is None:
            raise KeyboardInterrupt

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine returns.

        Raises:
            KeyboardInterrupt: Ctrl-C came, since the last run or in this one, which was cancelled.
        """
        if self._interrupted:
            coroutine.close()
            raise KeyboardInterrupt
        self._main = main = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(main)
        except asyncio.CancelledError:
            if self._interrupted:
                raise KeyboardInterrupt from None
            raise

    def _signaled(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        self._let_go()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel)  # which also wakes a loop that waits

    def _cancel(self) -> None:
        if self._main is not None:
            self._main.cancel()

    def _let_go(self) -> None:
        if self._handles:
            self._handles = False
            signal.signal(signal.SIGINT, signal.default_int_handler)
