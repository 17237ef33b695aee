"""Several processes as one service: one port, one stop, one set of metrics.

The parent takes the port and forks the workers before anything large is imported. It answers nothing itself and has no
threads, so it can fork another worker whenever one dies. Knows processes and signals, no HTTP and no model.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from app import logs, tally
from app.cores import usable_cores
from app.listening import EXIT_NO_PORT, listen, url
from app.settings import Settings, read_api_keys

EXIT_FAULT: Final = 70  # EX_SOFTWARE of sysexits.h
MOST_DEATHS: Final = 10  # of workers in DEATHS_S seconds: more are no accident
DEATHS_S: Final = 60.0
LEAD: Final = 2  # connections by which a worker may be ahead of another one, or an eighth
CLOSED: Final = -1
PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
OPEN: Final = b"o"
log = logging.getLogger("vae")


@dataclass(frozen=True)
class Crew:
    """What a worker is told of the service that it is part of.

    Attributes:
        index: its place, from 0; who takes the place of a dead one has the same.
        count: number of workers.
        pages: where all of them count.
        keys: the keys that open the service, read once for all.
        line: to the parent: says that it is ready, hears when to accept connections, and ends with the parent.
        connections: of each worker, as it told last; ``CLOSED`` for one that accepts none.
    """

    index: int
    count: int
    pages: mmap.mmap
    keys: tuple[bytes, ...]
    line: socket.socket
    connections: memoryview

    def is_ahead(self, own: int) -> bool:
        """Tell the others how many connections this worker has; return whether it should leave the next to them."""
        self.connections[self.index] = own
        others = [held for i, held in enumerate(self.connections) if i != self.index and held != CLOSED]
        return bool(others) and own >= min(others) + max(LEAD, min(others) // 8)

    def share(self, limit: int) -> int:
        """Return one worker's part of a limit of the service, rounded up."""
        return -(-limit // self.count)

    def accept_none(self) -> None:
        """Tell the others that this worker accepts no more connections."""
        self.connections[self.index] = CLOSED

    def say_loaded(self, digest: str | None) -> None:
        """Tell the parent which model is in force from now on; the first time that means: ready."""
        self.line.sendall(json.dumps(digest).encode() + b"\n")

    def say_problems(self, problems: list[str]) -> None:
        """Tell the parent why this worker cannot start; it says so once, however many find the same."""
        self.line.sendall(json.dumps(problems).encode() + b"\n")


@dataclass
class _Worker:
    """A running worker, as the parent sees it."""

    index: int
    pid: int
    line: socket.socket
    ready: bool = False
    digest: str | None = None  # of its model
    unheard: bytes = b""  # the beginning of a line
    problems: list[str] = field(default_factory=list)


Work = Callable[[Settings, socket.socket, Crew], int]


def supervise(settings: Settings, work: Work) -> int:
    """Serve with ``settings.workers`` until a signal, or until they cannot live; return the exit status.

    0 after a drain, 3 without a port, that of a worker which could not start (78: settings or model), 70 where workers
    keep dying. SIGTERM and SIGINT let all drain, a second one ends them at once; SIGHUP lets all reload.

    Args:
        settings: of the service; each worker is given its share of the cores.
        work: what a worker does: settings, listening socket, crew -> exit status.
    """
    count, listener = settings.workers, listen(settings.host, settings.port)
    if listener is None:
        return EXIT_NO_PORT
    logs.configure_plainly(settings.log_level, settings.log_format)
    streams = settings.streams or max(1, usable_cores() // count)
    keys = read_api_keys(settings.api_keys_file) if settings.api_keys_file else ()
    return _Parent(settings.model_copy(update={"streams": streams}), count, work, listener, keys).run()


class _Parent:
    """Starts workers, passes signals on, replaces the dead, and counts how they ended."""

    def __init__(
        self, settings: Settings, count: int, work: Work, listener: socket.socket, keys: tuple[bytes, ...]
    ) -> None:
        self._settings, self._count, self._work, self._listener, self._keys = settings, count, work, listener, keys
        self._pages = tally.shared(count)
        self._connections = memoryview(mmap.mmap(-1, 8 * count)).cast("q")
        self._workers: dict[int, _Worker] = {}  # by process id
        self._deaths: deque[float] = deque(maxlen=MOST_DEATHS)
        self._missing: list[int] = []  # places that stay empty until the next reload
        self._opened = self._stopping = False  # all were ready once; all are to end
        self._status = 0
        self._signals: deque[int] = deque()
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Live until the last worker has ended; return the exit status."""
        for end in (self._wake, self._woken):
            end.setblocking(False)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        for number in (*PASSED_ON, signal.SIGCHLD):
            signal.signal(number, lambda number, _frame: self._signals.append(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        self._selector.register(self._wake, selectors.EVENT_READ)
        for index in range(self._count):
            self._start(index)
        while self._workers:
            for key, _ in self._selector.select():
                if isinstance(key.data, _Worker):
                    self._hear(key.data)
                else:
                    self._wake.recv(4096)
            while self._signals:
                self._obey(self._signals.popleft())
        return self._status

    def _start(self, index: int) -> None:
        ours, theirs = socket.socketpair()
        self._connections[index] = CLOSED
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # none may find this process's handlers in the worker
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._live(Crew(index, self._count, self._pages, self._keys, theirs, self._connections))
        theirs.close()
        worker = self._workers[pid] = _Worker(index, pid, ours)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)

    def _live(self, crew: Crew) -> None:
        """Be a worker, and never return."""
        status = EXIT_FAULT
        try:
            os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which passes it on
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)  # until the server has its own
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})  # it lets SIGHUP in itself
            for other in (self._wake, self._woken, *(worker.line for worker in self._workers.values())):
                other.close()
            self._selector.close()
            status = self._work(self._settings, self._listener, crew)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _hear(self, worker: _Worker) -> None:
        """Take what a worker says; when the last one is ready, let all accept connections."""
        told = b""
        with suppress(ConnectionError):
            told = worker.line.recv(65_536)
        if not told:
            self._selector.unregister(worker.line)
        *lines, worker.unheard = (worker.unheard + told).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if isinstance(said, list):
                worker.problems += said
            elif worker.pid in self._workers:  # it is still alive
                self._note_model(worker, said)

    def _note_model(self, worker: _Worker, digest: str | None) -> None:
        """Take note of a worker's model; with the first one it is ready, and the service must have one model."""
        is_new, worker.ready, worker.digest = not worker.ready, True, digest
        if is_new:
            self._open([worker] if self._opened else list(self._workers.values()))
            self._align()

    def _align(self) -> None:
        """Let all load anew where not all have found the same model: some of them may be gone."""
        ready = [worker for worker in self._workers.values() if worker.ready]
        if self._stopping or not self._opened or len({worker.digest for worker in ready}) == 1:
            return
        log.warning("the workers have found different models in the file: all load it anew")
        for worker in ready:
            os.kill(worker.pid, signal.SIGHUP)

    def _open(self, workers: list[_Worker]) -> None:
        """Let workers accept connections, at first when all are ready: a port that answers has its full strength."""
        if self._stopping or not all(worker.ready for worker in workers):
            return
        if not self._opened:
            log.info("listening on %s with %d workers", url(self._listener), self._count)
            self._opened = True
        for worker in workers:
            with suppress(ConnectionError):
                worker.line.sendall(OPEN)

    def _obey(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._bury()
        elif number == signal.SIGHUP:
            self._tell_all(number)
            missing, self._missing = self._missing, []
            for index in missing:
                self._start(index)
        elif self._stopping:
            self._tell_all(signal.SIGKILL)
            self._status = 128 + number
        else:
            self._stop()

    def _stop(self) -> None:
        self._stopping = True
        self._listener.close()
        self._tell_all(signal.SIGTERM)

    def _tell_all(self, number: int) -> None:
        for pid in self._workers:
            os.kill(pid, number)

    def _bury(self) -> None:
        """Take note of every worker that ended, and put another one in its place where that helps."""
        for pid in list(self._workers):
            ended, code = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._replace(self._workers.pop(pid), os.waitstatus_to_exitcode(code))

    def _replace(self, worker: _Worker, status: int) -> None:
        while worker.line in self._selector.get_map():
            self._hear(worker)  # its last words, and the end of the line
        worker.line.close()
        fault = status if status > 0 else EXIT_FAULT  # ended by a signal, or without being asked to
        if self._stopping:
            self._status = self._status or (0 if status in (0, -signal.SIGTERM) else fault)
            return
        for problem in worker.problems:
            log.critical("%s", problem)
        log.error("worker %d (process %d) ended with status %d", worker.index, worker.pid, status)
        now = time.monotonic()
        self._deaths.append(now)
        if not self._opened or (len(self._deaths) == MOST_DEATHS and now - self._deaths[0] < DEATHS_S):
            self._status = fault
            self._stop()
        elif worker.problems:  # another one would find the same: the others go on alone
            self._missing.append(worker.index)
            self._status = fault if not self._workers else 0
        else:
            self._start(worker.index)
