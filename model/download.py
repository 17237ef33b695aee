"""Fetch one file over HTTP: with a progress bar, resumed where it broke off, whole or not at all.

It knows addresses and bytes, not what they mean; whoever asked compares checksums.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import httpx
from tqdm import tqdm

TIMEOUT_S = 20.0


class DownloadError(OSError):
    """A file could not be fetched; the text names the address and the reason."""


def part_of(url: str, target: Path) -> Path:
    """Return where a download of ``url`` to ``target`` is kept until it is whole.

    The name depends on the address: mirrors may have packed the same file differently, so one cannot go on where
    another broke off.
    """
    return target.with_name(f"{target.name}.{zlib.crc32(url.encode()):08x}.part")


def fetch(url: str, target: Path) -> None:
    """Download ``url`` to ``target``, going on where an earlier attempt stopped.

    Raises:
        DownloadError: no network, a refusal, or a stream that broke off (what came is kept for the next attempt).
    """
    part = part_of(url, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _append(url, part, part.stat().st_size if part.exists() else 0)
        os.replace(part, target)
    except httpx.HTTPError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise DownloadError(f"{url}: {type(error).__name__}: {reason}") from error
    except OSError as error:
        raise DownloadError(f"{target}: {error.strerror or error}") from error


def _append(url: str, part: Path, have: int) -> None:
    """Bring ``part``, of which there are ``have`` bytes, to its full length; start again if the server wants that."""
    headers = {"Range": f"bytes={have}-"} if have else {}
    with httpx.stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as answer:
        if have and answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # the part is already whole
        answer.raise_for_status()
        resumed = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        begins = have if resumed else 0
        size = int(answer.headers.get("Content-Length", 0)) + begins
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=size or None, initial=begins, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            for chunk in answer.iter_raw():
                file.write(chunk)
                bar.update(len(chunk))
