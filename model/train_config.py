"""What a training run is made of: every field a flag, presets as starting points.

It knows names, ranges and how they are written on a command line; it starts nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args

import click

from model.elbo import ObjectiveName
from model.likelihood import LikelihoodName
from model.prior import PriorName
from model.vae import VAEConfig

PrecisionName = Literal["bf16", "fp32"]
Command = TypeVar("Command", bound=Callable[..., Any])

MOST = 2**31
SECONDS = {"s": 1, "m": 60, "h": 3600}


def integers(text: str) -> tuple[int, ...]:
    """Return the integers of ``32,64``, as a flag's value.

    Raises:
        click.BadParameter: it is something else.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"got '{text}'; expected integers with commas between them, such as 32,64") from error


def duration(text: str) -> float:
    """Return the seconds of ``90``, ``90s``, ``20m`` or ``1.5h``, as a flag's value.

    Raises:
        click.BadParameter: it is something else.
    """
    number, unit = (text[:-1], SECONDS[text[-1]]) if text[-1:] in SECONDS else (text, 1)
    try:
        return float(number) * unit
    except ValueError as error:
        raise click.BadParameter(f"got '{text}'; expected seconds, or a number with s, m or h: 20m") from error


def _about(text: str, least: float = 0, most: float = MOST, kind: Any = None) -> dict[str, Any]:
    """Return what is known of a field: its help text, its range if it is a number, its kind on a command line."""
    return {"help": text, "least": least, "most": most, "kind": kind}


def _field(default: Any, text: str, least: float = 0, most: float = MOST, kind: Any = None) -> Any:
    return field(default=default, metadata=_about(text, least, most, kind or type(default)))


LIKELIHOODS = click.Choice(get_args(LikelihoodName))
PRIORS = click.Choice(get_args(PriorName))
OBJECTIVES = click.Choice(get_args(ObjectiveName))
PRECISIONS = click.Choice(get_args(PrecisionName))


