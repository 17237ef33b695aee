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
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING, Any, Final

from model.imagefile import ImageError

if TYPE_CHECKING:
    from model.pixels import Shape

MANY_FILES: Final = 2000  # from here on processes are worth their start
MAX_WORKERS: Final = 8
THREADS: Final = 2  # Pillow decodes outside Python's lock, what is around it does not


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
        names: of the files that could be read, in order.
        images: one of each: ``(C, H, W)`` uint8, or the contents of the file.
        skipped: names of the others, with the reason.
    """

    names: list[str] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def prepare(names: Sequence[str], rules: Rules, as_arrays: bool = True) -> Prepared:
    """Read files; what cannot be read is skipped with its reason.

    Args:
        names: paths of the files.
        rules: what they must be.
        as_arrays: whether they are decoded here; else their contents are kept for the server to decode.
    """
    from model.pixels import read_file  # not before it is used: Pillow takes as long as the rest of a command

    prepared = Prepared()
    for name in names:
        try:
            data = _contents(name, rules.max_bytes)
            image = read_file(data, rules.shape, max_pixels=rules.max_pixels) if as_arrays else data
        except ImageError as error:
            prepared.skipped[name] = str(error)
        except OSError as error:
            prepared.skipped[name] = error.strerror or str(error)
        else:
            prepared.names.append(name)
            prepared.images.append(image)
    return prepared


def pool(files: int) -> Executor:
    """Return what ``prepare`` runs in: threads, or processes where there are many files and cores to spare.

    The processes ignore Ctrl-C, which their parent answers, and end with it, however it ends.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if files < MANY_FILES or cores < 4:
        return ThreadPoolExecutor(THREADS)
    return ProcessPoolExecutor(min(MAX_WORKERS, cores // 2), get_context("spawn"), _follow_parent)


def _contents(name: str, max_bytes: int) -> bytes:
    with open(name, "rb") as file:
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
