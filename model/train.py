"""Train a VAE: ``python -m model.train --preset mnist`` (or ``vae train``).

Configuration, loop, best checkpoint: reads top to bottom. In the output folder it keeps ``best.safetensors`` and
``last.safetensors`` (models that the service loads), ``state.safetensors`` (what ``--resume`` goes on from) and
``log.jsonl`` (one line an evaluation). The loss is the negative ELBO in nats per image: summed over pixels and
latents, averaged over the batch.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from model import checkpoint, data
from model.elbo import elbo_terms
from model.golden import with_golden
from model.optimize import (
    DivergedError,
    MovingAverage,
    first_not_finite,
    kl_weight_at,
    learning_rate_at,
    make_optimizer,
)
from model.pictures import save_pictures
from model.scores import frozen_targets, mean_terms
from model.train_config import PRESETS, TrainConfig, config_options, flag_of
from model.training_state import TrainingState, read_state
from model.vae import VAE, VAEConfig

VALIDATION_SEED = 20_200_522
STEPS_BETWEEN_EVALUATIONS = 50  # at least; small data sets have shorter epochs than that
PICTURED = 32
STOPPED = 130  # exit status after a signal
# What must not change when a run goes on: the network, and which images are validated on and in which order.
FIXED = (*(item.name for item in fields(VAEConfig)), "data", "batch_size", "validation", "seed")


class Training:
    """One run: data on the device, a network, and a folder that always holds its last whole state.

    Attributes:
        config: as given.
        out: the folder.
        state: everything that changes from step to step.
        stopped_by: the name of the signal that ends the run after the current step.
    """

    def __init__(self, config: TrainConfig, dataset: data.Dataset, out: Path) -> None:
        """Set up a run from its first step.

        Raises:
            ValueError: there is no such device here.
        """
        self.config, self.out, self.trained_on = config, out, dataset.name
        self.device = _device(config.device)
        self.precision = torch.bfloat16 if config.precision == "bf16" else torch.float32
        torch.manual_seed(config.seed)
        vae = VAE(config.network()).to(self.device)
        order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(config.seed))
        held, self.rows = order.tensor_split([min(config.validation, len(order) // 10)])
        self.images = torch.from_numpy(np.require(dataset.train, requirements="W")).to(self.device)
        self.binarize = vae.likelihood.discrete_targets
        self.validation = frozen_targets(dataset.train[held.numpy()], self.binarize, VALIDATION_SEED)
        self.batch_size = min(config.batch_size, len(self.rows))
        self.steps_per_epoch = len(self.rows) // self.batch_size
        optimizer = make_optimizer(vae, config.learning_rate, config.weight_decay)
        self.state = TrainingState(vae, optimizer, MovingAverage(vae, config.ema))
        self.shuffled = -1, self.rows  # an epoch and its order
        self.stopped_by: str | None = None
        self.started = time.monotonic()

    def progress(self) -> float:
        """Return how much of the run is done, 0..1: of its epochs, steps or time, whichever is most."""
        config, state = self.config, self.state
        shares = [state.step / (config.epochs * self.steps_per_epoch)]
        if config.max_steps:
            shares.append(state.step / config.max_steps)
        if config.time_budget:
            shares.append(self.seconds() / config.time_budget)
        return min(1.0, max(shares))

    def seconds(self) -> float:
        """Return the training time so far in seconds, that of resumed runs included."""
        return self.state.seconds + time.monotonic() - self.started

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the targets ``(B, C, H, W)`` and the noise ``(B, D)`` of a step; they depend on its number alone."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self.shuffled[0] != epoch:
            shuffled = torch.randperm(len(self.rows), generator=_generator(self.config.seed, epoch, 1))
            self.shuffled = epoch, self.rows[shuffled]
        chosen = self.shuffled[1][index * self.batch_size : (index + 1) * self.batch_size]
        x = self.images[chosen.to(self.device)].float() / 255
        generator = _generator(self.config.seed, step, 2)
        if self.binarize:
            x = (torch.rand(x.shape, generator=generator).to(self.device) < x).float()
        epsilon = torch.randn(len(x), self.config.latent_dim, generator=generator).to(self.device)
        return x, epsilon

    def update(self) -> float:
        """Do one step and return the negative ELBO of its batch, averaged, in nats (unweighted).

        Raises:
            DivergedError: the gradients have not been finite for many steps.
        """
        state, config, progress = self.state, self.config, self.progress()
        x, epsilon = self.batch(state.step)
        terms = elbo_terms(state.vae, x, epsilon, self.precision)
        loss = (kl_weight_at(progress, config.kl_warmup) * terms.kl - terms.reconstruction).mean()
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(state.vae.parameters(), config.clip))
        rate = learning_rate_at(config.learning_rate, state.step, config.warmup_steps, progress)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        if self.accepts(norm):
            state.optimizer.step()
            state.average.update(state.vae, state.step)
        state.step += 1
        return -float(terms.elbo.detach().mean())

    def accepts(self, norm: float) -> bool:
        """Ask the guard about a gradient's norm, naming the first bad tensor where training has to end."""
        try:
            return self.state.guard.accepts(norm)
        except DivergedError as error:
            parameters = dict(self.state.vae.named_parameters())
            gradients = {f"gradient of {name}": p.grad for name, p in parameters.items() if p.grad is not None}
            bad = first_not_finite((parameters | gradients).items())
            raise DivergedError(f"{error}; first tensor that is not finite: {bad or 'none, their norm is'}") from error

    def run(self) -> None:
        """Train until the run is done or a signal stops it; either way its last state is on disk.

        Raises:
            DivergedError: training cannot go on.
        """
        layout = "{desc} {percentage:3.0f}%|{bar}| {postfix} {remaining} left"
        with tqdm(total=100, initial=100 * self.progress(), desc=self.config.name, bar_format=layout) as bar:
            while self.progress() < 1 and not self.stopped_by:
                self.round(bar)

    def round(self, bar: tqdm[Any]) -> None:
        """Train up to the next evaluation and evaluate; when stopped before that, save only.

        An evaluation at any other step would make the best checkpoint of a resumed run another one.
        """
        every = self.steps_per_epoch * math.ceil(STEPS_BETWEEN_EVALUATIONS / self.steps_per_epoch)
        began, losses = time.monotonic(), []
        while True:
            losses.append(self.update())
            loss = float(np.mean([value for value in losses if math.isfinite(value)] or [math.inf]))
            rate = len(losses) * self.batch_size / max(time.monotonic() - began, 1e-9)
            bar.set_postfix_str(f"{loss:.2f} nats, {rate:.0f} images/s", refresh=False)
            bar.update(100 * self.progress() - bar.n)
            if self.state.step % every == 0 or self.progress() >= 1:
                return self.evaluate(loss, rate)
            if self.stopped_by:
                return self.save(self.averaged())

    def evaluate(self, train_loss: float, rate: float) -> None:
        """Score the averaged weights on the validation images, log a line, keep the best and save.

        Raises:
            DivergedError: an averaged weight is not finite; nothing is written then.
        """
        state, served = self.state, self.averaged()
        if bad := first_not_finite(served.named_parameters()):
            raise DivergedError(f"the average of {bad} is not finite; lower --learning-rate")
        terms = mean_terms(served, self.validation, VALIDATION_SEED) if len(self.validation) else None
        line = {
            "step": state.step,
            "epoch": round(state.step / self.steps_per_epoch, 3),
            "seconds": round(self.seconds(), 1),
            "images_per_second": round(rate, 1),
            "train_negative_elbo": round(train_loss, 4) if math.isfinite(train_loss) else None,
            "validation_negative_elbo": round(-terms.elbo, 4) if terms else None,
            "validation_kl": round(terms.kl, 4) if terms else None,
            "skipped": state.guard.skipped,
        }
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        if terms is None or -terms.elbo < state.best:  # without validation images the newest is the best
            state.best = math.inf if terms is None else -terms.elbo
            self.write_model("best", served)
        self.save(served)
        save_pictures(served, self.validation[:PICTURED], self.out)

    def averaged(self) -> VAE:
        """Return a copy of the network on the CPU with the averaged weights, which is what gets served."""
        vae = VAE(self.state.vae.config)
        vae.load_state_dict(self.state.average.values)
        return vae.requires_grad_(False).eval()

    def save(self, served: VAE) -> None:
        """Write ``served`` as the last checkpoint, and the state that ``--resume`` goes on from."""
        self.write_model("last", served)
        now = time.monotonic()
        self.state.seconds, self.started = self.state.seconds + now - self.started, now
        self.state.save(self.out / "state.safetensors", self.resolved())

    def write_model(self, name: str, served: VAE) -> None:
        """Write a checkpoint that the service loads."""
        notes = checkpoint.Notes(self.config.name, self.trained_on, training=self.resolved())
        checkpoint.save(self.out / f"{name}.safetensors", served, with_golden(served, notes))

    def resolved(self) -> dict[str, Any]:
        """Return the whole configuration as JSON values, with how far the run went."""
        return asdict(self.config) | {
            "command": self.config.command(),
            "steps": self.state.step,
            "epochs_done": round(self.state.step / self.steps_per_epoch, 2),
            "train_images": len(self.rows),
            "torch": torch.__version__,
        }

    def resume(self, path: Path) -> None:
        """Go on from the state that a run with the same network and data wrote to ``path``.

        Raises:
            CheckpointError: the state is missing, damaged or of another network.
            DataError: the training images are not as many as they were.
        """
        before = read_state(path)[1]["config"]["train_images"]
        if before != len(self.rows):
            raise data.DataError(f"{path}: that run had {before} training images, there are {len(self.rows)} now")
        self.state.restore(path)
        self.started = time.monotonic()


