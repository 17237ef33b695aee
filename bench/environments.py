"""A virtual environment for each peer, under .bench/: made once, made anew where what it should hold has changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from bench.processes import ROOT

FOLDER = ROOT / ".bench"
LISTS = ROOT / "bench" / "peers"
COMPUTING = ("torch", "openvino")
PEERS = ("naive", "litserve", "bentoml", "mlserver")


class Missing(RuntimeError):
    """Something that the benchmark needs is not there; the text says how to get it."""


def python(peer: str) -> Path:
    """Return the interpreter of a peer's environment."""
    return FOLDER / peer / "bin" / "python"


def prepare(peer: str) -> None:
    """Make a peer's environment, if need be.

    Raises:
        Missing: pip could not install it; the text is the end of what it said.
    """
    wanted = _wanted(peer)
    done = FOLDER / peer / "installed.txt"
    if done.is_file() and done.read_text() == wanted:
        return
    print(f"making .bench/{peer} (once)", file=sys.stderr, flush=True)
    if not (done.is_file() and done.read_text().startswith(sys.version)):
        shutil.rmtree(FOLDER / peer, ignore_errors=True)
        venv.create(FOLDER / peer, with_pip=True)
    pip = [str(python(peer)), "-m", "pip", "--disable-pip-version-check"]
    _run([str(ROOT / ".ci" / "install-torch"), *pip], TORCH="cpu")
    _run([*pip, "install", "--quiet", *_pinned(), "-r", str(LISTS / f"{peer}.txt"), "-r", _shared()])
    done.write_text(wanted)


def load_generator() -> str:
    """Return the path of wrk.

    Raises:
        Missing: it is not installed.
    """
    found = shutil.which("wrk")
    if found is None:
        raise Missing("wrk, the load generator, is not installed; on Debian and Ubuntu: apt-get install wrk")
    return found


def _wanted(peer: str) -> str:
    lists = (LISTS / f"{peer}.txt", Path(_shared()))
    return "\n".join([sys.version, *_pinned(), ""]) + "".join(file.read_text() for file in lists)


def _shared() -> str:
    return str(LISTS / "network.txt")


def _pinned() -> list[str]:
    """Return what computes the network in every server, in the versions that this project is tested with."""
    rows = (ROOT / "constraints.txt").read_text().splitlines()
    return [row for row in rows if row.partition("==")[0] in COMPUTING]


def _run(command: list[str], **variables: str) -> None:
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"{' '.join(command[:6])} … failed:\n{done.stderr[-2000:]}")
