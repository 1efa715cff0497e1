# SPDX-License-Identifier: GPL-3.0-only
"""The scheduler's brain: `step(fleet, input, now) -> (fleet, effects)`, pure.

First `core.note` writes the input down, then all conclusions are drawn from the new state:

    (1) requests whose time is over are ended
    (2) instances that are ready take waiters into their FIFO
    (3) models somebody waits for are loaded, oldest demand first; idle ones make room
    (4) instances that drain, that are out of date or idle too long are stopped, once they are idle
    (5) the cores are shared out among the instances that decode
    (6) models that are gone are forgotten
"""

from __future__ import annotations

from msgspec.structs import replace

from modeld.core.admission import retry_after
from modeld.core.effects import Cut, CutReason, Effect, Grant, Load, Refuse, SetThreads, Stop, Tell
from modeld.core.eviction import NoRoom, choose_victims
from modeld.core.fleet import Fleet, InstanceView, Instant, Lease, Waiter
from modeld.core.inputs import Input
from modeld.core.lifecycle import State, move
from modeld.core.models import MIB, ModelSpec
from modeld.core.note import Outcome, close, note
from modeld.core.placement import is_pinned, never_fits, share_cores
from modeld.core.request import Priority
from modeld.errors import DeadlineExceeded, Problem, WaitedTooLong

AGING_S = 10.0
"""Waiting this long raises a request by one priority class, so none starves."""
_RANK = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}


def step(fleet: Fleet, event: Input, now: Instant) -> Outcome:
    """Take in one input and decide everything that follows from it.

    Returns: the fleet after it, and the effects to perform, in their order.
    Raises: ValueError for an input that contradicts the state, which is a defect.
    """
    fleet, effects = note(fleet, event, now)
    fleet, more = _draw_conclusions(fleet, now)
    return fleet, effects + more


def next_deadline(fleet: Fleet, now: Instant) -> Instant | None:
    """Return when `Tick` is due: the next moment at which time alone changes a decision."""
    times: list[Instant] = []
    for waiter in fleet.waiting:
        if waiter.deadline is not None:
            times.append(waiter.deadline)
        view = fleet.instance(waiter.model_id)
        if view.state is not State.LOADING:
            times.append(waiter.waiting_since + fleet.limits.max_wait_s)
        if view.failures.retry_at > now and not view.state.holds_memory:
            times.append(view.failures.retry_at)
    for view in fleet.instances.values():
        for lease in view.leases:
            if lease.closed:
                continue
            if lease.deadline is not None:
                times.append(lease.deadline)
            if lease.slot_since is None:
                times.append(lease.waiting_since + fleet.limits.max_wait_s)
        expiry = _expiry(fleet, view)
        if expiry is not None:
            times.append(expiry)
        if view.wanted and view.failures.retry_at > now:
            times.append(view.failures.retry_at)
    return min(times, default=None)


def _draw_conclusions(fleet: Fleet, now: Instant) -> Outcome:
    effects: list[Effect] = []
    for rule in (_end_overdue, _grant, _load, _stop, _share, _forget_gone):
        fleet, more = rule(fleet, now)
        effects += more
    return fleet, effects


def _end_overdue(fleet: Fleet, now: Instant) -> Outcome:
    """(1) End the requests whose own deadline passed, or that waited for others for too long."""
    effects: list[Effect] = []
    staying: list[Waiter] = []
    for waiter in fleet.waiting:
        loading = fleet.instance(waiter.model_id).state is State.LOADING
        if waiter.deadline is not None and now >= waiter.deadline:
            effects.append(Refuse(waiter.ticket, _deadline_passed(waiter, now)))
        elif not loading and now >= waiter.waiting_since + fleet.limits.max_wait_s:
            effects.append(Refuse(waiter.ticket, _waited_too_long(fleet, waiter.model_id)))
        else:
            staying.append(waiter)
    if len(staying) < len(fleet.waiting):
        fleet = replace(fleet, waiting=tuple(staying))
    for view in fleet.instances.values():
        for lease in view.leases:
            if lease.closed:
                continue
            if lease.deadline is not None and now >= lease.deadline:
                problem = _deadline_passed(lease, now)
                effects.append(Cut(lease.ticket, CutReason.TIMEOUT, problem))
            elif lease.slot_since is None and now >= lease.waiting_since + fleet.limits.max_wait_s:
                problem = _waited_too_long(fleet, view.model_id)
                effects.append(Cut(lease.ticket, CutReason.WAITED, problem))
            else:
                continue
            fleet = close(fleet, lease.ticket)
    return fleet, effects


