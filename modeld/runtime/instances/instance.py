# SPDX-License-Identifier: GPL-3.0-only
"""One instance: a task group for one loaded model, its bounded FIFO, and its worker.

Tickets go down (FIFO -> free slot -> worker), outputs come up (worker -> ticket's mailbox).
What the scheduler must know goes to it as inputs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import trio
from trio_util import AsyncValue

from modeld.domain.instance_state import InstanceState, transition
from modeld.domain.request_events import Delta, Embedded, FinishReason, Started
from modeld.engine.protocol import (
    AnswerOutput,
    EngineInfo,
    LoadSpec,
    Output,
    RequestAdmitted,
    RequestDone,
    RequestFailed,
    TokenOutput,
    VectorOutput,
)
from modeld.errors import EngineFailed
from modeld.runtime.instances.decode_interrupts import InterruptRule
from modeld.runtime.instances.slots_queue import SlotsQueue
from modeld.runtime.instances.stall_detector import StallDetector, describe_stall, first_stall
from modeld.runtime.ticket import Ticket
from modeld.scheduler.effects import CutReason, CutRequest
from modeld.scheduler.inputs import Input, InstanceLoaded, InstanceStuck, SlotReleased, SlotTaken
from modeld.worker.host import Host
from modeld.worker.messages import (
    CancelRequest,
    FromWorker,
    MemoryHeld,
    Progress,
    SetThreads,
    StepDone,
    SubmitRequest,
    WorkerDied,
    WorkerLoadFailed,
    WorkerReady,
    WorkerStopped,
)

# ----------------------------------------------------------------------
# How many tokens a second an instance brings.

WINDOW_S = 10.0
"""Tokens per second are those of the last ten seconds, idle ones left out."""


class TokenRate:
    """Counts tokens by whole seconds of a clock that the caller reads."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[float, int]] = deque()
        """Begin of each second in which there were tokens, and how many; oldest first."""

    def add(self, tokens: int, now: float) -> None:
        """Take in that so many tokens came."""
        second = float(int(now))
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, self._seconds[-1][1] + tokens)
        else:
            self._seconds.append((second, tokens))
            self._forget_old(now)

    def per_second(self, now: float) -> float:
        """Return the average over those of the last ten seconds that had tokens."""
        self._forget_old(now)
        return sum(count for _, count in self._seconds) / max(1, len(self._seconds))

    def _forget_old(self, now: float) -> None:
        while self._seconds and self._seconds[0][0] < now - WINDOW_S:
            self._seconds.popleft()


# ----------------------------------------------------------------------

Ending = WorkerStopped | WorkerLoadFailed | WorkerDied


