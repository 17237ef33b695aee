"""What the service is asked and what it answers: every request described once, without a connection.

A ``Call`` is a request together with the function that reads its answer; ``Client`` and ``AsyncClient`` differ in
how they send it and in nothing else. What the numbers mean is known to the server alone: it does the checking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as read_tensors

from app.bodies import Body, Images, images_body, json_body, latents_body
from app.errors import ServiceError, Unavailable, from_problem
from app.negotiation import JSON, PNG, SAFETENSORS

T = TypeVar("T")
Array = NDArray[Any]
Unit: TypeAlias = Literal["nats", "bits"]
Resize: TypeAlias = Literal["auto", "never"]


class NoAnswer(Unavailable):
    """No usable answer came: no connection, a lost one, nothing in time, or something that is no vae-service."""

    code = "no_answer"


class Posterior(NamedTuple):
    """The posterior ``q(z|x)`` of each image, float32."""

    mu: Array  # (N, D): the latents
    sigma: Array  # (N, D)
    z: Array | None  # (N, S, D): draws, where some were asked for
    seed: int | None  # of the draws


class Samples(NamedTuple):
    """New images and the latents that they were decoded from, float32."""

    images: Array  # (N, C, H, W) in 0..1
    z: Array  # (N, D)
    seed: int


class Divergence(NamedTuple):
    """KL divergence of each item, float64."""

    kl: Array  # (N,); N = 1 for two distributions
    per_dimension: Array | None  # (N, D), where both sides are diagonal
    unit: str  # nats or bits


class Scores(NamedTuple):
    """How well the model explains each image, ``(N,)`` float32 each; nats but for the last two arrays."""

    elbo: Array
    reconstruction: Array
    kl: Array
    log_likelihood: Array
    standard_error: Array  # of log_likelihood
    bits_per_dim: Array
    percentile: Array  # of elbo among held-out images, 0..100; 0: stranger than all of them
    seed: int


class Picture(NamedTuple):
    """Images drawn by the server: one as it is, several as a contact sheet."""

    png: bytes
    seed: int | None  # of a sample


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
        return Call(self.method, self.path, _read_picture, PNG, params, self.body)


def encode(images: Images, draws: int = 0, seed: int | None = None, *, resize: Resize = "auto") -> Call[Posterior]:
    """Encode images to their posteriors; ``mu`` is the latent.

    Args:
        images: one or many, see ``Images``.
        draws: how many ``z`` to draw around each; none by default, and then the answer is always the same.
        seed: of the draws; a fresh one without it.
        resize: ``never`` refuses image files of another size than the model's.
    """
    params = {"draws": draws or None, "seed": seed, "resize": resize}
    return Call("POST", "/encode", _read_posterior, SAFETENSORS, params, images_body(images))


def decode(z: ArrayLike) -> Call[Array]:
    """Decode latents ``(N, D)`` or ``(D,)`` to the mean images of ``p(x|z)``: float32 ``(N, C, H, W)`` in 0..1."""
    return Call("POST", "/decode", _read_images, SAFETENSORS, body=latents_body(z))


def sample(n: int, seed: int | None = None, temperature: float = 1.0) -> Call[Samples]:
    """Draw ``n`` new images; image i of a seed depends on the seed and i alone.

    Args:
        n: number of images.
        seed: a fresh one without it; the answer tells which.
        temperature: scale of the prior's noise, 0..2.
    """
    params = {"n": n, "seed": seed, "temperature": temperature}
    return Call("GET", "/sample", _read_samples, SAFETENSORS, params)


def reconstruct(images: Images, *, resize: Resize = "auto") -> Call[Array]:
    """Return what the model keeps of images, ``decode(mu)``: float32 ``(N, C, H, W)`` in 0..1."""
    return Call("POST", "/reconstruct", _read_images, SAFETENSORS, {"resize": resize}, images_body(images))


def score(images: Images, samples: int = 64, seed: int | None = None, *, resize: Resize = "auto") -> Call[Scores]:
    """Score images: ELBO, log-likelihood by ``samples`` draws each, and the percentile that an alarm reads."""
    params = {"samples": samples, "seed": seed, "resize": resize}
    return Call("POST", "/score", _read_scores, SAFETENSORS, params, images_body(images))


def kl_images(images: Images, unit: Unit = "nats", *, resize: Resize = "auto") -> Call[Divergence]:
    """Return ``KL[q(z|x) ‖ p(z)]`` of each image, and per latent."""
    return _kl(images_body(images), unit, resize)


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


def model() -> Call[dict[str, Any]]:
    """Return what is loaded: shape, latents, digest, device, measured metrics, limits."""
    return Call("GET", "/model", _read_object)


def ready() -> Call[bool]:
    """Return whether requests are welcome; False also where nobody answers."""
    return Call("GET", "/readyz", lambda response: True, on_error=_not_ready, retried=False)


def _kl(body: Body, unit: Unit, resize: Resize | None = None) -> Call[Divergence]:
    # JSON, since tensors would round the float64 of the answer to float32.
    return Call("POST", "/kl", _read_divergence, JSON, {"unit": unit, "resize": resize}, body)


def _read_posterior(response: httpx.Response) -> Posterior:
    tensors = read_tensors(response.content)
    return Posterior(tensors["mu"], tensors["sigma"], tensors.get("z"), _seed(response))


def _read_images(response: httpx.Response) -> Array:
    return read_tensors(response.content)["images"]


def _read_samples(response: httpx.Response) -> Samples:
    tensors = read_tensors(response.content)
    return Samples(tensors["images"], tensors["z"], int(response.headers["X-Seed"]))


def _read_scores(response: httpx.Response) -> Scores:
    tensors = read_tensors(response.content)
    arrays = {name: tensors[name] for name in Scores._fields if name != "seed"}
    return Scores(**arrays, seed=int(response.headers["X-Seed"]))


def _read_divergence(response: httpx.Response) -> Divergence:
    body = _read_object(response)
    rows = body.get("per_dimension")
    per_dimension = None if rows is None else np.array(rows, np.float64)
    return Divergence(np.array(body["kl"], np.float64), per_dimension, str(body["unit"]))


def _read_object(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    if not isinstance(body, dict):
        raise TypeError("not a JSON object")
    return body


def _read_picture(response: httpx.Response) -> Picture:
    if not response.content.startswith(b"\x89PNG"):
        raise ValueError("not a PNG")
    return Picture(response.content, _seed(response))


def _seed(response: httpx.Response) -> int | None:
    seed = response.headers.get("X-Seed")
    return None if seed is None else int(seed)


def _error_of(response: httpx.Response) -> ServiceError:
    """Return the error that a response stands for; a proxy in between may have written it."""
    try:
        body = _read_object(response)
    except (ValueError, TypeError):
        body = {"detail": f"{response.url} answered {response.status_code} {response.reason_phrase}".rstrip()}
    error = from_problem(response.status_code, body, response.headers)
    error.request_id = error.request_id or response.headers.get("X-Request-ID", "")
    return error


def _not_ready(error: ServiceError) -> bool:
    if isinstance(error, Unavailable):
        return False
    raise error
