"""What the endpoints do, without HTTP: arrays in, arrays out, and the states a running service passes through.

``Service`` owns the engine and the batcher. It is started by the application's life cycle, told to drain by the
server process, and asked by the routes. Deadlines and departures reach it as cancellation.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from app import loading
from app.admission import SURE
from app.batching import Batcher, Columns, Op, Stay
from app.cores import usable_cores
from app.engine import Engine
from app.errors import Unavailable
from app.lines import Rows
from app.metrics import Metrics
from app.settings import Settings, SettingsError
from app.summaries import kl_to_standard_normal, mean_and_error, summarize
from app.threads import Pool, in_thread
from model.gaussian import noise

Array = NDArray[Any]
EXIT_DEVICE_LOST = 70
READERS = 2
POSTERIOR = 1  # the stream of noise that posteriors are drawn with; samples of the prior have stream 0
FEW_NUMBERS = 32_768  # drawn in less than a millisecond
IMAGES_SCORED_AT_ONCE = 8  # of one request: enough to fill batches, few enough to let others in between
log = logging.getLogger("vae")


@dataclass
class Timing:
    """Where the time of one request went, in seconds, added up over its batches."""

    queue_s: float = 0.0
    device_s: float = 0.0


@dataclass
class Call:
    """One admitted request: the engine that it started with (a reload does not change it) and its times."""

    engine: Engine
    batcher: Batcher
    metrics: Metrics
    stay: Stay
    timing: Timing = field(default_factory=Timing)

    async def run(self, op: Op, *columns: Rows) -> Columns:
        """Return the rows of ``op``, computed in company with other requests."""
        answer = await self.batcher.submit(op, *columns, stay=self.stay)
        self.timing.queue_s += answer.queue_s
        self.timing.device_s += answer.device_s
        return answer.rows


class Service:
    """The loaded model behind one line of waiting requests.

    Attributes:
        exit_status: set when the process has to end, with what status.
        readers: threads that read large bodies: few, as an image at the pixel limit takes hundreds of megabytes.
        calculator: a thread for the divergences of large bodies: one may take seconds, and no body waits for it.
        replaced: engines of before a reload whose last request is not over.
        body_bytes: of all bodies that are being received or worked on; the routes keep the count.
    """

    def __init__(self, settings: Settings, metrics: Metrics, max_queue_items: int | None = None) -> None:
        """Keep the settings; nothing is loaded before ``start``."""
        self.settings, self.metrics = settings, metrics
        self._max_queue_items = max_queue_items or settings.max_queue_items
        self.exit_status: int | None = None
        self.readers, self.calculator = Pool(READERS, "reader"), Pool(1, "calculator")
        self._loader = ThreadPoolExecutor(1, "loader")
        self.body_bytes = 0
        self.replaced = WeakSet[Engine]()
        share = -(-settings.max_bodies_bytes // settings.workers)  # rounded up
        self._max_body_bytes = max(share, settings.max_body_bytes)
        self._engine: Engine | None = None
        self._batcher: Batcher | None = None
        self._draining = self._refusing = self._reloading = self._reload_asked = False

    async def start(self) -> None:
        """Load, verify and warm the model, then take requests.

        Raises:
            SettingsError: the model or the device cannot be used.
        """
        engine = await self._load()
        if engine.device == "cpu" and self.settings.device == "auto":
            log.warning("VAE_DEVICE=auto: no GPU found, computing on the CPU")
        limits, on_cpu = (engine.max_batch, self._max_queue_items, engine.streams), engine.device == "cpu"
        lonely = on_cpu and usable_cores() <= self.settings.workers  # with a core to itself
        how = {"at_once": on_cpu, "on_loop": lonely}  # a GPU belongs to one thread
        self._batcher = Batcher(*limits, self.metrics, self._on_death, **how)
        self._batcher.start()
        self._use(engine)

    async def close(self) -> None:
        """Fail what is unanswered and end the inference threads."""
        self._draining = self._refusing = True
        if self._batcher:
            await self._batcher.close()
        for threads in (self.readers, self.calculator):
            threads.close()
        self._loader.shutdown(wait=False, cancel_futures=True)

    async def reload(self) -> None:
        """Load the model's file again and swap it in; requests in flight finish on the old weights.

        A file that cannot be used changes nothing and is logged. Called during a load, it loads once more afterwards.
        """
        self._reload_asked = True
        if self._reloading:
            return
        self._reloading = True
        while self._reload_asked and not self._draining:
            self._reload_asked = False
            try:
                self._use(await self._load())
            except Exception as error:
                told = isinstance(error, SettingsError)
                log.error("reload failed, the old weights stay: %s", error, exc_info=not told)
        self._reloading = False

    async def _load(self) -> Engine:
        """Load in one and the same thread every time: torch gives each thread that uses it a team of its own."""
        return await asyncio.get_running_loop().run_in_executor(self._loader, loading.load, self.settings)

    def begin_drain(self) -> None:
        """Report not ready from now on; requests are still served."""
        self._draining = True

    def refuse_new_work(self) -> None:
        """Answer new requests with 503; those inside are finished."""
        self._refusing = True

    @property
    def alive(self) -> bool:
        """Whether the process is worth keeping."""
        return self.exit_status is None

    @property
    def status(self) -> str:
        """``ready``, ``loading``, ``draining`` or ``device_lost``."""
        if self.exit_status is not None:
            return "device_lost"
        if self._draining:
            return "draining"
        return "ready" if self._engine else "loading"

    @property
    def digest(self) -> str | None:
        """First 16 hex digits of the SHA-256 of the weights in force; ``None`` while loading."""
        return self._engine.digest if self._engine else None

    @property
    def engine(self) -> Engine:
        """The engine in force.

        Raises:
            Unavailable: nothing is loaded yet.
        """
        if self._engine is None:
            raise Unavailable("the model is still being loaded; try again in a moment", code="loading")
        return self._engine

    def check_body_bytes(self, more: int = 0) -> None:
        """Bound the bytes of all bodies together.

        Raises:
            QueueFull: with ``more`` of them they would be too many.
        """
        if self.lacks_memory(more) and self._batcher is not None:
            held, most = self.body_bytes + more, self._max_body_bytes
            raise self._batcher.full(
                f"with this request's body, all that are being received or worked on would hold {held:,} bytes; at "
                f"most {most:,} are held (VAE_MAX_BODIES_BYTES)"
            )

    def check_line(self, threads: Pool, patience_s: float) -> None:
        """Bound the time that a request waits for a thread.

        Raises:
            QueueFull: it might have to wait for so long that its ``patience_s`` would be over before its answer.
        """
        if threads.wait_s > SURE * patience_s and self._batcher is not None:
            raise self._batcher.full(
                f"bodies that are being read or worked on will take {threads.wait_s:.1f} s and this request's time, "
                f"{patience_s:.1f} s (VAE_DEADLINE_S or X-Timeout-Ms), might be over before it is answered",
                threads.wait_s,
            )

    def lacks_memory(self, more: int = 0) -> bool:
        """Return whether all bodies together would be too many bytes with ``more`` of them."""
        return self.body_bytes + more > self._max_body_bytes

    def open_batcher(self) -> Batcher | None:
        """Return what takes new work; nothing where none is taken."""
        return None if self._refusing else self._batcher

    @contextmanager
    def admit(self, engine: Engine, items: int, rows: int, patience_s: float) -> Iterator[Call]:
        """Hold room for a request of ``items`` until it is answered.

        Args:
            engine: that answers it: the one in force when its body had been read.
            items: images, latents or samples of the request.
            rows: that the device will compute for it.
            patience_s: seconds that are left to it.

        Raises:
            QueueFull: there is no room, or those inside take longer.
            Unavailable: draining, or the device is lost.
        """
        batcher = self.open_batcher()
        if batcher is None:
            self.metrics.rejected("draining")
            raise Unavailable("the server is shutting down; send the request to another one", code="draining")
        with batcher.reserve(items, rows, patience_s) as stay:
            yield Call(engine, batcher, self.metrics, stay)

    def _use(self, engine: Engine) -> None:
        if self._engine:
            self.replaced.add(self._engine)
        self._engine = engine
        what = (engine.name, engine.digest, engine.device, engine.precision)
        self.metrics.set_model_info(*what)
        log.info("ready: %s %s on %s in %s by %s", *what, engine.path)

    def _on_death(self, error: BaseException) -> None:
        log.critical("the inference device is lost, ending: %r", error)
        self.exit_status = EXIT_DEVICE_LOST


async def encode(call: Call, x: Rows, draws: int = 0, seed: int = 0) -> dict[str, Array]:
    """Return ``mu`` and ``sigma``, ``(N, D)``, of images ``x (N, C, H, W)``; with draws also ``z (N, draws, D)``."""
    mu, sigma, kl = await call.run(call.engine.encode, x)
    call.metrics.observe_posterior_kl(kl)
    if not draws:
        return {"mu": mu, "sigma": sigma}

    def draw() -> Array:
        epsilon = noise(seed, len(x), (draws, call.engine.latent_dim), stream=POSTERIOR)
        z: Array = mu[:, None] + epsilon * sigma[:, None]
        return z

    return {"mu": mu, "sigma": sigma, "z": await _aside(mu.size * draws, draw)}


async def decode(call: Call, z: Array) -> Array:
    """Return the mean images ``(N, C, H, W)`` of latents ``z (N, D)``."""
    (images,) = await call.run(call.engine.decode, z)
    return images


async def sample(call: Call, count: int, seed: int, temperature: float) -> tuple[Array, Array]:
    """Return ``count`` latents ``(N, D)`` of the prior and their mean images ``(N, C, H, W)``."""
    shape = (call.engine.latent_dim,)
    epsilon = await _aside(count * shape[0], lambda: noise(seed, count, shape) * np.float32(temperature))
    z, images = await call.run(call.engine.draw, epsilon)
    return z, images


async def reconstruct(call: Call, x: Rows) -> Array:
    """Return ``decode(mu)`` of images ``x (N, C, H, W)``."""
    mu, _, _ = await call.run(call.engine.encode, x)
    return await decode(call, mu)


async def posterior_kl(call: Call, x: Rows, samples: int, seed: int) -> dict[str, Array]:
    """Return ``KL[q(z|x) || p(z)]`` of each image in nats as ``kl (N,)``, float64.

    In closed form with its parts, ``per_dimension (N, D)``; where the prior has none, by ``samples`` draws an image
    with a ``standard_error (N,)``.
    """
    mu, sigma, _ = await call.run(call.engine.encode, x)
    if call.engine.exact_kl:
        parts = kl_to_standard_normal(mu, sigma)
        return {"kl": parts.sum(1), "per_dimension": parts}
    (ratio,) = await _drawn(call, call.engine.relate, (mu, sigma), samples, seed)
    kl, error = mean_and_error(-ratio)
    return {"kl": kl, "standard_error": error}


async def score(call: Call, x: Rows, samples: int, seed: int) -> dict[str, Array]:
    """Return the fields of ``/score`` for images ``x (N, C, H, W)``, ``(N,)`` each, by ``samples`` draws an image."""
    mu, sigma, _ = await call.run(call.engine.encode, x)
    log_likelihood, ratio = await _drawn(call, call.engine.weigh, (x, mu, sigma), samples, seed)
    return summarize(call.engine, mu, sigma, log_likelihood, ratio)


async def _drawn(call: Call, op: Op, columns: Sequence[Rows], samples: int, seed: int) -> Columns:
    """Return the columns of ``op`` for ``samples`` draws of each image, ``(N, samples)`` each.

    ``columns`` have a row an image; the noise of image i depends on the seed and i alone.
    """
    items, shape = len(columns[0]), (samples, call.engine.latent_dim)
    epsilon = await _aside(items * math.prod(shape), lambda: noise(seed, items, shape, stream=POSTERIOR))
    room = asyncio.Semaphore(IMAGES_SCORED_AT_ONCE)

    async def draw(i: int) -> Columns:
        rows = (column[i : i + 1] for column in columns)
        repeated = (np.broadcast_to(row, (samples, *row.shape[1:])) for row in rows)
        async with room:
            return await call.run(op, *repeated, epsilon[i])

    try:
        async with asyncio.TaskGroup() as group:  # where one fails the others are not computed for nothing
            drawn = [group.create_task(draw(i)) for i in range(items)]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return tuple(np.stack(column) for column in zip(*(task.result() for task in drawn), strict=True))


async def _aside(numbers: int, draw: Callable[[], Array]) -> Array:
    """Return ``draw()``, from a thread where it draws so many numbers that others would wait for it."""
    return draw() if numbers <= FEW_NUMBERS else await in_thread(None, draw)
