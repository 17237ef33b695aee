"""Interpolations and traversals, in: the JSON of a question to the numbers that it is about.

Where a walk leads is the business of ``model.walk``, what is seen on it that of ``app.walks``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.arrays import to_float32
from app.errors import Unprocessable
from app.images_in import ImageBatch, from_fields
from app.json_bodies import read_json
from app.negotiation import JSON, input_type
from app.numbers_in import MAX_LATENT
from app.schemas import InterpolateIn, TraverseIn

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Interpolation:
    """A walk from one latent to another is asked for.

    Attributes:
        ends: two latents ``(2, D)``, or two images whose ``mu`` they are.
        steps: latents on the way, both ends included.
        path: how to walk.
    """

    ends: ImageBatch | Float32
    steps: int
    path: Literal["linear", "spherical"]


@dataclass(frozen=True, slots=True)
class Traversal:
    """Walks along single dimensions are asked for.

    Attributes:
        z: where the others stay, ``(D,)``.
        dims: indices; None for all of them.
        values: what a dimension is set to, ``(steps,)``.
    """

    z: Float32
    dims: list[int] | None
    values: Float32

    @property
    def items(self) -> int:
        """Number of images asked for."""
        return len(self.values) * (len(self.z) if self.dims is None else len(self.dims))


def read_interpolation(body: bytes, content_type: str | None, latent_dim: int) -> Interpolation:
    """Return the interpolation that a JSON body asks for.

    Raises:
        BadRequest: the body is malformed.
        UnsupportedMediaType: the Content-Type is not JSON.
        Unprocessable: a field is wrong, the ends are a latent and an image, or a latent has not D finite numbers.
    """
    input_type(content_type, body, (JSON,))
    asked = read_json(InterpolateIn, body)
    ends: dict[str, Any] = {"from": asked.start, "to": asked.end}
    kinds = {isinstance(end, list) and not (end and isinstance(end[0], list)) for end in ends.values()}
    if len(kinds) > 1:
        raise Unprocessable(f"one end is a latent and the other an image; expected {InterpolateIn.form}")
    if kinds == {False}:
        return Interpolation(from_fields(ends), asked.steps, asked.path)
    latents = [_latent(end, f"body.{name}", latent_dim) for name, end in ends.items()]
    return Interpolation(np.stack(latents), asked.steps, asked.path)


def read_traversal(body: bytes, content_type: str | None, latent_dim: int) -> Traversal:
    """Return the traversal that a JSON body asks for.

    Raises:
        BadRequest: the body is malformed.
        UnsupportedMediaType: the Content-Type is not JSON.
        Unprocessable: a field is wrong, ``z`` has not D finite numbers, or there is no such dimension.
    """
    input_type(content_type, body, (JSON,))
    asked = read_json(TraverseIn, body)
    z = _latent(asked.z, "body.z", latent_dim)
    if asked.dims == []:
        raise Unprocessable("body.dims is empty; name at least one dimension, or leave it out for all", code="empty")
    for place, dim in enumerate(asked.dims or ()):
        if dim >= latent_dim:
            where, problem = f"body.dims.{place}", f"is not a dimension of this model, 0 to {latent_dim - 1}"
            raise Unprocessable(f"{where} {problem}", code="out_of_range", errors=[(where, problem)])
    if not -MAX_LATENT <= asked.low < asked.high <= MAX_LATENT:
        text = f"low must be below high, and both in -{MAX_LATENT:g}..{MAX_LATENT:g}"
        raise Unprocessable(text, code="out_of_range", errors=[("body.low", text)])
    return Traversal(z, asked.dims, np.linspace(asked.low, asked.high, asked.steps, dtype=np.float32))


def _latent(numbers: Sequence[float], where: str, latent_dim: int) -> Float32:
    """Return one latent ``(D,)``, checked."""
    if len(numbers) != latent_dim:
        text = f"{where} has {len(numbers)} numbers; this model reads {latent_dim}"
        raise Unprocessable(text, code="wrong_shape", errors=[(where, f"has {len(numbers)} numbers")])
    z = to_float32(np.array(numbers, np.float64))
    for good, code, problem in (
        (np.isfinite(z), "not_finite", "is not a finite float32"),
        (np.abs(z) <= MAX_LATENT, "out_of_range", f"lies outside -{MAX_LATENT:g}..{MAX_LATENT:g}"),
    ):
        if not good.all():
            at = f"{where}.{int(good.argmin())}"
            raise Unprocessable(f"{at} {problem}", code=code, errors=[(at, problem)])
    return z
