# SPDX-License-Identifier: GPL-3.0-only
"""The scheduler with real instances, tickets and FIFOs, over the fake engine and a mock clock."""

from __future__ import annotations

import msgspec
import pytest
import trio
from support.scheduler_driver import limits, spec
from support.scheduler_harness import last, read, running_scheduler, text_of

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import ModelFacts
from modeld.domain.request import EmbedRequest, Order, Pooling, TokenizeRequest
from modeld.domain.request_events import (
    Delta,
    Embedded,
    Failed,
    Finished,
    FinishReason,
    Loading,
    Queued,
    Started,
    Tokenized,
)
from modeld.errors import DoesNotFit, Draining, InvalidRequest, ModelFailed, ModelNotFound, QueueFull


async def test_a_stream_has_its_order(autojump_clock: trio.testing.MockClock) -> None:
    """Loading, Started, the deltas, and one Finished with its counts."""
    async with running_scheduler([spec("a")], limits(), {"a.gguf": "load_s=2 step_s=0.1"}) as here:
        events = await read(here.ask("a"))
    kinds = [type(event) for event in events if not isinstance(event, Queued)]
    assert kinds[: kinds.index(Started)] == [Loading] * kinds.index(Started)
    assert kinds[kinds.index(Started) :] == [Started, *[Delta] * 5, Finished]
    assert text_of(events) == "one two three one two"
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.reason is FinishReason.LENGTH
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (3, 5)


