"""Run one batch, whatever happens: its rows are checked, and one that fails is halved to find the culprit.

A failed batch costs its neighbors nothing but time: they get the rows that a clean run would have given them.
No threads, no event loop, no HTTP, no torch: one synchronous function of pieces of submissions.
"""

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import InternalError
from app.lines import Columns, Piece, rows_of

Outcomes = list[tuple[Piece, Columns | Exception | None]]  # None: the rows are in their place already


class DeviceLost(Exception):
    """Raised by an operation whose device cannot recover; nothing after it is tried."""


@dataclass(frozen=True, eq=False)
class Op:
    """An operation: columns of n rows in, columns of n rows out, row i of the answer from row i alone.

    Submissions to the same ``Op`` object are joined, so new weights are a new object. ``run`` is called in
    the inference threads; it must neither write to its arguments nor keep or reuse what it returned. It
    raises ``MemoryError`` for a batch that does not fit, ``DeviceLost`` where nothing will fit again.
    """

    name: str
    run: Callable[..., Columns]


def run_batch(op: Op, batch: list[Piece], on_full: Callable[[int], None]) -> Outcomes:
    """Return what became of each piece: its rows, or the error that is its own.

    A failed batch is halved until the culprits are alone or, out of memory, until it fits; pieces that nobody
    waits for any more are left out.

    Args:
        op: the operation.
        batch: pieces of submissions to it.
        on_full: called with the number of rows that did not fit into memory.

    Raises:
        DeviceLost: the operation raised it.
    """
    outcomes: Outcomes = []
    groups = [batch]
    while groups:
        group = [piece for piece in groups.pop() if not piece.work.future.done()]
        if not group:
            continue
        result, rows = _attempt(op, group), rows_of(group)
        is_full = isinstance(result, MemoryError)
        if is_full:
            on_full(rows)
        if not isinstance(result, Exception):
            outcomes += _shared(group, result)
        elif len(group) > 1 or (is_full and rows > 1):
            groups += _halves(group)
        else:
            outcomes.append((group[0], result))
    return outcomes


def _attempt(op: Op, group: list[Piece]) -> Columns | Exception:
    """Return the columns of a group or its error; what the failed frames held is free by then."""
    try:
        parts = zip(*([column[a:b] for column in work.columns] for work, a, b in group), strict=True)
        columns: Any = op.run(*[_joined(part) for part in parts])
        rows = rows_of(group)
        if not isinstance(columns, tuple) or any(len(column) != rows for column in columns):
            raise RuntimeError(f"operation {op.name} did not return a tuple of columns of {rows} rows")
        return columns
    except DeviceLost:
        raise
    except Exception as error:
        _let_go(error)
        return RuntimeError(repr(error)) if isinstance(error, StopIteration) else error


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an error and of its causes hold, above all tensors; the lines stay readable."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _joined(parts: Columns) -> NDArray[Any]:
    return np.ascontiguousarray(parts[0]) if len(parts) == 1 else np.concatenate(parts)


def _shared(group: list[Piece], columns: Columns) -> Iterator[tuple[Piece, Columns | Exception]]:
    """Yield each piece with its own rows, or with an error where they are not finite."""
    all_finite, at = _finite(columns), 0
    for piece in group:
        end = at + piece.stop - piece.start
        rows = tuple(column[at:end] for column in columns)
        at = end
        if all_finite or _finite(rows):
            yield piece, rows
        else:
            yield piece, InternalError("the model's output for this request is not finite")


def _finite(columns: Columns) -> bool:
    """Return whether all numbers are finite: NaN and infinities are the extremes of an array that has any."""
    floats = (column for column in columns if column.size and np.issubdtype(column.dtype, np.inexact))
    return all(np.isfinite(column.max()) and np.isfinite(column.min()) for column in floats)


def _halves(group: list[Piece]) -> list[list[Piece]]:
    if len(group) > 1:
        return [group[len(group) // 2 :], group[: len(group) // 2]]
    work, start, stop = group[0]
    middle = (start + stop) // 2
    return [[Piece(work, middle, stop)], [Piece(work, start, middle)]]


def deliver(batch: list[Piece], outcomes: Outcomes, seconds: float) -> None:
    """Hand every submission its rows or its error; on the event loop."""
    for piece in batch:
        piece.work.device_s += seconds
    for (work, start, stop), result in outcomes:
        try:
            work.settle(start, stop, result)
        except Exception as error:  # whoever takes the answer fails with it, and no neighbor
            work.settle(start, stop, error)
