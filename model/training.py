"""One training run: the loop, the evaluations, and what they leave on disk.

Configuration, loop, best checkpoint: reads top to bottom. The loss is the negative bound in nats per image: summed over
pixels and latents, averaged over the batch. It knows no command line and no signals; that is the business of ``train``.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from model import checkpoint, data
from model.batches import VALIDATION_SEED, Batches
from model.golden import with_golden
from model.gradients import Gradients
from model.optimize import (
    DivergedError,
    MovingAverage,
    first_not_finite,
    kl_weight_at,
    learning_rate_at,
    make_optimizer,
)
from model.parallel import Team
from model.pictures import save_pictures
from model.scores import MeanTerms, bounds, mean_terms, place, soft_elbo
from model.train_config import TrainConfig
from model.training_log import TrainingLog
from model.training_state import SavedState, TrainingState
from model.vae import VAE

STEPS_BETWEEN_EVALUATIONS = 50  # at least; small data sets have shorter epochs than that
PICTURED = 32


class Training:
    """One run: data on the device, a network, and a folder that always holds its last whole state.

    Attributes:
        config: as given.
        out: the folder.
        batches: the training images, and those that the best weights are chosen by.
        state: everything that changes from step to step.
        done: how much of the run is done, 0..1.
        stopping: whether to end after the current step.
        stopped_by: the name of the signal that asked for it, where this process got one.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: data.Dataset,
        out: Path,
        team: Team | None = None,
        log: TrainingLog | None = None,
    ) -> None:
        """Set up a run from its first step; without a team, this process trains alone.

        Raises:
            ValueError: there is no such device here.
        """
        self.config, self.out, self.trained_on = config, out, dataset.name
        self.team = team or Team(0, 1, place(config.device))
        self.log = log or TrainingLog(out)
        self.device = self.team.device
        torch.manual_seed(config.seed)
        vae = VAE(config.network()).to(self.device)
        binarize = vae.likelihood.discrete_targets
        self.batches = Batches(dataset.train, config.batch_size, config.validation, binarize, config.seed, self.device)
        optimizer = make_optimizer(vae, config.learning_rate, config.weight_decay)
        self.state = TrainingState(vae, optimizer, MovingAverage(vae, config.ema))
        precision = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.gradients = Gradients(vae, config.objective, precision)
        self.done, self.stopping = 0.0, False
        self.stopped_by: str | None = None
        self.started = time.monotonic()

    def progress(self) -> float:
        """Return how much of the run is done, 0..1: of its epochs, steps or time, whichever is most."""
        config, state = self.config, self.state
        shares = [state.step / (config.epochs * self.batches.per_epoch)]
        if config.max_steps:
            shares.append(state.step / config.max_steps)
        if config.time_budget:
            shares.append(self.seconds() / config.time_budget)
        return min(1.0, max(shares))

    def seconds(self) -> float:
        """Return the training time so far in seconds, that of resumed runs included."""
        return self.state.seconds + time.monotonic() - self.started

    def update(self) -> float:
        """Do one step and return the negative bound of its batch, averaged, in nats (unweighted).

        Raises:
            DivergedError: the gradients have not been finite for many steps.
        """
        state, config, team = self.state, self.config, self.team
        x, epsilon = self.batches.at(state.step, config.latent_dim, config.draws)
        bound = self.gradients(team.share(x), team.share(epsilon), kl_weight_at(self.done, config.kl_warmup))
        gradients = [p.grad for p in state.vae.parameters() if p.grad is not None]
        team.average([*gradients, bound])
        norm = nn.utils.get_total_norm(gradients)
        if self.accepts(float(norm)):
            nn.utils.clip_grads_with_norm_(state.vae.parameters(), config.clip, norm)
            rate = learning_rate_at(config.learning_rate, state.step, config.warmup_steps, self.done)
            for group in state.optimizer.param_groups:
                group["lr"] = rate * group.get("rate", 1.0)
            state.optimizer.step()
            state.average.update(state.vae, state.step)
        state.step += 1
        return float(bound)

    def look_up(self) -> None:
        """Note how far the run is and whether to stop, as all processes of the team see it."""
        self.done, self.stopping = self.team.agree(self.progress(), self.stopped_by is not None)

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
        self.look_up()
        quiet, name = self.team.rank > 0, self.config.name
        with tqdm(total=100, initial=100 * self.done, desc=name, bar_format=layout, disable=quiet) as bar:
            while self.done < 1 and not self.stopping:
                self.train_until_evaluation(bar)

    def train_until_evaluation(self, bar: tqdm[Any]) -> None:
        """Train for an epoch (for more of them where they are short) and evaluate; when stopped before, save only.

        An evaluation at any other step would make the best checkpoint of a resumed run another one.
        """
        epochs = max(self.config.evaluate_every, math.ceil(STEPS_BETWEEN_EVALUATIONS / self.batches.per_epoch))
        every = self.batches.per_epoch * epochs
        began, first, total, counted = time.monotonic(), self.state.step, 0.0, 0
        while True:
            loss = self.update()
            self.look_up()
            total, counted = (total + loss, counted + 1) if math.isfinite(loss) else (total, counted)
            mean = total / counted if counted else math.nan
            rate = (self.state.step - first) * self.batches.size / max(time.monotonic() - began, 1e-9)
            bar.set_postfix_str(f"{mean:.2f} nats, {rate:.0f} images/s", refresh=False)
            bar.update(100 * self.done - bar.n)
            if self.state.step % every == 0 or self.done >= 1:
                if self.team.rank == 0:
                    self.evaluate(mean, rate)
                return
            if self.stopping:
                if self.team.rank == 0:
                    self.save(self.averaged())
                return

    def evaluate(self, train_loss: float, rate: float) -> None:
        """Score the averaged weights on the validation images, log a line, keep the best and save.

        Raises:
            DivergedError: an averaged weight is not finite; nothing is written then.
        """
        state, served = self.state, self.averaged()
        if bad := first_not_finite(served.named_parameters()):
            raise DivergedError(f"the average of {bad} is not finite; lower --learning-rate")
        x = self.batches.validation
        terms = mean_terms(served.to(self.device), x, VALIDATION_SEED) if len(x) else None
        negative_bound = self.negative_bound(served, terms)
        served.to("cpu")
        line = {
            "step": state.step,
            "epoch": round(state.step / self.batches.per_epoch, 3),
            "seconds": round(self.seconds(), 1),
            "images_per_second": round(rate, 1),
            "train_negative_elbo": round(train_loss, 4) if math.isfinite(train_loss) else None,
            "validation_negative_elbo": round(-terms.elbo, 4) if terms else None,
            "validation_kl": round(terms.kl, 4) if terms else None,
            "validation_negative_bound": round(negative_bound, 4) if terms else None,
            "skipped": state.guard.skipped,
        }
        self.log.write(line)
        if terms is None or negative_bound < state.best:  # without validation images the newest is the best
            state.best = negative_bound
            self.write_model("best", served)
        self.save(served)
        save_pictures(served, x[:PICTURED].cpu(), self.out)

    def negative_bound(self, served: VAE, terms: MeanTerms | None) -> float:
        """Return what the best weights have least of: the negative bound that is trained for, on validation images.

        That is the negative ELBO, or the importance-weighted bound, negative, at the training's number of draws.
        """
        if terms is None:
            return math.inf
        if self.config.objective == "elbo":
            return -terms.elbo
        x = self.batches.validation
        every, draws = np.arange(len(x)), self.config.draws
        return -float(bounds(served, x, draws, every, VALIDATION_SEED, quiet=True).mean())

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
        scores = soft_elbo(served, self.batches.reference, 1, VALIDATION_SEED)
        notes = checkpoint.Notes(self.config.name, self.trained_on, training=self.resolved(), held_out_elbo=scores)
        checkpoint.save(self.out / f"{name}.safetensors", served, with_golden(served, notes))

    def resolved(self) -> dict[str, Any]:
        """Return the whole configuration as JSON values, with how far the run went."""
        return asdict(self.config) | {
            "command": self.config.command(),
            "steps": self.state.step,
            "epochs_done": round(self.state.step / self.batches.per_epoch, 2),
            "train_images": self.batches.count,
            "torch": torch.__version__,
        }

    def start_from(self, other: VAE) -> None:
        """Take the weights of ``other`` that have the same names and shapes; only the prior may be another one.

        Raises:
            CheckpointError: encoder or decoder have other shapes.
        """
        own = self.state.vae.state_dict()
        taken = {n: value for n, value in other.state_dict().items() if n in own and own[n].shape == value.shape}
        for name in own.keys() - taken.keys():
            if not name.startswith("prior."):
                raise checkpoint.CheckpointError(f"--start-from: {name} is missing there or has another shape")
        self.state.vae.load_state_dict(taken, strict=False)
        self.state.average = MovingAverage(self.state.vae, self.config.ema)

    def resume(self, saved: SavedState) -> None:
        """Go on from the state of a run with the same network and data.

        Raises:
            CheckpointError: the state is of another network.
            DataError: the training images are not as many as they were.
        """
        before = saved.config.get("train_images")
        if before != self.batches.count:
            raise data.DataError(f"that run had {before} training images, there are {self.batches.count} now")
        self.state.restore(saved)
        if any(saved.config.get(name) != getattr(self.config, name) for name in ("objective", "draws")):
            self.state.best = math.inf  # of another bound
        self.started = time.monotonic()
        self.done = self.progress()
