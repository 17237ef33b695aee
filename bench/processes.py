"""A server under measurement: started, awaited, weighed, stopped; all of its processes count."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.client import Connection, request_bytes, wait_until

ROOT = Path(__file__).resolve().parent.parent
START_S = 90.0
STOP_S = 15.0
TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """Return a port on which nothing listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(**settings: object) -> dict[str, str]:
    """Return this process's environment without the service's own variables, and with ``settings``."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("VAE_", "BENCH_"))}
    paths = [str(ROOT), *filter(None, [env.get("PYTHONPATH")])]
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return {**env, **one_thread, "PYTHONUNBUFFERED": "1", **{name: str(value) for name, value in settings.items()}}


def stop_on_sigterm() -> None:
    """Turn SIGTERM into an ordinary exit, so that no server outlives the program that measures it."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


class Server:
    """One running server, in a session of its own.

    Attributes:
        port: where it listens.
        start_s: from its start to the first answer that says ready.
    """

    def __init__(self, command: list[str], port: int, ready: str, env: dict[str, str], log: Path) -> None:
        """Start it, and wait until ``GET ready`` is answered with 200.

        Raises:
            RuntimeError: it ended; the text is the end of its log.
            TimeoutError: it is not ready in time.
        """
        self.port, self._ready, self._log = port, request_bytes("GET", ready), log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
            )
        try:
            self.start_s = wait_until(self._is_ready, START_S)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Server:
        """Return itself."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Stop."""
        self.stop()

    def processes(self) -> list[int]:
        """Return the ids of its processes."""
        return family(self._process.pid)

    def memory_mib(self) -> float:
        """Return what all its processes hold, shared pages divided among those who share them (PSS)."""
        return sum(filter(None, map(_pss_kib, self.processes()))) / 1024

    def cpu_s(self) -> float:
        """Return the processor time of all its living processes so far."""
        return sum(_cpu_ticks(pid) for pid in self.processes()) / TICKS

    def tail(self) -> str:
        """Return the end of what it printed."""
        return self._log.read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """End all its processes: politely first, after some seconds at once."""
        members = self.processes()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                members = self.processes()
                self._process.kill()
                self._process.wait()
        for pid in members:
            _kill(pid)

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"ended with {self._process.returncode} before it was ready:\n{self.tail()}")
        try:
            connection = Connection(self.port)
        except OSError:
            return False
        try:
            return connection.ask(self._ready)[0] == 200
        except OSError:
            return False
        finally:
            connection.close()


def family(leader: int) -> list[int]:
    """Return a process's id, those of all its descendants, and of all members of its session."""
    parents = {pid: fields for pid in _all_processes() if (fields := _stat(pid))}
    members = {leader} if leader in parents else set()
    while (
        added := {pid for pid, fields in parents.items() if int(fields[1]) in members or int(fields[3]) == leader}
        - members
    ):
        members |= added
    return sorted(members)


def _all_processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; nothing where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_ticks(pid: int) -> int:
    return sum(map(int, _stat(pid)[11:13]))


def _pss_kib(pid: int) -> int:
    try:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(row.split()[1]) for row in rows if row.startswith("Pss:")), 0)


def _kill(pid: int) -> None:
    end = time.monotonic() + 2
    try:
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < end:
            os.kill(pid, 0)
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
