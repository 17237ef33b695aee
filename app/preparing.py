"""Image files to arrays of the model's shape, in a small pool beside the requests.

The preprocessing is ``model.pixels``, the very same that the server applies to a file, so an image has the same
latents whichever of the two prepares it. Prepared here it costs the server nothing, and its bytes are those that the
model reads. Knows no server and no request.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from model.imagefile import ImageError

if TYPE_CHECKING:
    from model.pixels import Shape

MANY_FILES: Final = 2000  # from here on processes are worth their start
MAX_WORKERS: Final = 8
LARGE_FILE: Final = 32_768  # bytes from which on Pillow's decoding, outside Python's lock, takes longer than the rest


@dataclass(frozen=True, slots=True)
class Rules:
    """What a file must be, as the server says in ``/model``.

    Attributes:
        shape: ``(C, H, W)`` of the model.
        max_pixels: most pixels of a file.
        max_bytes: longest file.
    """

    shape: Shape
    max_pixels: int
    max_bytes: int


@dataclass(slots=True)
class Prepared:
    """Some files, read.

    Attributes:
        names: of the N files that could be read, in order.
        images: of them: ``(N, C, H, W)`` uint8, or a list of the contents of the files.
        skipped: names of the others, with the reason.
    """

    names: list[str]
    images: Any
    skipped: dict[str, str]


def prepare(names: Sequence[str], rules: Rules, as_array: bool = True) -> Prepared:
    """Read files; what cannot be read is skipped with its reason.

    Args:
        names: paths of the files.
        rules: what they must be.
        as_array: whether they are decoded here; else their contents are kept for the server to decode.
    """
    from model.pixels import read_file  # not before it is used: Pillow takes as long as the rest of a command

    images: Any = np.empty((len(names), *rules.shape), np.uint8) if as_array else [b""] * len(names)
    read: list[str] = []
    skipped: dict[str, str] = {}
    for name in names:
        try:
            data = _contents(name, rules.max_bytes)
            images[len(read)] = read_file(data, rules.shape, max_pixels=rules.max_pixels) if as_array else data
        except ImageError as error:
            skipped[name] = str(error)
        except OSError as error:
            skipped[name] = error.strerror or str(error)
        else:
            read.append(name)
    return Prepared(read, images[: len(read)], skipped)


def joined(parts: Sequence[Prepared]) -> Prepared:
    """Return what several calls of ``prepare`` read, one or more, as one."""
    images = [part.images for part in parts]
    return Prepared(
        [name for part in parts for name in part.names],
        list(chain.from_iterable(images)) if isinstance(images[0], list) else np.concatenate(images),
        {name: reason for part in parts for name, reason in part.skipped.items()},
    )


def pool(files: int, size: int) -> Executor:
    """Return what ``prepare`` runs in: threads, or processes where there are many files and cores to spare.

    Small files are read by one thread: two would wait for each other (measured: a fifth of the rate is lost). The
    processes ignore Ctrl-C, which their parent answers, and end with it, however it ends.

    Args:
        files: how many there are.
        size: bytes of one of them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if files < MANY_FILES or cores < 4:
        return ThreadPoolExecutor(2 if size >= LARGE_FILE else 1)
    return ProcessPoolExecutor(min(MAX_WORKERS, cores // 2), get_context("spawn"), _follow_parent)


def _contents(name: str, max_bytes: int) -> bytes:
    with open(name, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if 0 < size <= max_bytes:  # room for the longest file would cost more than reading a short one
            data = file.raw.read(size + 1) or b""
        else:  # too long, or a pipe, which has no size
            data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ImageError(f"is longer than {max_bytes} bytes (VAE_MAX_BODY_BYTES)")
    return data


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent process, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
