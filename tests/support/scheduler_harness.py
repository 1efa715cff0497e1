# SPDX-License-Identifier: GPL-3.0-only
"""A scheduler with real instances and the fake engine, for tests under a mock clock."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio
from support.inline_worker import InlineWorker

from modeld.domain.model import EngineKind, ModelSpec, catalog_of
from modeld.domain.request import GenerateRequest, Order
from modeld.domain.request_events import Delta, Event, Failed, Finished, Last
from modeld.runtime.reporting.event_log import EventLog
from modeld.runtime.reporting.observer import SchedulerObserver
from modeld.runtime.scheduling.control import OperatorControl
from modeld.runtime.scheduling.scheduler import Scheduler
from modeld.runtime.ticket import Ticket
from modeld.scheduler.state import SchedulerLimits
from modeld.telemetry.metrics import Metrics


class SchedulerHarness:
    """A running scheduler, and short words to use it.

    `scripts` are those of the fake engine, by model id; they may be changed between loads.
    """

    def __init__(
        self, scheduler: Scheduler, observer: SchedulerObserver, scripts: dict[str, str], metrics: Metrics
    ) -> None:
        self.scheduler = scheduler
        self.observer = observer
        self.metrics = metrics
        self.scripts = scripts
        self.control = OperatorControl(scheduler)

    def ask(self, model: str, prompt: str = "one two three", **more: object) -> Ticket:
        terms = {
            key: more.pop(key) for key in ("timeout_s", "priority", "keep_alive_s", "tenant") if key in more
        }
        request = GenerateRequest(prompt=prompt, **{"max_tokens": 5, **more})
        order = Order(request=request, model=model, **terms)
        return self.scheduler.submit(order, request_id="test")

    @property
    def events(self) -> list[tuple[str, str]]:
        return [(decision.action, decision.model_id) for decision in self.observer.decisions]


@asynccontextmanager
async def running_scheduler(
    specs: Iterable[ModelSpec],
    limits: SchedulerLimits,
    scripts: dict[str, str] | None = None,
    *,
    host: object = InlineWorker,
    max_stream_backlog: int = 1 << 20,
    stall_timeout_s: float = math.inf,
) -> AsyncIterator[SchedulerHarness]:
    """Run a scheduler; at the end it is cancelled, and everything must be gone."""
    scripts = scripts or {}
    metrics = Metrics()
    observer = SchedulerObserver(metrics, EventLog(clock=trio.current_time))
    scheduler = Scheduler(
        limits=limits,
        host=host,
        observer=observer,
        engine=EngineKind.FAKE,
        fake_script=lambda spec: scripts.get(spec.id, ""),
        max_stream_backlog=max_stream_backlog,
        stall_timeout_s=stall_timeout_s,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        scheduler.set_catalog(catalog_of(specs))
        yield SchedulerHarness(scheduler, observer, scripts, metrics)
        nursery.cancel_scope.cancel()


async def read(ticket: Ticket) -> list[Event]:
    """Read a ticket to its end, and close it."""
    events: list[Event] = []
    try:
        while not events or not isinstance(events[-1], Finished | Failed):
            events += await ticket.next()
    finally:
        ticket.close()
    return events


async def last(ticket: Ticket) -> Last:
    """Read a ticket to its end; return the event that ended it."""
    event = (await read(ticket))[-1]
    assert isinstance(event, Finished | Failed)
    return event


def text_of(events: Iterable[Event]) -> str:
    """The text of a stream."""
    return "".join(event.text for event in events if isinstance(event, Delta))
