"""The commands of ``vae`` that ask a running server: encode, decode, sample, reconstruct, kl, score, model.

Results go to stdout, as a table or, with ``--json``, as one line of JSON; everything else goes to stderr. Computes
nothing and draws nothing: the server does.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from app import calls
from app.answers import Divergence, Scores
from app.client import DEFAULT_URL, Client
from app.errors import ServiceError
from app.results import flat, joined, plain, read_latents, save, say, say_written
from app.uploads import Upload, image_files

EXIT_REFUSED: Final = 1
EXIT_UNAVAILABLE: Final = 69  # EX_UNAVAILABLE of sysexits.h
UNAVAILABLE: Final = frozenset({429, 502, 503, 504})  # the same command may succeed later
RETRIES: Final = 5
SHOWN: Final = 6  # latents in a table
MEASURES: Final = tuple(name for name in Scores._fields if name != "seed")

Function = Callable[..., None]


def _server_options() -> list[click.Parameter]:
    key = "Key of the server. Other users of the machine can see a flag; they cannot see the variable."
    return [
        click.Option(["--url"], envvar="VAE_URL", show_envvar=True, default=DEFAULT_URL, help="URL of the server."),
        click.Option(["--api-key"], envvar="VAE_API_KEY", show_envvar=True, help=key),
        click.Option(["--timeout"], default=60.0, help="Longest wait for an answer, in seconds."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one line of JSON."),
    ]


def asks_server(function: Function) -> click.Command:
    """Make a command of a function: it gets a ``Client``, and what that raises becomes a line and an exit status."""

    @functools.wraps(function)
    def run(url: str, api_key: str | None, timeout: float, **rest: Any) -> None:
        try:
            client = Client(url, api_key=api_key or None, timeout=timeout, retries=RETRIES)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        try:
            with client:
                function(client, **rest)
        except ServiceError as error:
            request = f", request {error.request_id}" if error.request_id else ""
            click.echo(f"Error: {error.detail} ({error.code}{request})", err=True)
            raise SystemExit(EXIT_UNAVAILABLE if error.status in UNAVAILABLE else EXIT_REFUSED) from error
        except OSError as error:
            if error.filename is None:  # a closed pipe, for example: click knows what to do
                raise
            raise click.ClickException(f"cannot write '{error.filename}': {error.strerror}") from error

    command = click.command(function.__name__)(run)
    command.params += _server_options()
    return command


def json_option(name: str, text: str) -> Callable[[Function], Function]:
    """Return an option that takes JSON, or ``@FILE`` for the JSON in a file."""

    def parse(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        try:
            return value and json.loads(Path(value[1:]).read_bytes() if value.startswith("@") else value)
        except (OSError, ValueError) as error:
            raise click.BadParameter(f"got '{value}', which is not JSON ({error}); give JSON, or @FILE") from error

    return click.option(name, metavar="JSON", default=None, callback=parse, help=text)


def out_option(*suffixes: str, required: bool = True) -> Callable[[Function], Function]:
    """Return the option ``--out``: a file with one of these suffixes, in a folder that exists."""
    kinds = ", ".join(suffixes)

    def check(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
        if path is not None and path.suffix not in suffixes:
            raise click.BadParameter(f"the name '{path}' must end in one of {kinds}")
        if path is not None and not path.parent.is_dir():
            raise click.BadParameter(f"there is no folder '{path.parent}'")
        return path

    kind = click.Path(path_type=Path, dir_okay=False, writable=True)
    return click.option("--out", type=kind, required=required, callback=check, help=f"File to write: {kinds}.")


def files_argument(required: bool = True) -> Callable[[Function], Function]:
    """Return the argument ``FILES``: image files and folders of them."""
    return click.argument("files", nargs=-1, required=required, type=click.Path(exists=True, path_type=Path))


columns_option: Final = click.option("--columns", type=int, default=None, help="Images in a row of a picture.")


@asks_server
@files_argument()
@out_option(".safetensors", ".npy", ".json", required=False)
def encode(client: Client, as_json: bool, files: Sequence[Path], out: Path | None) -> None:
    """Encode image files to latents.

    A folder stands for the PNG and JPEG files in it. A .npy file holds mu alone, (N, D); the others hold mu, sigma
    and the names of the files.
    """
    upload = _upload(client, files)
    if posteriors := list(upload.send(client.encode)):
        tensors = joined(posteriors, "mu", "sigma")
        mu, names = tensors["mu"], upload.names
        if out:
            save(out, tensors, names)
            say_written(as_json, out, len(mu), "latents")
        else:
            rows = [[*row[:SHOWN], name] for row, name in zip(mu, names, strict=True)]
            header = [*(f"mu {i}" for i in range(min(SHOWN, mu.shape[1]))), "file"]
            say(as_json, {"files": names, **tensors, "skipped": upload.skipped}, header, rows)
    _finish(upload)


@asks_server
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@out_option(".png", ".npy", ".safetensors")
@columns_option
def decode(client: Client, as_json: bool, file: Path, out: Path, columns: int | None) -> None:
    """Decode the latents in a file to images.

    FILE is one that encode wrote, another .npy array (N, D), or a .safetensors or .json file with z or mu.
    """
    try:
        z = np.atleast_2d(read_latents(file))
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error
    if out.suffix == ".png":
        out.write_bytes(client.send(calls.decode(z).as_png(columns)).png)
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
    """
    call = calls.sample(n, seed, temperature)
    if out.suffix == ".png":
        picture = client.send(call.as_png(columns))
        out.write_bytes(picture.png)
        seed = picture.seed
    else:
        samples = client.send(call)
        save(out, {"images": samples.images, "z": samples.z})
        seed = samples.seed
    say_written(as_json, out, n, "images", seed)


