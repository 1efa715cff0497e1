# SPDX-License-Identifier: GPL-3.0-only
"""Log to standard error as text or JSON: structlog over the standard library's logging.

Logging never waits for the reader of standard error: records go through a bounded queue to one
thread, and what does not fit is counted. Prompts and generated texts are logged at `debug` only.

    with logging_to_stderr("info", "json"):
        log = get_logger("modeld.scheduler")
        log.info("model loaded", model="tiny.gguf", seconds=1.2)
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Generator, Mapping, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO, cast

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger, Processor

from modeld.quotas.client import redacted
from modeld.telemetry.line_writer import QUEUE_RECORDS, LogWriter

# ----------------------------------------------------------------------
# How a log record looks: a line for people, or one JSON object. No key gets past here, whoever logs it.


def _level_name(record: logging.LogRecord) -> str:
    return "warn" if record.levelno == logging.WARNING else record.levelname.lower()


def _traceback(record: logging.LogRecord) -> str | None:
    return logging.Formatter().formatException(record.exc_info) if record.exc_info else None


def render_json(record: logging.LogRecord) -> str:
    """Return one JSON object on one line: timestamp (UTC, ISO 8601), level, event, logger, fields."""
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    line: dict[str, object] = {
        "timestamp": at.replace("+00:00", "Z"),
        "level": _level_name(record),
        "event": record.getMessage(),
        "logger": record.name,
    }
    for name, value in _fields(record).items():
        line[f"{name}_" if name in line else name] = value
    if trace := _traceback(record):
        line["exception"] = trace
    try:
        return redacted(msgspec.json.encode(line, enc_hook=str).decode())
    except (TypeError, ValueError, OverflowError, RecursionError):
        plain = {key: ascii(value)[:1000] for key, value in line.items()}
        return redacted(msgspec.json.encode(plain).decode())


_QUOTED = frozenset(' "=')
"""Values with one of these are quoted."""
_COLOURS = {"error": "31", "critical": "31", "warn": "33", "info": "32", "debug": "34"}


def render_text(record: logging.LogRecord, *, colours: bool = False) -> str:
    """Return one line for people; what a client sent cannot break it. A traceback follows indented."""
    at = datetime.fromtimestamp(record.created).astimezone().isoformat(" ", "milliseconds")[:23]
    level = _level_name(record)
    painted = f"\x1b[{_COLOURS.get(level, '0')}m{level:<5}\x1b[0m" if colours else f"{level:<5}"
    words = [at, painted, printable(record.getMessage())]
    words += [f"{name}={_quoted(value)}" for name, value in _fields(record).items()]
    words.append(f"[{record.name}]")
    trace = _traceback(record)
    tail = "".join(f"\n    {printable(line)}" for line in trace.splitlines()) if trace else ""
    return redacted(" ".join(words) + tail)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    return cast("Mapping[str, object]", getattr(record, "fields", {}))


def printable(text: str) -> str:
    """Return the text on one line, with nothing that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _quoted(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if text and text.isprintable() and _QUOTED.isdisjoint(text):
        return text
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


# ----------------------------------------------------------------------

LEVELS: Mapping[str, int] = {
    "off": logging.CRITICAL + 10,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}
_REQUEST_LEVELS: Mapping[str, str] = {"1": "debug", "warning": "warn"}

_Fields = MutableMapping[str, object]


class _Sink:
    """What structlog calls last: hands the event to the standard library, past its level check."""

    def __init__(self, name: str = "modeld", *_: object) -> None:
        self.name = name

    def _emit(self, level: int, fields: _Fields) -> None:
        event = str(fields.pop("event", ""))
        raised = fields.pop("exc_info", None)
        error = raised if isinstance(raised, BaseException) else sys.exc_info()[1] if raised else None
        exc_info = (type(error), error, error.__traceback__) if error is not None else None
        record = logging.LogRecord(self.name, level, "", 0, event, (), exc_info)
        record.fields = fields
        logging.getLogger(self.name).handle(record)

    def debug(self, fields: _Fields) -> None:
        """Take an event of level debug."""
        self._emit(logging.DEBUG, fields)

    def info(self, fields: _Fields) -> None:
        """Take an event of level info."""
        self._emit(logging.INFO, fields)

    def warning(self, fields: _Fields) -> None:
        """Take an event of level warning."""
        self._emit(logging.WARNING, fields)

    def error(self, fields: _Fields) -> None:
        """Take an event of level error."""
        self._emit(logging.ERROR, fields)

    def critical(self, fields: _Fields) -> None:
        """Take an event of level critical."""
        self._emit(logging.CRITICAL, fields)


def _hand_over(_: object, __: str, event: _Fields) -> tuple[tuple[_Fields], dict[str, object]]:
    return (event,), {}


def _silence(_: object, __: str, ___: _Fields) -> _Fields:
    raise structlog.DropEvent


def _wrapper(level: str) -> type[FilteringBoundLogger]:
    return structlog.make_filtering_bound_logger(min(LEVELS[level], logging.CRITICAL))


def _processors(level: str) -> list[Processor]:
    first: list[Processor] = [_silence] if level == "off" else []
    return [*first, _hand_over]


def configure(level: str) -> None:
    """Set the level of everything that logs: off, error, warn, info, debug.

    Raises:
      KeyError: there is no such level.
    """
    structlog.configure(
        processors=_processors(level),
        wrapper_class=_wrapper(level),
        logger_factory=_Sink,
        cache_logger_on_first_use=False,
    )
    logging.getLogger().setLevel(LEVELS[level])


def get_logger(name: str) -> FilteringBoundLogger:
    """Return the logger of that name; it follows every later `configure`."""
    return cast("FilteringBoundLogger", structlog.get_logger(name))


def request_level(word: str | None) -> str | None:
    """Return the level that `?log=` or `X-Log-Level` names (`1` is debug), or None for an unknown one."""
    name = (word or "").strip().lower()
    name = _REQUEST_LEVELS.get(name, name)
    return name if name in LEVELS else None


def request_logger(level: str | None, name: str = "modeld.request", **fields: object) -> FilteringBoundLogger:
    """Return a logger with `fields` in each line, whose own level overrides the global one.

    None, or a word that is no level, follows the global level.
    """
    own = request_level(level)
    if own is None:
        configured = structlog.get_config()
        wrapper, processors = configured["wrapper_class"], configured["processors"]
    else:
        wrapper, processors = _wrapper(own), _processors(own)
    # As `structlog.wrap_logger(...).bind(**fields)`, by a shorter way: there is one for each request.
    made = cast("Callable[..., FilteringBoundLogger]", wrapper)
    return made(_Sink(name), processors=processors, context=fields)


class _Handler(logging.Handler):
    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        if record.args:
            record.msg = record.getMessage()
            record.args = ()
        self._writer.put(record)


@contextmanager
def logging_to_stderr(
    level: str, log_format: str = "text", *, stream: TextIO | None = None, capacity: int = QUEUE_RECORDS
) -> Generator[LogWriter]:
    """Log to standard error (or `stream`) while the block runs; then stop the thread and restore.

    `log_format` is `text` (in colours on a terminal, unless NO_COLOR is set) or `json`.
    """
    out = sys.stderr if stream is None else stream
    colours = out.isatty() and "NO_COLOR" not in os.environ

    def as_text(record: logging.LogRecord) -> str:
        return render_text(record, colours=colours)

    root = logging.getLogger()
    before_handlers, before_level, before = root.handlers[:], root.level, structlog.get_config()
    writer = LogWriter(out, render_json if log_format == "json" else as_text, capacity)
    configure(level)
    root.handlers[:] = [_Handler(writer)]
    writer.start()
    try:
        yield writer
    finally:
        root.handlers[:] = before_handlers
        writer.stop()
        structlog.configure(**before)
        root.setLevel(before_level)


structlog.configure(processors=_processors("info"), wrapper_class=_wrapper("info"), logger_factory=_Sink)
