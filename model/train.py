"""Train a VAE: ``python -m model.train --preset mnist`` (or ``vae train``).

In the output folder it keeps ``best.safetensors`` and ``last.safetensors`` (models that the service loads),
``state.safetensors`` (what ``--resume`` goes on from) and ``log.jsonl`` (one line an evaluation). The run itself is in
``training``.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import click
import torch

from model import checkpoint, data
from model.latent_map import write_map
from model.optimize import DivergedError
from model.parallel import team_on
from model.scores import place
from model.train_config import PRESETS, TrainConfig, config_options
from model.training import Training
from model.training_log import TrainingLog
from model.training_state import SavedState, read_state

STOPPED = 130  # exit status after a signal


@contextmanager
def _stopped_by_signals(training: Training) -> Iterator[None]:
    """Let SIGINT and SIGTERM end a training after the current step; a second one ends the process at once."""

    def stop(number: int, _frame: FrameType | None) -> None:
        training.stopped_by = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("train", context_settings={"show_default": True})
@click.option("--preset", type=click.Choice(sorted(PRESETS)), default="mnist", help="Where the other flags start from.")
@click.option("--out", type=FOLDER, default=None, help="Output folder; default runs/NAME.")
@click.option("--data-dir", type=FOLDER, default=None, help="Folder of idx files; default $VAE_DATA_DIR.")
@click.option("--resume", is_flag=True, help="Go on from the state in the output folder, with its configuration.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard events to the output folder too.")
@config_options
def main(preset: str, out: Path | None, data_dir: Path | None, resume: bool, tensorboard: bool, **flags: Any) -> None:
    """Train a VAE and write a model that `vae serve` loads (VAE_MODEL=PATH)."""
    given = {name: value for name, value in flags.items() if value is not None}
    folder = out or Path("runs") / given.get("name", PRESETS[preset].name)
    state = folder / "state.safetensors"
    try:
        if state.exists() and not resume:
            raise ValueError(f"{folder} holds a training already; go on with --resume, or name another --out")
        saved = read_state(state) if resume else None
        config = TrainConfig.from_json(saved.config).resumed(given) if saved else replace(PRESETS[preset], **given)
        torch.set_num_threads(config.threads or torch.get_num_threads())
        dataset = data.load(config.data, config.network().image_shape, data_dir)
        with team_on(place(config.device), config.batch_size) as team:
            if team.rank == 0:
                for line in (dataset.summary(), *(f"skipped {skipped}" for skipped in dataset.skipped)):
                    click.echo(line, err=True)
            log = TrainingLog(folder, tensorboard and team.rank == 0)
            training = Training(config, dataset, folder, team, log)
            _begin(training, saved)
            with _stopped_by_signals(training):
                training.run()
    except (ValueError, OSError, DivergedError) as error:
        raise click.ClickException(str(error)) from error
    if training.stopping:
        click.echo(f"stopped by {training.stopped_by}; go on with --resume", err=True)
        raise SystemExit(STOPPED)
    if team.rank == 0:
        write_map(folder / "best.safetensors", dataset)
        click.echo(folder / "best.safetensors")


def _begin(training: Training, saved: SavedState | None) -> None:
    """Give a run the state or the weights that it goes on from."""
    if saved:
        training.resume(saved)
    elif source := training.config.start_from:
        training.start_from(checkpoint.load(checkpoint.resolve(source)).vae)


if __name__ == "__main__":
    main()
