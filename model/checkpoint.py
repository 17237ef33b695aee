"""One self-describing ``.safetensors`` file per model: weights, configuration, notes, and proof that all is whole.

Tensors named ``network.*`` are the weights; ``notes.*`` are what a server needs beside them (reference scores, a
golden batch). The metadata holds the configuration and notes as JSON, the digest of the weights and a checksum of
everything. Loading runs no code from the file and believes nothing that it has not checked.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize
from torch import Tensor

from model.vae import VAE, VAEConfig

FORMAT = "vae-service/1"
MAX_FILE_BYTES = 2**31
WEIGHTS = Path(__file__).parent / "weights"
MAP_SUFFIX = "-map.safetensors"  # of the file beside a checkpoint that shows its latent space; no checkpoint itself
Arrays = dict[str, np.ndarray[Any, Any]]


class CheckpointError(ValueError):
    """A checkpoint file cannot be used; the text says which file, what is wrong and what to do."""


@dataclass(frozen=True)
class Notes:
    """What a checkpoint remembers beside its weights.

    Attributes:
        name: what ``GET /model`` calls the model.
        trained_on: the data set, for people.
        metrics: results of the evaluation as measured, JSON values only.
        training: the resolved training configuration, JSON values only.
        held_out_elbo: sorted ELBOs of held-out images in nats, ``(M,)`` float32; the service needs at least one.
        golden_images: model-drawn images, ``(G, C, H, W)`` uint8; empty where there are none.
        golden_mu: their posterior means on the CPU in float32, ``(G, D)``.
        golden_sigma: their posterior standard deviations, ``(G, D)``.
    """

    name: str
    trained_on: str = "unknown"
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    held_out_elbo: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(0, np.float32))
    golden_images: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros((0, 1, 1, 1), np.uint8))
    golden_mu: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros((0, 1), np.float32))
    golden_sigma: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros((0, 1), np.float32))


TEXT_NOTES: dict[str, type] = {"name": str, "trained_on": str, "metrics": dict, "training": dict}
ARRAY_NOTES = {"held_out_elbo": "float32", "golden_images": "uint8", "golden_mu": "float32", "golden_sigma": "float32"}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model.

    Attributes:
        vae: the network, in evaluation mode, on the CPU, in float32.
        notes: what the file remembers beside the weights.
        digest: SHA-256 of the weights in hex; it does not depend on the notes.
    """

    vae: VAE
    notes: Notes
    digest: str


def resolve(model: str) -> Path:
    """Return the file of a bundled model's name or of a path.

    Raises:
        CheckpointError: neither a bundled name nor an existing file.
    """
    bundled = WEIGHTS / f"{model}.safetensors"
    if os.sep not in model and bundled.is_file():
        return bundled
    if Path(model).is_file():
        return Path(model)
    files = [path for path in WEIGHTS.glob("*.safetensors") if not path.name.endswith(MAP_SUFFIX)]
    names = ", ".join(sorted(path.stem for path in files)) or "none"
    raise CheckpointError(f"{model}: no such file and no such bundled model (bundled: {names})")


