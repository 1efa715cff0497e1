# SPDX-License-Identifier: GPL-3.0-only
"""The daemon's events as a client reads them: server-sent events, or a JSON object a line. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from modeld.core.fleet_events import FleetEvent, as_json

SSE_TYPE = "text/event-stream"
"""Content type of server-sent events (WHATWG HTML, 9.2)."""
SSE_BEGIN = b"retry: 2000\n\n"
"""A client that lost its connection comes again after 2 s, and names the last event it has."""
SSE_STILL_HERE = b":\n\n"
"""A comment: readers skip it."""

Show = Callable[[FleetEvent], bytes]


def as_line(event: FleetEvent) -> bytes:
    """Return an event as one line of JSON."""
    return as_json(event) + b"\n"


def as_sse(event: FleetEvent) -> bytes:
    """Return an event with its id and kind outside of the JSON, too, where browsers look for them."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event.id.encode(), event.kind.encode(), as_json(event))


def shown(events: Iterable[FleetEvent], wanted: Callable[[FleetEvent], bool], show: Show) -> bytes:
    """Return the bytes of those events that are wanted."""
    return b"".join(show(event) for event in events if wanted(event))
