# SPDX-License-Identifier: GPL-3.0-only
"""A runtime in memory: takes orders, and answers as the test's script says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio
from support.daemon_statuses import daemon_status, instance_status

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import Catalog, ModelFacts, ModelSpec, catalog_of
from modeld.domain.request import Order
from modeld.domain.request_events import Delta, Finished, FinishReason, Started, Stats, Usage
from modeld.domain.status import DaemonStatus
from modeld.errors import ModelNotFound
from modeld.runtime.reporting.event_log import EventLog
from modeld.runtime.ticket import Ticket

Script = Callable[[Ticket], Awaitable[None]]

TINY = ModelSpec(
    id="tiny-q4.gguf",
    path="/models/tiny-q4.gguf",
    name="Tiny",
    size_bytes=1234,
    modified_ns=1_700_000_000 * 10**9,
    facts=ModelFacts(architecture="llama", quant="Q4_0", parameters=1000, context_length=2048),
    aliases=("tiny-q4",),
)
DAMAGED = ModelSpec(id="zz-damaged.gguf", path="/models/zz-damaged.gguf", error="it is no GGUF file")


def finish(ticket: Ticket, reason: FinishReason = FinishReason.STOP, tokens: int = 0) -> None:
    """Put a last event with fixed durations."""
    ticket.put(
        Finished(
            reason=reason,
            usage=Usage(prompt_tokens=5, completion_tokens=tokens, cached_tokens=2),
            stats=Stats(duration_s=1.234, queue_s=0.001, load_s=0.5, ttft_s=0.07, tokens_per_second=51.2345),
        )
    )


def text_events(*texts: str) -> Script:
    """A script that says these texts and stops."""

    async def script(ticket: Ticket) -> None:
        ticket.put(Started(usage=Usage(prompt_tokens=5)))
        for text in texts:
            ticket.put(Delta(text=text))
        finish(ticket, tokens=len(texts))

    return script


async def no_events(_: Ticket) -> None:
    """A script that says nothing: the test puts the events itself."""


def start_events(events: int) -> Script:
    """Return the script of a generation that gets no further than so many of its first events."""

    async def script(ticket: Ticket) -> None:
        for event in (Started(usage=ticket.usage), Delta(text="a"), Delta(text="b"))[:events]:
            ticket.put(event)

    return script


class ScriptedBackend:
    """Satisfies `modeld.http.context.Backend`.

    Attributes:
      script: run for each ticket, in `nursery`.
      refusal: raised by `submit` instead. refusals: raised one by one, before that.
      tickets: all of them, oldest first. closed: those whose reader left, in that order.
    """

    def __init__(self, nursery: trio.Nursery, script: Script = no_events) -> None:
        self.script = script
        self.refusal: Exception | None = None
        self.refusals: list[Exception] = []
        self.tickets: list[Ticket] = []
        self.closed: list[Ticket] = []
        self.catalog: Catalog = catalog_of([TINY, DAMAGED])
        self.arriving: list[ModelSpec] = []
        self.refreshes: list[float] = []
        self.state = "ready"
        self.templates: dict[str, str] = {}
        self.states: Mapping[str, InstanceState] = {TINY.id: InstanceState.READY}
        self.illness: str | None = None
        self.max_backlog_bytes = 1 << 20
        self.events = EventLog()
        self._nursery = nursery
        self._changed = trio.Event()

    @property
    def control(self):
        """Operators find nothing here."""
        raise AssertionError(
            "this backend takes no orders of operators; support.operator_inputs has one that does"
        )

    def submit(self, order: Order, *, request_id: str) -> Ticket:
        if self.refusals:
            raise self.refusals.pop(0)
        if self.refusal is not None:
            raise self.refusal
        model = self.catalog.find(order.model)
        if model is None:
            raise ModelNotFound(f"no model is called {order.model}; see GET /models")
        ticket = Ticket(
            ticket_id=len(self.tickets),
            request_id=request_id,
            order=order,
            model=model,
            max_backlog_bytes=self.max_backlog_bytes,
            on_close=self._on_close,
        )
        self.tickets.append(ticket)
        self._note()
        self._nursery.start_soon(self.script, ticket)
        return ticket

    async def refresh_catalog(self, max_age_s: float) -> None:
        await trio.lowlevel.checkpoint()
        self.refreshes.append(max_age_s)
        if self.arriving:
            self.catalog = catalog_of([*self.catalog.models.values(), *self.arriving])

    async def chat_template(self, spec: ModelSpec) -> str:
        await trio.lowlevel.checkpoint()
        return self.templates.get(spec.id, "")

    def model_states(self) -> Mapping[str, InstanceState]:
        return self.states

    def status(self) -> DaemonStatus:
        return daemon_status(instance_status(TINY.id), state=self.state, events=self.events.status())

    def health(self) -> str | None:
        return self.illness

    def readiness(self) -> str:
        return self.state

    async def ticket(self, number: int = 0) -> Ticket:
        """Wait for the ticket of that number and return it."""
        with trio.fail_after(30):
            while len(self.tickets) <= number:
                await self._changed.wait()
        return self.tickets[number]

    async def wait_closed(self, number: int = 0) -> None:
        """Wait until that ticket's reader has left."""
        ticket = await self.ticket(number)
        with trio.fail_after(30):
            while ticket not in self.closed:
                await self._changed.wait()

    def _on_close(self, ticket: Ticket) -> None:
        if ticket not in self.closed:
            self.closed.append(ticket)
        self._note()

    def _note(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
