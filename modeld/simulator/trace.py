# SPDX-License-Identifier: GPL-3.0-only
"""Parse traces of requests, written as JSON lines. Pure.

The first line is an object with `models` (and, if wanted, `budget_mb`); each further line is one request:

    {"budget_mb": 100, "models": [{"id": "a", "size_mb": 60, "load_ms": 2000, "slots": 2}]}
    {"at_ms": 0, "model": "a", "service_ms": 800}
    {"at_ms": 40, "model": "a", "tokens": 64, "priority": "high", "deadline_ms": 5000}

docs/scheduling.md tells what each key means. `simulator.trace_from_events` makes traces of a daemon's events.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from modeld.domain.request import Priority


class BadTrace(ValueError):
    """A trace that cannot be replayed; the message says which line, and why."""


class TraceModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model of the trace's world. Times in ms, sizes in MiB."""

    id: str
    size_mb: float
    load_ms: int = 1000
    unload_ms: int = 0
    slots: int = 1
    token_ms: float = 20.0
    """What one token takes, for requests that give `tokens`."""
    pinned: bool = False


class TraceHead(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line of a trace, or a file of its own."""

    models: tuple[TraceModel, ...]
    budget_mb: float | None = None


class TraceRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request: when it comes, for which model, and how long it will hold a slot."""

    at_ms: int
    model: str
    service_ms: int | None = None
    tokens: int | None = None
    priority: Priority = Priority.NORMAL
    deadline_ms: int | None = None
    """From its arrival; None: it has all the time."""


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """A whole trace; the requests in order of time."""

    head: TraceHead
    requests: tuple[TraceRequest, ...]
    missed: int = 0
    """Of a recorded trace: events that were lost while it was recorded."""

    def service_ms(self, request: TraceRequest) -> int:
        """Return for how long a request holds its slot, ms."""
        if request.service_ms is not None:
            return request.service_ms
        model = next(model for model in self.head.models if model.id == request.model)
        return round((request.tokens or 0) * model.token_ms)


def parse_trace(lines: Iterable[str], head: TraceHead | None = None) -> Trace:
    """Read a trace; with `head` given, all lines are requests. Blank lines are skipped.

    Raises: BadTrace, with the number of the line.
    """
    requests: list[TraceRequest] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if head is None:
            head = parse_head(line, f"line {number}")
            continue
        requests.append(_request(line, number, head))
    if head is None:
        raise BadTrace("the trace is empty; its first line must be an object with `models`")
    if not requests:
        raise BadTrace("the trace has no requests")
    return Trace(head=head, requests=tuple(sorted(requests, key=lambda request: request.at_ms)))


def parse_head(text: str, where: str) -> TraceHead:
    """Read the models of a trace. Raises: BadTrace that says `where`."""
    try:
        head = msgspec.json.decode(text, type=TraceHead)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BadTrace(f"{where}: {error}; an object with `models` is expected here") from None
    names = [model.id for model in head.models]
    if not names:
        raise BadTrace(f"{where}: there are no models")
    for model in head.models:
        if names.count(model.id) > 1:
            raise BadTrace(f"{where}: model {model.id!r} is there twice")
        if model.size_mb <= 0 or model.slots < 1 or min(model.load_ms, model.unload_ms, model.token_ms) < 0:
            raise BadTrace(
                f"{where}: model {model.id!r} needs a size_mb above 0, slots from 1 on, and no negative time"
            )
    if head.budget_mb is not None and head.budget_mb < 0:
        raise BadTrace(f"{where}: a budget of {head.budget_mb:g} MiB is negative; 0 is unlimited")
    return head


def _request(line: str, number: int, head: TraceHead) -> TraceRequest:
    try:
        request = msgspec.json.decode(line, type=TraceRequest)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BadTrace(f"line {number}: {error}") from None
    if all(model.id != request.model for model in head.models):
        raise BadTrace(f"line {number}: model {request.model!r} is not among the models of the trace")
    if (request.service_ms is None) == (request.tokens is None):
        raise BadTrace(f"line {number}: give either service_ms or tokens")
    numbers = (request.at_ms, request.service_ms, request.tokens, request.deadline_ms)
    if any(one is not None and one < 0 for one in numbers):
        raise BadTrace(f"line {number}: times and tokens cannot be negative")
    return request