def _grant(fleet: Fleet, now: Instant) -> Outcome:
    """(2) Fill each ready instance's slots and its FIFO, which has room for one round of slots."""
    effects: list[Effect] = []
    for view in fleet.instances.values():
        if view.state is not State.READY:
            continue
        room = 2 * view.slots - len(view.leases)
        chosen = sorted(fleet.waiters(view.model_id), key=lambda waiter: _urgency(waiter, now))[:room]
        if not chosen:
            continue
        leases = tuple(
            Lease(
                ticket=waiter.ticket,
                arrived=waiter.arrived,
                waiting_since=waiter.waiting_since,
                deadline=waiter.deadline,
                priority=waiter.priority,
                keep_alive_s=waiter.keep_alive_s,
            )
            for waiter in chosen
        )
        taken = {waiter.ticket for waiter in chosen}
        fleet = replace(
            fleet.having(replace(view, leases=view.leases + leases)),
            waiting=tuple(waiter for waiter in fleet.waiting if waiter.ticket not in taken),
        )
        effects += [Grant(waiter.ticket, view.model_id) for waiter in chosen]
    return fleet, effects


def _load(fleet: Fleet, now: Instant) -> Outcome:
    """(3) Load what is waited for, the most urgent demand first.

    A demand that has to wait for room lets later ones go on only where they fit in what is free:
    nothing is evicted for them before it.
    """
    effects: list[Effect] = []
    blocked = False
    for model_id in _demands(fleet, now):
        view = fleet.instance(model_id)
        spec = fleet.catalog.models.get(model_id)
        if spec is None or fleet.draining or view.state.holds_memory or now < view.failures.retry_at:
            continue
        refusal = never_fits(fleet, spec)
        if refusal is not None:  # Another model was pinned since it was admitted.
            effects += [Refuse(waiter.ticket, refusal) for waiter in fleet.waiters(model_id)]
            waiting = tuple(waiter for waiter in fleet.waiting if waiter.model_id != model_id)
            fleet = replace(fleet.having(replace(view, wanted=False)), waiting=waiting)
            continue
        need = spec.footprint.total
        free = fleet.free
        if free is None or need <= free:
            fleet, more = _start_load(fleet, spec, now)
            effects += more
            continue
        fleet = fleet.having(replace(view, state=move(view.state, State.QUEUED)))
        if blocked:
            continue
        blocked = True
        choice = choose_victims(fleet, need)
        if isinstance(choice, NoRoom):
            continue
        for victim in choice.model_ids:
            fleet, more = _evict(fleet, victim, spec)
            effects += more
    return _forget_demands(fleet), effects


def _start_load(fleet: Fleet, spec: ModelSpec, now: Instant) -> Outcome:
    view = fleet.instance(spec.id)
    threads = share_cores(fleet.limits.cores, spec.options.threads, _decoding(fleet) + 1)
    view = replace(
        view,
        state=move(view.state, State.LOADING),
        reserved=spec.footprint.total,
        slots=spec.options.slots,
        load_started=now,
        threads=threads,
    )
    waiters = len(fleet.waiters(spec.id))
    numbers = {"need_mb": spec.footprint.total / MIB, "held_mb": fleet.held / MIB, "waiters": waiters}
    reason = f"{waiters} requests wait for it" if waiters else "it is to be preloaded"
    tell = Tell(action="load", model_id=spec.id, reason=reason, numbers=numbers)
    return fleet.having(view), [Load(spec, threads), tell]


def _evict(fleet: Fleet, victim: str, spec: ModelSpec) -> Outcome:
    view = fleet.instance(victim)
    numbers = {
        "frees_mb": view.reserved / MIB,
        "need_mb": spec.footprint.total / MIB,
        "free_mb": (fleet.free or 0) / MIB,
    }
    reason = f"least recently used idle model, to make room for {spec.id}"
    view = replace(view, state=move(view.state, State.DRAINING))
    tell = Tell(action="evict", model_id=victim, reason=reason, numbers=numbers)
    return replace(fleet.having(view), evictions=fleet.evictions + 1), [tell]


def _forget_demands(fleet: Fleet) -> Fleet:
    wanted = {waiter.model_id for waiter in fleet.waiting}
    return fleet.having(
        *(
            replace(view, state=move(view.state, State.STOPPED))
            for view in fleet.instances.values()
            if view.state is State.QUEUED and view.model_id not in wanted and not view.wanted
        )
    )


