"""From a request to what an endpoint works on: its body in time and in bounds, room in the line, its images.

Everything that can be refused cheaply is refused first: nothing is decoded before there is room for it, and nothing
is computed for a caller who left.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from starlette.responses import Response

from app.auth import check_key
from app.context import Context, context_of, service_of
from app.direct import DirectRoute, Handler
from app.engine import Engine
from app.errors import ContentTooLarge, DeadlineExceeded, PreconditionFailed, QueueFull, Unprocessable
from app.images_in import LIGHT_PIXELS, check_pixels
from app.lines import Rows
from app.negotiation import NPY
from app.payloads import ImageBatch, parse_images
from app.problems import Departed
from app.service import Call, Service
from app.threads import Pool

T = TypeVar("T")
SMALL_BODY_BYTES = 4096  # up to here a body is read on the event loop: a hop to a thread costs more
MAX_DRAWS_PER_ITEM = 64  # times VAE_MAX_ITEMS: the most draws of z that one request may cause
MAX_FULL_FILES = 16  # times VAE_MAX_PIXELS: the most pixels of all image files of one request
MIN_DRAWS = 1024  # that every request may have, however small VAE_MAX_ITEMS is
TIMEOUT_MS = re.compile(r"[0-9]{1,9}")


class WorkRoute(DirectRoute):
    """A route that costs something: it asks for a key where keys are configured, and ends with its deadline.

    The deadline is ``VAE_DEADLINE_S`` or the caller's ``X-Timeout-Ms``, whichever is shorter. ``If-Model-Match`` is
    compared as well, since latents mean nothing under other weights; once more when the body has been read, as other
    weights may have been loaded meanwhile. The key comes first: whoever has none learns nothing else.
    """

    def handler(self) -> Handler:
        """Return the endpoint, guarded and bounded in time."""
        handle = super().handler()

        async def timed(request: Request) -> Response:
            context = context_of(request)
            check_key(request.app.state.keys, context.headers)
            seconds = context.seconds = deadline(context)
            if b"if-model-match" in context.headers:
                check_model(context, context.service.engine)
            try:
                async with asyncio.timeout(seconds):
                    return await handle(request)
            except TimeoutError:
                raise too_late(seconds) from None
            finally:
                context.service.body_bytes -= context.body_bytes

        return timed


def too_late(seconds: float) -> DeadlineExceeded:
    """Return the refusal of a request that had so many seconds."""
    return DeadlineExceeded(
        f"no answer within {seconds:g} s (VAE_DEADLINE_S or X-Timeout-Ms); send less, or allow more time"
    )


def content_type(request: Request) -> str | None:
    """Return the request's Content-Type header."""
    return context_of(request).header(b"content-type")


def deadline(context: Context) -> float:
    """Return the seconds that this request has.

    Raises:
        Unprocessable: ``X-Timeout-Ms`` is not a whole number of at least 1.
    """
    longest = context.service.settings.deadline_s
    sent = context.header(b"x-timeout-ms")
    if sent is None:
        return longest
    if not TIMEOUT_MS.fullmatch(sent) or int(sent) < 1:
        raise Unprocessable("X-Timeout-Ms must be a whole number of milliseconds, at least 1", code="invalid_field")
    return min(longest, int(sent) / 1000)


def left_s(context: Context) -> float:
    """Return the seconds that are left to a request."""
    return context.seconds - (time.monotonic() - context.started)


def check_model(context: Context, engine: Engine) -> None:
    """Compare ``If-Model-Match`` with the digest of an engine's weights.

    Raises:
        PreconditionFailed: they differ.
    """
    wanted = context.header(b"if-model-match")
    if wanted is not None and engine.digest != wanted.strip().strip('"'):
        raise PreconditionFailed(
            f"the loaded weights are {engine.digest}, not those that If-Model-Match names; encode again with these "
            "weights"
        )


