# SPDX-License-Identifier: GPL-3.0-only
"""Rules of an instance that need no engine."""

from __future__ import annotations

from modeld.domain.request_events import FinishReason, Usage
from modeld.engine.protocol import RequestDone, TokenOutput
from modeld.runtime.instances.decode_interrupts import InterruptRule

CHUNK = ()
TOLD = (RequestDone(1, FinishReason.CANCELLED, Usage()),)
TOKENS = (TokenOutput(2, "x"),)


def test_a_whole_step_comes_between_two_interrupts() -> None:
    """Neither the interrupted step nor one that only tells allows the next interrupt; a whole one does."""
    rule = InterruptRule()
    assert rule.may_interrupt(alone=False)
    assert not rule.may_interrupt(alone=False)
    rule.stepped(CHUNK)  # the interrupted one
    assert not rule.may_interrupt(alone=False)
    rule.stepped(TOLD)
    assert not rule.may_interrupt(alone=False)
    rule.stepped(TOKENS)
    assert rule.may_interrupt(alone=False)


def test_a_chunk_of_a_prompt_is_a_whole_step() -> None:
    """A step that brought nothing counts unless it was the interrupted one."""
    rule = InterruptRule()
    rule.may_interrupt(alone=False)
    rule.stepped(CHUNK)
    rule.stepped(CHUNK)
    assert rule.may_interrupt(alone=False)


def test_an_interrupt_that_came_too_late_is_forgotten() -> None:
    """The step had its tokens already: the next cancel may interrupt."""
    rule = InterruptRule()
    rule.may_interrupt(alone=False)
    rule.stepped(TOKENS)
    assert rule.may_interrupt(alone=False)


def test_whoever_is_alone_may_always_be_interrupted() -> None:
    """There is nobody whose work it would cost."""
    rule = InterruptRule()
    assert all(rule.may_interrupt(alone=True) for _ in range(3))