def _stop(fleet: Fleet, now: Instant) -> Outcome:
    """(4) Stop what is idle and drains, has a newer file, or was idle for its time to live."""
    effects: list[Effect] = []
    for view in fleet.instances.values():
        if not view.idle or view.stopping:
            continue
        expiry = _expiry(fleet, view)
        if view.state is State.READY and view.stale:
            reason = "its file or its options changed, and it is idle now"
            effects.append(Tell(action="unload", model_id=view.model_id, reason=reason))
        elif expiry is not None and now >= expiry:
            reason = f"idle since {now - view.last_used:.1f} s, its time to live"
            effects.append(Tell(action="unload", model_id=view.model_id, reason=reason))
        elif view.state is not State.DRAINING:
            continue
        state = move(view.state, State.DRAINING)
        fleet = fleet.having(replace(view, state=state, stopping=True))
        effects.append(Stop(view.model_id))
    return fleet, effects


def _share(fleet: Fleet, _now: Instant) -> Outcome:
    """(5) Share the cores among the instances that decode; idle ones keep what they had."""
    effects: list[Effect] = []
    busy = _decoding(fleet)
    for view in fleet.instances.values():
        spec = fleet.catalog.models.get(view.model_id)
        if view.state is not State.READY or view.idle or spec is None:
            continue
        threads = share_cores(fleet.limits.cores, spec.options.threads, busy)
        if threads != view.threads:
            fleet = fleet.having(replace(view, threads=threads))
            effects.append(SetThreads(view.model_id, threads))
    return fleet, effects


def _forget_gone(fleet: Fleet, _now: Instant) -> Outcome:
    """(6) Forget models that are gone from the catalogue, once they hold nothing."""
    gone = {
        model_id
        for model_id, view in fleet.instances.items()
        if model_id not in fleet.catalog.models and not view.state.holds_memory
    }
    if gone:
        kept = {model_id: view for model_id, view in fleet.instances.items() if model_id not in gone}
        fleet = replace(fleet, instances=kept)
    return fleet, []


def _expiry(fleet: Fleet, view: InstanceView) -> Instant | None:
    """Return when an idle model is unloaded by its time to live; pinned ones never are."""
    if view.state is not State.READY or not view.idle or is_pinned(fleet, view.model_id):
        return None
    return view.keep_until


def queue_order(fleet: Fleet, model_id: str, now: Instant) -> list[int]:
    """Return the tickets that wait for a slot of a model, next first.

    Those in the instance's FIFO come first; of them, as many as there are free slots do not wait.
    """
    view = fleet.instance(model_id)
    free_slots = max(0, view.slots - view.inflight) if view.state is State.READY else 0
    fifo = [lease.ticket for lease in view.leases if lease.slot_since is None and not lease.closed]
    behind = sorted(fleet.waiters(model_id), key=lambda waiter: _urgency(waiter, now))
    return [*fifo, *(waiter.ticket for waiter in behind)][free_slots:]


def _decoding(fleet: Fleet) -> int:
    return sum(not view.idle for view in fleet.instances.values())


def _demands(fleet: Fleet, now: Instant) -> list[str]:
    ordered = sorted(fleet.waiting, key=lambda waiter: _urgency(waiter, now))
    names = [waiter.model_id for waiter in ordered]
    names += [view.model_id for view in fleet.instances.values() if view.wanted]
    return list(dict.fromkeys(names))


def _urgency(waiter: Waiter, now: Instant) -> tuple[float, Instant, int]:
    """Order of waiters: by class, raised one class for each `AGING_S` of waiting, then by age."""
    raised = (now - waiter.arrived) // AGING_S
    return (_RANK[waiter.priority] - raised, waiter.arrived, waiter.ticket)


def _deadline_passed(request: Waiter | Lease, now: Instant) -> Problem:
    return DeadlineExceeded(
        f"no token within {now - request.arrived:.1f} s, the time this request was given; "
        "give it a longer timeout, or try when the queue is shorter"
    ).as_problem()


def _waited_too_long(fleet: Fleet, model_id: str) -> Problem:
    view = fleet.instance(model_id)
    retry = retry_after(fleet, model_id)
    if view.state is State.DRAINING:
        why = f"model {model_id} is being unloaded"
    elif view.state.holds_memory:
        why = f"all {view.slots} slots of model {model_id} are taken"
    else:
        holders = ", ".join(sorted(v.model_id for v in fleet.instances.values() if v.reserved)) or "nobody"
        why = f"there is no room to load model {model_id}, the memory is held by {holders}"
    return WaitedTooLong(
        f"waited {fleet.limits.max_wait_s:g} s (max_wait): {why}; try again in {retry} s",
        details={"max_wait_s": fleet.limits.max_wait_s, "queue_len": fleet.queue_len(model_id)},
        retry_after_s=retry,
    ).as_problem()
