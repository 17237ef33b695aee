"""Logging to stderr: one line per event, as text or as JSON, written by a thread of its own.

The event loop only puts an event into a bounded queue: a slow or stuck stderr costs lines, whose number is
logged later, and never an answer. Control characters are escaped, so that nothing a caller sends can forge a
line or steer a terminal; what looks like an API key is masked. Knows no HTTP and no settings.
"""

import copy
import json
import logging
import logging.handlers
import math
import queue
import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, TextIO

# Id of the request that is being answered; every event logged meanwhile carries it.
REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")

MAX_WAITING: Final = 10_000  # events; what comes while so many wait is dropped, and counted
MAX_CHARS: Final = 16_384  # of one message, field or traceback
STOP_S: Final = 2.0  # how long the end waits for the last lines to be written

_LIBRARIES: Final = ("uvicorn", "uvicorn.error")  # loggers whose own settings would stand in the way
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SECRET_NAME: Final = re.compile(r"authorization|api[-_]?key|password|secret|token", re.IGNORECASE)
_SECRET: Final = re.compile(
    r"""(bearer\s+|(?<![a-z0-9])(?:api[-_]?key|password|authorization)["']?\s*[:=,]\s*(?:b?["'])?(?:bearer\s+)?)"""
    r"""[^\s"',;&]+""",
    re.IGNORECASE,
)


def configure(level: str, format: str, stream: TextIO | None = None) -> Callable[[], None]:
    """Send the events of every logger, uvicorn's and Python's warnings too, to ``stream`` (default: stderr).

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        format: ``text`` or ``json``.
        stream: where lines are written.

    Returns:
        A function that writes what still waits and puts logging back as it was.
    """
    out = logging.StreamHandler(stream or sys.stderr)
    out.setFormatter(JsonLine() if format == "json" else TextLine())
    handler = _Queue(out)
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, _LIBRARIES)]
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [], True
        logger.setLevel(level.upper())
    root.handlers = [handler]
    logging.captureWarnings(True)

    def stop() -> None:
        logging.captureWarnings(False)
        for logger, handlers, number, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(number)
        handler.end()

    return stop


def configure_plainly(level: str, format: str) -> None:
    """Send the events of every logger to stderr without a thread: for a process that forks."""
    out = logging.StreamHandler()
    out.setFormatter(JsonLine() if format == "json" else TextLine())
    logging.basicConfig(level=level.upper(), handlers=[out], force=True)


class JsonLine(logging.Formatter):
    """One JSON object on one line: timestamp, level, logger, message, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        event = {
            "timestamp": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _masked(record.getMessage()),
        }
        trace = {"exception": _masked(record.exc_text)} if record.exc_text else {}
        return json.dumps(_fields(record) | event | trace)


class TextLine(logging.Formatter):
    """One line for people; a traceback follows on lines that start with a bar."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and those of a traceback."""
        fields = "".join(f" {name}={_word(value)}" for name, value in _fields(record).items())
        message = _escaped(_masked(record.getMessage()))
        line = f"{_timestamp(record)} {record.levelname:<7} {record.name}: {message}{fields}"
        trace = _masked(record.exc_text or "").splitlines()
        return "\n".join([line, *("    | " + _escaped(row) for row in trace)])


class _Queue(logging.handlers.QueueHandler):
    """Hands finished events to a thread that writes them; never waits."""

    def __init__(self, out: logging.Handler) -> None:
        self._waiting: queue.Queue[logging.LogRecord | None] = queue.Queue(MAX_WAITING)
        super().__init__(self._waiting)
        self._out, self._dropped = out, 0
        self._writer = threading.Thread(target=self._write, name="logs", daemon=True)
        self._writer.start()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return a copy that holds text alone: its arguments may change, its frames hold memory."""
        event = copy.copy(record)
        event.msg, event.args = record.getMessage().rstrip(), None
        if record.exc_info:
            event.exc_text = logging.Formatter().formatException(record.exc_info)
        event.exc_info = None
        if request_id := REQUEST_ID.get():
            vars(event).setdefault("request_id", request_id)
        return event

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def end(self) -> None:
        with suppress(queue.Full):
            self._waiting.put(None, timeout=STOP_S)
        self._writer.join(STOP_S)

    def _write(self) -> None:
        while (record := self._waiting.get()) is not None:
            self._out.handle(record)
            if dropped := self._dropped:
                self._dropped -= dropped
                text = f"{dropped} events were dropped, since they came faster than they could be written"
                self._out.handle(logging.LogRecord("app.logs", logging.WARNING, "", 0, text, None, None))


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what the event carries beside its message: the ``extra`` of the call and the request's id."""
    given = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    return {name: "***" if _SECRET_NAME.search(name) else _plain(value) for name, value in given.items()}


def _plain(value: object) -> object:
    """Return a value that is the same in every JSON parser: a text, a finite number, a boolean or null."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _masked(str(value))


def _word(value: object) -> str:
    text = _escaped(value) if isinstance(value, str) else json.dumps(value)
    return json.dumps(text) if re.search(r'[\s"=]|^$', text) else text


def _masked(text: str) -> str:
    return _SECRET.sub(r"\1***", text[:MAX_CHARS])


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
