import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest
from crowds import NPY_BOTH, gated
from guard_fakes import GET, refusal
from load_client import request as written
from service_pictures import ink, npy

TESTS = Path(__file__).parent
SAFETY_S = 30


class Process:
    """A running ``small_server.py``: its port, its log, its end."""

    def __init__(self, process):
        self.process, self.events = process, []

    def wait_for(self, text):
        """Read the log until an event's message starts with ``text``; return the event."""
        for line in self.process.stderr:
            self.events.append(json.loads(line))
            if self.events[-1]["message"].startswith(text):
                return self.events[-1]
        raise AssertionError(f"the log ended without {text!r}: {self.events}")

    def wait_for_inside(self, requests):
        while self.wait_for("inside")["inside"] < requests:
            pass

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        """Return the exit status and the messages of the whole log."""
        self.process.wait(SAFETY_S)
        rest = self.process.stderr.read()
        self.events += [json.loads(line) for line in rest.splitlines()]
        return self.process.returncode, [event["message"] for event in self.events]


@contextmanager
def running(until="listening", **given):
    """Run the small server with settings and faults, up to a message in its log."""
    arguments = [sys.executable, str(TESTS / "small_server.py"), json.dumps(given)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VAE_")}
    environment["PYTHONPATH"] = str(TESTS.parent)
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            server = Process(process)
            message = server.wait_for(until)["message"]
            server.port = int(message.rpartition(":")[2]) if until == "listening" else None
            yield server
        finally:
            process.kill()


async def request(port, path, head=b""):
    """Return the status of one request; ``ConnectionError`` or ``IncompleteReadError`` where it got none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET " + path.encode() + b" HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return int(answer.split()[1])


def ask(server, path):
    return asyncio.run(asyncio.wait_for(request(server.port, path), SAFETY_S))


@pytest.mark.parametrize("delay_s", [0, 0.5])
def test_at_sigterm_two_hundred_requests_in_flight_are_all_answered(delay_s):
    async def flight(server):
        requests = [asyncio.create_task(request(server.port, "/work?0.5")) for _ in range(200)]
        await asyncio.to_thread(server.wait_for_inside, 1)  # some are inside, some in the kernel's hands
        await asyncio.sleep(0.02)
        server.signal(signal.SIGTERM)
        return await asyncio.gather(*requests)

    with running(drain_delay_s=delay_s) as server:
        statuses = asyncio.run(asyncio.wait_for(flight(server), SAFETY_S))
        assert statuses == [200] * 200
        status, messages = server.end()
        assert status == 0
        assert "stopped" in messages


def test_a_drain_reports_not_ready_then_refuses_then_ends():
    async def scenario(server):
        work = asyncio.create_task(request(server.port, "/work?0.8"))
        await asyncio.to_thread(server.wait_for_inside, 1)
        assert await request(server.port, "/readyz") == 200
        server.signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait_for, "draining")
        assert await request(server.port, "/readyz") == 503
        assert await request(server.port, "/livez") == 200
        assert await request(server.port, "/work?0") == 200  # the balancer has not looked away yet
        await asyncio.to_thread(server.wait_for, "refusing")
        assert await request(server.port, "/work?0") == 503
        assert await request(server.port, "/livez") == 200
        assert await work == 200

    with running() as server:
        asyncio.run(asyncio.wait_for(scenario(server), SAFETY_S))
        status, messages = server.end()
        assert status == 0
        assert "stopped" in messages


def test_half_sent_requests_and_idle_connections_do_not_block_the_exit():
    halves = [b"", b"GET /wo", b"POST /work HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"]
    with running(drain_s=0.2) as server:
        connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in halves]
        for connection, half in zip(connections, halves, strict=True):
            connection.sendall(half)
        assert ask(server, "/livez") == 200
        server.signal(signal.SIGTERM)
        status, messages = server.end()
        assert status == 0
        assert not [event for event in server.events if "exception" in event]
        assert "stopped" in messages
        answers = []
        for connection in connections:
            connection.settimeout(SAFETY_S)
            answers.append(connection.recv(1000))
            connection.close()
        assert answers[:2] == [b"", b""]
        assert answers[2].startswith(b"HTTP/1.1 503")


def test_a_request_longer_than_the_drain_is_answered_with_503():
    async def scenario(server):
        work = asyncio.create_task(request(server.port, "/work?60"))
        await asyncio.to_thread(server.wait_for_inside, 1)
        server.signal(signal.SIGINT)
        assert await work == 503

    with running(drain_s=0.2, drain_delay_s=0) as server:
        asyncio.run(asyncio.wait_for(scenario(server), SAFETY_S))
        status, _ = server.end()
        assert status == 0
        assert not [event for event in server.events if "exception" in event]


def test_a_request_cut_at_the_end_of_the_drain_gets_what_every_other_refusal_has(tmp_path):
    server = gated(tmp_path, drain_s=0.2)
    digest = httpx.get(f"{server.url}/model").json()["digest"]
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(SAFETY_S)
        connection.sendall(written("POST", "/encode", NPY_BOTH | {"x-request-id": "mine"}, npy(ink())))
        time.sleep(0.3)
        server.terminate()
        answer = HTTPResponse(connection)
        answer.begin()
        body = json.loads(answer.read())
    server.open()
    assert server.wait() == 0
    server.assert_clean_log()
    assert (answer.status, body["code"], body["request_id"]) == (503, "draining", "mine")
    wanted = {"x-request-id": "mine", "x-model-digest": digest, "cache-control": "no-store"}
    wanted |= {"x-content-type-options": "nosniff", "content-type": "application/problem+json"}
    assert {name: answer.getheader(name) for name in wanted} == wanted


def test_what_is_no_request_is_not_worth_a_line_of_the_log():
    with running() as server:
        for data in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.settimeout(SAFETY_S)
                connection.sendall(data)
                assert connection.recv(1000).startswith(b"HTTP/1.1 400")
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0
        assert not [event for event in server.events if event["level"] == "warning"]


def test_a_second_signal_ends_at_once():
    with running(drain_s=60, drain_delay_s=60) as server:
        server.signal(signal.SIGTERM)
        server.wait_for("draining")
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 128 + signal.SIGTERM


def test_a_signal_during_the_start_ends_it_cleanly():
    with running(until="starting", fails="slow") as server:
        server.signal(signal.SIGTERM)
        status, messages = server.end()
        assert status == 0
        assert "stopped" in messages


def test_a_port_in_use_is_one_line_and_exit_3():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = [sys.executable, str(TESTS / "small_server.py"), json.dumps({"port": port})]
        environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
        ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=SAFETY_S)
    assert ended.returncode == 3
    assert ended.stderr == f"cannot listen on 127.0.0.1 port {port}: Address already in use\n"


@pytest.mark.parametrize("host", ["x" * 100, "203.0.113.1"])
def test_an_address_that_is_not_ours_is_one_line_and_exit_3(host):
    arguments = [sys.executable, str(TESTS / "small_server.py"), json.dumps({"host": host})]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=SAFETY_S)
    assert ended.returncode == 3
    assert len(ended.stderr.splitlines()) == 1


def test_an_application_that_cannot_start_is_one_line_per_problem_and_exit_78():
    with running(until="VAE_MODEL", fails="start") as server:
        status, messages = server.end()
        assert status == 78
        assert messages == ["starting", "VAE_MODEL: got 'x'; no such file", "VAE_DEVICE: got 'cuda'; there is none"]


def test_a_lost_device_ends_the_process_with_the_status_of_the_service():
    with running() as server:
        assert ask(server, "/device") == 503
        status, messages = server.end()
        assert status == 70
        assert "stopped" in messages


@pytest.mark.parametrize(("fails", "message"), [("", "reloaded"), ("reload", "the reload failed")])
def test_sighup_reloads_and_a_failure_changes_nothing(fails, message):
    with running(fails=fails) as server:
        server.signal(signal.SIGHUP)
        server.wait_for(message)
        assert ask(server, "/livez") == 200
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0


@pytest.mark.parametrize(("host", "warnings"), [("0.0.0.0", 1), ("0", 1), ("127.0.0.1", 0), ("localhost", 0)])
def test_an_address_that_others_reach_without_keys_is_a_warning_whatever_its_name(host, warnings):
    with running(host=host) as server:
        said = [event["message"] for event in server.events if event["level"] == "warning"]
        assert len(said) == warnings
        assert all("everybody" in message for message in said)


def test_too_many_connections_for_the_limit_of_open_files_is_a_warning_and_a_lower_cap():
    script = f"ulimit -n 300; exec {sys.executable} {TESTS / 'small_server.py'} '{{\"max_connections\": 5000}}'"
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    with subprocess.Popen(["sh", "-c", script], env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            server = Process(process)
            assert "only 300 files" in server.wait_for("VAE_MAX_CONNECTIONS")["message"]
        finally:
            process.kill()


def test_one_connection_too_many_is_refused_and_there_is_room_again_later():
    def rest(connection):
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))

    with running(max_connections=2) as server:
        address = ("127.0.0.1", server.port)
        kept = [socket.create_connection(address, SAFETY_S) for _ in range(2)]
        for connection in kept:
            connection.sendall(GET)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        with socket.create_connection(address, SAFETY_S) as connection:
            assert refusal(rest(connection)) == (503, "too_many_connections")
        server.wait_for("rejected: too_many_connections")
        for connection in kept:
            connection.close()
        end, status = time.monotonic() + SAFETY_S, 503
        while status == 503 and time.monotonic() < end:
            status = ask(server, "/work?0")
        assert status == 200
