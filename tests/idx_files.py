"""A small data set in idx files, for tests."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np

from model.data import IdxSource

RNG = np.random.default_rng(0)
ARRAYS = {
    "train-images-idx3-ubyte": RNG.integers(0, 256, (30, 8, 8), np.uint8),
    "train-labels-idx1-ubyte": RNG.integers(0, 10, 30, np.uint8),
    "t10k-images-idx3-ubyte": RNG.integers(0, 256, (7, 8, 8), np.uint8),
    "t10k-labels-idx1-ubyte": RNG.integers(0, 10, 7, np.uint8),
}
MIRRORS = ("https://one.example/", "https://two.example/set/")


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def packed(name: str, level: int = 9) -> bytes:
    return gzip.compress(idx(ARRAYS[name]), level, mtime=0)


MD5 = tuple(hashlib.md5(idx(array), usedforsecurity=False).hexdigest() for array in ARRAYS.values())
SOURCE = IdxSource("Noise", "noise", MIRRORS, MD5)  # type: ignore[arg-type]


def lay_out(folder: Path, zipped: bool = True) -> Path:
    """Write the four files below a data folder."""
    for name, array in ARRAYS.items():
        path = folder / "noise" / (f"{name}.gz" if zipped else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed(name) if zipped else idx(array))
    return folder
