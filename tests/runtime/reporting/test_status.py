# SPDX-License-Identifier: GPL-3.0-only
"""What `/status` tells of the queue of a model."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from support.scheduler_driver import limits, spec
from support.scheduler_harness import last, running_scheduler

from modeld.dialects import ollama
from modeld.dialects.ollama.listing import FOR_EVER_S
from modeld.domain.request_events import Finished
from modeld.runtime.reporting.status import StatusReporter


async def test_the_eta_is_that_of_the_last_who_waits(autojump_clock: trio.testing.MockClock) -> None:
    """Unknown until a request was served; then a service time a round; nothing where nobody waits."""
    async with running_scheduler([spec("a", slots=1)], limits(), {"a.gguf": "step_s=0.5"}) as here:
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


async def test_a_pinned_model_is_not_said_to_go(autojump_clock: trio.testing.MockClock) -> None:
    """Its `ttl` is over, and it stays: null, and far away where Ollama's clients ask."""
    async with running_scheduler([spec("a", ttl_s=60.0)], limits()) as here:
        reporter = StatusReporter(here.scheduler, here.observer, node_id="n")
        assert isinstance(await last(here.ask("a")), Finished)
        status = reporter.report()
        [shown] = status.instances
        assert shown.keep_until_unix == pytest.approx(status.server_time_unix + 60, abs=0.1)
        here.scheduler.pin("a.gguf", pinned=True)
        await trio.sleep(100)
        status = reporter.report()
        [shown] = status.instances
        assert (shown.state, shown.keep_until_unix) == ("ready", None)
        [row] = ollama.running(here.scheduler.fleet.catalog, status).models
        assert row.expires_at == ollama.rfc3339(status.server_time_unix + FOR_EVER_S)


async def test_a_model_that_serves_is_not_said_to_have_gone(autojump_clock: trio.testing.MockClock) -> None:
    """A request that runs for longer than its model's `ttl`: it goes now at the earliest."""
    async with running_scheduler([spec("a", ttl_s=1.0)], limits(), {"a.gguf": "step_s=1"}) as here:
        reporter = StatusReporter(here.scheduler, here.observer, node_id="n")
        ticket = here.ask("a", max_tokens=20)
        await trio.sleep(10.5)
        status = reporter.report()
        [shown] = status.instances
        assert shown.inflight == 1
        assert shown.keep_until_unix == pytest.approx(status.server_time_unix)
        ticket.close()
