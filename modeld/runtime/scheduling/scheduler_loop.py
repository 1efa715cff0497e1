# SPDX-License-Identifier: GPL-3.0-only
"""Own the fleet's state: feed inputs and time to the pure `step`.

Everything here runs in the event loop and never waits, except `run`: so nobody needs a lock, and
who feeds an input sees at once what became of it.
"""

from __future__ import annotations

import math
from collections import deque

import trio
from msgspec.structs import replace

from modeld.runtime.scheduling.effect_runner import EffectRunner
from modeld.runtime.scheduling.queue_positions import QueuePositions
from modeld.runtime.scheduling.tickets import Tickets
from modeld.scheduler import inputs
from modeld.scheduler.deadlines import next_deadline
from modeld.scheduler.inputs import Input
from modeld.scheduler.state import Fleet, SchedulerLimits
from modeld.scheduler.step import step

HEARTBEAT_S = 1.0
"""The loop's task shows a sign of life at least so often."""


class SchedulerLoop:
    """Takes inputs in, one after the other: input -> `step` -> fleet and effects -> effect runner.

    Attributes:
      fleet: the snapshot all decisions are made on.
      alive_at: the last sign of life of its task.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        effect_runner: EffectRunner,
        tickets: Tickets,
        positions: QueuePositions,
    ) -> None:
        """`positions` tells the `tickets` that wait where they are in the queue, after each turn."""
        self.fleet = Fleet(limits=limits)
        self.alive_at = trio.current_time()
        self._effect_runner = effect_runner
        self._waiting = tickets.inside
        self._positions = positions
        self._inputs: deque[Input] = deque()
        self._feeding = False
        self._wake = trio.Event()
        self._sleeping_until = math.inf
        self._due = math.inf

    async def run(self) -> None:
        """Let time pass for the decisions, and for who waits. Never returns."""
        while True:
            self._wake = trio.Event()
            now = self.alive_at = trio.current_time()
            self._sleeping_until = min(now + HEARTBEAT_S, self._due, self._positions.due)
            with trio.move_on_at(self._sleeping_until):
                await self._wake.wait()
            now = trio.current_time()
            if now >= self._due:
                self.feed(inputs.Tick())
            if now >= self._positions.due:
                self._positions.refresh(self.fleet, self._waiting, now)

    def feed(self, event: Input) -> None:
        """Take in an input; inputs that its effects cause are taken in after it."""
        self._inputs.append(event)
        if self._feeding:
            return
        self._feeding = True
        decided = False
        try:
            while self._inputs:
                event = self._inputs.popleft()
                decided = decided or not isinstance(event, inputs.SlotTaken)
                self._take(event)
        finally:
            self._feeding = False
        # Kept, since a moment that is reached is none of the future any more, whoever looks then. So a step
        # that decides nothing may not put off what is due: its moment may just have been reached.
        due = next_deadline(self.fleet, trio.current_time())
        due = math.inf if due is None else due
        self._due = due if decided else min(self._due, due)
        if min(self._due, self._positions.due) < self._sleeping_until:
            self._wake.set()

    def widen_budget(self, more: int) -> None:
        """Add bytes to the budget, before anything is loaded."""
        limits = self.fleet.limits
        if limits.budget is not None:
            self.fleet = replace(self.fleet, limits=replace(limits, budget=limits.budget + more))

    def _take(self, event: Input) -> None:
        now = trio.current_time()
        self._effect_runner.before_step(event, self.fleet, now)
        self.fleet, effects = step(self.fleet, event, now)
        for effect in effects:
            self._effect_runner.run_effects(effect)
        self._effect_runner.after_step(event)
        self._positions.refresh(self.fleet, self._waiting, now)