@dataclass(frozen=True)
class TrainConfig:
    """A resolved training configuration; stored in each checkpoint that the run writes.

    What a field means stands in its ``help``, which is that of its flag.

    Raises:
        ValueError: a value is out of its range, or the sizes of the network contradict each other.
    """

    name: str = _field("mnist", "What GET /model calls the result.")
    data: str = _field("mnist", "mnist, fashion-mnist, or a folder of PNG and JPEG images.")
    channels: int = _field(1, "Image channels: 1 grey, 3 color.", 1, 3)
    height: int = _field(28, "Image height in pixels.", 1)
    width: int = _field(28, "Image width in pixels.", 1)
    latent_dim: int = _field(32, "Latent dimensions D.", 1)
    patch: int = _field(2, "Side of the square of pixels folded into channels at the input.", 1)
    widths: tuple[int, ...] = _field((32, 64), "Channels of each stage; every next one halves H, W.", kind=integers)
    blocks: tuple[int, ...] = _field((2, 3), "Residual blocks of each stage.", kind=integers)
    hidden: int = _field(256, "Units between the last stage and the latents.", 1)
    likelihood: LikelihoodName = field(default="bernoulli", metadata=_about("Of a pixel, given z.", kind=LIKELIHOODS))
    prior: PriorName = field(default="standard_normal", metadata=_about("Of the latents.", kind=PRIORS))
    flow_couplings: int = _field(20, "Couplings of a realnvp prior.", 1)
    flow_hidden: int = _field(250, "Hidden units of each coupling.", 1)
    start_from: str = _field("", "A bundled model or a file whose weights to start from; empty: fresh ones.")
    objective: ObjectiveName = field(default="elbo", metadata=_about("What is maximized.", kind=OBJECTIVES))
    draws: int = _field(1, "Draws K of z for each image and step.", 1)
    batch_size: int = _field(256, "Images per step; all of them where there are fewer.", 1)
    learning_rate: float = _field(1.5e-3, "Peak learning rate of AdamW.", most=1)
    weight_decay: float = _field(1e-4, "Weight decay, on matrices and kernels only.", most=1)
    warmup_steps: int = _field(500, "Steps until the peak learning rate.")
    kl_warmup: float = _field(0.05, "Share of the run over which the KL's weight rises to 1.", most=1)
    clip: float = _field(100.0, "Largest global gradient norm.", 1e-6)
    ema: float = _field(0.999, "Decay of the moving average of the weights.", most=1)
    epochs: int = _field(100, "Most passes over the data.", 1)
    max_steps: int = _field(0, "Most updates; 0: no limit.")
    time_budget: float = _field(0.0, "Most training time, annealed to end with it; 0: no limit.", kind=duration)
    evaluate_every: int = _field(1, "Epochs between evaluations.", 1)
    validation: int = _field(1000, "Training images that choose the best weights; a tenth of all at most.")
    precision: PrecisionName = field(default="bf16", metadata=_about("Of the convolutions.", kind=PRECISIONS))
    device: str = _field("cpu", "cpu, cuda or mps.")
    threads: int = _field(0, "Processor threads; 0: as many as cores.")
    seed: int = _field(0, "Seed of everything random.")

    def __post_init__(self) -> None:
        for item in fields(self):
            value, least, most = getattr(self, item.name), item.metadata["least"], item.metadata["most"]
            if isinstance(value, int | float) and not least <= value <= most:
                raise ValueError(f"{flag_of(item.name)}: got {value}; expected {least:g} to {most:g}")
        if self.channels == 2:
            raise ValueError("--channels: got 2; expected 1 or 3")
        for name, known in (("precision", PrecisionName), ("objective", ObjectiveName)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"--{name}: got '{getattr(self, name)}'; expected {' or '.join(get_args(known))}")
        self.network()

    def network(self) -> VAEConfig:
        """Return the network's part of the configuration."""
        return VAEConfig(**{item.name: getattr(self, item.name) for item in fields(VAEConfig)})

    def command(self) -> str:
        """Return a command that trains with this configuration, wherever its values came from."""
        words = ["vae", "train"]
        for item in fields(self):
            value = getattr(self, item.name)
            if value != item.default:
                words += [flag_of(item.name), ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
        return shlex.join(words)

    def resumed(self, given: dict[str, Any]) -> TrainConfig:
        """Return the configuration of the rest of a run that was started with this one.

        Args:
            given: fields to change.

        Raises:
            ValueError: a value is wrong, or a field cannot change: it shapes the network, or says which images the
                run is validated on and in which order it sees the others.
        """
        fixed = {item.name for item in fields(VAEConfig)} | {"start_from", "data", "batch_size", "validation", "seed"}
        for name in sorted(fixed & given.keys()):
            if given[name] != getattr(self, name):
                raise ValueError(f"{flag_of(name)} cannot change with --resume; this run has {getattr(self, name)}")
        return replace(self, **given)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainConfig:
        """Rebuild the configuration from the JSON in a state file.

        What is not a field is left out; a field that the file's release did not know has its default.

        Raises:
            ValueError: as for the class.
        """
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        lists: dict[str, Any] = {name: tuple(known[name]) for name in ("widths", "blocks") if name in known}
        return cls(**known | lists)


_MNIST = TrainConfig()
PRESETS = {
    "mnist": _MNIST,
    "quick": replace(_MNIST, name="quick", batch_size=128, time_budget=1200.0),
    "mnist-flow": replace(
        _MNIST,
        name="mnist-flow",
        prior="realnvp",
        start_from="mnist",
        learning_rate=1e-3,
        warmup_steps=200,
        kl_warmup=0.0,
        epochs=20,
    ),
    "fashion": replace(_MNIST, name="fashion", data="fashion-mnist", learning_rate=1e-3, weight_decay=0.01, epochs=30),
    "folder": replace(
        _MNIST,
        name="folder",
        data="images",
        channels=3,
        height=32,
        width=32,
        latent_dim=128,
        widths=(64, 96),
        likelihood="discretized_logistic",
        batch_size=64,
        learning_rate=1e-3,
        warmup_steps=200,
        epochs=200,
    ),
    "smoke": replace(_MNIST, name="smoke", latent_dim=8, widths=(8,), blocks=(1,), hidden=32, batch_size=64, epochs=1),
}
"""Starting points of a run; a flag that is given wins over its preset."""


def flag_of(name: str) -> str:
    """Return the flag of a field: ``batch_size`` is ``--batch-size``."""
    return f"--{name.replace('_', '-')}"


def config_options(command: Command) -> Command:
    """Give a command one flag for each field; a flag that is not given arrives as ``None``."""
    for item in reversed(fields(TrainConfig)):
        kind, text = item.metadata["kind"], item.metadata["help"]
        shown = ",".join(map(str, item.default)) if isinstance(item.default, tuple) else str(item.default)
        option = click.option(flag_of(item.name), item.name, type=kind, default=None, show_default=shown, help=text)
        command = option(command)
    return command
