"""Several processes as one service: ``vae serve`` with two workers, and small servers without a model."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from service_pictures import PNG, ink, png
from service_process import Server, environment, free_port, refused_start
from test_server import SAFETY_S, Process, request

from app import workers
from app.settings import Settings
from app.tally import Tally, shared
from model.checkpoint import resolve

TESTS = Path(__file__).parent


def workers_of(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SAFETY_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_deaf_to_sighup(pid: int) -> bool:
    """Return whether a process has SIGHUP blocked: it is kept until somebody listens."""
    status = Path(f"/proc/{pid}/status").read_text()
    blocked = int(status.split("SigBlk:")[1].split()[0], 16)
    return bool(blocked & 1 << (signal.SIGHUP - 1))


def answers(port: int) -> float:
    """Return how many answers of /sample the service counts, over all its processes."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    found = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return sum(s.value for s in found if s.name == "vae_requests_total" and s.labels["route"] == "/sample")


def digests(server: Server) -> set[str]:
    """Return which models answer; of a connection each, so that every worker is asked."""
    return {httpx.get(f"{server.url}/model").headers["X-Model-Digest"] for _ in range(20)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("pair") / "log.txt", {"workers": 2, "drain_delay_s": 0})
    running.wait_until_ready()
    yield running
    running.end()


def test_metrics_add_up_whichever_process_answers(pair: Server) -> None:
    before = answers(pair.port)
    for _ in range(40):  # a connection each, so that both get some
        assert httpx.get(f"{pair.url}/sample?seed=1").status_code == 200
    assert {answers(pair.port) for _ in range(10)} == {before + 40}


def test_a_worker_that_is_killed_takes_only_its_connections_along_and_is_replaced(pair: Server) -> None:
    before, counted = workers_of(pair.pid), answers(pair.port)
    os.kill(before[0], signal.SIGKILL)
    statuses = [httpx.get(f"{pair.url}/sample?seed=1").status_code for _ in range(20)]
    assert statuses == [200] * 20
    until(lambda: len(workers_of(pair.pid)) == 2 and before[0] not in workers_of(pair.pid))
    assert before[1] in workers_of(pair.pid)
    assert answers(pair.port) == counted + 20  # what the dead one counted is kept
    until(lambda: pair.log.read_text().count("ready: ") == 3)
    assert httpx.post(f"{pair.url}/encode", content=png(ink()), headers=PNG).status_code == 200


def test_a_reload_reaches_every_worker(pair: Server) -> None:
    until(lambda: pair.log.read_text().count("Started server process") == 3)
    told = pair.log.read_text().count("ready: ")
    pair.process.send_signal(signal.SIGHUP)
    until(lambda: pair.log.read_text().count("ready: ") == told + 2)
    assert len(workers_of(pair.pid)) == 2


def test_a_worker_that_comes_back_with_a_new_model_makes_it_that_of_all(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    shutil.copy(resolve("mnist"), model)
    server = Server(tmp_path / "log.txt", {"workers": 2, "drain_delay_s": 0, "model": model})
    server.wait_until_ready()
    try:
        before = digests(server)
        assert len(before) == 1
        shutil.copy(resolve("fashion"), tmp_path / "new.safetensors")
        (tmp_path / "new.safetensors").rename(model)
        assert digests(server) == before  # nobody has asked for it
        dead, alive = workers_of(server.pid)
        os.kill(dead, signal.SIGKILL)
        until(lambda: server.log.read_text().count("ready: ") == 4)
        until(lambda: len(digests(server)) == 1)
        assert digests(server) != before
        assert alive in workers_of(server.pid)
        assert server.log.read_text().count("different models") == 1
    finally:
        server.end()


def test_a_wrong_model_is_told_once_and_is_exit_78() -> None:
    env = environment({"port": 0, "workers": 2, "model": "/nowhere.safetensors"})
    arguments = [sys.executable, "-m", "app.cli", "serve"]
    done = subprocess.run(arguments, env=env, cwd=TESTS.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 78
    assert (done.stdout + done.stderr).count("VAE_MODEL") == 1


def test_a_port_in_use_is_one_line_and_exit_3() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = refused_start(workers=2, port=taken.getsockname()[1])
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)


@pytest.fixture
def crew(request: pytest.FixtureRequest) -> Iterator[Process]:
    """Two small servers under one parent; ``crew.port`` is theirs."""
    given = {"workers": 2, "port": free_port(), **getattr(request, "param", {})}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VAE_")}
    environment["PYTHONPATH"] = str(TESTS.parent)
    arguments = [sys.executable, str(TESTS / "small_server.py"), json.dumps(given)]
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True) as process:
        running = Process(process)
        running.port = given["port"]
        try:
            yield running
        finally:
            process.kill()


