"""Which engine serves: the device, the precision and the execution path, the fastest that the golden batch allows.

The only part that knows settings and torch. It reads and checks the checkpoint, and turns what is wrong with it into
lines for the operator.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from app import compiled
from app.allocator import give_back_memory
from app.engine import Engine
from app.settings import Settings, SettingsError
from model import checkpoint
from model.latent_map import LatentMap, MapError, load_map, map_path

log = logging.getLogger("vae")
TOLERATED_MU = 0.02  # of sigma
TOLERATED_LOG_SIGMA = 0.02
DAMAGED = 10  # times what is tolerated: no rounding goes so far


def load(settings: Settings) -> Engine:
    """Read, verify, place and warm the model that ``settings`` name.

    Raises:
        SettingsError: no such device, or a checkpoint that cannot be used; one line per problem.
    """
    device = choose_device(settings.device)
    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())  # one thread a stream
    path = checkpoint_path(settings.model)
    engine = _in_force(path, device, settings)
    if engine.path == compiled.NAME and engine.exact_kl:
        give_back_memory()
    if not len(engine.notes.held_out_elbo):
        raise SettingsError(
            [f"VAE_MODEL: {path}: it remembers no scores of held-out images; run `vae evaluate {path}`"]
        )
    engine.map = _map_beside(path, engine)
    engine.warm_up()
    return engine


def checkpoint_path(model: str) -> Path:
    """Return the file of a bundled name or a path.

    Raises:
        SettingsError: there is none.
    """
    try:
        return checkpoint.resolve(model)
    except checkpoint.CheckpointError as error:
        raise SettingsError([f"VAE_MODEL: {error}"]) from error


def choose_device(wanted: str) -> str:
    """Return the device to use for a setting of ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        SettingsError: the named device is not there.
    """
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            [f"VAE_DEVICE: got '{wanted}'; there are {torch.cuda.device_count()} CUDA devices; use auto or cpu"]
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError(["VAE_DEVICE: got 'mps'; this machine has no such device; use auto or cpu"])
    return f"cuda:{device.index or 0}" if device.type == "cuda" else wanted


def _in_force(file: Path, device: str, settings: Settings) -> Engine:
    """Return the fastest engine, in the precision asked for, that the golden batch allows.

    ``auto`` is bf16 where the hardware computes in it. bf16 that was asked for by name is used also where it is coarser
    than ``auto`` would take, with a warning.
    """
    tried = []
    for precision, path in _candidates(device, settings.precision):
        try:
            loaded = checkpoint.load(file)
        except checkpoint.CheckpointError as error:
            raise SettingsError([f"VAE_MODEL: {error}"]) from error
        try:
            engine = Engine(loaded, device, precision, settings.max_batch, settings.streams, path)
        except (ImportError, RuntimeError, TypeError) as error:
            if path != compiled.NAME:
                raise
            log.warning("not compiled, so slower: %r", error)
            continue
        if _tolerable(engine):
            return engine
        mu_error, log_sigma_error = engine.golden_errors()
        tried.append(
            f"{file}: on {device} in {precision} the golden batch is off by {mu_error:.3g} sigma in mu and "
            f"{log_sigma_error:.3g} in log sigma (tolerated: {TOLERATED_MU:g} and {TOLERATED_LOG_SIGMA:g})"
        )
        if settings.precision == "bf16" and _tolerable(engine, DAMAGED):
            log.warning("VAE_PRECISION: %s", tried[-1])
            return engine
    raise SettingsError([f"VAE_MODEL: {tried[-1]}; the file is damaged, or not of this release"])


def _candidates(device: str, precision: str) -> list[tuple[str, str]]:
    """Return what to try, precision and path of each, the fastest first."""
    if device != "cpu":
        rounds = device.startswith("cuda") and torch.cuda.is_bf16_supported()
        return [(wanted, "torch") for wanted in _precisions(precision, rounds)]
    if not compiled.is_available():
        return [(wanted, "torch") for wanted in _precisions(precision, False)]
    fast = [(wanted, compiled.NAME) for wanted in _precisions(precision, compiled.has_bf16())]
    return [*fast, (fast[-1][0], "torch")]


def _precisions(wanted: str, rounds: bool) -> list[str]:
    if wanted == "auto":
        return ["bf16", "fp32"] if rounds else ["fp32"]
    return [wanted]


def _map_beside(path: Path, engine: Engine) -> LatentMap | None:
    """Return the map beside a checkpoint; one that cannot be used is as good as none, but for a warning."""
    try:
        return load_map(map_path(path), engine.digest, engine.latent_dim)
    except MapError as error:
        log.warning("ignored: %s; `vae evaluate` writes a new one", error)
        return None


def _tolerable(engine: Engine, times: float = 1) -> bool:
    mu_error, log_sigma_error = engine.golden_errors()
    return mu_error <= times * TOLERATED_MU and log_sigma_error <= times * TOLERATED_LOG_SIGMA
