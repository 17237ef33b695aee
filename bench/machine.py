"""The machine that a figure was measured on, in one line; a figure without it means nothing."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def machine() -> dict[str, Any]:
    """Return processor, cores, number formats, GPU, versions, date and load as JSON values."""
    facts = _cpuinfo()
    return {
        "processor": facts.get("model name", platform.machine()),
        "family": f"{facts.get('cpu family', '?')}.{facts.get('model', '?')}",
        "features": [name for name in CPU_FEATURES if name in facts.get("flags", "").split()],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def line(facts: dict[str, Any]) -> str:
    """Return the facts as one line for people."""
    parts = [
        f"{facts['processor']} (family {facts['family']}; {', '.join(facts['features']) or 'no vector extensions'})",
        f"{facts['cores']} cores",
        f"{facts['memory_gib']} GiB",
        *([facts["gpu"]] if facts["gpu"] else []),
        f"Python {facts['python']}",
        f"torch {facts['torch']}",
        facts["date"],
        f"load {facts['load_before']} before",
    ]
    return ", ".join(parts)


def _cpuinfo() -> dict[str, str]:
    file = Path("/proc/cpuinfo")
    rows = file.read_text().split("\n\n")[0].splitlines() if file.is_file() else []
    return {key.strip(): value.strip() for key, _, value in (row.partition(":") for row in rows)}


def _gpu() -> str | None:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None
