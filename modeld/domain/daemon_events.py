# SPDX-License-Identifier: GPL-3.0-only
"""One event of the daemon: what happened, to which model and request, and why.

What `Delta` and its kin (`domain.request_events`) are to one request, this is to the whole daemon. It is what
`events_file` and `GET /events` consist of; docs/events.md explains each kind to operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from modeld.domain.request import Priority

MOST_REASON = 600
"""Characters of a reason that are kept: whatever they are, a line stays below a page (4,096 bytes)."""


class EventKind(StrEnum):
    """What an event tells."""

    DAEMON_STARTED = "daemon_started"
    DAEMON_DRAINING = "daemon_draining"
    """It stops: new requests are refused, those inside may end."""
    DAEMON_STOPPED = "daemon_stopped"

    ARRIVED = "arrived"
    """A request for a model that there is. Exactly one `refused` or `ended` follows."""
    QUEUED = "queued"
    """It has to wait."""
    GRANTED = "granted"
    """It has a place at a model that is loaded, and keeps it in memory."""
    STARTED = "started"
    """It has a slot."""
    ENDED = "ended"
    """It had a slot, or its client left; `cause` is the finish reason or the type of the error."""
    REFUSED = "refused"
    """The daemon ended it before it had a slot; `cause` is the type of the error."""

    LOADING = "loading"
    READY = "ready"
    EVICTING = "evicting"
    """An idle model makes room for `for_model`."""
    UNLOADING = "unloading"
    """An idle model goes for another reason: `cause`."""
    DRAINING = "draining"
    """A model gets no new requests, or will get none soon, and goes when it is idle."""
    STOPPED = "stopped"
    """Its memory was given back."""
    FAILED = "failed"
    """A load or an engine failed; `cause` tells which."""
    RESTARTED = "restarted"
    """It is loaded again after failures."""
    BREAKER_OPENED = "breaker_opened"
    BREAKER_CLOSED = "breaker_closed"

    PINNED = "pinned"
    UNPINNED = "unpinned"

    OPERATION_STARTED = "operation_started"
    """An operator asked for a load, an unload or a switch: `cause`. Exactly one `operation_ended` follows."""
    OPERATION_ENDED = "operation_ended"
    """`cause` is done, failed, cancelled or refused."""

    DECIDED = "decided"
    """Any other decision; `cause` is its name in `/status`."""
    MISSED = "missed"
    """Events before this one could not be delivered here; `numbers` tell how many."""


class FleetEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened. Keys without a meaning for its kind are left out."""

    seq: int
    """Number in this run of the daemon, from 1, without gaps; `missed` has that of the last it stands for."""
    run: str
    """Which run of the daemon; another one counts again."""
    at_unix: float
    uptime_ms: float
    """Since the run began, by a clock that never jumps."""
    kind: EventKind
    model: str = ""
    """Id of the model."""
    ticket: int = 0
    """Number of the request in this run."""
    request: str = ""
    """Its `X-Request-ID`."""
    operation: str = ""
    """Id of the operation of an operator."""
    key: str = ""
    """Name of the key by which it was asked for, where keys are in force."""
    cause: str = ""
    reason: str = ""
    """A sentence."""
    for_model: str = ""
    """For which model this one makes room."""
    priority: Priority | None = None
    numbers: Mapping[str, float] = {}
    """`*_mb` MiB, `*_ms` milliseconds, `*_s` seconds; docs/events.md lists them by kind."""

    @property
    def id(self) -> str:
        """What a reader names to go on after this event."""
        return f"{self.run}-{self.seq}"


class Position(msgspec.Struct, frozen=True):
    """A place in the events of a run: after the event `seq`."""

    run: str
    seq: int


_encoder = msgspec.json.Encoder()


def as_json(event: FleetEvent) -> bytes:
    """Return an event as compact JSON."""
    return _encoder.encode(event)


def parse_position(text: str) -> Position:
    """Read the id of an event. Raises: ValueError that says how one looks."""
    run, dash, seq = text.strip().rpartition("-")
    if not dash or not run.isalnum() or not run.isascii() or not seq.isdecimal() or len(text) > 60:
        raise ValueError(f'"{text[:60]}" is no id of an event; they look like 19a5c3f2b10-17')
    return Position(run, int(seq))
