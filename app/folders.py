"""The image files behind paths: a folder stands for the PNG and JPEG files in it, at any depth, in order.

Folders are walked while they are used, so that millions of files need no list. Reads no file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

SUFFIXES: Final = (".png", ".jpg", ".jpeg")


def image_files(paths: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """Yield the files that paths stand for, as text: a file itself, of a folder its files in order of their names.

    Each folder is in its place among the names of the folder that holds it, and folders that are links are left
    out, so that a walk ends. A folder that cannot be listed is an ``OSError``: its files would be missing unsaid.
    """
    return chain.from_iterable(_in_folder(path) if os.path.isdir(path) else [os.fspath(path)] for path in paths)


def _in_folder(folder: str | os.PathLike[str]) -> Iterator[str]:
    with os.scandir(folder) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _in_folder(entry.path)
        elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
            yield entry.path.removeprefix(f".{os.sep}")
