"""Data sets as uint8 arrays: MNIST and Fashion-MNIST in idx format, or a folder of anyone's images.

Each has a fixed split into training and held-out images. Files are looked for on disk first, then downloaded;
checksums are of the unpacked bytes, so it does not matter who packed them. A folder is read once; what was read is
kept beside the downloads. It knows no likelihood: what a network is trained on is made of these bytes elsewhere.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import zipfile
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from model.checkpoint import atomic_file
from model.download import DownloadError, fetch
from model.imagefile import scan
from model.pixels import ImageError, Shape, read_file

Images = np.ndarray[Any, np.dtype[np.uint8]]
SUFFIXES = {".png", ".jpg", ".jpeg"}
MIN_FOLDER_IMAGES = 100
MAX_PIXELS = 100_000_000
HELD_OUT_PERCENT = 10
PREPARATION = 1  # of what is kept; to be raised when `pixels` prepares images in another way
_Folder = tuple[Images, dict[str, Any]]


class DataError(ValueError):
    """The data cannot be used; the text says what was looked for, where, and what to do."""


@dataclass(frozen=True)
class Dataset:
    """Images in a fixed split.

    Attributes:
        name: for people.
        train: training images, ``(N, C, H, W)``.
        test: held-out images, ``(M, C, H, W)``.
        train_labels: classes from 0, ``(N,)``; None where the data set has none.
        test_labels: classes of the held-out images, ``(M,)``.
        label_names: what the classes are called; None where the data set has none.
        skipped: the files of a folder that could not be read, each with the reason.
        sizes: how many files of a folder have which size, such as ``{"640x480": 17}``.
    """

    name: str
    train: Images
    test: Images
    train_labels: Images | None = None
    test_labels: Images | None = None
    label_names: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)

    def summary(self) -> str:
        """Return one line about the data set: counts, and of a folder the most frequent sizes."""
        line = f"{self.name}: {len(self.train)} training and {len(self.test)} held-out images"
        if self.sizes:
            common = [f"{size} ({count})" for size, count in Counter(self.sizes).most_common(5)]
            more = f" and {len(self.sizes) - 5} more" if len(self.sizes) > 5 else ""
            line += f"; {len(self.skipped)} files skipped; sizes {', '.join(common)}{more}"
        return line


@dataclass(frozen=True)
class IdxSource:
    """Where the four idx files of a data set come from.

    Attributes:
        title: for people.
        folder: where they lie in the data folder.
        mirrors: addresses that the file names are appended to.
        md5: of the unpacked bytes, in the order of ``FILES``.
        classes: what the labels stand for, where they have names.
    """

    title: str
    folder: str
    mirrors: tuple[str, ...]
    md5: tuple[str, str, str, str]
    classes: tuple[str, ...] | None = None


FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SOURCES = {
    "mnist": IdxSource(
        "MNIST",
        "mnist",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        (
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        tuple("0123456789"),
    ),
    "fashion-mnist": IdxSource(
        "Fashion-MNIST",
        "fashion-mnist",
        (
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        (
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
}


def load(data: str, shape: Shape, data_dir: Path | None = None) -> Dataset:
    """Return the data set called ``data`` (``mnist``, ``fashion-mnist``), or the folder of images of that path.

    Args:
        data: a name or a folder.
        shape: ``(C, H, W)`` that a folder's images are prepared to; idx files must have it.
        data_dir: where idx files lie and what was read of folders is kept; default ``$VAE_DATA_DIR``, else
            ``~/.cache/vae-service``.

    Raises:
        DataError: nothing is found and nothing can be downloaded, a file is damaged, or shapes do not fit.
    """
    data_dir = data_dir or default_data_dir()
    if data not in SOURCES:
        return load_folder(Path(data), shape, data_dir / "folders")
    dataset = load_idx(SOURCES[data], data_dir)
    if dataset.train.shape[1:] != shape:
        raise DataError(f"{data} has images of shape {dataset.train.shape[1:]}; the model reads {shape}")
    return dataset


def default_data_dir() -> Path:
    """Return ``$VAE_DATA_DIR``, else ``~/.cache/vae-service``."""
    return Path(os.environ.get("VAE_DATA_DIR") or Path.home() / ".cache" / "vae-service")


def load_idx(source: IdxSource, data_dir: Path) -> Dataset:
    """Return a data set of four idx files, downloading those that ``data_dir`` lacks.

    Raises:
        DataError: a file is damaged, or neither there nor to be had.
    """
    found = [_find(source, name, md5, data_dir) for name, md5 in zip(FILES, source.md5, strict=True)]
    arrays = [parse_idx(data) for data in found]
    train, test = (array[:, None] for array in arrays[::2])  # (N, H, W) -> (N, 1, H, W)
    return Dataset(source.title, train, test, arrays[1], arrays[3], source.classes)


def parse_idx(data: bytes) -> Images:
    """Return the array of an idx file of unsigned bytes (big-endian header: magic, sides; then the values).

    Raises:
        DataError: not such a file, or its length is not what its header says.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DataError("not an idx file of unsigned bytes")
    start = 4 + 4 * data[3]
    sides = np.frombuffer(data, ">u4", data[3], 4).tolist() if len(data) >= start else [-1]
    if len(data) != start + math.prod(sides):
        raise DataError(f"an idx file of {len(data)} bytes does not hold the sides {sides} that it names")
    return np.frombuffer(data, np.uint8, offset=start).reshape(sides)


