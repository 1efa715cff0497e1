# SPDX-License-Identifier: GPL-3.0-only
"""What counts as a hang."""

from __future__ import annotations

from modeld.runtime.instances.stall_detector import LOOKS, StallDetector


def test_silence_while_busy_is_a_stall() -> None:
    """After the look that found it busy, so many silent ones make a stall, not one less."""
    watch = StallDetector()
    looks = [watch.check(busy=True) for _ in range(LOOKS + 1)]
    assert looks == [False] * LOOKS + [True]


def test_a_sign_of_life_begins_the_count_anew() -> None:
    """A step a second before the end of the patience, again and again, is no stall."""
    watch = StallDetector()
    for _ in range(5):
        assert not any(watch.check(busy=True) for _ in range(LOOKS - 1))
        watch.alive()


def test_an_idle_engine_may_be_silent() -> None:
    """For ever; and the time it was idle does not count once it is busy."""
    watch = StallDetector()
    assert not any(watch.check(busy=False) for _ in range(100))
    assert not any(watch.check(busy=True) for _ in range(LOOKS))
    assert watch.check(busy=True)


def test_a_changing_pulse_is_a_sign_of_life() -> None:
    """A load that says nothing but computes or reads is slow, one that does neither hangs."""
    watch = StallDetector()
    assert not any(watch.check(busy=True, pulse=number) for number in range(100))
    assert [watch.check(busy=True, pulse=99) for _ in range(LOOKS)] == [False] * (LOOKS - 1) + [True]
