"""``vae``: one command for everything, in a terminal.

This module only knows where each command is; it imports it when it is run, so that ``vae --help`` is instant and
the commands that ask a server start without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import click

from app.version import VERSION

# heading of --help -> name -> module:command, and what --help says of it
SECTIONS: Final = {
    "Run and train": {
        "serve": ("app.serve:serve", "Run the service."),
        "train": ("model.train:main", "Train a model that `vae serve` loads."),
        "evaluate": ("model.evaluate:main", "Score a checkpoint on held-out images."),
    },
    "Ask a running server": {
        "encode": ("app.commands:encode", "Images to latents: one photo, or a folder of any size."),
        "decode": ("app.commands:decode", "Latents to images."),
        "sample": ("app.commands:sample", "New images from the prior."),
        "interpolate": ("app.commands:interpolate", "What lies between two images."),
        "reconstruct": ("app.commands:reconstruct", "What the model keeps of images."),
        "score": ("app.commands:score", "Rank images, anomalies first."),
        "kl": ("app.commands:kl", "KL divergence of images or of distributions."),
        "model": ("app.commands:model", "What the server has loaded."),
    },
}
COMMANDS: Final = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


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


class _InSections(click.Group):
    """A group that lists its commands under headings, in the order in which they stand there."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, COMMANDS))
        for heading, commands in SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(widest), text) for name, (_, text) in commands.items()])


@click.group(
    cls=_InSections,
    commands=[Deferred(name, target, text) for name, (target, text) in COMMANDS.items()],
    context_settings={"max_content_width": 110, "show_default": True},
)
@click.version_option(VERSION, message="%(version)s")
def main() -> None:
    """A variational autoencoder as a service: serve, train, and ask a running server.

    \b
    Try it:
      vae serve                                        in one terminal
      vae sample --n 64 --seed 7 --out s.png           in another one: 64 new images
      vae encode photo.png                             an image as a few numbers, its latents
      vae encode folder/ --out latents.safetensors     any number of images
      vae score folder/ --worst 10                     the images that fit the others least

    The commands that ask a server find it at --url (or VAE_URL) and need no GPU and no torch. Every command has a
    --help of its own.
    """


if __name__ == "__main__":
    main(prog_name="vae")