async def at_work(crew: Process, requests: int, seconds: float) -> list["asyncio.Task[int]"]:
    """Start requests that take a while, and return when both workers have some of them inside."""
    tasks = [asyncio.create_task(request(crew.port, f"/work?{seconds}")) for _ in range(requests)]
    await asyncio.to_thread(lambda: [crew.wait_for("inside") for _ in range(requests)])
    return tasks


def test_sigterm_drains_all_workers_and_loses_no_request(crew: Process) -> None:
    async def scenario() -> None:
        tasks = await at_work(crew, 100, 1.0)
        crew.signal(signal.SIGTERM)
        assert await asyncio.gather(*tasks) == [200] * 100

    crew.wait_for("listening")
    asyncio.run(asyncio.wait_for(scenario(), SAFETY_S))
    status, messages = crew.end()
    assert (status, messages.count("stopped")) == (0, 2)


def test_a_second_signal_ends_all_at_once(crew: Process) -> None:
    crew.wait_for("listening")
    with ExitStack() as open_ones:
        for _ in range(20):
            connection = open_ones.enter_context(socket.create_connection(("127.0.0.1", crew.port)))
            connection.sendall(b"GET /work?60 HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(20):
            crew.wait_for("inside")
        crew.signal(signal.SIGTERM)
        crew.wait_for("draining")
        crew.signal(signal.SIGTERM)
        assert crew.end()[0] == 128 + signal.SIGTERM


def test_workers_end_when_their_parent_is_gone(crew: Process) -> None:
    crew.wait_for("listening")
    workers = workers_of(crew.process.pid)
    crew.process.kill()
    crew.process.wait()
    until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers))
    assert crew.end()[1].count("stopped") == 2


class Told:
    """A parent whose workers are sockets, and the signals that it sends them, by process id."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.signals: list[tuple[int, int]] = []
        monkeypatch.setattr(workers.os, "kill", lambda pid, number: self.signals.append((pid, number)))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.parent = workers._Parent(Settings(), count, lambda *_: 0, self._listener, ())
        self._started = 0
        monkeypatch.setattr(self.parent, "_start", lambda index: self.start(index))
        self.found = [self.start(index) for index in range(count)]

    def start(self, index: int) -> Any:
        self._started += 1
        ours, theirs = socket.socketpair()
        worker = workers._Worker(index, self._started, ours)
        worker.far = theirs  # type: ignore[attr-defined]
        self.parent._workers[worker.pid] = worker
        self.parent._selector.register(ours, workers.selectors.EVENT_READ, worker)
        return worker

    def says(self, worker: Any, said: str) -> None:
        worker.far.sendall(said.encode())
        self.parent._hear(worker)

    def dies(self, worker: Any) -> None:
        worker.far.close()
        self.parent._replace(self.parent._workers.pop(worker.pid), -signal.SIGKILL)

    def end(self) -> None:
        self.parent._selector.close()
        for end in (self._listener, self.parent._wake, self.parent._woken):
            end.close()
        for worker in [*self.parent._workers.values(), *self.found]:
            worker.line.close()
            worker.far.close()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    with ExitStack() as stack:
        made = Told(monkeypatch, 3)
        stack.callback(made.end)
        yield made


RELOADS = {(1, signal.SIGHUP), (2, signal.SIGHUP), (3, signal.SIGHUP)}


def test_workers_that_start_with_different_models_all_load_anew(told: Told) -> None:
    for worker, digest in zip(told.found, "aab", strict=True):
        assert told.signals == []
        told.says(worker, f'"{digest}"\n')
    assert set(told.signals) == RELOADS


def test_also_a_worker_that_is_ready_last_with_the_model_of_before_loads_anew(told: Told) -> None:
    for worker in told.found:
        told.says(worker, '"a"\n')
    assert told.signals == []
    for worker in told.found:
        told.says(worker, '"b"\n')  # after a reload
    assert told.signals == []
    told.dies(told.found[1])
    told.says(told.parent._workers[4], '"a"\n')
    assert {pid for pid, _ in told.signals} == {1, 3, 4}


def test_while_it_stops_nobody_loads_anew(told: Told) -> None:
    for worker in told.found[:2]:
        told.says(worker, '"a"\n')
    told.parent._opened = told.parent._stopping = True
    told.says(told.found[2], '"b"\n')
    assert told.signals == []


def test_what_a_worker_says_may_come_in_pieces_and_the_last_words_of_a_dead_one_open_nothing(told: Told) -> None:
    for piece in ('"a"\n["VAE_', 'MODEL: wrong"', ', "2"]\n'):
        told.says(told.found[0], piece)
    assert told.found[0].digest == "a"
    assert told.found[0].problems == ["VAE_MODEL: wrong", "2"]
    told.says(told.found[1], '"a"\n')
    told.found[2].far.sendall(b'"a"\n')
    told.dies(told.found[2])
    assert not told.parent._opened
    assert told.parent._stopping  # a worker that dies before the start is over ends it


FORKS = """
import os, signal, socket, sys, time
from app.settings import Settings
from app.workers import _Parent

