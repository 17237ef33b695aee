"""Many image files in requests of bounded size, a few at a time; an unreadable file costs nobody but itself.

While some requests are computed by the server, the files of the next ones are read and prepared, and no more: memory
does not grow with the number of files. Knows the client's calls and no command line.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import chain, islice
from math import prod
from typing import Any, Final, Generic, TypeVar

from tqdm import tqdm

from app.bodies import Images
from app.calls import Call
from app.client import AsyncClient
from app.errors import BadRequest, ContentTooLarge
from app.interruptible import InterruptibleLoop
from app.preparing import Prepared, Rules, joined, pool, prepare
from app.version import VERSION

T = TypeVar("T")

MAX_IMAGES: Final = 256  # of a request: more make the server no faster
MAX_FILES: Final = 64  # of a request, where the server decodes them
MAX_BYTES: Final = 8 << 20  # of a request's images
OVERHEAD: Final = 256  # of a body's or a part's header
MAX_ROWS: Final = 1024  # of work: an image that is scored by many draws is many rows
SLICE: Final = 32  # files that are read in one go: who interrupts need not wait for more
REQUESTS: Final = 2  # on their way: the server has the next when it is done with one
AHEAD: Final = 2  # more than that are being read, or wait to be sent

# Refusals that a single file of a request may be the reason of.
_OF_A_FILE: Final = frozenset({"malformed_image", "too_many_pixels", "too_many_items", "body_too_large"})


@dataclass(slots=True)
class Answer(Generic[T]):
    """What the server said to some files.

    Attributes:
        names: of the files that were answered, in order.
        results: its answers, each to the next of them.
        skipped: names of the files that could not be read, with the reason.
    """

    names: list[str] = field(default_factory=list)
    results: list[T] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


class Upload:
    """Files on their way to a server."""

    def __init__(self, model: dict[str, Any], rows: int = 1) -> None:
        """Read nothing yet.

        Args:
            model: what the server says in ``/model``: shape, limits and version.
            rows: of work that each file is, for the server.
        """
        image, limits = model["image"], model["limits"]
        shape = (image["channels"], image["height"], image["width"])
        self._rules = Rules(shape, limits["max_pixels"], limits["max_body_bytes"])
        self._as_array = model["version"] == VERSION  # another version may prepare files in another way
        self._longest = min(MAX_BYTES, limits["max_body_bytes"] - OVERHEAD)
        most = self._longest // prod(shape) if self._as_array else MAX_FILES
        self._most = max(1, min(MAX_IMAGES, most, limits["max_items"], MAX_ROWS // max(1, rows)))

    def send(
        self,
        client: AsyncClient,
        files: Iterable[str],
        describe: Callable[[Images], Call[T]],
        *,
        total: int = 0,
        done: Set[str] = frozenset(),
    ) -> Iterator[Answer[T]]:
        """Yield the server's answers to files, in their order, with a progress bar on a terminal where they are many.

        Args:
            client: asks; it is closed at the end.
            files: paths.
            describe: from images to the call that asks about them.
            total: number of files, for the progress bar and for the choice of what reads them.
            done: names that are left out, because they were answered before.

        Raises:
            ServiceError: a request was refused, and not because of one of its files.
            OSError: a folder of ``files`` cannot be listed.
            KeyboardInterrupt: of Ctrl-C, whenever it comes; whatever is on its way is given up.
        """
        todo = (name for name in files if name not in done)
        first = list(islice(todo, 1))  # of whose size the others are, more or less
        hidden = None if total > MAX_IMAGES else True  # None: where stderr is no terminal
        bar = tqdm(total=total, initial=len(done), unit=" images", disable=hidden)
        with bar, InterruptibleLoop() as loop, pool(total - len(done), sum(map(_length, first))) as workers:
            answers = self._answers(client, chain(first, todo), describe, workers)
            try:
                while (answer := loop.run(_next(answers))) is not None:
                    bar.update(len(answer.names) + len(answer.skipped))
                    yield answer
            finally:
                workers.shutdown(wait=False, cancel_futures=True)

    async def _answers(
        self, client: AsyncClient, names: Iterator[str], describe: Callable[[Images], Call[T]], workers: Executor
    ) -> AsyncGenerator[Answer[T], None]:
        """Yield answers in order, while the next files are read and up to ``REQUESTS`` requests are on their way."""
        tasks: deque[asyncio.Task[Answer[T]]] = deque()
        gate = asyncio.Semaphore(REQUESTS)

        async def answer(chunk: Sequence[str]) -> Answer[T]:
            prepared = await self._prepare(chunk, workers)
            async with gate:
                return await _ask(client, describe, prepared)

        async with client:
            try:
                for chunk in self._chunks(names):
                    tasks.append(asyncio.create_task(answer(chunk)))
                    if len(tasks) == REQUESTS + AHEAD:
                        yield await tasks.popleft()
                while tasks:
                    yield await tasks.popleft()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _chunks(self, names: Iterator[str]) -> Iterator[list[str]]:
        """Yield the names of the files of each request."""
        if self._as_array:
            while chunk := list(islice(names, self._most)):
                yield chunk
            return
        chunk, size = [], 0
        for name in names:
            length = _length(name) + OVERHEAD
            if chunk and (len(chunk) == self._most or size + length > self._longest):
                yield chunk
                chunk, size = [], 0
            chunk.append(name)
            size += length
        if chunk:
            yield chunk

    async def _prepare(self, names: Sequence[str], workers: Executor) -> Prepared:
        """Return the images of files, read by the pool in slices: who interrupts waits for one of them at most."""
        loop = asyncio.get_running_loop()
        slices = [names[i : i + SLICE] for i in range(0, len(names), SLICE)]
        reading = [loop.run_in_executor(workers, prepare, part, self._rules, self._as_array) for part in slices]
        return joined(await asyncio.gather(*reading))


async def _next(answers: AsyncGenerator[Answer[T], None]) -> Answer[T] | None:
    return await anext(answers, None)


async def _ask(client: AsyncClient, describe: Callable[[Images], Call[T]], prepared: Prepared) -> Answer[T]:
    """Ask about images, halving them as long as one of them is refused."""
    answer: Answer[T] = Answer(skipped=prepared.skipped)
    parts = deque([(prepared.names, prepared.images)] if prepared.names else [])
    while parts:
        names, images = parts.popleft()
        try:
            answer.results.append(await client.send(describe(images)))
        except (BadRequest, ContentTooLarge) as error:
            if error.code not in _OF_A_FILE:
                raise
            middle = len(names) // 2
            if middle == 0:
                answer.skipped[names[0]] = error.detail
            else:
                parts.extendleft([(names[middle:], images[middle:]), (names[:middle], images[:middle])])
        else:
            answer.names += names
    return answer


def _length(name: str) -> int:
    try:
        return os.path.getsize(name)
    except OSError:
        return 0  # whoever reads it will say why
