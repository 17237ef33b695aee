"""What a command prints and writes, and the latents that it reads: tables, JSON, array files.

Arrays in, text or bytes out; knows no server and no command.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save as write_tensors

Array = NDArray[Any]


def joined(answers: Sequence[object], *fields: str) -> dict[str, Array]:
    """Return fields of several answers, each joined along its first axis, without those that the answers lack."""
    parts = {name: [getattr(answer, name) for answer in answers] for name in fields}
    return {name: np.concatenate(arrays) for name, arrays in parts.items() if arrays[0] is not None}


def plain(array: Array) -> Any:
    """Return an array as nested lists for JSON; float32 as the shortest decimals that give the same float32."""
    if array.dtype == np.float32:
        array = array.astype("U32").astype(np.float64)
    return array.tolist()


def say(as_json: bool, result: Mapping[str, object], header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a result: all of it as one line of JSON, or ``rows`` as a table."""
    if as_json:
        click.echo(json.dumps(result, default=plain))
    else:
        click.echo("\n".join(table(header, rows)))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table; columns of numbers are aligned at their end."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    at_end = [not isinstance(value, str) for value in rows[0]]
    for row in cells:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, at_end, strict=True)
        ]
        yield "  ".join(padded).rstrip()


def say_written(as_json: bool, out: Path, count: int, noun: str, seed: int | None = None) -> None:
    """Print what was written, and where."""
    if as_json:
        click.echo(json.dumps({"out": str(out), noun: count} | ({} if seed is None else {"seed": seed})))
    else:
        noun = noun if count != 1 else noun.removesuffix("s")
        click.echo(f"{out}: {count} {noun}" + ("" if seed is None else f", seed {seed}"))


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Give a path to write to, ``NAME.tmp``; at the end that file takes the place of ``out``, whole or not at all."""
    temporary = out.with_name(out.name + ".tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def save(out: Path, tensors: Mapping[str, Array], names: Sequence[str] = ()) -> None:
    """Write arrays to a file: all of them, with the ``names`` of their rows, or to ``.npy`` the first one alone."""
    with whole(out) as path, path.open("wb") as file:
        if out.suffix == ".npy":
            np.save(file, next(iter(tensors.values())), allow_pickle=False)
        else:
            kept = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}  # it writes raw memory
            file.write(write_tensors(kept, {"files": json.dumps(names)} if names else None))


def save_picture(out: Path, png: bytes) -> None:
    """Write a picture to a file."""
    with whole(out) as path:
        path.write_bytes(png)


def printable(name: str) -> str:
    """Return the name of a file such that it can be printed: what is not UTF-8 in it is replaced."""
    return name if name.isascii() else os.fsencode(name).decode(errors="replace")


def read_latents(path: Path) -> Array:
    """Return the latents of an array file: ``.npy``, or ``z``, else ``mu``, of ``.safetensors`` or ``.json``.

    Raises:
        ValueError: there are none in it.
        OSError: it cannot be read.
    """
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False), np.float32)
        values = read_tensors(path.read_bytes()) if path.suffix == ".safetensors" else json.loads(path.read_bytes())
        return np.asarray(values["z"] if "z" in values else values["mu"], np.float32)
    except (ValueError, LookupError, TypeError, EOFError, SafetensorError) as error:
        raise ValueError(f"'{path}' holds no latents; expected .npy, or .safetensors or .json with z or mu") from error


def flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the members of nested objects, with dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _cell(value: object) -> str:
    return f"{float(value):.3f}" if isinstance(value, float | np.floating) else str(value)
