"""Latents, and the distributions of ``/kl``, in: bytes and a Content-Type to numbers.

Which form a body has and whether its rows are rectangular is decided here. Whether a covariance is positive
definite and the like is the business of ``model.divergence``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.arrays import FLOATS, read_array, shape_text, to_float32
from app.errors import Unprocessable
from app.images_in import ImageBatch, check_count, check_image_lists, from_json, parse_images
from app.json_bodies import check_lists, read_json
from app.negotiation import IMAGE_TYPES, JSON, LATENT_TYPES, input_type
from app.schemas import MAX_ROWS, Distribution, KlIn, LatentsIn
from model.pixels import Shape

MAX_LATENT: Final = 1e6
"""Largest number in ``z``: a prior draws within 10, and far beyond a million a network's own numbers overflow."""

_NORMALS: Final = ({"mean", "std"}, {"mean", "cov"})


@dataclass(frozen=True, slots=True)
class Posteriors:
    """Diagonal normals, to be measured against N(0, I).

    Attributes:
        mu: means, ``(N, D)`` float64.
        sigma: standard deviations, ``(N, D)`` float64, above 0.
    """

    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]

    @property
    def items(self) -> int:
        """N."""
        return len(self.mu)


@dataclass(frozen=True, slots=True)
class Normal:
    """A multivariate normal as it was sent, with standard deviations or a covariance; not checked."""

    mean: list[float]
    std: list[float] | None
    cov: list[list[float]] | None


@dataclass(frozen=True, slots=True)
class NormalPair:
    """KL[p ‖ q] of two multivariate normals is asked for."""

    p: Normal
    q: Normal
    items: int = 1


@dataclass(frozen=True, slots=True)
class DiscretePair:
    """KL[p ‖ q] of two discrete distributions is asked for, given by probabilities that are not checked."""

    p: list[float]
    q: list[float]
    items: int = 1


KlQuestion = ImageBatch | Posteriors | NormalPair | DiscretePair


def read_latents(
    body: bytes, content_type: str | None, latent_dim: int, *, max_items: int = MAX_ROWS
) -> NDArray[np.float32]:
    """Return latents ``z (N, D)``, finite.

    Args:
        body: JSON ``{"z": [[…]]}``, a float .npy of shape (D,) or (N, D), or safetensors with such a ``z``.
        content_type: the Content-Type header; without one the body's first bytes decide.
        latent_dim: D of the model.
        max_items: most rows.

    Raises:
        BadRequest: the body is malformed.
        ContentTooLarge: more than ``max_items`` rows.
        UnsupportedMediaType: the Content-Type is not one that is read.
        Unprocessable: no row, another shape, NaN or infinity, a number beyond a million, a wrong number type.
    """
    kind = input_type(content_type, body, LATENT_TYPES)
    if kind == JSON:
        check_lists(body, 1 + max_items)
        array: NDArray[Any] = _rectangular(read_json(LatentsIn, body).z, "z", max_items)
    else:
        array = read_array(body, kind, "z", FLOATS)
        array = array[None] if array.ndim == 1 else array  # (D,) -> (1, D)
    if array.ndim != 2 or array.shape[1] != latent_dim:
        raise Unprocessable(
            f"got z of shape {shape_text(array)}; this model reads (N, {latent_dim})", code="wrong_shape"
        )
    check_count(len(array), max_items, "latent")
    z = to_float32(array)
    _check_entries(np.isfinite(z), "not_finite", "is not a finite float32")
    _check_entries(np.abs(z) <= MAX_LATENT, "out_of_range", f"lies outside -{MAX_LATENT:g}..{MAX_LATENT:g}")
    return z


def _check_entries(good: NDArray[np.bool_], code: str, problem: str) -> None:
    """Refuse latents of which an entry is not good, naming the first."""
    if not good.all():
        row, column = (int(i) for i in np.unravel_index(int(good.argmin()), good.shape))
        where = f"body.z.{row}.{column}"
        raise Unprocessable(f"{where} {problem}", code=code, errors=[(where, problem)])


def read_kl(
    body: bytes, content_type: str | None, *, max_items: int = MAX_ROWS, shape: Shape | None = None
) -> KlQuestion:
    """Return what a body of ``/kl`` asks for: images in any form, or one of three forms of JSON.

    ``shape`` is that of the model's images, as for ``parse_images``.

    Raises:
        BadRequest, ContentTooLarge, UnsupportedMediaType: as for ``parse_images``.
        Unprocessable: the fields are none of the forms, rows differ in length, a sigma is not above 0.
    """
    if input_type(content_type, body, IMAGE_TYPES) != JSON:
        return parse_images(body, content_type, max_items=max_items)
    check_image_lists(body, max_items, shape)  # means, deviations and covariances have no more lists than that
    question = read_json(KlIn, body)
    fields = question.model_fields_set
    if fields == {"images"}:
        return from_json(question.images, max_items)
    if fields == {"mu", "sigma"}:
        return _posteriors(question, max_items)
    if fields == {"p", "q"}:
        return _pair(question.p, question.q)
    raise _no_form(f"the body holds {_listed(fields)}")


def _posteriors(question: KlIn, max_items: int) -> Posteriors:
    mu = _rectangular(question.mu, "mu", max_items)
    sigma = _rectangular(question.sigma, "sigma", max_items)
    if mu.shape != sigma.shape:
        shapes = f"{shape_text(mu)} and sigma of shape {shape_text(sigma)}"
        raise Unprocessable(f"got mu of shape {shapes}; they must be the same", code="wrong_shape")
    if (sigma <= 0).any():
        row, column = (int(i) for i in np.unravel_index(int((sigma <= 0).argmax()), sigma.shape))
        where, problem = f"body.sigma.{row}.{column}", "is not above 0"
        raise Unprocessable(f"{where} {problem}", code="out_of_range", errors=[(where, problem)])
    return Posteriors(mu, sigma)


def _pair(p: Distribution, q: Distribution) -> NormalPair | DiscretePair:
    fields = (p.model_fields_set, q.model_fields_set)
    if fields == ({"probs"}, {"probs"}):
        return DiscretePair(p.probs, q.probs)
    if fields[0] in _NORMALS and fields[1] in _NORMALS:
        return NormalPair(_normal(p), _normal(q))
    raise _no_form(f"p holds {_listed(fields[0])} and q {_listed(fields[1])}")


def _normal(given: Distribution) -> Normal:
    fields = given.model_fields_set
    return Normal(given.mean, given.std if "std" in fields else None, given.cov if "cov" in fields else None)


def _no_form(got: str) -> Unprocessable:
    return Unprocessable(f"{got}; expected {KlIn.form}", code="invalid_field")


def _listed(fields: set[str]) -> str:
    """Return names of fields, all of them known ones, as a message lists them."""
    return " and ".join(sorted(fields)) or "nothing"


def _rectangular(rows: Sequence[list[float]], field: str, max_items: int) -> NDArray[np.float64]:
    """Return rows of numbers as ``(N, D)``, N and D of 1 or more."""
    check_count(len(rows), max_items, "row")
    for index, row in enumerate(rows):
        if len(row) != len(rows[0]) or not row:
            where, problem = f"body.{field}.{index}", f"has {len(row)} numbers"
            raise Unprocessable(
                f"{where} {problem}; every row has as many as the first, {len(rows[0])}, and at least one",
                code="wrong_shape",
                errors=[(where, problem)],
            )
    return np.array(rows, np.float64)
