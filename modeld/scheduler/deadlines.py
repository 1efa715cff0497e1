# SPDX-License-Identifier: GPL-3.0-only
"""Compute when the scheduler must run again because time alone changes a decision."""

from __future__ import annotations

from collections.abc import Iterator

from modeld.domain.instance_state import InstanceState
from modeld.scheduler.draining import cut_deadline, gate_closed_since
from modeld.scheduler.eviction import SPARE_S
from modeld.scheduler.state import Fleet, InstanceView, Instant, Reservation


def next_deadline(fleet: Fleet, now: Instant) -> Instant | None:
    """Return when `Tick` is due: the next moment at which time alone changes a decision."""
    times = [*_requests(fleet, now), *_instances(fleet, now), *_room(fleet, now)]
    return min(times, default=None)


def idle_deadline(fleet: Fleet, view: InstanceView) -> Instant | None:
    """Return when an idle model is unloaded by its time to live; pinned ones never are."""
    if view.state is not InstanceState.READY or not view.idle or fleet.is_pinned(view.model_id):
        return None
    return view.keep_until


def stay_deadline(fleet: Fleet, view: InstanceView, now: Instant) -> Instant | None:
    """Return until when a model is not unloaded by its time to live, not before `now`; None: never by time.

    While it has requests nobody knows that yet: each that ends says it again.
    """
    if view.keep_until is None or fleet.is_pinned(view.model_id):
        return None
    return max(view.keep_until, now)


def _requests(fleet: Fleet, now: Instant) -> Iterator[Instant]:
    """Deadlines, `max_wait`, and the end of a backoff somebody waits for."""
    for waiter in fleet.waiting:
        if waiter.deadline is not None:
            yield waiter.deadline
        view = fleet.instance(waiter.model_id)
        if view.state is not InstanceState.LOADING:
            yield waiter.waiting_since + fleet.limits.max_wait_s
        if view.failures.retry_at > now and not view.state.holds_memory:
            yield view.failures.retry_at
    for view in fleet.instances.values():
        for lease in view.leases:
            if lease.closed:
                continue
            if lease.request.deadline is not None:
                yield lease.request.deadline
            if lease.waits_for_slot:
                yield lease.request.waiting_since + fleet.limits.max_wait_s


def _instances(fleet: Fleet, now: Instant) -> Iterator[Instant]:
    """Times to live, and preloads that are tried again."""
    for view in fleet.instances.values():
        due = idle_deadline(fleet, view)
        if due is not None:
            yield due
        asked = view.wanted or any(fleet.loading_for(view.model_id))
        if asked and view.failures.retry_at > now:
            yield view.failures.retry_at
    if fleet.limits.cut_streams:
        cuts = (cut_deadline(fleet, one, model_id) for one in fleet.operations for model_id in one.departing)
        yield from (due for due in cuts if due > now)


def _room(fleet: Fleet, now: Instant) -> Iterator[Instant]:
    """While somebody waits for room: when others may be asked, or go, and when a drain lasts too long."""
    limits = fleet.limits
    queued = {view.model_id for view in fleet.instances.values() if view.state is InstanceState.QUEUED}
    if not queued:
        return
    arrivals = [waiter.arrived for waiter in fleet.waiting if waiter.model_id in queued]
    arrivals += [one.since for one in fleet.operations if one.wants_load and one.model_id in queued]
    for arrived in arrivals:
        for patience in (SPARE_S, limits.max_wait_before_drain_s):
            if arrived + patience > now:
                yield arrived + patience
    for view in fleet.instances.values():
        if view.state is InstanceState.READY and view.idle and view.ready_at + limits.min_residency_s > now:
            yield view.ready_at + limits.min_residency_s
    for reservation in fleet.reservations:
        if not reservation.committed:
            yield _drain_ends(fleet, reservation)


def _drain_ends(fleet: Fleet, reservation: Reservation) -> Instant:
    closed = [reservation.widened_at]
    for victim in reservation.victims:
        view = fleet.instance(victim)
        closed.append(gate_closed_since(fleet, reservation, view))
    return max(closed) + fleet.limits.backlog_time_s + fleet.limits.evict_timeout_s