def save(path: Path, vae: VAE, notes: Notes) -> str:
    """Write a checkpoint so that a reader sees the old file or the new one, never a part; return its digest.

    Raises:
        ValueError: the notes hold a number that JSON has no word for (NaN or an infinity).
        OSError: the file cannot be written.
    """
    weights = {f"network.{name}": _to_array(tensor) for name, tensor in vae.state_dict().items()}
    # safetensors writes an array's memory as it lies there, so it must lie in the order of its indices
    extras = {f"notes.{name}": np.asarray(getattr(notes, name), dtype, "C") for name, dtype in ARRAY_NOTES.items()}
    texts = {name: getattr(notes, name) for name in TEXT_NOTES}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(vae.config.to_dict(), sort_keys=True),
        "notes": json.dumps(texts, sort_keys=True, allow_nan=False),
        "digest": digest_of(weights),
    }
    metadata["checksum"] = digest_of(weights | extras, metadata)
    write_atomically(path, serialize(weights | extras, metadata))
    return metadata["digest"]


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or does not fit its own configuration.
    """
    arrays, metadata = _read(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of this project ({FORMAT}); train one with `vae train`")
    claimed = metadata.pop("checksum", "")
    if digest_of(arrays, metadata) != claimed:
        raise CheckpointError(f"{path}: its contents do not match its checksum; the file is damaged, copy it again")
    weights = {name: array for name, array in arrays.items() if name.startswith("network.")}
    if digest_of(weights) != metadata.get("digest"):
        raise CheckpointError(f"{path}: its weights do not match its digest; the file is damaged, copy it again")
    try:
        config = VAEConfig.from_dict(json.loads(metadata["config"]))
        texts = json.loads(metadata["notes"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its configuration cannot be read: {error}") from error
    vae = _network(path, config, arrays)
    return Checkpoint(vae, _notes(path, config, texts, arrays), metadata["digest"])


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` as :func:`atomic_file` does."""
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of ``path`` once it is whole: temporary name, fsync, rename; mode 0644.

    An exception inside leaves ``path`` as it was. Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def digest_of(arrays: Arrays, metadata: dict[str, str] | None = None) -> str:
    """Return the SHA-256 of named arrays (name, dtype, shape, bytes, in order of name) and metadata, in hex."""
    sha = hashlib.sha256()
    for key, text in sorted((metadata or {}).items()):
        sha.update(f"{key}={text}\n".encode())
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def _read(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Return everything in the file, of which nothing is believed yet."""
    try:
        size = path.stat().st_size
        if size <= MAX_FILE_BYTES:
            with safe_open(path, framework="np") as file:
                names = file.keys()  # a method of the file, which is no dictionary
                return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file; it is damaged or of another kind") from error
    raise CheckpointError(f"{path}: {size} bytes; a checkpoint has at most {MAX_FILE_BYTES}")


def _network(path: Path, config: VAEConfig, arrays: Arrays) -> VAE:
    """Return the network that the file describes, having compared every tensor with what the configuration needs."""
    with torch.device("meta"):
        vae = VAE(config)
    shapes = {f"network.{name}": tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    expected = shapes.keys() | {f"notes.{name}" for name in ARRAY_NOTES}
    for name in sorted(expected ^ arrays.keys()):
        problem = "is missing" if name in expected else "is unknown to this configuration"
        raise CheckpointError(f"{path}: tensor {name} {problem}")
    for name, shape in shapes.items():
        _check(path, name, arrays[name], "float32", shape)
    state = {name.removeprefix("network."): torch.from_numpy(arrays[name].copy()) for name in shapes}
    vae.load_state_dict(state, assign=True)
    vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return vae


def _notes(path: Path, config: VAEConfig, texts: Any, arrays: Arrays) -> Notes:
    """Return the notes of the file, checked like the weights: a server computes with them."""
    if not isinstance(texts, dict) or any(not isinstance(texts.get(name), kind) for name, kind in TEXT_NOTES.items()):
        raise CheckpointError(f"{path}: its notes are not those of a checkpoint")
    extras = {name: arrays[f"notes.{name}"] for name in ARRAY_NOTES}
    scores, golden = extras["held_out_elbo"], extras["golden_images"].shape[:1]
    shapes: dict[str, tuple[int, ...]] = {name: array.shape for name, array in extras.items()}
    shapes["held_out_elbo"] = (scores.size,)
    if golden != (0,):
        shapes["golden_images"] = (*golden, *config.image_shape)
        shapes["golden_mu"] = shapes["golden_sigma"] = (*golden, config.latent_dim)
    for name, dtype in ARRAY_NOTES.items():
        _check(path, f"notes.{name}", extras[name], dtype, shapes[name])
    if np.any(scores[1:] < scores[:-1]) or np.any(extras["golden_sigma"] <= 0):
        raise CheckpointError(f"{path}: its reference scores are not sorted, or its golden batch has no spread")
    values: dict[str, Any] = {name: texts[name] for name in TEXT_NOTES} | extras
    return Notes(**values)


def _check(path: Path, name: str, array: np.ndarray[Any, Any], dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise CheckpointError(f"{path}: tensor {name} is {array.dtype} {array.shape}, expected {dtype} {shape}")
    if not math.isfinite(float(np.abs(array).max(initial=0))):
        raise CheckpointError(f"{path}: tensor {name} holds values that are not finite")


def _to_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()