def load_folder(folder: Path, shape: Shape, cache: Path | None = None) -> Dataset:
    """Return every PNG and JPEG under ``folder``, prepared by the service's own preprocessing.

    The split depends on each file's relative path alone (its hash), so adding files moves none of the others.

    Args:
        folder: searched with all its subfolders, in the order of the paths.
        shape: ``(C, H, W)`` that the images are cropped and resized to.
        cache: folder for what was read; the next call takes it from there while no file has changed.

    Raises:
        DataError: no such folder, or fewer than 100 readable images.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: neither a folder nor one of {', '.join(SOURCES)}")
    folder = folder.resolve()
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    images, about = _read_folder(folder, files, shape, cache)
    if len(images) < MIN_FOLDER_IMAGES:
        raise DataError(f"{folder}: {len(images)} readable PNG and JPEG images; {MIN_FOLDER_IMAGES} are the least")
    held_out = sum(_is_held_out(name) for name in files) - sum(map(_is_held_out, about["skipped"]))
    if held_out < 2:
        raise DataError(f"{folder}: {held_out} of {len(images)} images fell to the held-out part; add some more")
    skipped = tuple(f"{name}: {reason}" for name, reason in about["skipped"].items())
    return Dataset(folder.name, images[held_out:], images[:held_out], skipped=skipped, sizes=about["sizes"])


def _read_folder(folder: Path, files: dict[str, Path], shape: Shape, cache: Path | None) -> _Folder:
    """Return what is in the files, from the cache where none of them has changed since."""
    if cache is None:
        return _decode_folder(files, shape)
    stats = [(name, path.stat()) for name, path in files.items()]
    key = [PREPARATION, str(folder), shape, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]]
    fingerprint = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    place = cache / f"{folder.name}-{zlib.crc32(json.dumps(key[1:3]).encode()):08x}.npz"
    if (found := _kept(place, fingerprint)) is not None:
        return found
    images, about = _decode_folder(files, shape)
    with suppress(OSError), atomic_file(place) as file:  # where it cannot be kept, it is read again
        np.savez(file, images=images, about=json.dumps(about), fingerprint=fingerprint)
    return images, about


def _kept(place: Path, fingerprint: str) -> _Folder | None:
    """Return what an earlier call kept of the same files; None where there is nothing, or nothing whole."""
    try:
        with place.open("rb") as file, np.load(file) as kept:
            if str(kept["fingerprint"]) == fingerprint:
                return kept["images"], json.loads(str(kept["about"]))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        pass
    return None


def _decode_folder(files: dict[str, Path], shape: Shape) -> _Folder:
    """Return the readable images, the held-out ones first; and which files were skipped and why, and all sizes."""
    images: Images = np.empty((len(files), *shape), np.uint8)
    skipped: dict[str, str] = {}
    sizes: Counter[str] = Counter()
    count = 0
    for name in tqdm(sorted(files, key=lambda name: not _is_held_out(name)), desc="reading images", unit=" files"):
        try:
            data = files[name].read_bytes()
            images[count] = read_file(data, shape, max_pixels=MAX_PIXELS)
        except (ImageError, OSError) as error:
            skipped[name] = str(error)
            continue
        found = scan(data, MAX_PIXELS)
        sizes[f"{found.width}x{found.height}"] += 1
        count += 1
    return images[:count], {"skipped": skipped, "sizes": sizes}


def _is_held_out(name: str) -> bool:
    return zlib.crc32(name.encode()) % 100 < HELD_OUT_PERCENT


def _find(source: IdxSource, name: str, md5: str, data_dir: Path) -> bytes:
    folder = data_dir / source.folder
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return _verified(path, path.read_bytes(), md5)
    problems = []
    for mirror in source.mirrors:
        target = folder / f"{name}.gz"
        try:
            fetch(f"{mirror}{name}.gz", target)
            return _verified(target, target.read_bytes(), md5)
        except (DownloadError, DataError) as error:
            target.unlink(missing_ok=True)
            problems.append(str(error))
    raise DataError(
        f"{source.title}: {name} is not in {folder} and could not be downloaded: {'; '.join(problems)}. "
        "Put the original idx files there, or name their folder with --data-dir or VAE_DATA_DIR."
    )


def _verified(path: Path, data: bytes, md5: str) -> bytes:
    try:
        unpacked = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file; delete it and try again") from error
    if (got := hashlib.md5(unpacked, usedforsecurity=False).hexdigest()) != md5:
        raise DataError(f"{path}: MD5 of its contents is {got}, expected {md5}; delete it and try again")
    return unpacked
