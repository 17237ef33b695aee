"""How many processors this process may use: those that it may run on, and no more than its quota pays for."""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return the number of threads that can compute at the same time, at least 1.

    A container with a quota of 1.5 processors has one: two threads would be stopped for a quarter of the time,
    in the middle of a batch.
    """
    return max(1, int(min(_affinity(), cpu_quota())))


def cpu_quota(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> float:
    """Return the processors that the control groups of this process grant it together; infinity without a limit."""
    return min((_limit(folder) for folder in _folders(cgroups, own)), default=float("inf"))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _folders(cgroups: Path, own: Path) -> list[Path]:
    """Return the folder of the process's group and those above it, for both versions of control groups.

    Inside a container its group is usually mounted as the root, so a path that is not there is no surprise.
    """
    folders = {cgroups, cgroups / "cpu", cgroups / "cpu,cpuacct"}
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        root = cgroups / controllers if controllers else cgroups
        inside = Path(path.lstrip("/"))
        folders |= {root / folder for folder in (inside, *inside.parents)}
    return sorted(folders)


def _limit(folder: Path) -> float:
    """Return quota / period of a group, by ``cpu.max`` (version 2) or the two files of version 1."""
    words = _text(folder / "cpu.max").split() or [
        _text(folder / "cpu.cfs_quota_us").strip(),
        _text(folder / "cpu.cfs_period_us").strip(),
    ]
    try:
        quota, period = (float(word) for word in words)
    except ValueError:  # "max", or no such file
        return float("inf")
    return quota / period if quota > 0 and period > 0 else float("inf")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