def work(*_):
    time.sleep(60)

parent = _Parent(Settings(), 1, work, socket.create_server(("127.0.0.1", 0)), ())
signal.signal(signal.SIGTERM, lambda number, _: parent._signals.append(number))
for index in range(20):
    parent._start(0)
    pid = next(iter(parent._workers))
    os.kill(pid, signal.SIGTERM)
    _, code = os.waitpid(pid, 0)
    parent._selector.unregister(parent._workers.pop(pid).line)
    assert os.waitstatus_to_exitcode(code) == -signal.SIGTERM
"""


def test_a_worker_that_is_told_to_end_right_after_the_fork_ends() -> None:
    subprocess.run([sys.executable, "-c", FORKS], cwd=TESTS.parent, check=True, timeout=30)


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_while_the_model_is_being_loaded_has_it_loaded_once_more(tmp_path: Path, workers: int) -> None:
    server = Server(tmp_path / "log.txt", {"drain_delay_s": 0, "workers": workers})
    try:
        until(lambda: all(is_deaf_to_sighup(pid) for pid in workers_of(server.pid) or [server.pid]))
        until(lambda: len(workers_of(server.pid)) == (workers if workers > 1 else 0))
        server.process.send_signal(signal.SIGHUP)
        server.wait_until_ready()
        until(lambda: server.log.read_text().count("ready:") == 2 * workers)
    finally:
        server.end()


@pytest.mark.parametrize("crew", [{"fails": "start"}], indirect=True)
def test_problems_that_every_worker_finds_are_told_once(crew: Process) -> None:
    status, messages = crew.end()
    assert status == 78
    assert len([message for message in messages if message.startswith("VAE_MODEL")]) == 1


def test_a_lost_device_ends_one_worker_and_another_takes_its_place(crew: Process) -> None:
    crew.wait_for("listening")
    assert asyncio.run(request(crew.port, "/device")) == 503
    assert "ended with status 70" in crew.wait_for("worker")["message"]
    crew.wait_for("starting")
    assert asyncio.run(request(crew.port, "/livez")) == 200
    crew.signal(signal.SIGTERM)
    assert crew.end()[0] == 0


@pytest.mark.parametrize("crew", [{"dies": 5}], indirect=True)
def test_a_worker_that_cannot_start_ends_the_service_with_its_status(crew: Process) -> None:
    assert crew.end()[0] == 5


def test_workers_that_keep_dying_end_the_service_with_70(crew: Process) -> None:
    crew.wait_for("listening")
    while crew.process.poll() is None:
        for pid in workers_of(crew.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    assert crew.end()[0] == 70


def test_pages_add_up_and_outlive_the_process_that_wrote_them() -> None:
    pages = shared(2)
    one, other = Tally(pages, 0), Tally(pages, 1)
    assert one.reserve(3) == other.reserve(3) == 1
    one.add(1, 2.5, also=2)
    other.add(1, 1.0)
    assert one.totals(1, 3) == other.totals(1, 3) == [3.5, 1.0, 0.0]
    heir = Tally(pages, 0)
    heir.add(heir.reserve(3), 1.0)
    assert other.totals(1, 1) == [4.5]
    other.set(3, 7)
    assert heir.totals(3, 1) == [7]
    assert heir.processes() == [os.getpid(), os.getpid()]
