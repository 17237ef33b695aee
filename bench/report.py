"""Table and chart of what was measured: into docs/performance.md, between its markers, and docs/performance.svg.

``python -m bench.report`` makes both anew from bench/results/cpu.json, without measuring.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from bench.chart import Bar, bars
from bench.goals import goals
from bench.machine import line
from bench.processes import ROOT
from bench.rows import ALL_OURS, GIVEN, PEERS, Pick, Round, bulk, closed, limit, spread

PAGE, CHART = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.svg"
BEGIN, END = "<!-- figures: written by bench.report -->", "<!-- end of figures -->"
ABSENT = "–"
BULK = (
    "encode npy",
    "encode safetensors",
    "encode json",
    "decode npy",
    "decode safetensors",
    "decode json",
    "sample png",
)


def write(document: dict[str, Any]) -> None:
    """Put figures and chart where the documentation shows them."""
    text = PAGE.read_text()
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{PAGE}: the markers {BEGIN} and {END} are not there")
    PAGE.write_text(pattern.sub(lambda _: f"{BEGIN}\n\n{figures(document)}\n\n{END}", text))
    CHART.write_text(chart(document))


def figures(document: dict[str, Any]) -> str:
    """Return the Markdown of a document of results."""
    rounds, plan = document["rounds"], document["plan"]
    names = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    how = f"{len(rounds)} rounds, {plan['seconds']} s a figure; median, range of the rounds in parentheses."
    parts = [
        f"![Requests per second of the service and of its peers]({CHART.name})",
        f"{line(document['machine'])}. {how} Peers: {names}. [Raw results](../bench/results/cpu.json).",
        "### Servers",
        _table(*_servers(rounds)),
        "### Goals",
        _table(("what", "measured", "goal", "reached"), goals(rounds)),
        "### Bulk requests and the limit",
        _table(*_bulk(rounds)),
        "### From 1 to 1000 connections",
        _table(*_many(rounds)),
    ]
    return "\n\n".join(parts)


def told(name: str, results: Round) -> str:
    """Return one step's results in one line, for whoever waits."""
    found = results[name]
    if "failed" in found:
        return f"{name}: failed"
    if "closed" in found:
        rates = " / ".join(f"{one['per_second']:.0f}" for one in found["closed"].values())
        return f"{name}: {rates} requests/s at {' / '.join(found['closed'])} connections"
    return f"{name}: {json.dumps(found)[:150]}"


def chart(document: dict[str, Any]) -> str:
    """Return the chart: requests per second at 32 connections."""
    rows = []
    for name in (*ALL_OURS, *GIVEN, *PEERS):
        if found := spread(document["rounds"], closed(name, 32)):
            kind = "ours" if name in ALL_OURS else "given" if name in GIVEN else "peer"
            rows.append(Bar(name, *found, kind))
    title = "POST /encode, one PNG a request, 32 connections: requests per second"
    return bars(title, rows, line(document["machine"]))


def _servers(rounds: Sequence[Round]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    head = (
        "server",
        "requests/s at 1",
        "8",
        "32",
        "128 connections",
        "p50 / p99 ms at 32",
        "p50 / p99 ms, open loop 300/s",
        "CPU ms a request at 32",
        "memory MiB",
        "start s",
    )
    rows = []
    for name in (*ALL_OURS, *PEERS, *GIVEN):
        counts = [_cell(rounds, closed(name, n)) for n in (1, 8, 32, 128)]
        pair = [_pair(rounds, closed(name, 32, "p50_ms"), closed(name, 32, "p99_ms"))]
        pair.append(_pair(rounds, _open(name, "p50_ms"), _open(name, "p99_ms")))
        rest = [_cell(rounds, closed(name, 32, "cpu_ms"), 2)]
        rest += [_cell(rounds, _of(name, "memory_mib")), _cell(rounds, _of(name, "start_s"), 1)]
        rows.append((name, *counts, *pair, *rest))
    return head, rows


def _bulk(rounds: Sequence[Round]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    head = ("images per second", "default precision", "fp32")
    rows: list[tuple[str, ...]] = [
        (f"`{kind}` through HTTP", _cell(rounds, bulk("bulk", kind)), _cell(rounds, bulk("bulk fp32", kind)))
        for kind in BULK
    ]
    words = {"encode_png": "PNG to posterior", "encode": "bytes to posterior", "decode": "latents to images"}
    rows += [
        (f"limit in process: {word}", _cell(rounds, limit("auto", kind)), _cell(rounds, limit("fp32", kind)))
        for kind, word in words.items()
    ]
    naive = _cell(rounds, lambda one: 64 * max(value["per_second"] for value in one["sheets naive"].values()))
    rows.append(("naive FastAPI, `sample png`", ABSENT, naive))
    for what, name in (("uvicorn with nothing behind it", "uvicorn"), ("`GET /livez`", "livez")):
        rows.append((f"requests/s at 32: {what}", _cell(rounds, _floor(name)), ABSENT))
    return head, rows


def _many(rounds: Sequence[Round]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    head = ("connections", "requests/s", "p50 ms", "p99 ms", "p99 / (connections / throughput)", "errors")
    counts = sorted({int(n) for one in rounds for n in one.get("many connections", {}) if n.isdigit()})
    rows = []
    for n in counts:

        def pick(what: str, n: int = n) -> Pick:
            return lambda one: one["many connections"][str(n)][what]

        def stretch(one: Round, n: int = n) -> float:
            found = one["many connections"][str(n)]
            if not found["requests"]:
                raise ValueError("nothing was answered in time")
            return float(found["p99_ms"] / 1e3 * found["per_second"] / n)

        cells = [_cell(rounds, pick("per_second")), _cell(rounds, pick("p50_ms"), 1), _cell(rounds, pick("p99_ms"), 1)]
        rows.append((str(n), *cells, _cell(rounds, stretch, 1), _cell(rounds, pick("errors"))))
    return head, rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(rounds: Sequence[Round], pick: Pick, digits: int = 0) -> str:
    found = spread(rounds, pick)
    return found.text(digits) if found else ABSENT


def _pair(rounds: Sequence[Round], first: Pick, second: Pick) -> str:
    found = (spread(rounds, first), spread(rounds, second))
    return " / ".join(f"{one.middle:,.1f}" if one else ABSENT for one in found) if any(found) else ABSENT


def _open(name: str, what: str) -> Pick:
    return lambda one: one[name]["open_300"][what]


def _of(name: str, what: str) -> Pick:
    return lambda one: one[name][what]


def _floor(name: str) -> Pick:
    return lambda one: one["floor"][name]["per_second"]


if __name__ == "__main__":
    write(json.loads((ROOT / "bench" / "results" / "cpu.json").read_text()))
