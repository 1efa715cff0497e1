# SPDX-License-Identifier: GPL-3.0-only
"""What is left of a device to models: looks in, a ceiling out."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from modeld.domain.model import MIB
from modeld.memory.devices import (
    GRAIN,
    LOOKS,
    Device,
    DeviceKind,
    DeviceReading,
    DeviceState,
    combined,
    device_limits,
    observe,
)

GIB = 1024 * MIB


def cpu(free: int, total: int = 24 * GIB, name: str = "CPU") -> Device:
    return Device(name=name, kind=DeviceKind.CPU, free=free, total=total)


def look(known: tuple[DeviceState, ...], free: int, ours: int = 0, **more: int) -> tuple[DeviceState, ...]:
    return observe(known, [DeviceReading(device=cpu(free), ours=ours, **more)])


def looks(*frees: int) -> DeviceState:
    known: tuple[DeviceState, ...] = ()
    for free in frees:
        known = look(known, free)
    return known[0]


def test_what_models_hold_is_theirs() -> None:
    """Free memory shrinks as models load, and what they may hold together stays as it is."""
    before = look((), 20 * GIB)
    after = look(before, 12 * GIB, ours=8 * GIB)
    assert before[0].ceiling == after[0].ceiling == 20 * GIB
    assert (before[0].foreign, after[0].foreign) == (4 * GIB, 4 * GIB)


def test_what_others_take_counts_at_once_and_comes_back_when_it_is_sure() -> None:
    """The ceiling falls with the first look that says so, and rises after as many as are remembered."""
    known = look((), 20 * GIB)
    known = look(known, 10 * GIB)
    assert known[0].ceiling == 10 * GIB
    rising: list[int | None] = []
    for _ in range(LOOKS):
        known = look(known, 20 * GIB)
        rising.append(known[0].ceiling)
    assert rising == [10 * GIB] * (LOOKS - 1) + [20 * GIB]


def test_a_swing_below_a_grain_changes_nothing() -> None:
    """A page cache that breathes does not make the budget flap."""
    known = look((), 10 * GIB + GRAIN // 2)
    seen = {known[0].ceiling}
    for turn in range(40):
        known = look(known, 10 * GIB + (GRAIN // 3 if turn % 2 else GRAIN - 1))
        seen.add(known[0].ceiling)
    assert seen == {10 * GIB}


def test_a_spike_is_not_certain() -> None:
    """Only what every one of the last looks says is certain, and nothing before there were enough."""
    assert looks(*[20 * GIB] * (LOOKS - 1)).certain is None
    assert looks(*[20 * GIB] * LOOKS, 1 * GIB).certain == 20 * GIB
    assert looks(*[20 * GIB] * LOOKS, *[1 * GIB] * LOOKS).certain == 1 * GIB


def test_while_models_come_and_go_what_was_known_holds_within_the_bounds() -> None:
    """What a load will hold is not there yet; only what no progress of it explains is others' doing."""
    known = look((), 10 * GIB)
    for free in (10, 7, 4):  # As it loads, what is free shrinks.
        known = look(known, free * GIB, ours=6 * GIB, least=0)
        assert known[0].recent_foreign[-1] == 10 * GIB
    known = look(known, 2 * GIB, ours=6 * GIB, least=0)
    assert known[0].ceiling == 8 * GIB, "at most 6 of what is taken are ours"
    known = look(known, 9 * GIB, ours=6 * GIB, least=0)
    assert known[0].recent_foreign[-1] == 9 * GIB, "at least what is free is for models"


def test_a_look_that_was_taken_already_is_not_taken_twice() -> None:
    """A device that is asked seldom keeps what is known of it between two looks."""
    card = Device(name="CUDA0", kind=DeviceKind.GPU, free=4 * GIB, total=8 * GIB, seen=1)
    first = observe((), [DeviceReading(device=card)])
    again = observe(first, [DeviceReading(device=card, ours=3 * GIB)])
    assert again == first
    later = observe(first, [DeviceReading(device=replace(card, seen=2, free=1 * GIB), ours=3 * GIB)])
    assert later[0].recent_foreign == (4 * GIB, 4 * GIB)


