"""The Python client: ask a running service, get NumPy arrays, and the server's own errors where it refuses.

    with Client("http://127.0.0.1:8000") as client:
        mu = client.encode("digit.png").mu

What is asked and answered stands in ``app.calls``; this module sends it. Needs no torch.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Final, Generic, ParamSpec, TypeVar, overload

import httpx

from app import calls
from app.answers import Array, Divergence, LatentMap, Picture, Posterior, Samples, Scores, Traversal, Walk
from app.calls import Call, NoAnswer
from app.errors import ServiceError

__all__ = [
    "AsyncClient",
    "Call",
    "Client",
    "Divergence",
    "LatentMap",
    "NoAnswer",
    "Picture",
    "Posterior",
    "Samples",
    "Scores",
    "ServiceError",
    "Traversal",
    "Walk",
    "to_pillow",
]

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_URL: Final = "http://127.0.0.1:8000"
DEFAULT_WAIT_S: Final = 1.0  # before the next try, where the server does not say
MAX_WAIT_S: Final = 30.0  # who is asked to wait longer gets the error at once
RETRIED: Final = frozenset({429, 503})
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class _Method(Generic[P, T]):
    """A function that describes a call, as a method that sends it; in ``AsyncClient`` it is awaited."""

    def __init__(self, describe: Callable[P, Call[T]]) -> None:
        self.describe = describe
        self.__doc__ = describe.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Callable[P, Call[T]]: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Callable[P, Any]:
        if client is None:
            return self.describe

        @functools.wraps(self.describe)
        def send(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.send(self.describe(*args, **kwargs))

        return send


class _Methods:
    """What both clients can be asked. On the class, each name is the function that only describes the call."""

    encode = _Method(calls.encode)
    decode = _Method(calls.decode)
    sample = _Method(calls.sample)
    reconstruct = _Method(calls.reconstruct)
    score = _Method(calls.score)
    kl_images = _Method(calls.kl_images)
    kl_posterior = _Method(calls.kl_posterior)
    kl_gaussians = _Method(calls.kl_gaussians)
    kl_discrete = _Method(calls.kl_discrete)
    interpolate = _Method(calls.interpolate)
    traverse = _Method(calls.traverse)
    map = _Method(calls.latent_map)
    model = _Method(calls.model)
    ready = _Method(calls.ready)


class Client(_Methods):
    """A client that waits for each answer; usable from several threads, and as a context manager."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        digest: str | None = None,
        timeout: float = 30.0,
        retries: int = 2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: of the server, with the path below which it is mounted, if any.
            api_key: sent with every request.
            digest: of the weights that must be loaded; under others every request is a ``PreconditionFailed``.
            timeout: for connecting and for each read and write, in seconds.
            retries: how often to ask again where the server answers 429 or 503 and says how long to wait.
            transport: what carries the requests instead of a connection, for tests.

        Raises:
            ValueError: ``url`` is not of HTTP, or ``api_key`` or ``digest`` cannot stand in a header.
        """
        self._http = httpx.Client(**_options(url, api_key, digest, timeout), transport=transport)
        self._retries = retries
        carrier: Any = transport  # some carry requests of both kinds
        shared = carrier if isinstance(carrier, httpx.AsyncBaseTransport) else None
        self._made_of: dict[str, Any] = {"url": url, "api_key": api_key, "timeout": timeout, "transport": shared}

    def to_async(self, digest: str | None = None) -> AsyncClient:
        """Return an ``AsyncClient`` of the same server, key, timeout and retries.

        Args:
            digest: of the weights that must be loaded while it is used.
        """
        return AsyncClient(**self._made_of, digest=digest, retries=self._retries)

    def send(self, call: Call[T]) -> T:
        """Send a call and return its result, waiting and asking again where the server asks for it.

        Raises:
            ServiceError: of the class that the server raised; ``NoAnswer`` where none came.
        """
        retries = self._retries
        while True:
            try:
                with _no_answer(self._http.base_url):
                    response = self._http.request(**call.arguments())
                return call.answer(response)
            except ServiceError as error:
                wait = seconds_to_wait(error) if retries > 0 and call.retried else None
                if wait is None:
                    return call.on_error(error)
            time.sleep(wait)
            retries -= 1

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()


class AsyncClient(_Methods):
    """The same client for asyncio: every method returns an awaitable. Files are read before it does."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        digest: str | None = None,
        timeout: float = 30.0,
        retries: int = 2,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Connect to nothing yet; arguments and errors are those of ``Client``."""
        self._http = httpx.AsyncClient(**_options(url, api_key, digest, timeout), transport=transport)
        self._retries = retries

    async def send(self, call: Call[T]) -> T:
        """Send a call and return its result, as ``Client.send`` does."""
        retries = self._retries
        while True:
            try:
                with _no_answer(self._http.base_url):
                    response = await self._http.request(**call.arguments())
                return call.answer(response)
            except ServiceError as error:
                wait = seconds_to_wait(error) if retries > 0 and call.retried else None
                if wait is None:
                    return call.on_error(error)
            await asyncio.sleep(wait)
            retries -= 1

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.close()


def to_pillow(images: Array) -> list[Any]:
    """Return images of an answer as a list of ``PIL.Image.Image``, grey or RGB.

    Args:
        images: ``(N, C, H, W)`` in 0..1, or ``(rows, steps, C, H, W)``, which is read row by row.
    """
    from model import pixels  # with Pillow, which nothing else of the client needs

    return pixels.to_pillow(images.reshape(-1, *images.shape[-3:]))


def seconds_to_wait(error: ServiceError) -> float | None:
    """Return how long to wait before asking again; None where the error is to be raised at once.

    ``retry_after_ms`` of the body, else ``Retry-After``, in seconds or as the date that a proxy may write, else
    ``DEFAULT_WAIT_S``; and never for another status than 429 and 503, without an answer, or where the wait is longer
    than ``MAX_WAIT_S``.
    """
    if error.status not in RETRIED or isinstance(error, NoAnswer):
        return None
    milliseconds = error.extra.get("retry_after_ms")
    if isinstance(milliseconds, int | float):
        seconds = milliseconds / 1000
    else:
        seconds = _seconds_of(error.headers.get("retry-after", ""))
    return seconds if 0 <= seconds <= MAX_WAIT_S else None


def _seconds_of(header: str) -> float:
    """Return the seconds that a ``Retry-After`` stands for (RFC 9110, section 10.2.3)."""
    if header.isdecimal():
        return float(header)
    try:
        seconds = parsedate_to_datetime(header).timestamp() - time.time()
    except ValueError:
        return DEFAULT_WAIT_S
    return seconds if seconds > 0 else DEFAULT_WAIT_S  # clocks differ


def _options(url: str, api_key: str | None, digest: str | None, timeout: float) -> dict[str, Any]:
    """Return what both kinds of httpx client are made of."""
    parsed = httpx.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"got {url!r} as the URL of a server; expected one such as {DEFAULT_URL}")
    headers = {}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {_visible(api_key, 'the API key')}"
    if digest is not None:
        headers["If-Model-Match"] = _visible(digest, "the digest")
    # No proxy of the environment stands between a client and its own machine.
    return {"base_url": url, "headers": headers, "timeout": timeout, "trust_env": parsed.host not in _LOOPBACK}


def _visible(text: str, name: str) -> str:
    if not text or not all("!" <= character <= "~" for character in text):
        raise ValueError(f"{name} must be one or more visible ASCII characters")  # and it is not printed
    return text


@contextmanager
def _no_answer(url: httpx.URL) -> Iterator[None]:
    """Turn the failures of a connection into ``NoAnswer``; httpx's own error is its cause."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise NoAnswer(f"{url} did not answer in time") from error
    except httpx.TransportError as error:
        raise NoAnswer(f"no answer from {url}: {str(error) or type(error).__name__}") from error
    except httpx.RequestError as error:  # a body that cannot be decoded
        raise NoAnswer(f"{url} gave an answer that is none of vae-service") from error
