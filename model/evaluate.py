"""Score a checkpoint on held-out images: ``python -m model.evaluate PATH`` (or ``vae evaluate``).

One frozen binarization of all held-out images, so that models compare; every figure in nats per image with the
number of images and draws behind it. The log-likelihood at many draws is a control variate: the bound at few draws
on all images, plus the mean gain of many draws over few on a random subset. Results go into the checkpoint, into a
JSON file and a model card beside it. How a figure is computed is the business of ``scores``.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model import checkpoint, data
from model.card import write_card
from model.gaussian import kl_to_standard_normal
from model.latent_map import ACTIVE, write_map
from model.pictures import save_pictures
from model.pixels import to_unit
from model.probe import linear_probe
from model.scores import bounds, device_of, frozen_targets, mean_terms, place, posterior, soft_elbo
from model.vae import VAE

SEED = 20_200_522
HELD_OUT_DRAWS = 16
PICTURED = 32


@dataclass(frozen=True)
class Protocol:
    """How many draws and images an evaluation uses.

    Attributes:
        few: draws on all held-out images.
        many: draws on the control images.
        control: random held-out images that get many draws, at least 2.
        seed: of everything random in it.
    """

    few: int = 100
    many: int = 5000
    control: int = 500
    seed: int = SEED


def log_likelihood(vae: VAE, x: Tensor, protocol: Protocol) -> dict[str, Any]:
    """Return the NLL of targets ``x (N, C, H, W)`` at few and many draws, with standard errors, in nats.

    ``mean over all of L_few + mean over the control images of (L_many - L_few)``: the same expectation as
    ``L_many`` on all images, at a small part of the work.
    """
    few = bounds(vae, x, protocol.few, np.arange(len(x)), protocol.seed)
    chosen = _some(len(x), protocol.control, protocol.seed)
    gain = bounds(vae, x, protocol.many, chosen, protocol.seed) - few[chosen]
    return {
        f"nll_{protocol.few}": float(-few.mean()),
        f"nll_{protocol.many}": float(-few.mean() - gain.mean()),
        "nll_standard_error": float(gain.std(ddof=1) / math.sqrt(len(gain))),
        "nll_standard_error_over_images": float(few.std(ddof=1) / math.sqrt(len(few))),
        "control_images": len(gain),
    }


def evaluate(vae: VAE, dataset: data.Dataset, protocol: Protocol) -> dict[str, Any]:
    """Return every figure of the protocol as JSON values; computed in float32 where the network is."""
    binarize, device = vae.likelihood.discrete_targets, device_of(vae)
    targets = frozen_targets(dataset.test, binarize, protocol.seed)
    x = targets.to(device)
    seen = dataset.train[_some(len(dataset.train), len(x), protocol.seed)]
    terms = mean_terms(vae, x, protocol.seed)
    on_seen = mean_terms(vae, frozen_targets(seen, binarize, protocol.seed + 1).to(device), protocol.seed)
    mu, sigma = posterior(vae, x)
    return {
        "images": len(x),
        "binarization": "dynamic, frozen for the evaluation" if binarize else "none",
        "targets_sha256": _sha256(targets, binarize),
        "negative_elbo": -terms.elbo,
        "reconstruction": terms.reconstruction,
        "kl": terms.kl,
        "train_negative_elbo": -on_seen.elbo,
        "train_test_gap": on_seen.elbo - terms.elbo,
        "active_units": int((mu.var(0) > ACTIVE).sum()),
        **kl_per_dimension(vae, mu, sigma),
        **log_likelihood(vae, x, protocol),
        **probe_accuracy(vae, dataset),
        **flops(vae),
    }


def kl_per_dimension(vae: VAE, mu: Tensor, sigma: Tensor) -> dict[str, list[float]]:
    """Return the mean KL of each latent of posteriors ``(N, D)``; nothing under a prior that joins the latents."""
    if not vae.prior.closed_form_kl:
        return {}
    kl = kl_to_standard_normal(mu.double(), sigma.double()).mean(0)  # (D,)
    return {"kl_per_dimension": [round(value, 4) for value in kl.tolist()]}


def probe_accuracy(vae: VAE, dataset: data.Dataset) -> dict[str, float]:
    """Return the accuracy of a linear probe on ``mu`` of the grey images; nothing where there are no labels."""
    if dataset.train_labels is None or dataset.test_labels is None:
        return {}
    images = (torch.from_numpy(to_unit(part)).to(device_of(vae)) for part in (dataset.train, dataset.test))
    seen, met = (posterior(vae, part)[0].cpu() for part in images)
    return {"linear_probe_accuracy": linear_probe(seen, dataset.train_labels, met, dataset.test_labels)}


@torch.no_grad()
def flops(vae: VAE) -> dict[str, float]:
    """Return the floating-point operations of encoding and decoding one image, in millions.

    A multiplication with its addition counts as two; activations and other cheap steps are not counted.
    """
    counts = {}
    for name, call, shape in (
        ("encode_mflop", vae.encode, vae.config.image_shape),
        ("decode_mflop", vae.decode, (vae.config.latent_dim,)),
    ):
        with FlopCounterMode(display=False) as counter:
            call(torch.zeros(1, *shape, device=device_of(vae)))
        counts[name] = counter.get_total_flops() / 1e6
    return counts


def record(path: Path, loaded: checkpoint.Checkpoint, dataset: data.Dataset, metrics: dict[str, Any]) -> None:
    """Write what was measured into the checkpoint at ``path``, and figures, pictures and a card beside it."""
    held_out = soft_elbo(loaded.vae, dataset.test, HELD_OUT_DRAWS, metrics["seed"])
    notes = replace(loaded.notes, metrics=metrics, held_out_elbo=held_out)
    checkpoint.save(path, loaded.vae, notes)
    checkpoint.write_atomically(path.with_suffix(".json"), json.dumps(metrics, indent=2).encode() + b"\n")
    pictured = dataset.test[_some(len(dataset.test), PICTURED, metrics["seed"])]
    save_pictures(loaded.vae, torch.from_numpy(to_unit(pictured)), path.parent, f"{path.stem}-")
    write_map(path, dataset)
    write_card(path, loaded.vae.config, notes, loaded.digest)


def _some(count: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """Return at most ``wanted`` of the indices below ``count``, at random: data sets are often sorted by class."""
    return np.random.default_rng(seed).permutation(count)[:wanted]


def _sha256(x: Tensor, binarized: bool) -> str:
    return hashlib.sha256(x.numpy().astype(np.uint8 if binarized else np.float32).tobytes()).hexdigest()


AT_LEAST_1, AT_LEAST_2 = click.IntRange(min=1), click.IntRange(min=2)
FILE, FOLDER = click.Path(path_type=Path, exists=True, dir_okay=False), click.Path(path_type=Path)


@click.command("evaluate", context_settings={"show_default": True})
@click.argument("path", type=FILE)
@click.option("--data", "name", default=None, help="mnist, fashion-mnist or a folder; default: what it was trained on.")
@click.option("--data-dir", type=FOLDER, default=None, help="Folder of idx files; default $VAE_DATA_DIR.")
@click.option("--few", type=AT_LEAST_1, default=Protocol.few, help="Draws on all held-out images.")
@click.option("--many", type=AT_LEAST_1, default=Protocol.many, help="Draws on the control images.")
@click.option("--control", type=AT_LEAST_2, default=Protocol.control, help="Held-out images that get many draws.")
@click.option("--device", default="cpu", help="cpu, cuda or mps.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Processor threads; 0: as many as cores.")
@click.option("--command", default="", help="The training command, for the model card; default: as recorded.")
def main(
    path: Path, name: str | None, data_dir: Path | None, device: str, threads: int, command: str, **draws: int
) -> None:
    """Score a checkpoint on held-out images; write the figures into it, into PATH's .json and into a model card."""
    torch.set_num_threads(threads or torch.get_num_threads())
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    began, protocol = time.monotonic(), Protocol(**draws)
    try:
        loaded = checkpoint.load(path)
        trained_on = str(loaded.notes.training.get("data", "mnist"))
        dataset = data.load(name or trained_on, loaded.vae.config.image_shape, data_dir)
        loaded.vae.to(place(device))
        metrics = {"data": dataset.name, **asdict(protocol), **evaluate(loaded.vae, dataset, protocol)}
        metrics["seconds"] = round(time.monotonic() - began, 1)
        metrics["hardware"] = f"{_hardware(loaded.vae)}, fp32"
        loaded.vae.to("cpu")
        if command:
            training = loaded.notes.training | {"command": command}
            loaded = replace(loaded, notes=replace(loaded.notes, training=training))
        record(path, loaded, dataset, metrics)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps({key: value for key, value in metrics.items() if key != "kl_per_dimension"}, indent=2))


def _hardware(vae: VAE) -> str:
    if device_of(vae).type == "cuda":
        return torch.cuda.get_device_name(device_of(vae))
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    """Return the processor's name as Linux knows it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
