"""One small image on the shortest way: no task, no messages, no framework. Most requests of a busy service are such.

Only what has been seen before travels so: a request to encode one image whose head is, byte for byte, that of an
earlier one which the server's parser has read and in which nothing asks for anything unusual. All others go the way of
all requests, and so does whatever would be refused: what is wrong with a request is said in one place. Knows no socket.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from app.admission import Stay
from app.auth import check_key
from app.batching import Batcher
from app.context import by_name, fresh_id
from app.engine import Engine
from app.errors import ServiceError
from app.lines import Answer, Work
from app.logs import REQUEST_ID
from app.middleware import Headers, own_fields, told
from app.negotiation import JPEG, JSON, PNG, Format, choose_format, input_type
from app.payloads import parse_images, write_tensors
from app.problems import CLOSED, internal_error, problem_response, response_to
from app.reading import SMALL_BODY_BYTES, too_late
from app.routes import TENSORS
from app.service import Service, Timing

ROUTE: Final = "/encode"
HEADS: Final = 1024  # that are known at the same time
HEAD_BYTES: Final = 1024  # of the longest that is learned
END: Final = b"\r\n\r\n"
# What a head must not have: it asks for something that only the usual way does.
UNUSUAL: Final = frozenset(
    (b"expect", b"if-model-match", b"origin", b"transfer-encoding", b"upgrade", b"x-request-id", b"x-timeout-ms")
)
log = logging.getLogger("vae")


class Reply(Protocol):
    """The connection that a ride came by."""

    def answer(self, status: int, fields: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """Write the answer and turn to the next request."""


class Express:
    """Knows the heads of usual requests, and takes along who has one.

    Args:
        service: that answers.
        keys: that open it.
        prefixes: under which its routes are served.
    """

    def __init__(self, service: Service, keys: Sequence[bytes], prefixes: Iterable[str]) -> None:
        """Know nothing yet."""
        self.service = service
        self._keys, self._paths = keys, {prefix + ROUTE for prefix in prefixes}
        self._heads: dict[bytes, tuple[int, str]] = {}  # to the length of the body that follows, and the path
        self._rides: dict[Ride, None] = {}  # who is on the way, the oldest first
        self._alarm: asyncio.TimerHandle | None = None

    def learn(self, data: bytes, scope: Mapping[str, Any]) -> None:
        """Remember the head of a request if nothing in it is unusual.

        Args:
            data: the whole request, and nothing else, as it came.
            scope: what the parser made of it: HTTP/1.1, on a connection that stays open.
        """
        if scope["path"] not in self._paths or scope["method"] != "POST" or scope["query_string"]:
            return
        head, length = data[: data.find(END) + len(END)], len(data) - data.find(END) - len(END)
        headers = by_name(scope["headers"])
        most = min(SMALL_BODY_BYTES, self.service.settings.max_body_bytes)
        if len(head) > HEAD_BYTES or not 0 < length <= most or UNUSUAL & headers.keys():
            return
        whole = head.count(b"\r\n") == len(scope["headers"]) + 2  # and no field that the parser took for something else
        if whole and headers.get(b"content-length") == b"%d" % length and self._is_usual(headers):
            self._heads[head] = length, scope["path"]
            if len(self._heads) > HEADS:
                del self._heads[next(iter(self._heads))]

    def _is_usual(self, headers: Mapping[bytes, bytes]) -> bool:
        kind, accept = headers.get(b"content-type", b"").decode("latin-1"), headers.get(b"accept")
        try:
            check_key(self._keys, headers)
            input_type(kind, b"", (PNG, JPEG))
            return choose_format(None if accept is None else accept.decode("latin-1"), None, TENSORS) is Format.JSON
        except ServiceError:
            return False

    def take(self, reply: Reply, data: bytes) -> Ride | None:
        """Take a request along, if ``data`` is one that can be answered on this way."""
        end = data.find(END) + len(END)
        length, path = self._heads.get(data[:end], (-1, ""))
        if length != len(data) - end:
            return None
        started, service = time.monotonic(), self.service
        batcher, seconds = service.open_batcher(), service.settings.deadline_s
        if batcher is None or service.digest is None or service.lacks_memory(length):
            return None
        stay = batcher.enter_if_room(1, 1, seconds)
        if stay is None:
            return None
        engine = service.engine
        x = self._image(data[end:], engine)
        if x is None:
            batcher.leave(stay, 1)
            return None
        ride = Ride(self, reply, path, batcher, engine, x, stay, started)
        batcher.begin(engine.encode, ride.work)
        self._expect(ride, seconds)
        return ride

    def _image(self, body: bytes, engine: Engine) -> NDArray[np.float32] | None:
        """Return the image of a body, ``(1, C, H, W)``; nothing where it is broken, or takes long to decode."""
        try:
            images = parse_images(body, PNG)
            most = self.service.settings.max_pixels
            return images.decode(engine.image_shape, max_pixels=most) if images.is_light() else None
        except Exception:  # the way of all requests meets the same, and says so
            return None

    def give_up(self, error: ServiceError) -> None:
        """End all who are on the way with an error."""
        for ride in list(self._rides):
            ride.set_exception(error)

    def over(self, ride: Ride) -> None:
        """Forget a ride that is over."""
        del self._rides[ride]

    def _expect(self, ride: Ride, seconds: float) -> None:
        """See to it that a ride ends in time: all have the same, so one alarm is enough, that of the oldest."""
        self._rides[ride] = None
        if self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(seconds, self._look, seconds)

    def _look(self, seconds: float) -> None:
        self._alarm, end = None, time.monotonic() - seconds
        for ride in [ride for ride in self._rides if ride.started <= end]:
            ride.set_exception(too_late(seconds))
        if self._rides:
            left = next(iter(self._rides)).started - end
            self._alarm = asyncio.get_running_loop().call_later(left, self._look, seconds)


class Ride:
    """One request on its way; what the batcher takes for a future.

    Attributes:
        work: its submission.
        started: when it was here, on the monotonic clock.
    """

    __slots__ = ("_batcher", "_engine", "_express", "_id", "_over", "_path", "_reply", "_stay", "started", "work")

    def __init__(
        self,
        express: Express,
        reply: Reply,
        path: str,
        batcher: Batcher,
        engine: Engine,
        x: NDArray[np.float32],
        stay: Stay,
        started: float,
    ) -> None:
        """Begin with an image ``(1, C, H, W)``; ``stay`` is its room, which it gives back in the end."""
        self._express, self._reply, self._path, self._batcher, self._engine = express, reply, path, batcher, engine
        self.work, self._stay, self.started, self._over = Work((x,), self, stay), stay, started, False
        self._id = fresh_id()

    def done(self) -> bool:
        """Return whether it is over."""
        return self._over

    def set_result(self, answer: Answer, /) -> None:
        """Answer with ``mu`` and ``sigma``."""
        mu, sigma, kl = answer.rows
        body = write_tensors(Format.JSON, {"mu": mu, "sigma": sigma})
        self._express.service.metrics.observe_posterior_kl(kl)
        fields = [(b"vary", b"Accept"), (b"content-length", b"%d" % len(body)), (b"content-type", JSON.encode())]
        self._answer(200, fields, body, Timing(answer.queue_s, answer.device_s))

    def set_exception(self, error: Exception, /) -> None:
        """Answer with an error."""
        with self._named():
            if isinstance(error, ServiceError):
                answer = response_to(error, self._id)
            else:
                log.error("unexpected error", exc_info=error)
                answer = problem_response(internal_error(), self._id)
        self._answer(answer.status_code, answer.raw_headers, bytes(answer.body), Timing())

    def cancel(self) -> None:
        """Be over without an answer: the caller is gone."""
        if not self._over:
            self._end(CLOSED)

    def _answer(self, status: int, fields: Headers, body: bytes, timing: Timing) -> None:
        own = own_fields(self._id, self._engine.digest, timing, self.started)
        self._end(status)
        self._reply.answer(status, [*fields, *own], body)

    def _end(self, status: int) -> None:
        """Give everything back."""
        self._over = True
        self._batcher.end(self._engine.encode, self.work)
        self._batcher.leave(self._stay, 1)
        self._express.over(self)
        with self._named():
            told(self._express.service, "POST", self._path, ROUTE, status, time.monotonic() - self.started)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Have what is logged meanwhile carry the request's id."""
        before = REQUEST_ID.set(self._id)
        try:
            yield
        finally:
            REQUEST_ID.reset(before)
