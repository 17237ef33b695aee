"""What is seen on walks through latent space, and its map: the answers of ``/interpolate``, ``/traverse``, ``/map``.

Walks are in the space of z, under whatever prior: their latents are decoded as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.engine import Engine
from app.errors import NotFound
from app.lines import Rows
from app.service import Call, decode
from app.walks_in import Interpolation, Traversal
from model import walk

Array = NDArray[Any]


async def interpolate(call: Call, asked: Interpolation, x: Rows | None = None) -> dict[str, Array]:
    """Return ``images`` and ``z (steps, D)`` of an interpolation.

    Where its ends are images they are given as ``x (2, C, H, W)``.
    """
    if x is None:
        start, end = np.asarray(asked.ends)
    else:
        start, end = (await call.run(call.engine.encode, x))[0]
    z = (walk.arc if asked.path == "spherical" else walk.line)(start, end, asked.steps)
    return {"images": await decode(call, z), "z": z}


async def traverse(call: Call, asked: Traversal) -> dict[str, Array]:
    """Return ``images`` and ``z`` of a traversal, row by row, with the ``dims`` of the rows and the ``values``."""
    dims = by_kl(call.engine) if asked.dims is None else asked.dims
    z = walk.along(asked.z, dims, asked.values)
    return {"images": await decode(call, z), "z": z, "dims": np.array(dims), "values": asked.values}


def by_kl(engine: Engine) -> list[int]:
    """Return all dimensions, those in which posteriors tell most first: as the map says, else the evaluation."""
    told = engine.map.kl_per_dimension if engine.map else engine.notes.metrics.get("kl_per_dimension")
    try:
        kl = np.asarray(told, np.float64)
    except (TypeError, ValueError):  # what a checkpoint remembers as metrics is not checked
        kl = np.zeros(0)
    if kl.shape != (engine.latent_dim,):
        return list(range(engine.latent_dim))
    return [int(dim) for dim in np.argsort(-kl, kind="stable")]


def map_of(engine: Engine) -> tuple[dict[str, Array], dict[str, object]]:
    """Return the map of the latent space: its arrays, and the members that only JSON has.

    Raises:
        NotFound: no map lies beside the weights.
    """
    found = engine.map
    if found is None:
        text = "no map of the latent space lies beside the loaded weights; write one with `vae evaluate`"
        raise NotFound(text, code="no_map")
    labels = {} if found.labels is None else {"labels": found.labels}
    names = ("mean", "axes", "variance", "kl_per_dimension")
    facts: dict[str, object] = {"label_names": found.label_names, "active_units": found.active_units}
    missing: dict[str, object] = {} if labels else {"labels": None}
    arrays = {"mu": found.mu} | labels | {name: getattr(found, name) for name in names}
    return arrays, missing | facts | {"digest": engine.digest}