def choose_engine(request: Request) -> Engine:
    """Return the engine in force, which answers the request from now on, whatever is loaded meanwhile.

    Everything that depends on the model comes after this: how long a latent is, what is computed, what the answer's
    ``X-Model-Digest`` says.

    Raises:
        PreconditionFailed: ``If-Model-Match`` names other weights.
        Unavailable: nothing is loaded yet.
    """
    context = context_of(request)
    engine = context.engine = context.service.engine
    check_model(context, engine)
    return engine


def check_items(items: int, owner: Service) -> None:
    """Bound the items of one request.

    Raises:
        ContentTooLarge: there are more than ``VAE_MAX_ITEMS``.
    """
    if items > (most := owner.settings.max_items):
        raise ContentTooLarge(
            f"got {items} items; at most {most} a request (VAE_MAX_ITEMS); send several requests", code="too_many_items"
        )


def check_draws(images: int, draws: int, owner: Service) -> None:
    """Bound the draws of one request.

    Raises:
        ContentTooLarge: images times draws are more than 64 times ``VAE_MAX_ITEMS``.
    """
    if images * draws > (limit := max(owner.settings.max_items * MAX_DRAWS_PER_ITEM, MIN_DRAWS)):
        raise ContentTooLarge(
            f"got {images} images with {draws} draws each; at most {limit} draws a request "
            f"({MAX_DRAWS_PER_ITEM} x VAE_MAX_ITEMS); send fewer images or ask for fewer draws",
            code="too_many_items",
        )


async def offload(request: Request, work: Callable[..., T], *args: Any) -> T:
    """Return ``work(*args)``, computed in a thread where the request's body is too large for the event loop.

    The service's readers are few, so however many large images arrive, only so many are decoded at a time.

    Raises:
        QueueFull: the line for the readers takes longer than the request can wait.
    """
    return work(*args) if has_small_body(request) else await in_reader(request, work, *args)


def has_small_body(request: Request) -> bool:
    """Return whether reading what has come costs less than a hop to a thread."""
    return context_of(request).body_bytes <= SMALL_BODY_BYTES


async def in_reader(request: Request, work: Callable[..., T], *args: Any) -> T:
    """Return ``work(*args)``, computed in one of the service's reader threads; ``QueueFull`` as for ``offload``."""
    return await _in_line(request, service_of(request).readers, work, *args)


async def calculated(request: Request, work: Callable[..., T], *args: Any) -> T:
    """Return ``work(*args)`` as ``offload`` does, but in the thread that calculates: nobody's body waits for it."""
    if has_small_body(request):
        return work(*args)
    return await _in_line(request, service_of(request).calculator, work, *args)


async def read_body(request: Request) -> tuple[bytes, Engine]:
    """Return the whole body, and the engine that answers it: the one in force when its last byte is here.

    Raises:
        ContentTooLarge: it is longer than ``VAE_MAX_BODY_BYTES``; said at once where the request tells its length.
        Departed: the caller left in the middle of it.
        PreconditionFailed: as for ``choose_engine``.
        QueueFull: all bodies together are longer than ``VAE_MAX_BODIES_BYTES``; bytes count as they arrive, so that
            nobody takes room by announcing a body and not sending it.
        Unavailable: nothing is loaded yet; said before the body is read.
    """
    context = context_of(request)
    owner = context.service
    owner.engine  # noqa: B018 - refuses while nothing is loaded
    limit = owner.settings.max_body_bytes
    declared = context.headers.get(b"content-length", b"")
    if declared.isdigit():
        if int(declared) > limit:
            raise _body_too_large(limit)
        _check_room(owner, int(declared))
    parts, more = list[bytes](), True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Departed("the caller left")
        part, more = message.get("body", b""), message.get("more_body", False)
        context.body_bytes += len(part)
        owner.body_bytes += len(part)
        if context.body_bytes > limit:
            raise _body_too_large(limit)
        _check_room(owner)
        parts.append(part)
    return b"".join(parts), choose_engine(request)


