"""The commands of ``vae`` that ask a running server: encode, decode, sample, reconstruct, kl, score, ...

Results go to stdout, as a table or, with ``--json``, as one line of JSON; everything else goes to stderr. Computes
nothing and draws nothing: the server does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from app import calls
from app.answers import Divergence, Posterior, Scores
from app.asking import (
    EXIT_OCCUPIED,
    Sending,
    asks_server,
    columns_option,
    fail,
    files_argument,
    json_option,
    out_option,
)
from app.client import Client
from app.latent_file import LatentFile, OtherLatents
from app.results import flat, joined, plain, read_latents, save, save_picture, say, say_written

SHOWN: Final = 6  # latents in a table
MEASURES: Final = tuple(name for name in Scores._fields if name != "seed")


@asks_server
@files_argument()
@out_option(".safetensors", ".npy", ".json", required=False)
@click.option("--restart", is_flag=True, help="Begin anew, where an interrupted run left latents behind.")
def encode(client: Client, as_json: bool, files: Sequence[Path], out: Path | None, restart: bool) -> None:
    """Encode image files to latents: a table, or with --out a file, of any number of images.

    A folder stands for the PNG and JPEG files in it, at any depth. A .npy file holds mu alone, (N, D), and the names
    of its rows lie beside it; the others hold mu, sigma and the names. After an interruption the same command goes
    on where it stopped.

    \b
    Examples:
      vae encode photo.png
      vae encode folder/ --out latents.safetensors
    """
    sending = Sending(client, files)
    if out:
        _encode_to(out, sending, files, restart, as_json)
    elif posteriors := sending.results(calls.encode):
        tensors = joined(posteriors, "mu", "sigma")
        mu, names = tensors["mu"], sending.names
        rows = [[*row[:SHOWN], name] for row, name in zip(mu, names, strict=True)]
        header = [*(f"mu {i}" for i in range(min(SHOWN, mu.shape[1]))), "file"]
        say(as_json, {"files": names, **tensors, "skipped": sending.skipped}, header, rows)
    sending.finish()


@asks_server
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@out_option(".png", ".npy", ".safetensors")
@columns_option
def decode(client: Client, as_json: bool, file: Path, out: Path, columns: int | None) -> None:
    """Decode the latents in a file to images.

    FILE is one that encode or sample wrote, another .npy array (N, D), or a .safetensors or .json file with z or mu.

    \b
    Examples:
      vae decode latents.safetensors --out images.npy
      vae decode z.npy --out sheet.png --columns 8
    """
    try:
        z = np.atleast_2d(read_latents(file))
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error
    if out.suffix == ".png":
        save_picture(out, client.send(calls.decode(z).as_png(columns)).png)
    else:
        most = client.model()["limits"]["max_items"]
        parts = [client.decode(z[i : i + most]) for i in range(0, len(z), most)]
        save(out, {"images": np.concatenate(parts)})
    say_written(as_json, out, len(z), "images")


@asks_server
@click.option("--n", default=1, help="Number of images.")
@click.option("--seed", type=int, default=None, help="0 to 2^63 - 1; a fresh one without it.")
@click.option("--temperature", default=1.0, help="Scale of the prior's noise, 0 to 2.")
@out_option(".png", ".npy", ".safetensors")
@columns_option
def sample(
    client: Client, as_json: bool, n: int, seed: int | None, temperature: float, out: Path, columns: int | None
) -> None:
    """Draw new images from the prior.

    The same seed draws the same images, and the first of more. A .safetensors file holds their latents z too.

    \b
    Examples:
      vae sample --n 64 --seed 7 --out s.png
      vae sample --n 1000 --temperature 0.8 --out s.safetensors
    """
    call = calls.sample(n, seed, temperature)
    if out.suffix == ".png":
        picture = client.send(call.as_png(columns))
        save_picture(out, picture.png)
        seed = picture.seed
    else:
        samples = client.send(call)
        save(out, {"images": samples.images, "z": samples.z})
        seed = samples.seed
    say_written(as_json, out, n, "images", seed)


@asks_server
@click.argument("start", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("end", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--steps", default=9, help="Images on the way, both ends included: 2 to 64.")
@click.option("--path", type=click.Choice(["linear", "spherical"]), default="linear", help="How to walk.")
@out_option(".png", ".npy", ".safetensors")
def interpolate(client: Client, as_json: bool, start: Path, end: Path, steps: int, path: Any, out: Path) -> None:
    """Walk from one image to another through latent space, and decode what lies between.

    START and END are image files. A .png file shows all steps in a row; a .safetensors file holds their latents z too.

    \b
    Examples:
      vae interpolate three.png eight.png --out strip.png
      vae interpolate a.png b.png --steps 16 --path spherical --out walk.safetensors
    """
    call = calls.interpolate(start.read_bytes(), end.read_bytes(), steps, path)
    if out.suffix == ".png":
        save_picture(out, client.send(call.as_png()).png)
    else:
        walk = client.send(call)
        save(out, {"images": walk.images, "z": walk.z})
    say_written(as_json, out, steps, "images")


@asks_server
@files_argument()
@out_option(".png", ".npy", ".safetensors")
@columns_option
def reconstruct(client: Client, as_json: bool, files: Sequence[Path], out: Path, columns: int | None) -> None:
    """Encode image files and decode their latents: what the model keeps of them.

    \b
    Examples:
      vae reconstruct photo.png --out kept.png
      vae reconstruct folder/ --out kept.npy
    """
    sending = Sending(client, files)
    if out.suffix == ".png":  # one picture of all files: their latents fit into one request
        if posteriors := sending.results(calls.encode):
            mu = joined(posteriors, "mu")["mu"]
            save_picture(out, client.send(calls.decode(mu).as_png(columns)).png)
    elif images := sending.results(calls.reconstruct):
        save(out, {"images": np.concatenate(images)}, sending.names)
    if sending.names:
        say_written(as_json, out, len(sending.names), "images")
    sending.finish()


@asks_server
@files_argument(required=False)
@json_option("--mu", "Means (N, D), with --sigma.")
@json_option("--sigma", "Standard deviations (N, D), with --mu.")
@json_option("--p", '{"mean", "std"}, {"mean", "cov"} or {"probs"}, with --q.')
@json_option("--q", "What p is measured against, in one of the same forms.")
@click.option("--unit", type=click.Choice(["nats", "bits"]), default="nats", help="Unit of the result.")
def kl(client: Client, as_json: bool, files: Sequence[Path], mu: Any, sigma: Any, p: Any, q: Any, unit: Any) -> None:
    """Compute KL divergence, in one of three forms.

    FILES: of each image's posterior from the prior. --mu and --sigma: of each row's normal from the standard normal.
    --p and --q: of two distributions, both normal or both discrete. JSON is given as text, or as @FILE.

    \b
    Examples:
      vae kl folder/ --unit bits
      vae kl --mu '[[0.5, 0]]' --sigma '[[1, 1]]'
      vae kl --p '{"probs": [0.5, 0.5]}' --q @q.json
    """
    given = [bool(files), mu is not None, sigma is not None, p is not None, q is not None]
    if given not in ([1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]):
        raise click.UsageError("give FILES, or --mu and --sigma, or --p and --q")
    if not files:
        # Two distributions are one request, whatever their kind: it is told by the names in the JSON.
        found = client.kl_posterior(mu, sigma, unit) if p is None else client.kl_gaussians(p, q, unit)
        _say_divergence(as_json, found, {}, [str(i) for i in range(len(found.kl))])
        return
    sending = Sending(client, files)
    if answers := sending.results(lambda images: calls.kl_images(images, unit)):
        tensors = joined(answers, "kl", "per_dimension", "standard_error")
        parts, errors = tensors.get("per_dimension"), tensors.get("standard_error")
        found = Divergence(tensors["kl"], parts, unit, answers[0].method, errors)
        _say_divergence(as_json, found, {"files": sending.names, "skipped": sending.skipped}, sending.names)
    sending.finish()


@asks_server
@files_argument()
@click.option("--samples", default=64, help="Draws for each image, at most 1024.")
@click.option("--seed", default=0, help="Seed of the draws, used anew in every request.")
@click.option("--worst", type=click.IntRange(min=1), default=None, help="Show only the strangest so many.")
def score(client: Client, as_json: bool, files: Sequence[Path], samples: int, seed: int, worst: int | None) -> None:
    """Score image files and rank them, anomalies first.

    percentile is where the ELBO of an image stands among the held-out images that the checkpoint remembers; 0 is
    stranger than all of them. ELBO and log p(x) are in nats.

    \b
    Examples:
      vae score inbox/ --worst 10
      vae score photo.png --samples 1000 --json
    """
    sending = Sending(client, files, samples)
    if answers := sending.results(lambda images: calls.score(images, samples, seed)):
        fields = {name: plain(array) for name, array in joined(answers, *MEASURES).items()}
        order = np.argsort(fields["elbo"], kind="stable")[:worst]
        ranked = [{"file": sending.names[i]} | {name: values[i] for name, values in fields.items()} for i in order]
        shown = ("percentile", "elbo", "log_likelihood", "standard_error", "bits_per_dim", "file")
        header = ("percentile", "ELBO", "log p(x)", "std. error", "bits/dim", "file")
        result = {"images": ranked, "samples": samples, "seed": seed, "skipped": sending.skipped}
        say(as_json, result, header, [[image[name] for name in shown] for image in ranked])
    sending.finish()


@asks_server
def model(client: Client, as_json: bool) -> None:
    """Print what the server has loaded: shapes, digest, device, measured quality, limits.

    \b
    Example:
      vae model
    """
    loaded = client.model()
    say(as_json, loaded, ("field", "value"), [[name, str(value)] for name, value in flat(loaded)])


def _encode_to(out: Path, sending: Sending, files: Sequence[Path], restart: bool, as_json: bool) -> None:
    """Encode files into ``out``, going on with what an interrupted run left behind."""
    made_of = {"weights": sending.model["digest"], "files": [[str(file), os.path.abspath(file)] for file in files]}
    try:
        opened = LatentFile(out, made_of, restart=restart)
    except OtherLatents as error:
        raise fail(EXIT_OCCUPIED, f"{error}; give --restart to throw it away, or another --out") from error
    except BlockingIOError as error:
        raise fail(EXIT_OCCUPIED, f"another vae is writing '{out}'") from error
    with opened as file:
        if file.done:
            click.echo(f"going on after {len(file.done)} of {sending.total} files", err=True)
        try:
            for answer in sending.ask(calls.encode, file.done):
                file.append(answer.names, _posterior(answer.results), answer.skipped)
        except BaseException:
            if file.done:
                click.echo(f"{file.rows} latents are kept in '{file.part}'; the same command goes on", err=True)
            raise
        sending.skipped = file.skipped
        file.finish()
    if file.rows:
        say_written(as_json, out, file.rows, "latents")


def _posterior(results: Sequence[Posterior]) -> dict[str, Any]:
    return joined(results, "mu", "sigma") if results else {}


def _say_divergence(as_json: bool, found: Divergence, more: dict[str, object], names: Sequence[str]) -> None:
    result = {**more, "kl": found.kl, "per_dimension": found.per_dimension, "unit": found.unit}
    if found.standard_error is not None:
        result["standard_error"] = found.standard_error
    rows = [[repr(value), name] for value, name in zip(found.kl.tolist(), names, strict=True)]
    say(as_json, result, (f"KL ({found.unit})", "of"), rows)
