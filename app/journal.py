"""A file of records that grows by one at a time and survives a kill: what was torn is cut off, the rest counts.

A record is a JSON object and some bytes, under one checksum. What they mean is not known here.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

if sys.platform != "win32":
    import fcntl

_HEAD: Final = struct.Struct("<IIQ")  # CRC-32 of what follows, then the lengths of the JSON and of the bytes


class Journal:
    """An open journal, which no other process can open meanwhile."""

    def __init__(self, path: Path) -> None:
        """Open or create the file, and cut off what a kill tore.

        Raises:
            BlockingIOError: another process has it open.
            OSError: it cannot be read and written.
        """
        self.path = path
        self._file: IO[bytes] = path.open("a+b")
        try:
            if sys.platform != "win32":
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._end = 0
            for _ in self._scan(os.fstat(self._file.fileno()).st_size):
                pass
            self._file.truncate(self._end)
        except BaseException:
            self._file.close()
            raise

    def __iter__(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield the records, JSON and bytes of each."""
        return self._scan(self._end)

    def append(self, fields: Mapping[str, object], data: bytes = b"") -> None:
        """Add a record; when this returns, a kill of the process no longer loses it."""
        text = json.dumps(fields).encode()  # ASCII, which holds any file name
        record = _HEAD.pack(zlib.crc32(data, zlib.crc32(text)), len(text), len(data)) + text + data
        self._file.write(record)
        self._file.flush()
        self._end += len(record)

    def clear(self) -> None:
        """Remove all records."""
        self._file.truncate(0)
        self._end = 0

    def remove(self) -> None:
        """Delete the file and close it."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the file; it stays."""
        self._file.close()

    def _scan(self, size: int) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield the sound records of the first ``size`` bytes; ``_end`` is where the last one ends."""
        at = 0
        while at + _HEAD.size <= size:
            self._file.seek(at)
            checksum, text_length, data_length = _HEAD.unpack(self._file.read(_HEAD.size))
            end = at + _HEAD.size + text_length + data_length
            if end > size:
                return
            text, data = self._file.read(text_length), self._file.read(data_length)
            if zlib.crc32(data, zlib.crc32(text)) != checksum:
                return
            at = end
            self._end = max(self._end, at)
            yield json.loads(text), data