def configure(preset: str, flags: dict[str, Any], state: Path | None) -> TrainConfig:
    """Return the configuration of a run: its preset, or the one in the state to resume, with the flags that are given.

    Raises:
        ValueError: a flag has a wrong value, or would make the rest of a resumed run another run.
        CheckpointError: there is no readable state.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if state is None:
        return replace(PRESETS[preset], **given)
    config = TrainConfig.from_json(read_state(state)[1]["config"])
    for name in FIXED:
        if name in given and given[name] != getattr(config, name):
            raise ValueError(f"{flag_of(name)} cannot change with --resume; this run has {getattr(config, name)}")
    return replace(config, **given)


def _generator(seed: int, number: int, stream: int) -> torch.Generator:
    mixed = np.random.SeedSequence([seed, number, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter from a torch that was built without CUDA
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error


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
@config_options
def main(preset: str, out: Path | None, data_dir: Path | None, resume: bool, **flags: Any) -> None:
    """Train a VAE and write a model that `vae serve` loads (VAE_MODEL=PATH)."""
    folder = out or Path("runs") / (flags["name"] or PRESETS[preset].name)
    state = folder / "state.safetensors"
    try:
        if state.exists() and not resume:
            raise ValueError(f"{folder} holds a training already; go on with --resume, or name another --out")
        config = configure(preset, flags, state if resume else None)
        torch.set_num_threads(config.threads or torch.get_num_threads())
        dataset = data.load(config.data, config.network().image_shape, data_dir)
        click.echo(dataset.summary(), err=True)
        for skipped in dataset.skipped:
            click.echo(f"skipped {skipped}", err=True)
        training = Training(config, dataset, folder)
        if resume:
            training.resume(state)
        with _stopped_by_signals(training):
            training.run()
    except (ValueError, OSError, DivergedError) as error:
        raise click.ClickException(str(error)) from error
    if training.stopped_by:
        click.echo(f"stopped by {training.stopped_by}; go on with --resume", err=True)
        raise SystemExit(STOPPED)
    click.echo(folder / "best.safetensors")


if __name__ == "__main__":
    main()
