# SPDX-License-Identifier: GPL-3.0-only
"""How a log record looks: a line for people, or one JSON object. No key gets past here, whoever logs it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

import msgspec

from modeld.core.client import redacted


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
