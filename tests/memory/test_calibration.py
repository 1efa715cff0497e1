# SPDX-License-Identifier: GPL-3.0-only
"""What loads teach of footprints: ratios, their bounds, and memory that runs out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import (
    MIB,
    DryRun,
    Footprint,
    FootprintSource,
    LoadOptions,
    ModelFacts,
    ModelSpec,
    catalog_of,
)
from modeld.errors import ModelFailed, OutOfMemory
from modeld.memory.calibration import (
    LEAST_RATIO,
    MOST_RATIO,
    RAISE,
    Calibration,
    after_load,
    after_measurement,
    calibrated,
    with_new_peak,
)
from modeld.scheduler import inputs
from modeld.scheduler.effects import RecordDecision, Refuse, StartLoad
from modeld.scheduler.state import Fleet, PendingRequest, SchedulerLimits
from modeld.scheduler.step import step

PEAK = Footprint(weights=100 * MIB, kv=50 * MIB, compute=40 * MIB, overhead=10 * MIB)
FIRST = Footprint(weights=100 * MIB, kv=50 * MIB, compute=10 * MIB, overhead=10 * MIB)
SPEC = ModelSpec(
    id="a.gguf",
    path="/models/a.gguf",
    facts=ModelFacts(architecture="llama"),
    footprint=Footprint(weights=300 * MIB),
    options=LoadOptions(slots=2),
)
PROBED = calibrated(SPEC, DryRun(peak=PEAK, before_use=FIRST), None)


def test_a_dry_run_takes_the_place_of_the_formula() -> None:
    """What a load reserves is the peak; where it came from is kept."""
    assert PROBED.footprint == PEAK
    assert (PROBED.scale.source, PROBED.scale.first) == (FootprintSource.PROBE, FIRST)
    plain = calibrated(SPEC, None, None)
    assert plain.footprint == SPEC.footprint
    assert plain.scale.source is FootprintSource.FORMULA


def test_what_a_ready_worker_holds_is_compared_without_the_buffers_of_graphs() -> None:
    """It holds all of the first layout but the 10 MiB of compute: 176 where 160 were expected."""
    learned = after_load(Calibration(), PROBED.scale, 176 * MIB)
    assert learned.ratio == pytest.approx(186 / 170)
    assert learned.measured == 186 * MIB
    assert calibrated(SPEC, DryRun(peak=PEAK, before_use=FIRST), learned).footprint.total == pytest.approx(
        200 * MIB * 186 / 170, abs=4
    )


def test_a_later_load_replaces_what_an_earlier_one_taught() -> None:
    """The last one is nearest to the next."""
    learned = after_load(after_load(Calibration(), PROBED.scale, 200 * MIB), PROBED.scale, 160 * MIB)
    assert learned.ratio == 1.0


def test_a_worker_that_holds_more_than_was_reserved_raises_the_next_estimate() -> None:
    """And one that holds less says nothing: its context may be young."""
    learned = after_load(Calibration(), PROBED.scale, 160 * MIB)
    assert after_measurement(learned, PROBED.scale, 190 * MIB) == learned
    assert after_measurement(learned, PROBED.scale, 220 * MIB).ratio == pytest.approx(1.1)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2**44)), max_size=20), st.booleans())
def test_the_ratio_is_bounded_whatever_was_seen(looks: list[tuple[bool, int]], short: bool) -> None:
    """No nonsense of a kernel makes an estimate vanish or explode."""
    learned = Calibration(raised=short)
    for ready, held in looks:
        learned = (after_load if ready else after_measurement)(learned, PROBED.scale, held)
        assert LEAST_RATIO <= learned.ratio <= MOST_RATIO
    assert not short or learned.ratio >= RAISE


def test_an_estimate_is_raised_once() -> None:
    """By a quarter; one that is as high already stays."""
    once = with_new_peak(PROBED)
    assert once is not None
    assert once.footprint.total == pytest.approx(250 * MIB, abs=4)
    assert with_new_peak(once) is None


def loading(budget_mb: int) -> Fleet:
    """A fleet whose one model is being loaded for one request."""
    fleet = Fleet(limits=SchedulerLimits(budget=budget_mb * MIB), catalog=catalog_of([PROBED]))
    fleet, effects = step(fleet, inputs.RequestArrived(PendingRequest(ticket=1, model_id=SPEC.id)), 0.0)
    assert any(isinstance(effect, StartLoad) for effect in effects)
    return fleet


NO_MEMORY = OutOfMemory("no memory").as_problem()


def test_memory_that_runs_out_raises_the_estimate_and_the_load_is_tried_once_more() -> None:
    """The request waits on; the second failure is told to it."""
    fleet, effects = step(loading(1000), inputs.InstanceLoadFailed(SPEC.id, NO_MEMORY), 1.0)
    (load,) = [effect for effect in effects if isinstance(effect, StartLoad)]
    assert load.spec.footprint.total == pytest.approx(250 * MIB, abs=4)
    assert fleet.held == load.spec.footprint.total
    assert [effect.action for effect in effects if isinstance(effect, RecordDecision)] == ["replan", "load"]
    fleet, effects = step(fleet, inputs.InstanceLoadFailed(SPEC.id, NO_MEMORY), 2.0)
    assert [effect.ticket for effect in effects if isinstance(effect, Refuse)] == [1]
    assert not any(isinstance(effect, StartLoad) for effect in effects)
    assert fleet.instance(SPEC.id).state is InstanceState.ERROR


def test_a_raised_estimate_that_cannot_fit_is_refused_with_the_numbers() -> None:
    """The budget holds for it as for any other."""
    fleet, effects = step(loading(220), inputs.InstanceLoadFailed(SPEC.id, NO_MEMORY), 1.0)
    (refusal,) = [effect for effect in effects if isinstance(effect, Refuse)]
    assert refusal.problem.kind == "does_not_fit"
    assert refusal.problem.details["need_mb"] == 250
    assert fleet.held == 0


def test_other_failures_raise_nothing() -> None:
    """A damaged file needs no more memory."""
    fleet, effects = step(
        loading(1000), inputs.InstanceLoadFailed(SPEC.id, ModelFailed("bad").as_problem()), 1.0
    )
    assert fleet.catalog.models[SPEC.id] == PROBED
    assert [effect.ticket for effect in effects if isinstance(effect, Refuse)] == [1]


def test_an_estimate_that_was_raised_before_is_not_raised_again() -> None:
    """Also not in a later life of the daemon: what was learned is kept."""
    before = calibrated(SPEC, DryRun(peak=PEAK, before_use=FIRST), Calibration(raised=True))
    fleet = replace(loading(1000), catalog=catalog_of([before]))
    _, effects = step(fleet, inputs.InstanceLoadFailed(SPEC.id, NO_MEMORY), 1.0)
    assert [effect.ticket for effect in effects if isinstance(effect, Refuse)] == [1]
