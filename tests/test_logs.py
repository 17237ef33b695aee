import io
import json
import logging
import re
import threading
import warnings

import pytest

from app import logs

KEY = "s3cr3t-key-of-a-caller"


def written(level, format, *calls):
    """Return the lines that log calls leave; each call is given a logger."""
    stream = io.StringIO()
    stop = logs.configure(level, format, stream)
    for call in calls:
        call(logging.getLogger("app.test"))
    stop()
    return stream.getvalue().splitlines()


def test_a_text_line_has_time_level_logger_message_and_fields():
    (line,) = written("info", "text", lambda log: log.info("hello %s", "you", extra={"n": 3, "path": "a b"}))
    pattern = r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO    app\.test: hello you n=3 path="a b"'
    assert re.fullmatch(pattern, line)


def test_a_json_line_is_one_object():
    (line,) = written("info", "json", lambda log: log.warning("hello %s", "you", extra={"n": 3, "what": {"a": 1}}))
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "level": "warning",
        "logger": "app.test",
        "message": "hello you",
        "n": 3,
        "what": "{'a': 1}",
    }


def test_an_event_carries_the_id_of_its_request():
    token = logs.REQUEST_ID.set("01JABC")
    lines = written("info", "json", lambda log: log.info("one"), lambda log: log.info("two", extra={"request_id": "x"}))
    logs.REQUEST_ID.reset(token)
    assert [json.loads(line)["request_id"] for line in lines] == ["01JABC", "x"]
    assert "request_id" not in written("info", "json", lambda log: log.info("three"))[0]


def test_the_level_is_kept():
    calls = [lambda log: log.debug("d"), lambda log: log.info("i"), lambda log: log.warning("w")]
    assert [line.split(": ")[1] for line in written("warning", "text", *calls)] == ["w"]


def fail(log):
    try:
        raise ValueError("first\nsecond\x1b[2J")
    except ValueError:
        log.exception("failed")


def test_a_traceback_is_one_json_line_and_barred_text_lines():
    (line,) = written("info", "json", fail)
    assert json.loads(line)["exception"].startswith("Traceback")
    first, *rest = written("info", "text", fail)
    assert first.endswith("app.test: failed")
    assert all(line.startswith("    | ") for line in rest)
    assert "\x1b" not in "".join(rest)


@pytest.mark.parametrize("format", ["text", "json"])
def test_nothing_that_is_logged_can_forge_a_line_or_steer_a_terminal(format):
    evil = "x\r\n2026-01-01T00:00:00.000Z INFO app: all is well\x1b[2J\x00\x7f\x9b\u2028\u202e\ud800"
    lines = written("info", format, lambda log: log.info(evil), lambda log: log.info("m", extra={"field": evil}))
    assert len(lines) == 2
    assert all(re.fullmatch(r"[ -~]+", line) for line in lines)


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {KEY}",
        f"authorization: {KEY}",
        f"got x-api-key={KEY} from",
        f"(b'x-api-key', b'{KEY}')",
        f"{{'Authorization': 'Bearer {KEY}'}}",
        f"VAE_API_KEY={KEY}",
        f"GET /encode?api_key={KEY}&n=1",
    ],
)
def test_keys_are_masked_wherever_they_appear(format, text):
    def broken(log):
        try:
            raise RuntimeError(text)
        except RuntimeError:
            log.exception("it broke")

    calls = [
        lambda log: log.info(text),
        lambda log: log.info("%s", text),
        lambda log: log.info("headers", extra={"headers": {"all": text}}),
        lambda log: log.info("key", extra={"api_key": KEY, "Authorization": KEY}),
        broken,
    ]
    lines = written("info", format, *calls)
    assert KEY not in "".join(lines)
    assert "***" in lines[0]


def test_innocent_words_are_not_masked():
    text = "the file VAE_API_KEYS_FILE=/run/secrets/keys holds 2 keys; authorization is on"
    (line,) = written("info", "text", lambda log: log.info(text))
    assert line.endswith(text)


def test_values_that_json_does_not_know_become_text():
    fields = {"a": float("nan"), "b": float("inf"), "c": object, "d": b"\xff", "e": None, "f": 1.5, "g": True}
    (line,) = written("info", "json", lambda log: log.info("m", extra=fields))
    event = json.loads(line, parse_constant=pytest.fail)
    assert (event["a"], event["b"], event["e"], event["f"], event["g"]) == ("nan", "inf", None, 1.5, True)


def test_an_event_cannot_overwrite_its_own_level_or_message():
    extra = {"level": "none", "timestamp": "never", "exception": "none", "logger": "x"}
    (line,) = written("info", "json", lambda log: log.error("m", extra=extra))
    assert json.loads(line)["level"] == "error"
    assert json.loads(line)["timestamp"] != "never"


def test_uvicorns_loggers_and_pythons_warnings_are_included():
    stream = io.StringIO()
    stop = logs.configure("info", "json", stream)
    logging.getLogger("uvicorn.error").info("Shutting down", extra={"color_message": "\x1b[1m"})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    stop()
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["logger"], first["message"]) == ("uvicorn.error", "Shutting down")
    assert "color_message" not in first
    assert "DeprecationWarning: old" in second["message"]


class Stuck(io.StringIO):
    """A stream whose reader has stopped reading."""

    def __init__(self):
        super().__init__()
        self.free = threading.Event()

    def write(self, text):
        assert self.free.wait(30)
        return super().write(text)


def test_a_stuck_stderr_blocks_nobody_and_the_lost_lines_are_counted(monkeypatch):
    monkeypatch.setattr(logs, "MAX_WAITING", 10)
    stream = Stuck()
    stop = logs.configure("info", "text", stream)
    for i in range(100):
        logging.getLogger("app").info("event %d", i)
    stream.free.set()
    stop()
    lines = stream.getvalue().splitlines()
    kept = [line for line in lines if ": event " in line]
    (dropped,) = [line for line in lines if "dropped" in line]
    assert 10 <= len(kept) <= 12
    assert f"app.logs: {100 - len(kept)} events were dropped" in dropped


def test_the_end_does_not_wait_for_a_stuck_stderr(monkeypatch):
    monkeypatch.setattr(logs, "STOP_S", 0.01)
    stream = Stuck()
    stop = logs.configure("info", "text", stream)
    logging.getLogger("app").info("event")
    stop()
    stream.free.set()


def test_afterwards_logging_is_as_it_was():
    root = logging.getLogger()
    before = (root.handlers, root.level, logging.getLogger("uvicorn").level)
    written("debug", "json", lambda log: log.info("m"))
    assert (root.handlers, root.level, logging.getLogger("uvicorn").level) == before
    assert not [thread for thread in threading.enumerate() if thread.name == "logs"]
