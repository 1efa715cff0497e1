# SPDX-License-Identifier: GPL-3.0-only
"""Pure: divides an engine's time between requests that arrive and streams that wait meanwhile.

To tokenise 128 KiB of text takes 0.1 s, and 64 such texts may arrive together. What takes longest, a large
grammar, is compiled in slices (`slices`).

    (1) after `SLICE_S` no other request is prepared in this step; the one under way is finished
    (2) what took longer, or is not done yet, is followed by as much time for those who stream, if any do
    (3) what is known without a decode is told at once, but not in two steps one after the other
        without a decode between them

So whatever arrives, streams keep about half of their speed, and cancels are heard in between.
"""

from __future__ import annotations

SLICE_S = 0.05
"""Seconds of one step for the preparation of requests; a usual one takes 0.3 ms."""


class Turns:
    """Whose turn it is. Times in seconds of any steady clock."""

    def __init__(self) -> None:
        self._began = 0.0
        self._streams_until = 0.0
        self._told = False

    def may_prepare(self, now: float, *, streams: bool) -> bool:
        """Whether requests may be prepared in this step; if so, that begins now."""
        self._began = now
        return not streams or now >= self._streams_until

    def may_go_on(self, now: float) -> bool:
        """Whether another request may be prepared in this step."""
        return now - self._began < SLICE_S

    def prepared(self, now: float, *, unfinished: bool = False) -> None:
        """Take note that the preparation of this step has ended; `unfinished`: it goes on in a later one."""
        took = now - self._began
        self._streams_until = now + took if unfinished or took >= SLICE_S else now

    def tells_first(self, *, known: bool) -> bool:
        """Whether this step ends before its decode, to tell what is known."""
        self._told = known and not self._told
        return self._told