class Instance:
    """A model in memory, or on its way there.

    Attributes:
      state: LOADING, READY, DRAINING, then STOPPED or ERROR; tasks may wait for a value of it.
      info: what was loaded, once READY.
      progress: how far the load has come, in [0, 1].
      isolation: where its engine runs.
      unstarted: after a death, the tickets the engine had, and of whose answer nothing had come.
    """

    def __init__(
        self,
        load: LoadSpec,
        *,
        host: Host,
        feed: Callable[[Input], None],
        on_progress: Callable[[str, float], None],
        on_held: Callable[[int, bool], None] = lambda _bytes, _ready: None,
        stall_timeout_s: float = math.inf,
    ) -> None:
        """`on_held` is told bytes that the worker holds, and whether it became ready just then."""
        self.model_id = load.model_id
        self.state: AsyncValue[InstanceState] = AsyncValue(InstanceState.LOADING)
        self.info: EngineInfo | None = None
        self.progress = 0.0
        self.unstarted: frozenset[int] = frozenset()
        self.isolation = load.options.isolation
        self.last_step = trio.current_time()
        self._feed = feed
        self._on_progress = on_progress
        self._on_held = on_held
        self._worker = host(load, self._on_message)
        self._stall_timeout_s = stall_timeout_s
        self._watch = StallDetector()
        self._fifo = SlotsQueue(load.options.slots)
        self._running: dict[int, Ticket] = {}
        self._ending: Ending | None = None
        self._interrupts = InterruptRule()
        self._rate = TokenRate()

    async def run(self) -> Ending:
        """Load the model and serve until it is stopped or breaks.

        Returns: how it ended; its memory is given back by then.
        Cancellation: stops the worker, waits for it, and ends what was in its slots.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._fill_slots)
                nursery.start_soon(self._watch_for_stalls)
                await self._worker.run()
                nursery.cancel_scope.cancel()
        finally:
            self._fifo.close()
            self._fail_running()
        if self._ending is None:
            self._ending = WorkerDied(EngineFailed("the worker ended without a word").as_problem())
        self.state.value = (
            InstanceState.STOPPED if isinstance(self._ending, WorkerStopped) else InstanceState.ERROR
        )
        return self._ending

    def grant(self, ticket: Ticket) -> None:
        """Put a ticket into the FIFO. The scheduler grants no more than there is room for.

        One that needs no slot goes to the worker at once.
        """
        if ticket.order.needs_no_slot:
            self._submit(ticket)
        else:
            self._fifo.put(ticket)

    def cancel(self, ticket: Ticket) -> None:
        """Take a ticket that ended, or whose reader left, out of its slot or out of the FIFO."""
        if ticket.id in self._running:
            in_prefill = ticket.admitted is not None and ticket.first_token is None
            urgent = in_prefill and self._interrupts.may_interrupt(alone=len(self._running) == 1)
            self._worker.send(CancelRequest(ticket.id, urgent=urgent))
        elif self._fifo.withdraw(ticket):
            self._feed(SlotReleased(ticket.id, served=False))

    def cut(self, ticket: Ticket, cut: CutRequest) -> None:
        """End a ticket with a legal last event, and take it out of its slot."""
        if ticket.first_token is None or cut.reason is CutReason.WAITED:
            ticket.fail(cut.problem)
        else:
            ticket.finish(cut.reason.finish)
        self.cancel(ticket)

    def set_threads(self, threads: int) -> None:
        """Use so many CPU threads from the next step on."""
        self._worker.send(SetThreads(threads))

    def stop(self) -> None:
        """Ask the worker to stop; `run` returns when it has."""
        self.state.value = transition(self.state.value, InstanceState.DRAINING)
        self._worker.stop()

    def tokens_per_second(self) -> float:
        """Return the rate over all slots, averaged over those of the last ten seconds that had tokens."""
        return self._rate.per_second(trio.current_time())

    @property
    def pid(self) -> int | None:
        """The process of its worker, if it has one of its own."""
        return self._worker.pid

    @property
    def measured(self) -> int | None:
        """Bytes its worker holds, where that can be told apart."""
        return self._worker.measured

    async def _watch_for_stalls(self) -> None:
        """End an engine that shows no sign of life while it has something to do.

        A step or a chunk of a prompt is a sign. A load shows its progress, and where it has a process of
        its own, any use of the CPU and any page it reads: reading 40 GB into memory takes long. A
        thread cannot be killed: its requests end, and its memory stays held.
        """
        await first_stall(self._hangs, self._stall_timeout_s)
        self._end_stalled()

    def _hangs(self) -> bool:
        state = self.state.value
        if state is InstanceState.LOADING:
            pulse = self._worker.pulse()
            return self._watch.check(busy=pulse is not None, pulse=pulse)
        return self._watch.check(busy=bool(self._running) or state is InstanceState.DRAINING)

    def _end_stalled(self) -> None:
        text = describe_stall(self.model_id, self.state.value, self._stall_timeout_s)
        if self._worker.kill(EngineFailed(f"{text}; its process was killed").as_problem()):
            return
        problem = EngineFailed(
            f"{text}; a thread cannot be killed (isolation: process can), so its memory stays held "
            "until it comes back or the daemon is restarted"
        ).as_problem()
        self.state.value = transition(self.state.value, InstanceState.DRAINING)
        for ticket in self._running.values():
            ticket.fail(problem)
        self._running.clear()
        self._worker.stop()
        self._feed(InstanceStuck(self.model_id, problem))

    async def _fill_slots(self) -> None:
        while True:
            ticket = await self._fifo.next()
            if ticket.closed or ticket.ended:  # It ended on its way from the channel to here.
                self._fifo.free()
                self._feed(SlotReleased(ticket.id, served=False, tokens=0))
            else:
                self._submit(ticket)

    def _submit(self, ticket: Ticket) -> None:
        self._running[ticket.id] = ticket
        self._watch.alive()
        self._worker.send(SubmitRequest(ticket.id, ticket.order.request))

    def _on_message(self, message: FromWorker) -> None:
        if isinstance(message, MemoryHeld):
            self._on_held(message.bytes, False)
            return
        self._watch.alive()
        match message:
            case StepDone(outputs=outputs):
                self._stepped(outputs)
            case Progress(fraction=fraction):
                self.progress = fraction
                self._on_progress(self.model_id, fraction)
            case WorkerReady(info=info, held=held):
                self._become_ready(info)
                self._on_held(held, True)
            case WorkerStopped() | WorkerLoadFailed() | WorkerDied():
                self._ending = message

    def _become_ready(self, info: EngineInfo) -> None:
        self.info = info
        self.progress = 1.0
        if self.state.value is not InstanceState.LOADING:  # It was told to stop meanwhile.
            return
        self.state.value = InstanceState.READY
        self._fifo.free(info.slots)
        self._feed(InstanceLoaded(self.model_id, info.slots))

    def _stepped(self, outputs: tuple[Output, ...]) -> None:
        """Deliver a step's outputs; each reader gets all of its own at once."""
        now = self.last_step = trio.current_time()
        self._interrupts.stepped(outputs)
        tokens, touched = 0, dict[int, Ticket]()
        for output in outputs:
            ticket = self._running.get(output.id)
            if ticket is None:
                continue
            if isinstance(output, TokenOutput):
                tokens += output.count
                if ticket.first_token is None:
                    ticket.add(Started(ticket.usage, ticket.thought), now)
                touched[ticket.id] = ticket
                ticket.completion_tokens += output.count
                if output.text or output.logprobs:
                    ticket.add(Delta(output.text, output.logprobs), now)
            else:
                self._deliver(ticket, output)
        for ticket in touched.values():
            ticket.flush()
        if tokens:
            self._rate.add(tokens, now)

    def _deliver(
        self,
        ticket: Ticket,
        output: RequestAdmitted | VectorOutput | AnswerOutput | RequestDone | RequestFailed,
    ) -> None:
        match output:
            case RequestAdmitted():
                ticket.admit(output.prompt_tokens, output.cached_tokens, output.thought, output.notices)
                self._feed(SlotTaken(ticket.id))
            case VectorOutput(first=first, vectors=vectors):
                ticket.put(Embedded(first, vectors))
            case AnswerOutput(answer=answer):
                ticket.put(answer)
                ticket.finish(FinishReason.STOP)
                self._release(ticket, served=False)  # It does not show that the model computes.
            case RequestDone(reason=reason, stop=stop):
                ticket.finish(reason, stop)
                self._release(ticket, served=reason is not FinishReason.CANCELLED)
            case RequestFailed(problem=problem):
                ticket.fail(problem)
                self._release(ticket, served=False)

    def _release(self, ticket: Ticket, *, served: bool) -> None:
        del self._running[ticket.id]
        if not ticket.order.needs_no_slot:
            self._fifo.free()
        tokens = ticket.prompt_tokens + ticket.completion_tokens
        self._feed(SlotReleased(ticket.id, served=served, tokens=tokens))

    def _fail_running(self) -> None:
        """Fail what was in the slots. After a death, those of whose answer nothing came may begin again."""
        died = self._ending if isinstance(self._ending, WorkerDied) else None
        text = f"model {self.model_id} was stopped while it served this request"
        problem = EngineFailed(text).as_problem() if died is None else died.problem
        again: set[int] = set()
        for ticket in self._running.values():
            if died is not None and not ticket.begun:
                ticket.restart()
                again.add(ticket.id)
            else:
                ticket.fail(problem)
        self.unstarted = frozenset(again)
        self._running.clear()
