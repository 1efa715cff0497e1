# SPDX-License-Identifier: GPL-3.0-only
"""What `/status` tells of the queue of a model."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from support.fleets import limits, spec
from support.house import house, last

from modeld.core.events import Finished
from modeld.runtime.status import StatusReporter


async def test_the_eta_is_that_of_the_last_who_waits(autojump_clock: trio.testing.MockClock) -> None:
    """Unknown until a request was served; then a service time a round; nothing where nobody waits."""
    async with house([spec("a", slots=1)], limits(), {"a.gguf": "step_s=0.5"}) as here:
        reporter = StatusReporter(here.scheduler, here.observer, node_id="n")
        first, second = here.ask("a"), here.ask("a")
        [shown] = reporter.report().instances
        assert (shown.queue_len > 0, shown.eta_ms) == (True, None)
        assert isinstance(await last(first), Finished)
        assert isinstance(await last(second), Finished)
        tickets = [here.ask("a") for _ in range(4)]
        await trio.sleep(0.1)
        [shown] = reporter.report().instances
        service_s = here.scheduler.fleet.instance("a.gguf").service_s
        assert shown.queue_len == 3
        assert shown.eta_ms == pytest.approx(3 * service_s * 1000)
        for ticket in tickets:
            assert isinstance(await last(ticket), Finished)
        [shown] = reporter.report().instances
        assert (shown.queue_len, shown.eta_ms) == (0, None)
