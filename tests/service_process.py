"""A real server process for the service tests: started with given settings, watched, ended by its process id.

Knows the command line and the environment of the service, and nothing of what is inside.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
START_S = 60.0
STOP_S = 45.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(settings: dict[str, object]) -> dict[str, str]:
    """The outer environment without its ``VAE_*``, the test model where one is named, then ``settings``."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("VAE_")}
    if model := os.environ.get("VAE_TEST_MODEL"):
        env["VAE_MODEL"] = model
    env.update({f"VAE_{name.upper()}": str(value) for name, value in settings.items()})
    env["PYTHONUNBUFFERED"] = "1"
    return env


class Server:
    """One running ``vae serve``: where it listens, its settings, its process id, its log."""

    command: tuple[str, ...] = ("app.cli", "serve")

    def __init__(self, log: Path, settings: dict[str, object], flags: tuple[str, ...] = ()) -> None:
        self.port, self.settings = free_port(), settings
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self.statuses_before_ready: set[int] = set()
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.command, *flags],
                env=environment({"port": self.port, **settings}),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        self.pid = self.process.pid

    def setting(self, name: str, default: int) -> int:
        """Return a setting that was given, or what it is where none was."""
        return int(str(self.settings.get(name, default)))

    def wait_until_ready(self) -> None:
        """Return when ``/readyz`` says 200; a process that does not get there is ended, and its log is raised."""
        try:
            self._poll()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _poll(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"exit {self.process.returncode} before ready:\n{self.tail()}")
            try:
                status = httpx.get(f"{self.url}/readyz", timeout=5).status_code
            except httpx.TransportError:
                status = 0
            if status == 200:
                return
            if status:
                self.statuses_before_ready.add(status)
            time.sleep(0.05)
        raise RuntimeError(f"not ready after {START_S} s:\n{self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def terminate(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Return the exit status; a process that does not end is killed, which is reported as -9."""
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def end(self) -> None:
        """End the process as an operator does, and hold it to a clean exit and a log without a traceback."""
        self.terminate()
        status = self.wait()
        assert status == 0, f"exit status {status}:\n{self.tail()}"
        self.assert_clean_log()

    def assert_clean_log(self) -> None:
        text = self.log.read_text(errors="replace")
        assert "Traceback" not in text, f"a traceback is in the log:\n{text[-4000:]}"


def refused_start(*flags: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run a start that should end by itself within the 5 seconds of the contract; return what it said.

    On a machine that has more to do than cores to do it with, the 5 seconds count its share of them.
    """
    env = environment({"port": free_port(), **settings})
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "serve", *flags],
        env=env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    seconds = time.monotonic() - begin
    crowd = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert seconds < 5 * crowd, f"ended after {seconds:.1f} s at load factor {crowd:.1f}"
    return done
