"""Very small trainings: a data set, a configuration, and what a run leaves behind, for tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors import safe_open

from model.data import Dataset
from model.train import main
from model.train_config import TrainConfig
from model.training import Training
from model.training_state import SavedState, read_state

torch.set_num_threads(1)  # on a busy machine the threads of so small a network mostly wait for each other

ROOT = Path(__file__).resolve().parent.parent
TINY = TrainConfig(
    name="tiny",
    height=8,
    width=8,
    latent_dim=3,
    widths=(8,),
    blocks=(1,),
    hidden=16,
    batch_size=16,
    validation=10,
    warmup_steps=5,
    epochs=10_000,
    threads=1,
    max_steps=24,
    learning_rate=0.01,
)
FLAGS = TINY.command().split()[2:]  # without `vae train`


def squares(count: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Return images of a bright square on a dark ground, ``(count, channels, 8, 8)`` uint8."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 40, (count, channels, 8, 8), np.uint8)
    for image, (row, column) in zip(images, generator.integers(0, 5, (count, 2)), strict=True):
        image[:, row : row + 3, column : column + 3] += 180
    return images


def dataset(channels: int = 1, count: int = 100) -> Dataset:
    return Dataset("squares", squares(count, channels), squares(20, channels, seed=1))


def write_folder(folder: Path, count: int = 120, channels: int = 1) -> Path:
    """Write squares as PNG files."""
    folder.mkdir(parents=True)
    for number, image in enumerate(squares(count, channels)):
        Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0)).save(folder / f"{number:03}.png")
    return folder


def train(out: Path, stops: tuple[int, ...] = (), **changes: Any) -> Training:
    """Train to the end, interrupted after each of the steps ``stops`` and resumed by a new ``Training``."""
    config = replace(TINY, **changes)
    training = Training(config, dataset(config.channels), out)
    for stop in stops:
        stop_after(training, stop)
        training.run()
        assert training.state.step == stop
        training = Training(config, dataset(config.channels), out)
        training.resume(read_state(out / "state.safetensors"))
    training.run()
    return training


def stop_after(training: Training, step: int) -> None:
    """Make a signal arrive while ``step`` is being computed."""
    update = training.update

    def counting() -> float:
        loss = update()
        if training.state.step == step:
            training.stopped_by = "SIGTERM"
        return loss

    training.update = counting  # type: ignore[method-assign]


def traces(out: Path) -> dict[str, Any]:
    """Return everything in which two runs can differ: the state but for its clock, and both models.

    Not the files' bytes: safetensors shuffles the metadata in its header.
    """
    saved = read_state(out / "state.safetensors")
    found: dict[str, Any] = {name: value.numpy().tobytes() for name, value in saved.tensors.items()}
    found |= {name: value for name, value in saved.numbers.items() if name != "seconds"}
    for name in ("best", "last"):
        with safe_open(out / f"{name}.safetensors", framework="np") as file:
            found[name] = file.metadata() | {key: file.get_tensor(key).tobytes() for key in file.keys()}  # noqa: SIM118
    return found


def replace_tensors(saved: SavedState, tensors: dict[str, Any]) -> SavedState:
    return replace(saved, tensors=tensors)


def run(*arguments: str) -> Result:
    """Run ``vae train`` in this process."""
    return CliRunner().invoke(main, arguments)


def arguments(place: Path) -> list[str]:
    """Return those of a tiny run on a new folder of PNG files, all below ``place``; the last four are the places."""
    folder = write_folder(place / "images")
    return [*FLAGS, "--data", str(folder), "--data-dir", str(place / "cache"), "--out", str(place / "out")]
