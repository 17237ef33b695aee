"""``vae``: one command for everything, in a terminal.

This module only knows where each command is; it imports it when it is run, so that ``vae --help`` is instant and
the commands that ask a server start without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import click

from app.version import VERSION

# name -> module:command, and what --help says of it
COMMANDS: Final = {
    "serve": ("app.serve:serve", "Run the service."),
    "train": ("model.train:main", "Train a model that `vae serve` loads."),
    "evaluate": ("model.evaluate:main", "Score a checkpoint on held-out images."),
    "encode": ("app.commands:encode", "Images to latents."),
    "decode": ("app.commands:decode", "Latents to images."),
    "sample": ("app.commands:sample", "New images from the prior."),
    "reconstruct": ("app.commands:reconstruct", "What the model keeps of images."),
    "kl": ("app.commands:kl", "KL divergence of images or of distributions."),
    "score": ("app.commands:score", "Rank images, anomalies first."),
    "model": ("app.commands:model", "What a server has loaded."),
}


class Deferred(click.Command):
    """A command of another module, which is imported when the command is run or asked for its help."""

    def __init__(self, name: str, target: str, short_help: str) -> None:
        """Keep where the command is."""
        super().__init__(name, short_help=short_help)
        self._target = target

    def load(self) -> click.Command:
        """Import the command itself."""
        module, _, attribute = self._target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return a context of the command itself."""
        return self.load().make_context(info_name, args, parent, **extra)


class _InOrder(click.Group):
    """A group that lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    commands=[Deferred(name, target, text) for name, (target, text) in COMMANDS.items()],
    context_settings={"max_content_width": 110, "show_default": True},
)
@click.version_option(VERSION, message="%(version)s")
def main() -> None:
    """A variational autoencoder as a service: serve, train, and ask a running server.

    The commands from encode to model ask the server at --url (or VAE_URL) and need no GPU and no torch.
    """


if __name__ == "__main__":
    main(prog_name="vae")
