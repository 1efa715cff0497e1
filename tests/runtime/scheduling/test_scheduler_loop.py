# SPDX-License-Identifier: GPL-3.0-only
"""The loop of decisions and time: what is due is decided, whatever else comes at that moment."""

from __future__ import annotations

import trio
import trio.testing
from msgspec.structs import replace
from support.fleets import limits, spec

from modeld.domain.instance_state import State
from modeld.domain.model import make_catalog
from modeld.runtime.scheduling.queue_positions import Positions
from modeld.runtime.scheduling.scheduler_loop import Decider
from modeld.runtime.scheduling.tickets import Tickets
from modeld.scheduler.effects import Effect, Load
from modeld.scheduler.inputs import GotSlot, Input
from modeld.scheduler.state import Failures, Fleet, InstanceView, Instant, Lease, Waiter


class Record:
    """Keeps effects in place of doing them."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []

    def note(self, event: Input, fleet: Fleet, now: Instant) -> None:
        """Nothing is noted."""

    def perform(self, effect: Effect) -> None:
        """Keep it."""
        self.effects.append(effect)

    def tidy(self, event: Input) -> None:
        """Nothing is tidied."""


async def test_a_slot_that_is_got_when_something_is_due_does_not_put_that_off(
    mock_clock: trio.testing.MockClock,
) -> None:
    """A model whose backoff ends in the same turn is loaded at once, not when its waiter gives up."""
    now = trio.current_time()
    record, tickets = Record(), Tickets(None, max_backlog_bytes=1)
    decider = Decider(limits(), record, tickets, Positions(lambda *_: None))
    serving = InstanceView(
        model_id="a.gguf",
        state=State.READY,
        reserved=1,
        leases=(Lease(ticket=1, arrived=now, waiting_since=now),),
    )
    failed = InstanceView(
        model_id="b.gguf",
        state=State.ERROR,
        failures=Failures(recent=(now,), in_a_row=1, retry_at=now + 10),
    )
    waiter = Waiter(ticket=2, model_id="b.gguf", arrived=now, waiting_since=now)
    fleet = replace(decider.fleet, catalog=make_catalog([spec("a"), spec("b")]))
    decider.fleet = replace(fleet.having(serving, failed), waiting=(waiter,))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(decider.run)
        await trio.testing.wait_all_tasks_blocked()
        decider.feed(GotSlot(ticket=1))
        assert record.effects == []
        mock_clock.jump(10.001)
        decider.feed(GotSlot(ticket=1))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [effect.spec.id for effect in record.effects if isinstance(effect, Load)] == ["b.gguf"]