@contextmanager
def admitted(request: Request, items: int, rows: int | None = None) -> Iterator[Call]:
    """Hold room for ``items`` until the answer is written; a caller who leaves frees it at once.

    What a thread has begun for it then goes on to its end.
    ``rows`` is what the device computes for them, where that is not one row each. The engine has been chosen.
    """
    context = context_of(request)
    assert context.engine is not None
    check_items(items, context.service)
    with context.service.admit(context.engine, items, items if rows is None else rows, left_s(context)) as call:
        context.timing = call.timing
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.create_task(_cancel_on_departure(request, task))
        try:
            yield call
        except asyncio.CancelledError:
            if watcher.done() and not watcher.cancelled() and task.uncancel() == 0:
                raise Departed("the caller left") from None
            raise
        finally:
            watcher.cancel()


async def images_of(request: Request, draws: int = 1) -> ImageBatch:
    """Read the request's images: parsed, not decoded, as there may be no room for them.

    Args:
        request: its body is read.
        draws: latents that are to be drawn for each image.

    Raises:
        ContentTooLarge: body, items, or images times ``draws`` are over a limit.
    """
    owner = service_of(request)
    body, engine = await read_body(request)
    most, shape, kind = owner.settings.max_items, engine.image_shape, content_type(request)

    def parse() -> ImageBatch:
        return parse_images(body, kind, max_items=most, shape=shape)

    batch = parse() if kind == NPY else await offload(request, parse)  # of an array there is only the header to read
    check_draws(batch.count, draws, owner)
    return batch


async def decoded(request: Request, call: Call, batch: ImageBatch, resize: str) -> Rows:
    """Return the images of a request that has been let in, ``x (N, C, H, W)`` in 0..1.

    On a CPU, bytes of arrays stay bytes until a batch takes its part of them. The one thread of a GPU has no time for
    that.

    Args:
        request: its body held the images.
        call: the request, admitted.
        batch: the images, parsed.
        resize: ``never``, or anything else to have files cropped and resized.

    Raises:
        ContentTooLarge: the files have too many pixels, one of them or all together.
        BadRequest, Unprocessable: as ``ImageBatch.decode`` says.
    """
    settings, shape = service_of(request).settings, call.engine.image_shape
    limit = settings.max_pixels

    if call.engine.device == "cpu" and (pixels := batch.undecoded(shape)) is not None:
        return pixels

    def decode(part: ImageBatch) -> NDArray[np.float32]:
        return part.decode(shape, max_pixels=limit, resize=resize != "never")

    def start(part: ImageBatch) -> NDArray[np.float32]:
        most = max(limit * MAX_FULL_FILES, settings.max_items * shape[1] * shape[2], LIGHT_PIXELS)
        check_pixels(batch, limit, most)
        return decode(part)

    if has_small_body(request) and batch.is_light():
        return decode(batch)
    first, *rest = batch.parts()  # so that others get their turn, and who is gone is not decoded to the end
    parts = [await in_reader(request, start, first)]
    parts += [await service_of(request).readers.run(decode, part) for part in rest]  # begun, it is not refused
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


async def _in_line(request: Request, threads: Pool, work: Callable[..., T], *args: Any) -> T:
    context = context_of(request)
    context.service.check_line(threads, left_s(context))
    return await threads.run(work, *args)


def _body_too_large(limit: int) -> ContentTooLarge:
    text = f"the body is longer than {limit} bytes (VAE_MAX_BODY_BYTES); send fewer items in one request"
    return ContentTooLarge(text, headers={"Connection": "close"})


def _check_room(owner: Service, more: int = 0) -> None:
    """Refuse a body for which there is no room; the rest of it is not read."""
    try:
        owner.check_body_bytes(more)
    except QueueFull as error:
        error.headers["Connection"] = "close"
        raise


async def _cancel_on_departure(request: Request, task: asyncio.Task[Any]) -> None:
    """Cancel ``task`` when the caller closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    task.cancel()
