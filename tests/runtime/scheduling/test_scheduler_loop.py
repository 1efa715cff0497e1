# SPDX-License-Identifier: GPL-3.0-only
"""The loop of decisions and time: what is due is decided, whatever else comes at that moment."""

from __future__ import annotations

import trio
import trio.testing
from msgspec.structs import replace
from support.scheduler_driver import limits, spec

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import catalog_of
from modeld.runtime.scheduling.queue_positions import QueuePositions
from modeld.runtime.scheduling.scheduler_loop import SchedulerLoop
from modeld.runtime.scheduling.tickets import Tickets
from modeld.scheduler.effects import Effect, StartLoad
from modeld.scheduler.inputs import Input, SlotTaken
from modeld.scheduler.state import Failures, Fleet, InstanceView, Instant, Lease, PendingRequest


class Record:
    """Keeps effects in place of doing them."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []

    def before_step(self, event: Input, fleet: Fleet, now: Instant) -> None:
        """Nothing is noted."""

    def run_effects(self, effect: Effect) -> None:
        """Keep it."""
        self.effects.append(effect)

    def after_step(self, event: Input) -> None:
        """Nothing is tidied."""


async def test_a_slot_that_is_got_when_something_is_due_does_not_put_that_off(
    mock_clock: trio.testing.MockClock,
) -> None:
    """A model whose backoff ends in the same turn is loaded at once, not when its waiter gives up."""
    now = trio.current_time()
    record, tickets = Record(), Tickets(None, max_backlog_bytes=1)
    loop = SchedulerLoop(limits(), record, tickets, QueuePositions(lambda *_: None))
    serving = InstanceView(
        model_id="a.gguf",
        state=InstanceState.READY,
        reserved=1,
        leases=(Lease(request=PendingRequest(ticket=1, model_id="a.gguf", arrived=now, waiting_since=now)),),
    )
    failed = InstanceView(
        model_id="b.gguf",
        state=InstanceState.ERROR,
        failures=Failures(recent=(now,), in_a_row=1, retry_at=now + 10),
    )
    waiter = PendingRequest(ticket=2, model_id="b.gguf", arrived=now, waiting_since=now)
    fleet = replace(loop.fleet, catalog=catalog_of([spec("a"), spec("b")]))
    loop.fleet = replace(fleet.with_instance(serving, failed), waiting=(waiter,))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop.run)
        await trio.testing.wait_all_tasks_blocked()
        loop.feed(SlotTaken(ticket=1))
        assert record.effects == []
        mock_clock.jump(10.001)
        loop.feed(SlotTaken(ticket=1))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [effect.spec.id for effect in record.effects if isinstance(effect, StartLoad)] == ["b.gguf"]
