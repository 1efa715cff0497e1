# SPDX-License-Identifier: GPL-3.0-only
"""Whatever happens, in whatever order: the ledger holds, and every ticket ends exactly once.

The rules of the game and what must hold are in `tests/support/scheduler_world.py`. MODELD_SCHEDULES=1000000
plays so many schedules instead of 10,000.
"""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from support.scheduler_world import SchedulerWorld, play

SCHEDULES = int(os.environ.get("MODELD_SCHEDULES", "10000"))


class Machine(RuleBasedStateMachine):
    """Plays the world by hypothesis's own rules, which finds short schedules that fail."""

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.world = SchedulerWorld(self._picks(data))

    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        self.world.pick = self._picks(data)
        self.world.act()

    def _picks(self, data: st.DataObject):
        return lambda below: data.draw(st.integers(0, below - 1))

    def teardown(self) -> None:
        """Let everything end well."""
        if hasattr(self, "world"):
            self.world.pick = lambda _below: 0
            self.world.end()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def is_over(world: SchedulerWorld) -> bool:
    """Whether nobody waits any more, and nothing is held for anybody: each step was checked before."""
    return not world.live and not world.operations and not world.driver.fleet.reservations


@given(st.binary(max_size=240))
@settings(max_examples=500, deadline=None)
def test_no_schedule_that_hypothesis_finds_breaks_an_invariant(numbers: bytes) -> None:
    """Schedules as rows of bytes, made up and made shorter by hypothesis."""
    assert is_over(play(numbers))


@pytest.mark.parametrize("part", range(10))
def test_thousands_of_random_schedules_break_no_invariant(part: int) -> None:
    """Plain chance, with a seed: far more schedules in the same time. One that fails is told as its bytes."""
    chance = random.Random(part)  # noqa: S311  # the same schedules every time
    for _ in range(SCHEDULES // 10):
        numbers = chance.randbytes(chance.randrange(40, 240))
        try:
            assert is_over(play(numbers))
        except Exception as error:  # whatever broke: the schedule that did it is told with it
            error.add_note(f"play({numbers!r})")
            raise
