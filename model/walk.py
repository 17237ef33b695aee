"""Walks through latent space: from one latent to another, and along single dimensions.

Plain functions on arrays. They know no network; a walk is in the space of z whatever the prior is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
PARALLEL = 1e-9  # sine of an angle below which two directions count as one, or as opposite


def line(start: Array, end: Array, steps: int) -> NDArray[np.float32]:
    """Return ``steps`` latents at equal distances on the straight line from ``start (D,)`` to ``end (D,)``.

    Returns:
        ``(steps, D)``; the first and the last are ``start`` and ``end`` exactly. ``steps`` is 2 or more.
    """
    share = np.linspace(0.0, 1.0, steps)[:, None]  # (steps, 1)
    return _between(start, end, (1 - share) * start.astype(np.float64) + share * end.astype(np.float64))


def arc(start: Array, end: Array, steps: int) -> NDArray[np.float32]:
    """Return ``steps`` latents on the arc from ``start (D,)`` to ``end (D,)`` around the origin.

    The direction turns evenly through the angle between them, as in Shoemake's slerp (1985; for latents: White 2016),
    and the length changes evenly, so that it never leaves the range between the two lengths; for equal lengths it is
    slerp. Slerp of unequal ones has no bound near opposite directions. The direction is computed as
    ``cos(t·angle) u + sin(t·angle) w``, w being the unit vector at right angles to u in the plane of both, which
    needs no division by a sine. Where the directions are opposite every plane is as good: w is then made of the axis
    that u leans on least. Where they are the same, where one latent is zero and so has no direction, and in a single
    dimension, the arc is the line.

    Returns:
        ``(steps, D)``; the first and the last are ``start`` and ``end`` exactly. ``steps`` is 2 or more.
    """
    a, b = start.astype(np.float64), end.astype(np.float64)
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    if not all(lengths) or len(a) == 1:
        return line(start, end, steps)
    u, v = a / lengths[0], b / lengths[1]
    angle = 2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))  # exact near 0 and near pi too (Kahan)
    w = _right_angled(v, u)
    if np.linalg.norm(w) < PARALLEL:
        if u @ v > 0:
            return line(start, end, steps)
        w = _right_angled(np.eye(len(u))[np.abs(u).argmin()], u)
    w = _right_angled(w / np.linalg.norm(w), u)  # again: what rounding left of u in it was scaled up
    share = np.linspace(0.0, 1.0, steps)[:, None]  # (steps, 1)
    turned = np.cos(share * angle) * u + np.sin(share * angle) * (w / np.linalg.norm(w))
    return _between(start, end, ((1 - share) * lengths[0] + share * lengths[1]) * turned)


def along(z: Array, dims: Sequence[int], values: Array) -> NDArray[np.float32]:
    """Return copies of ``z (D,)``: for each of ``dims`` a run in which that latent takes each of ``values (V,)``.

    Returns:
        ``(len(dims) * V, D)``, run by run.
    """
    runs = np.repeat(z[None].astype(np.float32), len(dims) * len(values), 0).reshape(len(dims), len(values), -1)
    for run, dim in zip(runs, dims, strict=True):
        run[:, dim] = values
    return runs.reshape(-1, len(z))  # (len(dims) * V, D)


def _right_angled(v: Array, u: Array) -> Array:
    """Return the part of ``v`` at right angles to the unit vector ``u``."""
    return np.asarray(v - (u @ v) * u)


def _between(start: Array, end: Array, walked: Array) -> NDArray[np.float32]:
    """Return a walk in float32 whose ends are exact."""
    steps = walked.astype(np.float32)
    steps[0], steps[-1] = start, end
    return steps
