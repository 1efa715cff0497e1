# SPDX-License-Identifier: GPL-3.0-only
"""Deaths and hangs of engines: who is told, who waits, and what is shown."""

from __future__ import annotations

import trio
from support.inline_worker import InlineWorker
from support.scheduler_driver import limits, spec
from support.scheduler_harness import SchedulerHarness, last, read, running_scheduler, text_of

from modeld.domain.instance_state import InstanceState
from modeld.domain.request_events import Failed, Finished
from modeld.runtime.reporting.status import StatusReporter

STALL_S = 8.0


class Thread(InlineWorker):
    """A host that cannot kill its worker."""

    killable = False


def instance_of(here: SchedulerHarness, model_id: str = "a.gguf") -> object:
    reporter = StatusReporter(here.scheduler, here.observer, node_id="n")
    return next(it for it in reporter.report().instances if it.model_id == model_id)


async def test_a_hang_is_ended_and_those_who_saw_nothing_are_served(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The engine is killed after stall_timeout; a started stream is told, the others wait for the next."""
    scripts = {"a.gguf": "stall_at=5 step_s=0.1"}
    async with running_scheduler([spec("a", slots=2)], limits(), scripts, stall_timeout_s=STALL_S) as here:
        streaming = here.ask("a", max_tokens=50)
        await trio.sleep(0.35)
        reading = here.ask("a", "w " * 2000, max_tokens=3)
        queued = here.ask("a")
        began = trio.current_time()
        events = await read(streaming)
        assert STALL_S <= trio.current_time() - began <= 1.5 * STALL_S
        scripts["a.gguf"] = ""
        assert isinstance(events[-1], Failed)
        assert "hangs" in events[-1].problem.message
        assert "stall_timeout" in events[-1].problem.message
        assert text_of(events)
        assert isinstance(await last(reading), Finished)
        assert isinstance(await last(queued), Finished)
        assert here.scheduler.health() is None
        shown = instance_of(here)
        assert shown.restarts == 1
        assert "hangs" in shown.last_error
        assert ("died", "a.gguf") in here.events


async def test_a_slow_engine_is_none_that_hangs(autojump_clock: trio.testing.MockClock) -> None:
    """Steps, chunks of a prompt and parts of a load that each take nearly the timeout are waited for."""
    script = f"load_s={9 * STALL_S} prefill_s={STALL_S - 1} chunk=1 step_s={STALL_S - 1}"
    async with running_scheduler([spec("a")], limits(), {"a.gguf": script}, stall_timeout_s=STALL_S) as here:
        assert isinstance(await last(here.ask("a", "w " * 20, max_tokens=20)), Finished)
        assert instance_of(here).restarts == 0


async def test_an_idle_engine_is_left_alone(autojump_clock: trio.testing.MockClock) -> None:
    """An hour without a request is no hang."""
    async with running_scheduler([spec("a")], limits(), stall_timeout_s=STALL_S) as here:
        await last(here.ask("a"))
        await trio.sleep(3600)
        assert here.scheduler.model_states()["a.gguf"] is InstanceState.READY


async def test_a_thread_that_hangs_is_said_aloud(autojump_clock: trio.testing.MockClock) -> None:
    """Its requests end, new ones are refused, its memory counts as unaccounted, and health says why."""
    scripts = {"a.gguf": "stall_at=3 step_s=0.1"}
    models = [spec("a", 60, slots=1), spec("b", 10)]
    async with running_scheduler(models, limits(100), scripts, stall_timeout_s=STALL_S, host=Deaf) as here:
        running, queued, behind, other = (here.ask(name, max_tokens=500) for name in ("a", "a", "a", "b"))
        ends = [await last(ticket) for ticket in (running, queued, behind)]
        assert [type(end) for end in ends] == [Failed] * 3
        assert [end.problem.status for end in ends] == [500, 503, 503]
        assert isinstance(await last(other), Finished)
        assert "a thread cannot be killed" in here.scheduler.health()
        report = StatusReporter(here.scheduler, here.observer, node_id="n").report()
        assert report.unaccounted_mb == 60
        assert report.error == here.scheduler.health()
        assert instance_of(here).state is InstanceState.ERROR
        assert ("stuck", "a.gguf") in here.events
        Deaf.wake.set()
        await trio.sleep(1)
        assert here.scheduler.health() is None
        assert here.scheduler.fleet.instance("a.gguf").reserved == 0
        scripts["a.gguf"] = ""
        assert isinstance(await last(here.ask("a")), Finished)


class Deaf(Thread):
    """Hears neither cancel nor stop before `wake` is set: like a thread that is lost in C."""

    wake = trio.Event()

    def stop(self) -> None:
        async def later() -> None:
            await self.wake.wait()
            Thread.stop(self)

        trio.lowlevel.spawn_system_task(later)


async def test_a_death_in_prefill_is_no_news_to_the_client(autojump_clock: trio.testing.MockClock) -> None:
    """It had no token yet: the restarted engine reads its prompt again, and it is served within 2 s."""
    scripts = {"a.gguf": "die_at=3 prefill_s=0.01 chunk=10"}
    async with running_scheduler([spec("a")], limits(), scripts) as here:
        ticket = here.ask("a", "w " * 50)
        await trio.sleep(0.25)
        scripts["a.gguf"] = ""
        finished = await last(ticket)
        assert isinstance(finished, Finished)
        assert finished.usage.prompt_tokens == 50
        assert finished.stats.duration_s < 2.0


async def test_a_prompt_that_kills_engines_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """After the second death it is told that it may be the cause; another model is not disturbed."""
    scripts = {"a.gguf": "die_at=1", "b.gguf": "step_s=0.1"}
    async with running_scheduler([spec("a"), spec("b")], limits(), scripts) as here:
        other, bad = here.ask("b", max_tokens=30), here.ask("a")
        failed = await last(bad)
        assert isinstance(failed, Failed)
        assert "two engines died" in failed.problem.message
        assert here.scheduler.fleet.instance("a.gguf").restarts == 2
        assert text_of(await read(other)) == " ".join(["one", "two", "three"] * 10)
        assert here.scheduler.fleet.held == here.scheduler.fleet.instance("b.gguf").reserved
