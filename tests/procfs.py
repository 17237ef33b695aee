"""What a process and its children cost, as Linux counts it: memory now and at its worst, processor time.

Knows nothing of the service; the campaign's tests ask it about their own process or about a server.
"""

import ctypes
import gc
import os
from pathlib import Path

PROC = Path("/proc")
LISTENS = "0A"
TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def resident(*pids: int) -> int:
    """Return the bytes of memory that processes hold now; shared pages count in each."""
    return sum(_status(pid, "VmRSS") for pid in pids or (os.getpid(),))


def anonymous(*pids: int) -> int:
    """Return those of them that are no part of a file."""
    return sum(_status(pid, "RssAnon") for pid in pids or (os.getpid(),))


def peak(*pids: int) -> int:
    """Return the most that processes held since their peaks were forgotten."""
    return sum(_status(pid, "VmHWM") for pid in pids or (os.getpid(),))


def forget_peak(*pids: int) -> None:
    """Let the peaks begin again at what is held now."""
    for pid in pids or (os.getpid(),):
        (PROC / str(pid) / "clear_refs").write_text("5")


def cpu_s(*pids: int) -> float:
    """Return the processor seconds that processes have used, in steps of 10 ms."""
    return sum((int(fields[11]) + int(fields[12])) / TICKS for pid in pids if (fields := _stat(pid)))


def connections(port: int) -> int:
    """Return how many TCP connections to a port the process behind it still holds."""
    found = 0
    for name in ("tcp", "tcp6"):
        for line in (PROC / "net" / name).read_text().splitlines()[1:]:
            _, local, _, state, *_rest, inode = line.split()[:10]
            found += int(local.rpartition(":")[2], 16) == port and state != LISTENS and inode != "0"
    return found


def settle() -> None:
    """Give back what this process could give back, so that what remains is in use."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def _stat(pid: int) -> list[str]:
    """Return the fields of a process's line from its state on; none where it is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _status(pid: int, name: str) -> int:
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)
