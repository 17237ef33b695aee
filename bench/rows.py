"""Figures of several rounds made one: medians, spreads, and ratios taken within each round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

OURS, OURS_FP32 = "vae-service", "vae-service fp32"
CREW, CREW_FP32 = "vae-service, 2 workers", "vae-service fp32, 2 workers"
ALL_OURS = (OURS, OURS_FP32, CREW, CREW_FP32)
PEERS = ("naive FastAPI", "LitServe", "BentoML", "MLServer")
GIVEN = tuple(f"{peer} + our path" for peer in PEERS)
Round = dict[str, Any]
Pick = Callable[[Round], float]


class Spread(NamedTuple):
    """A median with the least and the most of the rounds."""

    middle: float
    least: float
    most: float

    def text(self, digits: int = 0) -> str:
        """Return the median, with the range where there were several rounds."""
        middle = f"{self.middle:,.{digits}f}"
        if self.least == self.most:
            return middle
        return f"{middle} ({self.least:,.{digits}f}–{self.most:,.{digits}f})"


def spread(rounds: Sequence[Round], pick: Pick) -> Spread | None:
    """Return median and range of a figure; nothing where no round has it."""
    values = [value for one in rounds if (value := _picked(one, pick)) is not None]
    return Spread(median(values), min(values), max(values)) if values else None


def closed(name: str, connections: int, what: str = "per_second") -> Pick:
    """Return the way to a figure of a server's closed loop."""
    return lambda one: one[name]["closed"][str(connections)][what]


def best(names: Sequence[str], pick: Callable[[str], Pick], choose: Callable[..., float] = max) -> Pick:
    """Return the way to the best figure of several servers."""

    def of(one: Round) -> float:
        return choose(value for name in names if (value := _picked(one, pick(name))) is not None)

    return of


def ratio(above: Pick, below: Pick) -> Pick:
    """Return the way to a ratio, both taken in the same round."""
    return lambda one: above(one) / below(one)


def limit(which: str, kind: str) -> Pick:
    """Return the way to the in-process limit of a kind (``encode_png``, ``encode``, ``decode``), images a second."""

    def of(one: Round) -> float:
        found = [
            float(rate)
            for how in one[f"limit {which}"].values()
            for name, rate in how.items()
            if name.rpartition("_")[0] == kind
        ]
        return max(found)

    return of


def bulk(which: str, kind: str) -> Pick:
    """Return the way to the most images per second of a bulk request, over the numbers of connections."""

    def of(one: Round) -> float:
        return max(
            float(value["images_per_second"]) for name, value in one[which].items() if name.rpartition(",")[0] == kind
        )

    return of


def share(kind: str) -> Pick:
    """Return the way to the share of the limit that bulk requests reach, measured in turn with it."""

    def of(one: Round) -> float:
        found = one["bulk in turn"][kind]
        return float(found["http"]) / max(float(rate) for name, rate in found.items() if name != "http")

    return of


def _picked(one: Round, pick: Pick) -> float | None:
    try:
        return pick(one)
    except (KeyError, ValueError, TypeError, ZeroDivisionError):
        return None
