# SPDX-License-Identifier: GPL-3.0-only
"""Fair shares in a running scheduler with engines, under a mock clock."""

from __future__ import annotations

import trio
from support.scheduler_driver import limits, spec
from support.scheduler_harness import last, running_scheduler
from trio.testing import MockClock

from modeld.domain.request import Tenant
from modeld.domain.request_events import Failed
from modeld.scheduler.state import SchedulerLimits

ANSWER = 200
PROMPT = "one two three"
COST = 3 + ANSWER
STEP_S = 0.01
QUANTUM = SchedulerLimits().share_tokens
DEEP = {"max_queue_depth": 2000, "max_queue_total": 5000, "max_wait_s": 1e6}


def tenant(owner: str) -> Tenant:
    return Tenant(owner=owner, tokens=COST)


async def test_a_thousand_requests_of_one_key_delay_anothers_by_a_quantum(autojump_clock: MockClock) -> None:
    """The single one gets its slot after at most a quantum of the flood's tokens, not after all of them."""
    slots = 2
    script = {"a.gguf": f"step_s={STEP_S}"}
    async with running_scheduler([spec("a", slots=slots)], limits(**DEEP), script) as here:
        flood = [here.ask("a", PROMPT, max_tokens=ANSWER, tenant=tenant("flood")) for _ in range(1000)]
        while sum(ticket.ended for ticket in flood) < slots:
            await trio.sleep(STEP_S)
        came = trio.current_time()
        running = sum(ticket.admitted is not None for ticket in flood)
        single = here.ask("a", PROMPT, max_tokens=ANSWER, tenant=tenant("single"))
        await last(single)
        assert single.admitted is not None
        passed = sum(it.admitted is not None and it.admitted < single.admitted for it in flood) - running
        assert passed * COST < QUANTUM + COST
        # Each holds a slot for as many steps as it has tokens; all of the 1,000 take 60 times as long.
        steps = (QUANTUM / COST + 2 * slots + 1) * (ANSWER + 2) / slots
        assert single.admitted - came < steps * STEP_S
        assert sum(ticket.ended for ticket in flood) < 30


async def test_who_gives_way_in_a_full_queue_is_told(autojump_clock: MockClock) -> None:
    """Its stream ends with 429 and the reason, as for any full queue; the newcomer is served."""
    script = {"a.gguf": f"step_s={STEP_S}"}
    terms = {**DEEP, "max_queue_depth": 4}
    async with running_scheduler([spec("a", slots=1)], limits(**terms), script) as here:
        flood = [here.ask("a", PROMPT, tenant=tenant("flood")) for _ in range(5)]
        single = here.ask("a", PROMPT, tenant=tenant("single"))
        loser = await last(flood[-1])
        assert isinstance(loser, Failed)
        assert loser.problem.kind == "queue_full"
        assert loser.problem.retry_after_s is not None
        ends = [await last(ticket) for ticket in (single, *flood[:-1])]
        assert not [end for end in ends if isinstance(end, Failed)]