def test_a_device_that_vanishes_has_nothing_left_and_may_come_back() -> None:
    """A card that fell off its bus takes no more loads; one that is there again begins again."""
    known = observe(
        (), [DeviceReading(device=cpu(8 * GIB)), DeviceReading(device=cpu(6 * GIB, 8 * GIB, "CUDA0"))]
    )
    gone = look(known, 8 * GIB)
    assert [(one.device.name, one.ceiling) for one in gone] == [("CPU", 8 * GIB), ("CUDA0", 0)]
    assert [one.ceiling for one in look(gone, 8 * GIB)] == [8 * GIB, 0]
    back = observe(
        gone, [DeviceReading(device=cpu(8 * GIB)), DeviceReading(device=cpu(5 * GIB, 8 * GIB, "CUDA0"))]
    )
    assert [one.ceiling for one in back] == [8 * GIB, 5 * GIB]


def test_a_system_that_does_not_tell_leaves_the_budget_alone() -> None:
    """Without a total there is no ceiling, also where there was one before."""
    known = look((), 8 * GIB)
    silent = observe(known, [DeviceReading(device=cpu(8 * GIB, 0))])
    assert silent[0].ceiling is None
    assert silent[0].foreign == 0
    assert device_limits(silent) == ()
    assert look(silent, 4 * GIB)[0].ceiling == 4 * GIB


def test_nonsense_is_bounded() -> None:
    """More free than there is, or less than nothing, cannot make a ceiling outside of the device."""
    assert look((), 99 * GIB, ours=99 * GIB)[0].ceiling == 24 * GIB
    assert look((), -5, ours=-7)[0].ceiling == 0
    assert observe((), [DeviceReading(device=cpu(5, -3))])[0].ceiling is None


def test_a_gpu_that_tells_nothing_keeps_its_place_among_those_that_do() -> None:
    """llama.cpp counts it, so the others' numbers depend on it; where none tells, nothing is placed."""
    silent = Device(name="CUDA0", kind=DeviceKind.GPU)
    card = Device(name="CUDA1", kind=DeviceKind.GPU, free=4 * GIB, total=8 * GIB)
    both = device_limits(observe((), [DeviceReading(device=silent), DeviceReading(device=card)]))
    assert [(it.name, it.ceiling) for it in both] == [("CUDA0", 0), ("CUDA1", 4 * GIB)]
    assert device_limits(observe((), [DeviceReading(device=silent)])) == ()


def test_a_gpu_inside_the_cpu_adds_no_memory_but_its_own_where_it_is_alone() -> None:
    """It uses that of the machine, which counts already; unless the system does not tell that."""
    inside = Device(name="Vulkan0", kind=DeviceKind.IGPU, free=2 * GIB, total=4 * GIB)
    found = device_limits(observe((), [DeviceReading(device=cpu(8 * GIB)), DeviceReading(device=inside)]))
    assert combined(found, [it.ceiling for it in found]) == 8 * GIB
    assert combined(found[1:], [found[1].ceiling]) == 2 * GIB


_amounts = st.integers(-GIB, 30 * GIB)


@given(st.lists(st.tuples(_amounts, _amounts, st.none() | _amounts), min_size=1, max_size=30))
@settings(max_examples=300, deadline=None)
def test_the_ceiling_is_never_above_a_look_that_counts_and_never_far_below(
    readings: list[tuple[int, int, int | None]],
) -> None:
    """Whatever the looks say: below each of the last ones, less than two grains below the least of them."""
    known: tuple[DeviceState, ...] = ()
    for free, ours, least in readings:
        known = observe(known, [DeviceReading(device=cpu(free), ours=ours, least=least)])
        one = known[0]
        assert one.ceiling is not None
        assert 0 <= one.ceiling <= min(one.recent_foreign) <= one.device.total
        assert one.ceiling > min(one.recent_foreign) - 2 * GRAIN
        assert one.certain is None or one.certain >= max(one.recent_foreign) >= one.ceiling
        assert len(one.recent_foreign) <= LOOKS
