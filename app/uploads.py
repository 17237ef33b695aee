"""Many image files in requests of bounded size; a file that cannot be read costs nobody but itself.

Knows the client's calls and no command line: what was skipped, and why, is kept for whoever reports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from tqdm import tqdm

from app.errors import BadRequest, ContentTooLarge, ServiceError

T = TypeVar("T")
File: TypeAlias = tuple[str, bytes]  # name and contents

MAX_FILES: Final = 64
MAX_BYTES: Final = 8 << 20
MAX_ROWS: Final = 1024  # of work: an image that is scored by many draws is many rows
SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg"})

# Refusals that a single file of a request may be the reason of.
_OF_A_FILE: Final = frozenset({"malformed_image", "too_many_pixels", "too_many_items", "body_too_large"})


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files that paths stand for: a file itself, a folder's PNG and JPEG files at any depth, sorted."""
    return list(chain.from_iterable(_in_folder(path) if path.is_dir() else [path] for path in paths))


def _in_folder(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


class Upload:
    """Files on their way to a server.

    Attributes:
        names: of the files that were answered, in order.
        skipped: names of the files that could not be read, with the reason.
    """

    def __init__(self, files: Sequence[Path], limits: dict[str, Any], rows: int = 1) -> None:
        """Read nothing yet; ``limits`` are those that the server tells in ``/model``, each file is ``rows`` of work."""
        self.names: list[str] = []
        self.skipped: dict[str, str] = {}
        self._files = files
        self._most_files = min(MAX_FILES, limits["max_items"], max(1, MAX_ROWS // max(1, rows)))
        self._longest = limits["max_body_bytes"]

    def send(self, ask: Callable[[list[bytes]], T]) -> Iterator[T]:
        """Yield the answers of ``ask`` to all files, request by request, with a progress bar on a terminal.

        Raises:
            ServiceError: a request was refused, and not because of one of its files.
        """
        with tqdm(total=len(self._files), unit=" images", disable=None, leave=False) as bar:
            for batch in self._batches():
                yield from self._ask(batch, ask)
                bar.update(len(self.names) + len(self.skipped) - bar.n)

    def _batches(self) -> Iterator[list[File]]:
        batch: list[File] = []
        size = 0
        for file in self._readable():
            if batch and (len(batch) == self._most_files or size + len(file[1]) > min(MAX_BYTES, self._longest)):
                yield batch
                batch, size = [], 0
            batch.append(file)
            size += len(file[1])
        if batch:
            yield batch

    def _readable(self) -> Iterator[File]:
        for path in self._files:
            name = bytes(path).decode(errors="replace")  # such that it can be printed
            try:
                data = path.read_bytes()
            except OSError as error:
                self.skipped[name] = error.strerror or str(error)
                continue
            if len(data) > self._longest:
                self.skipped[name] = f"is longer than {self._longest} bytes (VAE_MAX_BODY_BYTES)"
            else:
                yield name, data

    def _ask(self, batch: list[File], ask: Callable[[list[bytes]], T]) -> Iterator[T]:
        """Ask about a batch, halving it as long as one of its files is refused."""
        try:
            answer = ask([data for _, data in batch])
        except (BadRequest, ContentTooLarge) as error:
            if error.code not in _OF_A_FILE:
                raise
            refusal: ServiceError = error
        else:
            self.names += [name for name, _ in batch]
            yield answer
            return
        if len(batch) == 1:
            self.skipped[batch[0][0]] = refusal.detail
            return
        middle = len(batch) // 2
        yield from self._ask(batch[:middle], ask)
        yield from self._ask(batch[middle:], ask)