@asks_server
@files_argument()
@out_option(".png", ".npy", ".safetensors")
@columns_option
def reconstruct(client: Client, as_json: bool, files: Sequence[Path], out: Path, columns: int | None) -> None:
    """Encode image files and decode their latents: what the model keeps of them."""
    upload = _upload(client, files)
    if out.suffix == ".png":  # one picture of all files: their latents fit into one request
        if posteriors := list(upload.send(client.encode)):
            mu = joined(posteriors, "mu")["mu"]
            out.write_bytes(client.send(calls.decode(mu).as_png(columns)).png)
    elif images := list(upload.send(client.reconstruct)):
        save(out, {"images": np.concatenate(images)}, upload.names)
    if upload.names:
        say_written(as_json, out, len(upload.names), "images")
    _finish(upload)


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
    """
    given = [bool(files), mu is not None, sigma is not None, p is not None, q is not None]
    if given not in ([1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]):
        raise click.UsageError("give FILES, or --mu and --sigma, or --p and --q")
    if not files:
        # Two distributions are one request, whatever their kind: it is told by the names in the JSON.
        found = client.kl_posterior(mu, sigma, unit) if p is None else client.kl_gaussians(p, q, unit)
        _say_divergence(as_json, found, {}, [str(i) for i in range(len(found.kl))])
        return
    upload = _upload(client, files)
    if answers := list(upload.send(lambda batch: client.kl_images(batch, unit))):
        tensors = joined(answers, "kl", "per_dimension")
        found = Divergence(tensors["kl"], tensors["per_dimension"], unit)
        _say_divergence(as_json, found, {"files": upload.names, "skipped": upload.skipped}, upload.names)
    _finish(upload)


@asks_server
@files_argument()
@click.option("--samples", default=64, help="Draws for each image, at most 1024.")
@click.option("--seed", default=0, help="Seed of the draws, used anew in every request.")
@click.option("--worst", type=click.IntRange(min=1), default=None, help="Show only the strangest so many.")
def score(client: Client, as_json: bool, files: Sequence[Path], samples: int, seed: int, worst: int | None) -> None:
    """Score image files and rank them, anomalies first.

    percentile is where the ELBO of an image stands among the held-out images that the checkpoint remembers; 0 is
    stranger than all of them. ELBO and log p(x) are in nats.
    """
    upload = _upload(client, files, samples)
    if answers := list(upload.send(lambda batch: client.score(batch, samples, seed))):
        fields = {name: plain(array) for name, array in joined(answers, *MEASURES).items()}
        order = np.argsort(fields["elbo"], kind="stable")[:worst]
        ranked = [{"file": upload.names[i]} | {name: fields[name][i] for name in MEASURES} for i in order]
        shown = ("percentile", "elbo", "log_likelihood", "standard_error", "bits_per_dim", "file")
        header = ("percentile", "ELBO", "log p(x)", "std. error", "bits/dim", "file")
        result = {"images": ranked, "samples": samples, "seed": seed, "skipped": upload.skipped}
        say(as_json, result, header, [[image[name] for name in shown] for image in ranked])
    _finish(upload)


@asks_server
def model(client: Client, as_json: bool) -> None:
    """Print what the server has loaded."""
    loaded = client.model()
    say(as_json, loaded, ("field", "value"), [[name, str(value)] for name, value in flat(loaded)])


def _upload(client: Client, paths: Sequence[Path], rows: int = 1) -> Upload:
    """Return the image files behind paths, ready to be sent in requests that the server takes."""
    files = image_files(paths)
    if not files:
        raise click.UsageError("there is no PNG or JPEG file in these folders")
    return Upload(files, client.model()["limits"], rows)


def _say_divergence(as_json: bool, found: Divergence, more: dict[str, object], names: Sequence[str]) -> None:
    result = {**more, "kl": found.kl, "per_dimension": found.per_dimension, "unit": found.unit}
    rows = [[repr(value), name] for value, name in zip(found.kl.tolist(), names, strict=True)]
    say(as_json, result, (f"KL ({found.unit})", "of"), rows)


def _finish(upload: Upload) -> None:
    """Name the files that could not be read; exit with 1 where there are any."""
    for name, reason in upload.skipped.items():
        click.echo(f"skipped {name}: {reason}", err=True)
    if upload.skipped:
        total = len(upload.skipped) + len(upload.names)
        click.echo(f"Error: {len(upload.skipped)} of {total} files could not be read", err=True)
        raise SystemExit(EXIT_REFUSED)
