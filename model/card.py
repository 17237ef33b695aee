"""The model card: what a person should know before using a checkpoint, written from what was measured.

It knows the names of the figures, and no figure: each one on the card is in the checkpoint's notes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.checkpoint import Checkpoint, Notes, write_atomically
from model.vae import VAEConfig

UNKNOWN = "?"


def write_card(path: Path, config: VAEConfig, notes: Notes, digest: str) -> None:
    """Write the card of the checkpoint at ``path`` beside it, as Markdown."""
    write_atomically(path.with_suffix(".md"), card(path, config, notes, digest).encode())


def card(path: Path, config: VAEConfig, notes: Notes, digest: str) -> str:
    """Return the card's text; every figure is taken from the notes of an evaluated model.

    Raises:
        KeyError: the model has not been evaluated.
    """
    metrics, training = notes.metrics, notes.training
    binarized = "" if metrics["binarization"] == "none" else f" ({metrics['binarization']})"
    return f"""# {notes.name}

A variational autoencoder of {config.channels}x{config.height}x{config.width} images with {config.latent_dim} latents,
a {config.likelihood.replace("_", " ")} likelihood and a {config.prior.replace("_", " ")} prior, trained on
{notes.trained_on}.

![images drawn from the prior]({path.stem}-samples.png)

Above: means of images drawn from the prior. Below: held-out images, and under each its reconstruction.

![held-out images and their reconstructions]({path.stem}-reconstructions.png)

| on {metrics["images"]} held-out images of {metrics["data"]}{binarized} | |
|---|---|
{figures(config, metrics)}

The NLL is the importance-weighted bound with {metrics["many"]} draws: {metrics["few"]} draws on every image, plus the
mean gain of {metrics["many"]} over {metrics["few"]} draws on {metrics["control_images"]} random images; ± is the
standard error of that gain. The spread over images adds ± {metrics["nll_standard_error_over_images"]:.2f} as an
estimate for other images of the same kind.

## How it was made

```
{training.get("command", "the command was not recorded")}
```

{training.get("epochs_done", UNKNOWN)} epochs, {training.get("steps", UNKNOWN)} steps,
{training.get("train_images", UNKNOWN)} training images, torch {training.get("torch", UNKNOWN)}. The whole
configuration is in the file's metadata.

- Weights: `{path.name}`, SHA-256 of the tensors `{digest}`.
- Evaluated in {metrics["seconds"]:.0f} s on {metrics["hardware"]}.
- All figures: `{path.with_suffix(".json").name}`.

## What it is for, and what not

Embeddings, samples, reconstructions and anomaly scores of images like those it was trained on, and teaching. Images
of other sizes are cropped and resized to {config.width}x{config.height} pixels, and other images get an answer too;
a `percentile` near 0 says that it means little.
"""


def figures(config: VAEConfig, metrics: dict[str, Any]) -> str:
    """Return the rows of the card's table."""
    few, many = metrics["few"], metrics["many"]
    values = _main_figures(config, metrics)
    rows = {
        f"NLL, K = {many}": f"**{values.pop(f'NLL, K = {many}').removesuffix(' nats')}** nats",
        f"NLL, K = {few}": f"{metrics[f'nll_{few}']:.2f} nats",
        "negative ELBO": values.pop("negative ELBO"),
        "of which reconstruction": f"{-metrics['reconstruction']:.2f} nats",
        "of which KL": f"{metrics['kl']:.2f} nats",
        "negative ELBO on training images": f"{metrics['train_negative_elbo']:.2f} nats",
        **values,
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value)


def comparison(models: list[Checkpoint]) -> str:
    """Return a table of evaluated models side by side, as Markdown."""
    columns = [
        {
            "": f"`{model.notes.name}`",
            "images": model.notes.trained_on,
            "prior": {"standard_normal": "N(0, I)", "realnvp": "RealNVP"}[model.vae.config.prior],
            **_main_figures(model.vae.config, model.notes.metrics),
        }
        for model in models
    ]
    lines = [f"| {' | '.join([name, *(column[name] for column in columns)])} |" for name in columns[0]]
    return "\n".join([lines[0], "|---" * (len(models) + 1) + "|", *lines[1:]])


def _main_figures(config: VAEConfig, metrics: dict[str, Any]) -> dict[str, str]:
    many, accuracy = metrics["many"], metrics.get("linear_probe_accuracy")
    return {
        f"NLL, K = {many}": f"{metrics[f'nll_{many}']:.2f} ± {metrics['nll_standard_error']:.2f} nats",
        "negative ELBO": f"{metrics['negative_elbo']:.2f} nats",
        "active latents": f"{metrics['active_units']} of {config.latent_dim}",
        "linear probe on mu": "" if accuracy is None else f"{100 * accuracy:.1f} % of the labels",
        "encode, decode": f"{metrics['encode_mflop']:.1f}, {metrics['decode_mflop']:.1f} MFLOP an image",
    }
