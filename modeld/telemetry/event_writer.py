# SPDX-License-Identifier: GPL-3.0-only
"""Write events on a thread, so that the daemon never waits for a disk or a reader.

Between the two is a bounded queue. While a target cannot be written it is tried every second; what finds
no room in the queue meanwhile is counted, and a `missed` event stands for it in its place.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from modeld.domain.daemon_events import EventKind, FleetEvent, as_json
from modeld.domain.status import EventsStatus
from modeld.telemetry.event_file import FILE_BYTES, CannotWrite, EventTarget
from modeld.telemetry.log import get_logger

QUEUE_EVENTS = 10_000
_GATHER_S = 0.05
"""After it wrote, the thread gathers events for so long: fewer writes, and the event loop has its lock."""
_RETRY_S = 1.0
_LAST_WORDS_S = 0.3
"""How long stopping waits for a reader that does not read, or for a disk."""


class EventWriter:
    """Writes all events to one target. Satisfies `modeld.runtime.reporting.event_log.EventSink`."""

    def __init__(
        self, target: EventTarget, *, capacity: int = QUEUE_EVENTS, retry_s: float = _RETRY_S
    ) -> None:
        self._target = target
        self._capacity = capacity
        self._retry_s = retry_s
        self._queue: deque[FleetEvent] = deque()
        self._lost = 0
        self._dropped = 0
        self._written = 0
        self._problem: str | None = None
        self._reopen = False
        self._stopping = False
        self._give_up_at = float("inf")
        self._woken = threading.Event()
        self._hurry = threading.Event()
        """No pause is to be made: it is set behind `_reopen` and `_stopping`."""
        self._thread = threading.Thread(target=self._run, name="modeld-events", daemon=True)
        self._log = get_logger("modeld.events")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, event: FleetEvent) -> None:
        """Take an event without waiting; count it when there is no room. Called by one thread."""
        if len(self._queue) >= self._capacity:
            self._lost += 1
            self._dropped += 1
            return
        if self._lost:
            self._queue.append(_gap(event, self._lost))
            self._lost = 0
        self._queue.append(event)
        if not self._woken.is_set():  # To ask costs less than to set it.
            self._woken.set()

    def reopen(self) -> None:
        """Have the thread open the target again."""
        self._reopen = True
        self._hurry.set()
        self._woken.set()

    def status(self) -> EventsStatus:
        """Return how many were written and how many not, and what is wrong now."""
        problem = self._problem
        if problem is None and self._lost:
            problem = f"events come faster than {self._target.name} takes them"
        return EventsStatus(
            target=self._target.name, written=self._written, dropped=self._dropped, problem=problem
        )

    def stop(self) -> None:
        """Write what is left, for a moment only if nobody takes it, and end the thread.

        A thread that a disk holds in the kernel is left behind; it holds nothing up.
        """
        self._give_up_at = time.monotonic() + _LAST_WORDS_S
        self._stopping = True
        self._hurry.set()
        self._woken.set()
        self._thread.join(2 * _LAST_WORDS_S)
        left = len(self._queue) + self._lost
        if left:
            self._log.warning("events were not written down", events=left, target=self._target.name)

    def _run(self) -> None:
        while True:
            self._woken.clear()
            self._hurry.clear()
            if self._reopen:
                self._open_anew()
            while self._queue and self._write():
                pass
            if self._stopping:
                if not self._queue or self._is_late() or self._problem is not None:
                    break
            elif self._problem is not None and self._queue:
                self._hurry.wait(self._retry_s)
            elif not self._queue:
                self._woken.wait()
                self._hurry.wait(_GATHER_S)
        self._target.close()

    def _is_late(self) -> bool:
        return time.monotonic() > self._give_up_at

    def _write(self) -> bool:
        """Write one round of lines. False: it did not go."""
        lines, ends = self._lines()
        try:
            done = self._target.write(b"".join(lines), self._interrupted)
        except CannotWrite as error:
            self._on_failure(str(error))
            return False
        for end in ends:
            if end > done:
                break
            if self._queue.popleft().kind is not EventKind.MISSED:
                self._written += 1
        if done:
            self._on_success()
        return done > 0

    def _interrupted(self) -> bool:
        """Whether the target should stop waiting for its reader for now."""
        return self._reopen or self._is_late()

    def _lines(self) -> tuple[list[bytes], list[int]]:
        """Return lines for one write, and where each ends. They stay in the queue until they are written."""
        lines, ends, size = list[bytes](), list[int](), 0
        for number in range(len(self._queue)):
            line = as_json(self._queue[number]) + b"\n"
            if lines and size + len(line) > FILE_BYTES:
                break
            size += len(line)
            lines.append(line)
            ends.append(size)
        return lines, ends

    def _open_anew(self) -> None:
        self._reopen = False
        try:
            self._target.reopen()
        except CannotWrite as error:
            self._on_failure(str(error))
        else:
            self._log.info("the target of events was opened again", target=self._target.name)
            self._on_success()

    def _on_failure(self, problem: str) -> None:
        if self._problem != problem:
            self._log.error("events cannot be written", target=self._target.name, reason=problem)
        self._problem = problem

    def _on_success(self) -> None:
        if self._problem is not None:
            self._problem = None
            self._log.info("events are written again", target=self._target.name, dropped=self._dropped)


def _gap(event: FleetEvent, lost: int) -> FleetEvent:
    """Return what stands for the events before this one that found no room."""
    return FleetEvent(
        seq=event.seq - 1,
        run=event.run,
        at_unix=event.at_unix,
        uptime_ms=event.uptime_ms,
        kind=EventKind.MISSED,
        reason=f"{lost} events found no room while they could not be written fast enough",
        numbers={"events": lost},
    )
