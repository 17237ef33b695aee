"""What the service is asked: every request described once, without a connection.

A ``Call`` is a request together with the function that reads its answer; ``Client`` and ``AsyncClient`` differ in
how they send it and in nothing else. What the numbers mean is known to the server alone: it does the checking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import httpx
import numpy as np
from numpy.typing import ArrayLike
from safetensors import SafetensorError

from app.answers import (
    Array,
    Divergence,
    LatentMap,
    Picture,
    Posterior,
    Samples,
    Scores,
    Traversal,
    Walk,
    read_divergence,
    read_images,
    read_map,
    read_object,
    read_picture,
    read_posterior,
    read_samples,
    read_scores,
    read_traversal,
    read_walk,
)
from app.bodies import Body, ImageFile, Images, images_body, json_body, latents_body, walk_end
from app.errors import ServiceError, Unavailable, from_problem
from app.negotiation import JSON, PNG, SAFETENSORS

T = TypeVar("T")
Unit: TypeAlias = Literal["nats", "bits"]
Resize: TypeAlias = Literal["auto", "never"]
Path: TypeAlias = Literal["linear", "spherical"]


class NoAnswer(Unavailable):
    """No usable answer came: no connection, a lost one, nothing in time, or something that is no vae-service."""

    code = "no_answer"


def _fail(error: ServiceError) -> Any:
    raise error


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and how to read its answer.

    Attributes:
        method: HTTP method.
        path: path below the server's URL.
        read: from a good answer to the result.
        accept: media type of the answer.
        params: query parameters; None stands for one that is not sent.
        body: what is sent along.
        on_error: from the error, where no good answer came, to the result; by default it is raised.
        retried: whether a server that asks to wait is asked again.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    accept: str = JSON
    params: Mapping[str, object] = field(default_factory=dict)
    body: Body = field(default_factory=Body)
    on_error: Callable[[ServiceError], T] = _fail
    retried: bool = True

    def arguments(self) -> dict[str, Any]:
        """Return the request as keyword arguments of ``httpx.Client.request``."""
        headers = {"Accept": self.accept}
        if self.body.content_type:
            headers["Content-Type"] = self.body.content_type
        params = {name: value for name, value in self.params.items() if value is not None}
        request = {"method": self.method, "url": self.path, "params": params, "headers": headers}
        return request | self.body.arguments()

    def answer(self, response: httpx.Response) -> T:
        """Return the result that a response holds.

        Raises:
            ServiceError: of the class that the server raised, with its ``request_id``.
            NoAnswer: the response is none of vae-service.
        """
        if not response.is_success:
            raise _error_of(response)
        try:
            return self.read(response)
        except (ValueError, LookupError, TypeError, SafetensorError) as error:
            raise NoAnswer(f"{response.url} gave an answer that is none of vae-service") from error

    def as_png(self, columns: int | None = None) -> Call[Picture]:
        """Return the same question with the images of the answer drawn by the server, ``columns`` in a row."""
        params = {**self.params, "columns": columns}
        return Call(self.method, self.path, read_picture, PNG, params, self.body)


def encode(images: Images, draws: int = 0, seed: int | None = None, *, resize: Resize = "auto") -> Call[Posterior]:
    """Encode images to their posteriors; ``mu`` is the latent.

    Args:
        images: one or many, see ``Images``.
        draws: how many ``z`` to draw around each; none by default, and then the answer is always the same.
        seed: of the draws; a fresh one without it.
        resize: ``never`` refuses image files of another size than the model's.
    """
    params = {"draws": draws or None, "seed": seed, "resize": resize}
    return Call("POST", "/encode", read_posterior, SAFETENSORS, params, images_body(images))


def decode(z: ArrayLike) -> Call[Array]:
    """Decode latents ``(N, D)`` or ``(D,)`` to the mean images of ``p(x|z)``: float32 ``(N, C, H, W)`` in 0..1."""
    return Call("POST", "/decode", read_images, SAFETENSORS, body=latents_body(z))


def sample(n: int, seed: int | None = None, temperature: float = 1.0) -> Call[Samples]:
    """Draw ``n`` new images; image i of a seed depends on the seed and i alone.

    Args:
        n: number of images.
        seed: a fresh one without it; the answer tells which.
        temperature: scale of the prior's noise, 0..2.
    """
    params = {"n": n, "seed": seed, "temperature": temperature}
    return Call("GET", "/sample", read_samples, SAFETENSORS, params)


def reconstruct(images: Images, *, resize: Resize = "auto") -> Call[Array]:
    """Return what the model keeps of images, ``decode(mu)``: float32 ``(N, C, H, W)`` in 0..1."""
    return Call("POST", "/reconstruct", read_images, SAFETENSORS, {"resize": resize}, images_body(images))


def score(images: Images, samples: int = 64, seed: int | None = None, *, resize: Resize = "auto") -> Call[Scores]:
    """Score images: ELBO, log-likelihood by ``samples`` draws each, and the percentile that an alarm reads."""
    params = {"samples": samples, "seed": seed, "resize": resize}
    return Call("POST", "/score", read_scores, SAFETENSORS, params, images_body(images))


def kl_images(
    images: Images, unit: Unit = "nats", samples: int = 64, seed: int | None = None, *, resize: Resize = "auto"
) -> Call[Divergence]:
    """Return ``KL[q(z|x) ‖ p(z)]`` of each image, and per latent.

    Under a learned prior it is the mean over ``samples`` draws an image, with a standard error and not per latent.
    """
    return _kl(images_body(images), unit, resize=resize, samples=samples, seed=seed)


def kl_posterior(mu: ArrayLike, sigma: ArrayLike, unit: Unit = "nats") -> Call[Divergence]:
    """Return ``KL[N(mu, sigma²) ‖ N(0, I)]`` of each row of ``mu`` and ``sigma``, ``(N, D)`` with any D."""
    return _kl(json_body({"mu": mu, "sigma": sigma}), unit)


def kl_gaussians(p: Mapping[str, ArrayLike], q: Mapping[str, ArrayLike], unit: Unit = "nats") -> Call[Divergence]:
    """Return ``KL[p ‖ q]`` of two multivariate normals.

    Args:
        p: ``{"mean": (D,), "std": (D,)}`` or ``{"mean": (D,), "cov": (D, D)}``.
        q: likewise; the two forms mix.
        unit: of the answer.
    """
    return _kl(json_body({"p": p, "q": q}), unit)


def kl_discrete(p: ArrayLike, q: ArrayLike, unit: Unit = "nats") -> Call[Divergence]:
    """Return ``KL[p ‖ q]`` of two discrete distributions, given as probabilities ``(D,)``."""
    return _kl(json_body({"p": {"probs": p}, "q": {"probs": q}}), unit)


def interpolate(
    start: ArrayLike | ImageFile,
    end: ArrayLike | ImageFile,
    steps: int = 9,
    path: Path = "linear",
    *,
    resize: Resize = "auto",
) -> Call[Walk]:
    """Walk from one latent or image to another, and decode what lies between.

    Args:
        start: a latent ``(D,)`` or ``(1, D)``, or one image: a file, or an array of the model's shape.
        end: of the same kind.
        steps: latents on the way, both ends included, 2..64.
        path: a straight line, or an arc around the origin.
        resize: ``never`` refuses image files of another size than the model's.
    """
    body = json_body({"from": walk_end(start), "to": walk_end(end), "steps": steps, "path": path})
    return Call("POST", "/interpolate", read_walk, SAFETENSORS, {"resize": resize}, body)


def traverse(
    z: ArrayLike, dims: Sequence[int] | None = None, low: float = -3.0, high: float = 3.0, steps: int = 9
) -> Call[Traversal]:
    """Leave a latent along single dimensions, and decode what is met.

    Args:
        z: ``(D,)`` or ``(1, D)``.
        dims: which, from 0; without them all, those of most KL first.
        low: first value of the dimension.
        high: last value.
        steps: values in between, both included, 2..64.
    """
    asked = {"z": np.ravel(z), "dims": dims, "low": low, "high": high, "steps": steps}
    return Call("POST", "/traverse", read_traversal, SAFETENSORS, body=json_body(asked))


def latent_map() -> Call[LatentMap]:
    """Return where held-out images lie in latent space, its principal axes and the KL of each dimension."""
    return Call("GET", "/map", read_map)


def model() -> Call[dict[str, Any]]:
    """Return what is loaded: shape, latents, digest, device, measured metrics, limits."""
    return Call("GET", "/model", read_object)


def ready() -> Call[bool]:
    """Return whether requests are welcome; False also where nobody answers."""
    return Call("GET", "/readyz", lambda response: True, on_error=_not_ready, retried=False)


def _kl(body: Body, unit: Unit, **params: object) -> Call[Divergence]:
    # JSON, since tensors would round the float64 of the answer to float32.
    return Call("POST", "/kl", read_divergence, JSON, {"unit": unit, **params}, body)


def _error_of(response: httpx.Response) -> ServiceError:
    """Return the error that a response stands for; a proxy in between may have written it."""
    try:
        body = read_object(response)
    except (ValueError, TypeError):
        body = {"detail": f"{response.url} answered {response.status_code} {response.reason_phrase}".rstrip()}
    error = from_problem(response.status_code, body, response.headers)
    error.request_id = error.request_id or response.headers.get("X-Request-ID", "")
    return error


def _not_ready(error: ServiceError) -> bool:
    if isinstance(error, Unavailable):
        return False
    raise error
