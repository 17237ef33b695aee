"""The measuring instruments: what they count, what they leave out, what they write. No test looks at a clock."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import report
from bench.chart import Bar, bars
from bench.client import Connection, closed_loop, closed_threads, open_loop, percentile, poisson, request_bytes
from bench.contenders import check, own, peers
from bench.goals import goals
from bench.nll_over_http import log_bernoulli, log_normal, read_npy
from bench.pictures import npy
from bench.processes import ROOT, family
from bench.rows import OURS, closed, spread
from bench.steady import figures, holds

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"


@contextmanager
def answering(answers: list[bytes]) -> Iterator[int]:
    """Answer every request, one after the other on any connection, with the next of the answers, in halves."""
    listener, lock, count = socket.create_server(("127.0.0.1", 0)), threading.Lock(), [0]

    def serve(connection: socket.socket) -> None:
        with connection:
            while connection.recv(65536):
                with lock:
                    answer = answers[count[0] % len(answers)]
                    count[0] += 1
                connection.sendall(answer[:20])
                connection.sendall(answer[20:])

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_a_client_reads_whole_answers_that_come_in_pieces() -> None:
    with answering([ANSWER]) as port:
        connection = Connection(port)
        assert connection.ask(request_bytes("GET", "/")) == (200, b"ok")
        assert connection.ask(request_bytes("GET", "/")) == (200, b"ok")
        connection.close()


def test_an_answer_longer_than_the_buffer_is_read_whole_and_the_next_one_is_not_mixed_with_it() -> None:
    body = bytes(range(256)) * 1_000
    long = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with answering([long, ANSWER, REFUSAL, long]) as port:
        connection = Connection(port)
        got = [connection.ask(b"GET / HTTP/1.1\r\n\r\n") for _ in range(4)]
        connection.close()
    assert got == [(200, body), (200, b"ok"), (429, b""), (200, body)]


@pytest.mark.parametrize("loop", [closed_loop, closed_threads])
def test_a_closed_loop_counts_answers_and_errors(loop: Any) -> None:
    with answering([ANSWER, REFUSAL]) as port:
        times = loop(port, [request_bytes("GET", "/")], 3, 0.05)
    assert len(times.latencies) >= 3
    assert 0 < times.errors < len(times.latencies)
    assert min(times.latencies) > 0


def test_a_closed_loop_of_threads_counts_neither_its_beginning_nor_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sent, send = list[bytes](), Connection.send
    monkeypatch.setattr(Connection, "send", lambda self, request: (sent.append(request), send(self, request)))
    with answering([ANSWER]) as port:
        times = closed_threads(port, [request_bytes("GET", "/")], 3, 0.1)
    assert 3 <= len(times.latencies) < len(sent)
    assert times.seconds >= 0.1


def test_a_closed_loop_of_threads_ends_where_a_server_hangs_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hanging_up = threading.Thread(target=lambda: [listener.accept()[0].close() for _ in range(3)])
        hanging_up.start()
        with pytest.raises(ConnectionError):
            closed_threads(listener.getsockname()[1], [request_bytes("GET", "/")], 3, 60)
        hanging_up.join()


def test_an_open_loop_sends_what_was_due_and_measures_from_then() -> None:
    with answering([ANSWER]) as port:
        times = open_loop(port, [request_bytes("GET", "/")], 200, 0.2, seed=3)
    assert len(times.latencies) == len(times.late) == len(poisson(200, 0.2, 3))
    assert min(times.late) >= 0
    assert times.errors == 0


def test_a_schedule_repeats_ascends_and_has_its_rate() -> None:
    due = poisson(1000, 10, 7)
    assert due == poisson(1000, 10, 7) == sorted(due)
    assert len(due) == pytest.approx(10_000, abs=500)
    assert due[-1] < 10


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (0.0, 0.2, 0.5, 0.99, 1.0)] == [1, 1, 3, 5, 5]


def test_the_family_of_a_process_holds_itself() -> None:
    assert os.getpid() in family(os.getpid())
    assert family(2**30) == []


def test_a_wrong_answer_is_found_before_anything_is_timed() -> None:
    contender, mu, sigma = own("it"), np.array([[0.5, -1.0]]), np.array([[0.5, 0.1]])
    right = json.dumps({"mu": mu.tolist(), "sigma": sigma.tolist()}).encode()
    assert check(contender, [right], (mu, sigma)) == (0.0, 0.0)
    for wrong in ({"mu": [[0.5, -1.01]], "sigma": sigma.tolist()}, {"mu": mu.tolist(), "sigma": [[0.5, 0.11]]}):
        with pytest.raises(ValueError, match="answers wrongly"):
            check(contender, [json.dumps(wrong).encode()], (mu, sigma))


def test_every_peer_has_a_list_of_what_its_environment_holds() -> None:
    for contender in [*peers("plain"), *peers("ours")]:
        assert contender.peer is not None
        assert (ROOT / "bench" / "peers" / f"{contender.peer}.txt").is_file()
        assert contender.request(b"PNG").startswith(b"POST /")


def some_round(factor: float) -> dict[str, Any]:
    """A round in which this service takes 1000 requests a second, times the factor, and MLServer 100."""

    def one(rate: float) -> dict[str, Any]:
        figures = {"per_second": rate, "p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 3.0, "cpu_ms": 0.5, "errors": 0}
        return {
            "closed": {str(n): figures for n in (1, 8, 32, 128)},
            "open_300": figures,
            "open_half": figures,
            "memory_mib": 300.0,
            "start_s": 2.0,
        }

    turns = {"encode": {"http": 90.0, "limit_32": 80.0 + factor, "limit_64": 100.0}}
    return {OURS: one(1000 * factor), "MLServer": one(100.0), "BentoML": {"failed": "no"}, "bulk in turn": turns}


def test_figures_are_medians_with_their_range_and_ratios_are_taken_in_a_round() -> None:
    rounds = [some_round(1.0), some_round(4.0), some_round(2.0)]
    found = spread(rounds, closed(OURS, 32))
    assert found == (2000, 1000, 4000)
    assert found is not None
    assert found.text() == "2,000 (1,000–4,000)"
    rows = {row[0]: row[1:] for row in goals(rounds)}
    assert rows["default precision against the best peer, 32 connections"] == ("20.00 (10.00–40.00) ×", "≥ 4 ×", "yes")
    assert rows["fp32 against the best peer, 32 connections"] == ("–", "≥ 2 ×", "–")
    assert rows["start to ready"] == ("2.00 s", "≤ 3 s", "yes")
    assert rows["share of the limit, `/encode` npy of 512"] == ("0.90 ×", "≥ 0.9 ×", "yes")
    assert rows["share of the limit, `/decode` npy of 512"] == ("–", "≥ 0.9 ×", "–")


def test_the_report_writes_table_and_chart_between_its_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"processor": "P", "family": "1.2", "features": [], "cores": 2, "memory_gib": 4, "gpu": None}
    facts |= {"python": "3", "torch": "2", "date": "today", "load_before": 0.0}
    document = {"machine": facts, "plan": {"seconds": 3}, "versions": {"mlserver": "1"}, "rounds": [some_round(1.0)]}
    page, drawn = tmp_path / "page.md", tmp_path / "chart.svg"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "CHART", drawn)
    report.write(document)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| vae-service | 1,000 | 1,000 | 1,000 | 1,000 | 1.0 / 3.0 |" in text
    assert "1,000" in drawn.read_text()
    report.write(document)
    assert page.read_text() == text


def test_a_chart_escapes_its_texts_and_keeps_to_its_width() -> None:
    svg = bars("a < b", [Bar("x & y", 10, 5, 20, "ours"), Bar("z", 1, 1, 1, "peer")], "note")
    assert "a &lt; b" in svg
    assert "x &amp; y" in svg
    assert svg.endswith("</svg>\n")


def test_the_clients_densities_are_those_of_the_formulas() -> None:
    targets = np.array([[[[1, 0]]]], np.uint8)
    p = np.array([[[0.25, 0.25], [1.0, 1.0], [0.0, 0.0]]], np.float32)
    got = log_bernoulli(targets, p)[0]
    assert got[0] == pytest.approx(np.log(0.25) + np.log(0.75))
    assert np.isfinite(got).all()
    assert got[1] == pytest.approx(np.log(2.0**-25))
    z = np.array([[1.0, -1.0]])
    assert log_normal(z, 0.0, 1.0)[0] == pytest.approx(-1.0 - np.log(2 * np.pi))


def test_an_array_answer_is_read_as_it_was_written() -> None:
    array = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    assert np.array_equal(read_npy(npy(array)), array)
    assert np.array_equal(read_npy(npy(array[0, 0])), array[0, 0])


@pytest.mark.parametrize(
    ("memory", "p99", "errors", "steady"),
    [(0.0, 0.0, 0, True), (1.0, 0.0, 0, False), (0.0, 100.0, 0, False), (0.0, 0.0, 1, False)],
)
def test_growing_memory_growing_latencies_and_errors_are_told_from_a_steady_server(
    memory: float, p99: float, errors: int, steady: bool
) -> None:
    stretches = [
        {
            "requests": 10,
            "errors": errors,
            "per_second": 5,
            "p50_ms": 1,
            "p99_ms": 300 + i * p99,
            "memory_mib": 400 + i * memory,
        }
        for i in range(20)
    ]
    result = figures(stretches)
    assert result["minutes"] == 10
    assert result["memory slope, MiB an hour"] == pytest.approx(120 * memory, abs=1e-6)
    assert holds(result) is steady
