"""``vae serve``: settings from flags and environment, then the server process.

Every field of ``Settings`` is a flag; a new setting needs no word here.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

import click

from app import logs
from app.settings import Settings, SettingsError, expected, load_settings, unknown_variables, variable
from app.workers import Crew, supervise

EXIT_SETTINGS: Final = 78  # EX_CONFIG of sysexits.h
log = logging.getLogger("vae")


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one flag for each setting; it receives texts, and None for what is not given."""
    for name, field in reversed(Settings.model_fields.items()):
        default = "none" if field.default in (None, "") else field.default
        text = f"{field.description} Takes {expected(name)}.  [{variable(name)}; default: {default}]"
        option = click.option(f"--{name.replace('_', '-')}", name, metavar="VALUE", default=None, help=text)
        command = option(command)
    return command


@click.command("serve")
@settings_options
def serve(**flags: Any) -> None:
    """Run the service until SIGTERM or Ctrl-C.

    Each flag has a variable of the same name, shown with it, which is used where the flag is not given.

    Exit status: 0 after a stop that was asked for, 3 the port cannot be had, 70 the device is lost, 78 a setting
    or the model is wrong (one line for each problem).
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # it waits until there is something to load anew
    try:
        settings = load_settings(**flags)
        _warn(settings)
        status = _run(settings)
    except SettingsError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        status = EXIT_SETTINGS
    raise SystemExit(status)


def _warn(settings: Settings) -> None:
    """Log a warning for every variable that looks like a setting and is none."""
    stop_logging = logs.configure(settings.log_level, settings.log_format)
    for line in unknown_variables(os.environ):
        log.warning("%s", line)
    stop_logging()


def _run(settings: Settings) -> int:
    if settings.workers > 1:
        return supervise(settings, _work)
    # Imported only now: torch takes seconds, and wrong settings are to be told at once.
    from app.main import create_app
    from app.server import run

    return run(create_app(settings), settings)


def _work(settings: Settings, listener: socket.socket, crew: Crew) -> int:
    from app.main import create_app
    from app.server import serve

    return serve(create_app(settings, crew), settings, listener, crew=crew)
