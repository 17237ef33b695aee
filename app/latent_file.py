"""The latents of many images on their way into one file, kept across interruptions.

Each answer goes at once into a journal beside the output, ``NAME.part``. At the end the output is written from the
journal, whole or not at all, and the journal goes. Memory holds the names of the files, never the latents. Knows no
server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.journal import Journal
from app.results import plain, printable, whole

Array = NDArray[Any]

MAX_METADATA: Final = 90_000_000  # bytes of names: readers of safetensors refuse headers of 100 MB


class OtherLatents(ValueError):
    """The journal beside the output belongs to another command: other files, or other weights."""


class LatentFile:
    """A file of latents that grows by a few images at a time.

    Attributes:
        done: names of the files that are in it, or that were skipped.
        skipped: names of the files that could not be read, with the reason.
        rows: N, the number of latents in it.
    """

    def __init__(self, out: Path, made_of: Mapping[str, object], *, restart: bool = False) -> None:
        """Open the journal of ``out``, or begin it.

        Args:
            out: the file to be written: ``.safetensors``, ``.npy`` or ``.json``.
            made_of: JSON that says what the latents depend on; they are continued with the same only.
            restart: whether a journal that is there is thrown away.

        Raises:
            OtherLatents: the journal was begun with another ``made_of``; the message names what differs.
            BlockingIOError: another process is writing it.
            OSError: it cannot be written.
        """
        self.done: set[str] = set()
        self.skipped: dict[str, str] = {}
        self.rows = 0
        self.out = out
        self._journal = Journal(out.with_name(out.name + ".part"))
        if restart:
            self._journal.clear()
        records = iter(self._journal)
        begun, _ = next(records, ({}, b""))
        if begun and (differs := [name for name in made_of if begun.get(name) != made_of[name]]):
            self._journal.close()
            raise OtherLatents(f"'{self.part}' was begun with other {' and '.join(differs)}")
        if not begun:
            self._journal.append(made_of)
        for fields, _ in records:
            self._count(fields["names"], fields["skipped"])

    @property
    def part(self) -> Path:
        """The journal."""
        return self._journal.path

    def append(self, names: Sequence[str], tensors: Mapping[str, Array], skipped: Mapping[str, str]) -> None:
        """Add the answer to some files; when this returns, a kill of the process no longer loses it.

        Args:
            names: of the files that have latents.
            tensors: ``mu`` and ``sigma``, ``(N, D)`` each; none where there is no name.
            skipped: names of files that could not be read, with the reason.
        """
        numbers = np.stack([tensors["mu"], tensors["sigma"]]).astype("<f4").tobytes() if names else b""  # (2, N, D)
        self._journal.append({"names": list(names), "skipped": dict(skipped)}, numbers)
        self._count(names, skipped)

    def finish(self) -> None:
        """Write the output, where there is any latent, and remove the journal."""
        if self.rows:
            names = [printable(name) for fields, _ in self._answers() for name in fields["names"]]
            with whole(self.out) as path:
                self._write(path, names)
        self._journal.remove()

    def __enter__(self) -> LatentFile:
        """Return the file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the journal; without ``finish`` it stays, if it holds an answer, and the next run goes on with it."""
        if self.done:
            self._journal.close()
        else:
            self._journal.remove()

    def _count(self, names: Sequence[str], skipped: Mapping[str, str]) -> None:
        self.rows += len(names)
        self.done.update(names, skipped)
        self.skipped.update(skipped)

    def _answers(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield the records after the first, which says what they are made of."""
        records = iter(self._journal)
        next(records)
        return records

    def _blocks(self) -> Iterator[Array]:
        """Yield ``mu`` and ``sigma`` of some rows after the other, ``(2, n, D)``."""
        for fields, numbers in self._answers():
            if names := fields["names"]:
                yield np.frombuffer(numbers, "<f4").reshape(2, len(names), -1)

    def _write(self, path: Path, names: list[str]) -> None:
        if self.out.suffix == ".json":
            mu, sigma = np.concatenate(list(self._blocks()), axis=1)
            path.write_text(json.dumps({"files": names, "mu": mu, "sigma": sigma}, default=plain) + "\n")
            return
        shape = (self.rows, next(self._blocks()).shape[2])
        if self.out.suffix == ".npy":
            self._write_names(names)
            rooms = [np.lib.format.open_memmap(path, "w+", np.dtype("<f4"), shape)]
        else:
            metadata = {"files": json.dumps(names)}
            if len(metadata["files"]) > MAX_METADATA:
                self._write_names(names)
                metadata = {}
            rooms = _tensor_rooms(path, shape, metadata)
        row = 0
        for block in self._blocks():
            for room, numbers in zip(rooms, block, strict=False):  # a .npy file holds mu alone
                room[row : row + len(numbers)] = numbers
            row += block.shape[1]
        for room in rooms:
            room.flush()

    def _write_names(self, names: list[str]) -> None:
        """Write the names into a file of their own, where the output has no room for them."""
        with whole(self.out.with_name(self.out.name + ".files.json")) as path:
            path.write_text(json.dumps(names) + "\n")


def _tensor_rooms(path: Path, shape: tuple[int, int], metadata: Mapping[str, str]) -> list[np.memmap[Any, Any]]:
    """Create a safetensors file of two tensors, ``mu`` and ``sigma``, and return the room for their numbers.

    Source: the format, 8 bytes length, header of JSON padded with spaces, then the tensors one after the other.
    """
    size = 4 * shape[0] * shape[1]
    tensors = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [i * size, (i + 1) * size]}
        for i, name in enumerate(("mu", "sigma"))
    }
    header = json.dumps({"__metadata__": metadata, **tensors}).encode()
    header += b" " * (-len(header) % 8)
    begin = 8 + len(header)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(begin + 2 * size)
    return [np.memmap(path, "<f4", "r+", begin + i * size, shape) for i in range(2)]