async def test_durations_are_told_apart(autojump_clock: trio.testing.MockClock) -> None:
    """Load, queue and first token are measured from arrival, in seconds of the clock."""
    async with running_scheduler([spec("a", slots=1)], limits(), {"a.gguf": "load_s=2 step_s=0.5"}) as here:
        first, second = here.ask("a"), here.ask("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, first)
            finished = await last(second)
    assert isinstance(finished, Finished)
    assert finished.stats.load_s == pytest.approx(2.0)
    assert finished.stats.queue_s == pytest.approx(2.0, abs=0.6)
    assert finished.stats.duration_s == pytest.approx(6.5, abs=0.6)
    assert finished.stats.tokens_per_second == pytest.approx(2.0, rel=0.01)
    assert finished.stats.ttft_s is not None
    assert finished.stats.ttft_s == pytest.approx(4.0)


async def test_a_load_that_nobody_waits_for_any_more_stays_for_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The first client leaves while the model loads; the second is served by that same load."""
    async with running_scheduler([spec("a")], limits(), {"a.gguf": "load_s=5"}) as here:
        first = here.ask("a")
        second = here.ask("a")
        await trio.sleep(1)
        first.close()
        assert isinstance(await last(second), Finished)
        assert here.events.count(("load", "a.gguf")) == 1


@pytest.mark.parametrize("phase", ["loading", "queued", "prefill", "decode"])
async def test_leaving_frees_the_place_in_every_phase(
    phase: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Within one step after close, the slot is free and the next request has it."""
    script = "load_s=5 prefill_s=1 chunk=4 step_s=0.1"
    async with running_scheduler([spec("a", slots=1)], limits(), {"a.gguf": script}) as here:
        blocker = here.ask("a", max_tokens=100) if phase == "queued" else None
        ticket = here.ask("a", "w " * 40, max_tokens=1000)
        if phase == "loading":
            await trio.sleep(1)
        elif phase == "prefill":
            await trio.sleep(12)
            assert ticket.admitted is not None
            assert ticket.first_token is None
        elif phase == "decode":
            await trio.sleep(50)
            assert ticket.first_token is not None
        else:
            await trio.sleep(8)
            assert ticket.admitted is None
        ticket.close()
        if blocker is not None:
            blocker.close()
        began = trio.current_time()
        following = here.ask("a", "x", max_tokens=1)
        while following.admitted is None:
            await trio.sleep(0.01)
        if phase != "loading":
            assert trio.current_time() - began <= 0.15
        assert isinstance(await last(following), Finished)
        with trio.fail_after(1):
            await here.scheduler.inside.wait_value(0)
        await trio.sleep(1)
        assert here.scheduler.fleet.instance("a.gguf").idle


async def test_a_model_makes_room_for_another(autojump_clock: trio.testing.MockClock) -> None:
    """Two models, room for one: each is served, the idle one goes, and the ledger never exceeds."""
    async with running_scheduler([spec("a", 60), spec("b", 60)], limits(100), {"a.gguf": "load_s=1"}) as here:
        for name in ("a", "b", "a"):
            assert isinstance(await last(here.ask(name)), Finished)
        states = here.scheduler.model_states()
        assert states == {"a.gguf": InstanceState.READY, "b.gguf": InstanceState.STOPPED}
        assert here.scheduler.fleet.evictions == 2
        assert here.events.count(("evict", "a.gguf")) == 1


async def test_two_models_stream_at_once_and_share_the_cores(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Both are loaded, both stream, and each engine has one of the two cores."""
    script = {"a.gguf": "step_s=0.1", "b.gguf": "step_s=0.1"}
    async with running_scheduler([spec("a"), spec("b")], limits(), script) as here:
        first, second = here.ask("a", max_tokens=50), here.ask("b", max_tokens=50)
        await trio.sleep(1)
        views = here.scheduler.fleet.instances
        assert [view.threads for view in views.values()] == [1, 1]
        assert isinstance(await last(first), Finished)
        assert isinstance(await last(second), Finished)


async def test_refusals_that_are_known_at_once_are_raised(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Unknown model, too large, queue full, damaged file, draining: each as its own error."""
    models = [spec("a", slots=1, max_queue_depth=0), spec("big", 500), spec("bad", error="it is empty")]
    async with running_scheduler(models, limits(100), {"a.gguf": "step_s=1"}) as here:
        with pytest.raises(ModelNotFound):
            here.ask("nobody")
        with pytest.raises(DoesNotFit):
            here.ask("big")
        with pytest.raises(ModelFailed, match="it is empty"):
            here.ask("bad")
        ticket = here.ask("a")
        with pytest.raises(QueueFull) as refused:
            here.ask("a")
        assert refused.value.retry_after_s
        here.scheduler.drain()
        with pytest.raises(Draining):
            here.ask("a")
        assert isinstance(await last(ticket), Finished)
        assert here.scheduler.inside.value == 0


async def test_a_failed_load_tells_its_waiters_and_is_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """503 with the reason; after the backoff the next request loads it again."""
    scripts = {"a.gguf": "fail_load=the_file_is_odd"}
    async with running_scheduler([spec("a")], limits(), scripts) as here:
        failed = await last(here.ask("a"))
        assert isinstance(failed, Failed)
        assert failed.problem.status == 503
        assert "the file is odd" in failed.problem.message
        assert here.scheduler.model_states()["a.gguf"] is InstanceState.ERROR
        scripts["a.gguf"] = ""
        await trio.sleep(1)
        assert isinstance(await last(here.ask("a")), Finished)


async def test_the_death_of_an_engine_is_survived(autojump_clock: trio.testing.MockClock) -> None:
    """What ran gets a legal last event; what waited is served by the restarted engine."""
    scripts = {"a.gguf": "die_at=5 step_s=0.1"}
    async with running_scheduler([spec("a", slots=1), spec("b")], limits(), scripts) as here:
        running, waiting = here.ask("a", max_tokens=50), here.ask("a")
        other = here.ask("b", max_tokens=50)
        events = await read(running)
        scripts["a.gguf"] = "step_s=0.1"
        assert isinstance(events[-1], Failed)
        assert events[-1].problem.kind == "engine_failed"
        assert text_of(events)
        assert isinstance(await last(waiting), Finished)
        assert isinstance(await last(other), Finished)
        assert here.scheduler.fleet.instance("a.gguf").restarts == 1


async def test_a_timeout_before_the_first_token_is_a_504(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Prefill takes longer than the request was given."""
    async with running_scheduler([spec("a")], limits(), {"a.gguf": "prefill_s=1 chunk=1"}) as here:
        failed = await last(here.ask("a", "w " * 20, timeout_s=5.0))
        assert isinstance(failed, Failed)
        assert failed.problem.status == 504


async def test_a_timeout_while_streaming_ends_with_that_reason(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The text so far is kept, the finish reason says timeout."""
    async with running_scheduler([spec("a")], limits(), {"a.gguf": "step_s=1"}) as here:
        events = await read(here.ask("a", max_tokens=100, timeout_s=5.5))
        finished = events[-1]
        assert isinstance(finished, Finished)
        assert finished.reason is FinishReason.TIMEOUT
        assert finished.usage.completion_tokens == 6
        await trio.sleep(1.5)
        assert here.scheduler.fleet.instance("a.gguf").idle


async def test_waiting_longer_than_max_wait_is_a_429(autojump_clock: trio.testing.MockClock) -> None:
    """Those in the FIFO and those behind it are told to come back."""
    async with running_scheduler(
        [spec("a", slots=1)], limits(max_wait_s=10.0), {"a.gguf": "step_s=1"}
    ) as here:
        running = here.ask("a", max_tokens=60)
        waiting = [here.ask("a") for _ in range(3)]
        for ticket in waiting:
            failed = await last(ticket)
            assert isinstance(failed, Failed)
            assert failed.problem.status == 429
            assert failed.problem.retry_after_s
        assert trio.current_time() == pytest.approx(10.0, abs=0.5)
        assert isinstance(await last(running), Finished)


async def test_cutting_all_gives_every_stream_its_last_event(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Loading, queued and streaming: each ends legally, and the slots are given back."""
    scripts = {"a.gguf": "step_s=0.5", "b.gguf": "load_s=60"}
    async with running_scheduler([spec("a", slots=1), spec("b")], limits(), scripts) as here:
        streaming, queued, loading = here.ask("a", max_tokens=100), here.ask("a"), here.ask("b")
        await trio.sleep(2)
        here.scheduler.cut_all()
        ends = [await last(ticket) for ticket in (streaming, queued, loading)]
        assert isinstance(ends[0], Finished)
        assert ends[0].reason is FinishReason.SHUTDOWN
        for failed in ends[1:]:
            assert isinstance(failed, Failed)
            assert failed.problem.kind == "draining"
        assert here.scheduler.inside.value == 0


async def test_a_reader_that_falls_behind_loses_its_own_stream_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Over its backlog limit a stream ends and its slot is freed; the neighbour is whole."""
    async with running_scheduler(
        [spec("a")], limits(), {"a.gguf": "step_s=0.01"}, max_stream_backlog=2000
    ) as here:
        lazy, eager = here.ask("a", max_tokens=500), here.ask("a", max_tokens=500)
        whole = await read(eager)
        assert isinstance(whole[-1], Finished)
        assert len(text_of(whole).split()) == 500
        assert here.scheduler.fleet.instance("a.gguf").idle
        failed = await last(lazy)
        assert isinstance(failed, Failed)
        assert failed.problem.kind == "reader_too_slow"
        assert "max_stream_backlog" in failed.problem.message


async def test_those_who_wait_hear_their_position(autojump_clock: trio.testing.MockClock) -> None:
    """Positions count down, and after the first service there is an estimate."""
    async with running_scheduler([spec("a", slots=1)], limits(), {"a.gguf": "step_s=1"}) as here:
        tickets = [here.ask("a", max_tokens=3) for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for ticket in tickets[:3]:
                nursery.start_soon(read, ticket)
            events = await read(tickets[3])
        positions = [event.position for event in events if isinstance(event, Queued)]
        assert positions[-3:] == [3, 2, 1]
        estimates = [event.eta_s for event in events if isinstance(event, Queued)]
        assert estimates[-1] == pytest.approx(2.0, abs=0.5)


async def test_an_idle_model_is_unloaded_by_its_ttl(autojump_clock: trio.testing.MockClock) -> None:
    """A minute after its last request the memory is given back, without anybody asking."""
    async with running_scheduler([spec("a", ttl_s=60.0)], limits(100)) as here:
        await last(here.ask("a"))
        await trio.sleep(59)
        assert here.scheduler.model_states()["a.gguf"] is InstanceState.READY
        await trio.sleep(2)
        assert here.scheduler.model_states()["a.gguf"] is InstanceState.STOPPED
        assert here.scheduler.fleet.held == 0


async def test_cancelling_the_scheduler_leaves_nothing_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With a load, a stream and a queue under way, it ends at once."""
    scripts = {"a.gguf": "step_s=1", "b.gguf": "load_s=100"}
    with trio.fail_after(5):
        async with running_scheduler([spec("a", slots=1), spec("b")], limits(), scripts) as here:
            for name in "aaab":
                here.ask(name, max_tokens=100)
            await trio.sleep(2)
            scheduler = here.scheduler
    assert scheduler.health() == "the scheduler does not run"


async def test_health_and_readiness_follow_the_life(autojump_clock: trio.testing.MockClock) -> None:
    """Ready at once, loading only for preloads of the start, then ready for good; draining at the end."""
    scripts = {"a.gguf": "load_s=5", "b.gguf": "load_s=5"}
    async with running_scheduler([spec("a"), spec("b", ttl_s=0.0)], limits(), scripts) as here:
        scheduler = here.scheduler
        assert (scheduler.health(), scheduler.readiness()) == (None, "ready")
        scheduler.preload("a.gguf", at_start=True)
        await trio.sleep(4)
        assert scheduler.readiness() == "loading"
        await trio.sleep(2)
        assert scheduler.readiness() == "ready"
        scheduler.preload("b.gguf", at_start=False)
        await trio.sleep(4)
        assert scheduler.model_states()["b.gguf"] is InstanceState.LOADING
        assert scheduler.readiness() == "ready"
        await trio.sleep(2)
        assert scheduler.model_states()["b.gguf"] is InstanceState.STOPPED
        assert scheduler.readiness() == "ready"
        scheduler.drain()
        assert scheduler.readiness() == "draining"


async def test_a_preload_that_fails_does_not_keep_the_daemon_unready(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its first failure is what its clients get; the tries after it are no reason to send nobody here."""
    scripts = {"a.gguf": "load_s=5 fail_load=no_memory"}
    async with running_scheduler([spec("a")], limits(), scripts) as here:
        here.scheduler.preload("a.gguf", at_start=True)
        states: list[str] = []
        for _ in range(20):
            states.append(here.scheduler.readiness())
            await trio.sleep(1)
    assert states[0] == "loading"
    assert states[states.index("ready") :] == ["ready"] * states.count("ready")
    assert here.events.count(("load_failed", "a.gguf")) > 1


async def test_the_rate_is_that_of_the_busy_seconds(autojump_clock: trio.testing.MockClock) -> None:
    """Two streams of two tokens a second are four a second, also while the model is idle afterwards."""
    async with running_scheduler([spec("a")], limits(), {"a.gguf": "step_s=0.5"}) as here:
        first, second = here.ask("a", max_tokens=20), here.ask("a", max_tokens=20)
        await last(first)
        await last(second)
        await trio.sleep(2)
        instance = here.scheduler.instances["a.gguf"]
        assert instance.tokens_per_second() == pytest.approx(4.0, rel=0.1)
        await trio.sleep(10)
        assert instance.tokens_per_second() == 0.0


async def test_an_aside_is_answered_while_every_slot_is_taken(autojump_clock: trio.testing.MockClock) -> None:
    """Tokens are told alongside a long generation and a full FIFO; the model stays idle for nobody."""
    async with running_scheduler([spec("a", slots=1)], limits(), {"a.gguf": "step_s=1"}) as here:
        streams = [here.ask("a", max_tokens=5) for _ in range(4)]
        while streams[0].first_token is None:
            await trio.sleep(0.1)
        order = Order(request=TokenizeRequest(content="hi"), model="a")
        ticket = here.scheduler.submit(order, request_id="test")
        began = trio.current_time()
        tokenized, ended = await read(ticket)
        assert tokenized == Tokenized((104, 105))
        assert isinstance(ended, Finished)
        assert trio.current_time() - began <= 2.0
        assert not any(stream.ended for stream in streams)
        for stream in streams:
            assert isinstance(await last(stream), Finished)
        assert here.scheduler.fleet.instance("a.gguf").idle


async def test_embeddings_wait_for_a_slot_like_everybody(autojump_clock: trio.testing.MockClock) -> None:
    """They are queued behind a generation, take its slot, and their tokens are counted."""
    async with running_scheduler([spec("a", slots=1)], limits(), {"a.gguf": "step_s=1"}) as here:
        stream = here.ask("a", max_tokens=5)
        order = Order(request=EmbedRequest(inputs=("one two", "three")), model="a")
        ticket = here.scheduler.submit(order, request_id="test")
        *waiting, embedded, ended = await read(ticket)
        assert any(isinstance(event, Queued) for event in waiting)
        assert isinstance(embedded, Embedded)
        assert (embedded.first, len(embedded.vectors)) == (0, 2)
        assert isinstance(ended, Finished)
        assert ended.usage.prompt_tokens == 3
        assert stream.ended


async def test_embeddings_have_a_deadline_and_end_when_the_client_leaves(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Too late is a failure, never half an answer; who leaves frees the slot."""
    async with running_scheduler([spec("a", slots=1)], limits(), {"a.gguf": "prefill_s=1 chunk=1"}) as here:
        request = EmbedRequest(inputs=("a b c d e f g h",))
        late = here.scheduler.submit(Order(request=request, model="a", timeout_s=3.0), request_id="test")
        assert (await last(late)).problem.kind == "deadline_exceeded"
        left = here.scheduler.submit(Order(request=request, model="a"), request_id="test")
        while left.admitted is None:
            await trio.sleep(0.1)
        left.close()
        assert isinstance(await last(here.ask("a", max_tokens=1)), Finished)
        assert here.scheduler.inside.value == 0


async def test_an_embedding_model_is_not_loaded_for_text(autojump_clock: trio.testing.MockClock) -> None:
    """What its file says speaks against it, so nothing is loaded or evicted for it."""
    facts = ModelFacts(architecture="bert", pooling="cls")
    async with running_scheduler([msgspec.structs.replace(spec("a"), facts=facts)], limits()) as here:
        with pytest.raises(InvalidRequest, match="embedding model"):
            here.ask("a")
        order = Order(request=EmbedRequest(inputs=("x",), pooling=Pooling.MEAN), model="a")
        with pytest.raises(InvalidRequest, match="pools by cls"):
            here.scheduler.submit(order, request_id="test")
        assert here.events == []
