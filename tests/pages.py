"""Pages whose commands run as they stand: reads the blocks of a Markdown page, runs them, compares what is shown.

On such a page a ``bash`` or ``python`` block is run, in a folder of the page's own; the Python blocks of a page share
their names, as cells of a notebook do. A ``text`` or ``json`` block that comes next is what it prints; a picture
under ``pictures/`` is a file that a block writes. Blocks of other languages (``sh``, ``ini``) are only shown.
``python tests/write_pages.py`` writes what was printed and drawn into the pages.
"""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from service_process import ROOT, free_port

from app.client import Client
from model import checkpoint
from model.card import comparison

README = ROOT / "README.md"
PAGES = [ROOT / "docs" / "api.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]
MODELS = ("mnist", "mnist-flow", "fashion")
TABLE = re.compile(r"^\|  \| `mnist` \|.*?\n\n", re.MULTILINE | re.DOTALL)
SERVER = "localhost:8000"  # as pages name the server that runs already
OWN = "localhost:9000"  # as pages name one that they start themselves
TOLERANCE = 0.05  # of a number, relative and absolute: fp32 or bf16, one processor or another
GREY = 6  # levels by which a picture may differ, on average
BLOCK_S = 120
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"!\[[^\]]*\]\(pictures/([\w.-]+)\)")
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def with_models(text: str) -> str:
    """Return the README with the table of what was measured of the bundled models."""
    table = comparison([checkpoint.load(checkpoint.resolve(name)) for name in MODELS])
    found = TABLE.search(text)
    assert found, "the README has no table of models"
    return text[: found.start()] + table + "\n\n" + text[found.end() :]


class Block(NamedTuple):
    """A fenced block: its language, its text, and where the text stands in the page."""

    language: str
    text: str
    start: int


class Output(NamedTuple):
    """What a page shows as the output of a block, and what came."""

    shown: Block
    got: str

    @property
    def agrees(self) -> bool:
        """Return whether both say the same, but for the last digits of numbers."""
        if self.shown.language == "json":
            return same(json.loads(self.shown.text.replace(", …", "")), json.loads(self.got))
        return same_text(self.shown.text, self.got)


def blocks(page: str) -> list[Block]:
    return [Block(match[1], match[2], match.start(2)) for match in BLOCK.finditer(page)]


def pictures(page: str) -> list[str]:
    """Return the names of the pictures that a page shows."""
    return PICTURE.findall(page)


def run(page: str, url: str, folder: Path) -> Iterator[Output]:
    """Run all blocks of a page against the server at ``url``, and yield what it shows beside what came.

    Raises:
        AssertionError: a block fails.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    addresses = {SERVER: url.removeprefix("http://"), OWN: f"localhost:{free_port()}"}
    found = blocks(page)
    with contextlib.chdir(folder), without_leftovers(folder, names):
        for block, after in zip(found, [*found[1:], Block("", "", 0)], strict=True):
            if block.language not in ("bash", "python"):
                continue
            text = block.text
            for shown, real in addresses.items():
                text = text.replace(shown, real)
            got = in_python(text, names) if block.language == "python" else in_bash(text, url)
            for shown, real in addresses.items():
                got = got.replace(real, shown)
            if after.language in ("text", "json"):
                yield Output(after, got)


def in_python(text: str, names: dict[str, Any]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, "<page>", "exec"), names)
    return printed.getvalue()


def in_bash(text: str, url: str) -> str:
    """Run a block in the present folder; what it starts in the background may go on after it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("VAE_")}
    env |= {"VAE_URL": url, "PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "COLUMNS": "120", "NO_COLOR": "1"}
    with Path(".output").open("w+") as output, Path(".errors").open("w+") as errors:
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", text],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            timeout=BLOCK_S,
        )
        output.seek(0)
        errors.seek(0)
        assert done.returncode == 0, f"exit status {done.returncode} of\n{text}\n{errors.read()[-2000:]}"
        return output.read()


@contextlib.contextmanager
def without_leftovers(folder: Path, names: dict[str, Any]) -> Iterator[None]:
    """End what a page started and wrote into ``pid``, where the page did not, and close the clients that it made."""
    try:
        yield
    finally:
        for value in names.values():
            if isinstance(value, Client):
                value.close()
        for file in folder.glob("*pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)


def same(shown: Any, got: Any) -> bool:
    """Compare JSON; a list may show only its first items, a text that ends with … only its beginning."""
    if isinstance(shown, dict):
        return isinstance(got, dict) and shown.keys() == got.keys() and all(same(shown[k], got[k]) for k in shown)
    if isinstance(shown, list):
        return isinstance(got, list) and len(shown) <= len(got) and all(map(same, shown, got))
    if isinstance(shown, str):
        return isinstance(got, str) and (got.startswith(shown[:-1]) if shown.endswith("…") else got == shown)
    if isinstance(shown, float):
        return isinstance(got, int | float) and abs(got - shown) <= TOLERANCE * max(1, abs(shown))
    return bool(got == shown)


def same_text(shown: str, got: str) -> bool:
    """Compare printed text: blanks count once, whole numbers exactly, others within the tolerance."""
    words, others = NUMBER.sub(" # ", shown).split(), NUMBER.sub(" # ", got).split()
    numbers = zip(NUMBER.findall(shown), NUMBER.findall(got), strict=False)
    return words == others and all(
        one == other if "." not in one else abs(float(one) - float(other)) <= TOLERANCE * max(1, abs(float(one)))
        for one, other in numbers
    )


def same_picture(shown: Path, got: Path) -> bool:
    """Return whether two pictures are of one size and differ by few grey levels."""
    with Image.open(shown) as one, Image.open(got) as other:
        if (one.size, one.mode) != (other.size, other.mode):
            return False
        return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean()) <= GREY


def rewritten(page: str, outputs: list[Output]) -> str:
    """Return the page with what came in place of what it shows, where they differ."""
    for output in sorted(outputs, key=lambda one: -one.shown.start):
        if not output.agrees:
            start = output.shown.start
            text = shortened(json.loads(output.got)) if output.shown.language == "json" else output.got.rstrip()
            page = page[:start] + text + "\n" + page[start + len(output.shown.text) :]
    return page


def shortened(value: Any, depth: int = 0) -> str:
    """Return JSON for people: long lists and texts cut with an ellipsis."""
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {shortened(item, depth + 1)}" for key, item in value.items()]
        line = "{" + ", ".join(items) + "}"
        if len(line) <= 110 or depth:
            return line
        return "{" + ",\n ".join(items) + "}"
    if isinstance(value, list):
        most = 4 if value and not isinstance(value[0], list | str) else 2
        return (
            "[" + ", ".join([shortened(item, depth + 1) for item in value[:most]] + ["…"] * (len(value) > most)) + "]"
        )
    if isinstance(value, str) and len(value) > 100:
        return json.dumps(value[:40] + "…", ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)


def keep_pictures(page: Path, folder: Path) -> None:
    """Copy the pictures that a page shows, and its blocks drew, beside the page, where they differ."""
    for name in pictures(page.read_text()):
        target = page.parent / "pictures" / name
        target.parent.mkdir(exist_ok=True)
        if not target.exists() or not same_picture(target, folder / name):
            shutil.copyfile(folder / name, target)
