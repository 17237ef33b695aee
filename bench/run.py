"""The figures of docs/performance.md: ``python -m bench.run`` (or ``make bench``), in half an hour.

All servers take their turn in every round, each started afresh, so a machine that drifts drifts for all. Server and
load generator share the machine's cores. Writes bench/results/cpu.json, then table and chart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bench import measures, report
from bench.contenders import own, peers
from bench.environments import PEERS, Missing, load_generator, prepare, python
from bench.machine import line, machine
from bench.measures import QUICK, Plan
from bench.processes import ROOT, stop_on_sigterm
from bench.rows import CREW, CREW_FP32, OURS, OURS_FP32

RESULTS = ROOT / "bench" / "results" / "cpu.json"
Step = Callable[[], Any]


def steps(plan: Plan) -> dict[str, Step]:
    """Return everything that a round measures, by name, in order."""
    ours, single = own(OURS), own(OURS_FP32, "--precision", "fp32")
    crews = own(CREW, "--workers", "2"), own(CREW_FP32, "--workers", "2", "--precision", "fp32")
    naive = peers("plain")[0]
    served = {one.name: partial(measures.serve_and_measure, one, plan) for one in (ours, single, *peers("plain"))}
    given = {one.name: partial(measures.serve_and_measure, one, plan, whole=False) for one in (*crews, *peers("ours"))}
    return {
        **served,
        **given,
        "limit auto": partial(measures.limit, "auto", plan),
        "limit fp32": partial(measures.limit, "fp32", plan),
        "bulk": partial(measures.bulk, ours, plan),
        "bulk fp32": partial(measures.bulk, single, plan),
        "bulk in turn": partial(measures.shares, ours, plan),
        "sheets naive": partial(measures.sheets, naive, plan),
        "many connections": partial(measures.many_connections, ours, plan),
        "floor": partial(measures.floor, plan),
    }


def versions() -> dict[str, str]:
    """Return the installed version of each peer."""
    names = {"naive": "fastapi"}
    show = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    return {
        peer: subprocess.run(
            [str(python(peer)), "-c", show, names.get(peer, peer)], capture_output=True, text=True, check=True
        ).stdout.strip()
        for peer in PEERS
    }


def run(plan: Plan, only: list[str], out: Path) -> dict[str, Any]:
    """Measure round by round; the document is written after each step, so an interrupted run leaves what it has."""
    document: dict[str, Any] = {"machine": machine(), "plan": asdict(plan), "versions": versions(), "rounds": []}
    print(line(document["machine"]), file=sys.stderr)
    chosen = [(name, step) for name, step in steps(plan).items() if not only or name in only]
    began = time.monotonic()
    for number in range(plan.rounds):
        results: dict[str, Any] = {}
        document["rounds"].append(results)
        for name, step in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
            results[name] = _attempt(name, step)
            document["seconds"] = round(time.monotonic() - began)
            save(document, out)
            print(f"{document['seconds']:5} s  round {number + 1}: {report.told(name, results)}", file=sys.stderr)
    return document


def save(document: dict[str, Any], path: Path) -> None:
    """Write the results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounded(document), indent=1) + "\n")


def rounded(value: Any) -> Any:
    """Return JSON values with at most four significant digits, which is more than a timing has."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _attempt(name: str, step: Step) -> Any:
    """Return a step's results; a peer that fails costs its own row and nothing else."""
    try:
        return step()
    except (OSError, RuntimeError, ValueError, subprocess.CalledProcessError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return {"failed": str(error).splitlines()[0][:300]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: for a first look, not for a table")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=int, help="of each closed loop")
    names = "; ".join(steps(QUICK))
    parser.add_argument("--only", action="append", default=[], help=f"name of a step, may be repeated: {names}")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    stop_on_sigterm()
    given = {name: value for name in ("rounds", "seconds") if (value := getattr(options, name))}
    plan = Plan(**{**asdict(QUICK if options.quick else Plan()), **given})
    try:
        load_generator()
        for peer in PEERS:
            prepare(peer)
    except Missing as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    document = rounded(run(plan, options.only, options.out))
    print(report.figures(document))
    if options.out == RESULTS and not (options.quick or options.only):
        report.write(document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
