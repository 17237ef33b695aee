"""What the commands that ask a server have in common: flags, files on their way, errors as exit statuses.

Knows no command.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from app.bodies import Images
from app.calls import Call
from app.client import DEFAULT_URL, Client
from app.errors import ServiceError
from app.folders import image_files
from app.results import printable
from app.uploads import Answer, Upload

EXIT_REFUSED: Final = 1
# The others are those of sysexits.h.
EXIT_SKIPPED: Final = 65  # EX_DATAERR
EXIT_UNAVAILABLE: Final = 69  # EX_UNAVAILABLE
EXIT_OCCUPIED: Final = 73  # EX_CANTCREAT
EXIT_FILE: Final = 74  # EX_IOERR
EXIT_KEY: Final = 77  # EX_NOPERM
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT
UNAVAILABLE: Final = frozenset({429, 502, 503, 504})  # the same command may succeed later
RETRIES: Final = 5
REASONS_SHOWN: Final = 100  # of skipped files

Function = Callable[..., None]
T = TypeVar("T")


def fail(status: int, text: str) -> SystemExit:
    """Print what went wrong on stderr, and return what ends the command with ``status``."""
    click.echo(f"Error: {text}", err=True)
    return SystemExit(status)


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
            raise fail(_status(error), f"{error.detail} ({error.code}{request})") from error
        except OSError as error:
            if error.filename is None:  # a closed pipe, for example: click knows what to do
                raise
            raise fail(EXIT_FILE, f"'{printable(str(error.filename))}': {error.strerror}") from error
        except KeyboardInterrupt:
            raise fail(EXIT_INTERRUPTED, "interrupted") from None

    command = click.command(function.__name__)(run)
    command.params += _server_options()
    return command


class Sending:
    """The image files behind the arguments of a command, on their way to the server.

    Attributes:
        total: number of the files.
        model: what the server has loaded; it must be the same until the last answer.
        names: of the files that were answered, in order.
        skipped: names of the files that could not be read, with the reason.
    """

    def __init__(self, client: Client, paths: Sequence[Path], rows: int = 1) -> None:
        """Count the files and ask what is loaded; each file is ``rows`` of work for the server."""
        self._paths = [str(path) for path in paths]
        self.total = sum(1 for _ in image_files(self._paths))
        if not self.total:
            raise click.UsageError("there is no PNG or JPEG file in these folders")
        self.model = client.model()
        self.names: list[str] = []
        self.skipped: dict[str, str] = {}
        self._client, self._rows = client, rows

    def ask(self, describe: Callable[[Images], Call[T]], done: Set[str] = frozenset()) -> Iterator[Answer[T]]:
        """Yield the server's answers to all files but those that are ``done``, in order."""
        client = self._client.to_async(self.model["digest"])
        files = image_files(self._paths)
        for answer in Upload(self.model, self._rows).send(client, files, describe, total=self.total, done=done):
            self.names += map(printable, answer.names)
            self.skipped |= {printable(name): reason for name, reason in answer.skipped.items()}
            yield answer

    def results(self, describe: Callable[[Images], Call[T]]) -> list[T]:
        """Return the answers to all files."""
        return [result for answer in self.ask(describe) for result in answer.results]

    def finish(self) -> None:
        """Name the files that could not be read; where there are any, end the command with a status of its own."""
        for name, reason in list(self.skipped.items())[:REASONS_SHOWN]:
            click.echo(f"skipped {name}: {reason}", err=True)
        if len(self.skipped) > REASONS_SHOWN:
            click.echo(f"skipped {len(self.skipped) - REASONS_SHOWN} more", err=True)
        if self.skipped:
            raise fail(EXIT_SKIPPED, f"{len(self.skipped)} of {self.total} files could not be read")


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


def _status(error: ServiceError) -> int:
    if error.status == 401:
        return EXIT_KEY
    return EXIT_UNAVAILABLE if error.status in UNAVAILABLE else EXIT_REFUSED


def _server_options() -> list[click.Parameter]:
    key = "Key of the server. Other users of the machine can see a flag; they cannot see the variable."
    return [
        click.Option(["--url"], envvar="VAE_URL", show_envvar=True, default=DEFAULT_URL, help="URL of the server."),
        click.Option(["--api-key"], envvar="VAE_API_KEY", show_envvar=True, help=key),
        click.Option(["--timeout"], default=60.0, help="Longest wait for an answer, in seconds."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one line of JSON."),
    ]
