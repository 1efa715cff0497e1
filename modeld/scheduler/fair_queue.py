# SPDX-License-Identifier: GPL-3.0-only
"""Share a queue fairly among keys: deficit round robin.

Deficit round robin by tokens (Shreedhar and Varghese, 1995), charged after the decision as surplus round
robin does (Adiseshu, Parulkar and Varghese, 1996), since what a request costs is known only when it ended:
in its turn an owner gets a quantum of tokens, and its requests are taken while any are left, so the last one
may put it into debt. A debt is paid from later turns, even while the owner has nothing waiting; what is left
of a turn is lost. Estimates are corrected when a request ends.

The quantum is `share_tokens`, times the weight of the key, times 4 for requests of high priority and 1/4 for
low ones. Between owners this replaces classes and aging: no owner starves, since every turn comes.
Within one owner's line they still apply. With one owner (or no keys) nothing here has any effect.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import count

from msgspec.structs import replace

from modeld.domain.instance_state import InstanceState
from modeld.domain.request import Priority, Tenant
from modeld.scheduler.state import Fleet, InstanceView, Lease, PendingRequest, Shares

OF_CLASS: Mapping[Priority, float] = {Priority.HIGH: 4.0, Priority.NORMAL: 1.0, Priority.LOW: 0.25}
"""Times the quantum."""
NO_SHARES = Shares()


def quantum(fleet: Fleet, request: PendingRequest) -> float:
    """Return the tokens that an owner gets in a turn, at whose head this request waits."""
    return fleet.limits.share_tokens * request.tenant.weight * OF_CLASS[request.priority]


def with_turns_begun(fleet: Fleet, view: InstanceView, waiters: Sequence[PendingRequest]) -> InstanceView:
    """Return the view with turns begun, if more than one owner waits and there were none.

    Turns begin when the second owner comes: what the first has in front of the slots then is part of its
    turn.
    """
    if view.shares.order or len({waiter.tenant.owner for waiter in waiters}) <= 1:
        return view
    return replace(view, shares=_begun(fleet, view, _lines(waiters)))


def _lines(waiters: Sequence[PendingRequest]) -> dict[str, deque[PendingRequest]]:
    lines: dict[str, deque[PendingRequest]] = {}
    for waiter in waiters:
        lines.setdefault(waiter.tenant.owner, deque()).append(waiter)
    return lines


def fair_order(fleet: Fleet, view: InstanceView, waiters: Sequence[PendingRequest]) -> list[PendingRequest]:
    """Return all of `fair_turns`."""
    if not view.shares.order and len({waiter.tenant.owner for waiter in waiters}) <= 1:
        return list(waiters)
    return list(fair_turns(fleet, view, waiters))


def fair_turns(fleet: Fleet, view: InstanceView, waiters: Sequence[PendingRequest]) -> FairTurns:
    """Return an iterator over all who wait for a slot of a model, in the order of their turns.

    Args:
      fleet: with the limits.
      view: of the model, with the turns as they stand.
      waiters: in the order in which each owner's own are taken.
    """
    lines = _lines(waiters)
    if len(lines) <= 1 and not view.shares.order:
        return FairTurns(
            fleet, Shares(order=tuple(lines), credit=dict.fromkeys(lines, math.inf), begun=True), lines
        )
    return FairTurns(fleet, _begun(fleet, view, lines), lines)


def _begun(fleet: Fleet, view: InstanceView, lines: Mapping[str, Sequence[PendingRequest]]) -> Shares:
    """Return the turns with those in them who have come since.

    They come last. Where there were no turns yet, because one owner had the queue alone, what it has waiting
    in front of the slots is taken from its first turn.
    """
    shares = view.shares
    new = [owner for owner in lines if owner not in shares.credit]
    if shares.order:
        order = (*shares.order, *new)
        return replace(shares, order=order, credit={**shares.credit, **dict.fromkeys(new, 0.0)})
    ahead = {owner: sum(lease.request.tenant.tokens for lease in queue_heads(view, owner)) for owner in new}
    left = {owner: quantum(fleet, lines[owner][0]) - ahead[owner] for owner in new if ahead[owner]}
    first = [owner for owner in new if left.get(owner, 0.0) > 0]
    over = [owner for owner in new if left.get(owner, 1.0) <= 0]
    order = (*first, *(owner for owner in new if owner not in left), *over)
    credit = {owner: min(0.0, left.get(owner, 0.0)) for owner in order}
    if first:
        credit[first[0]] = left[first[0]]
    return Shares(order=order, credit=credit, begun=bool(first))


class FairTurns:
    """Takes one after the other."""

    def __init__(self, fleet: Fleet, shares: Shares, lines: Mapping[str, deque[PendingRequest]]) -> None:
        self._fleet = fleet
        self._order = deque(shares.order)
        self._credit = dict(shares.credit)
        self._begun = shares.begun
        self._lines = lines
        self._left = sum(map(len, lines.values()))
        self._shared = len(shares.order) > 1 or math.inf not in shares.credit.values()
        self._quanta = {owner: quantum(fleet, line[0]) for owner, line in lines.items()}

    @property
    def shares(self) -> Shares:
        """The turns as they stand once those taken so far are; there are none when nobody is left."""
        if not self._left or not self._shared:
            return NO_SHARES
        return Shares(order=tuple(self._order), credit=dict(self._credit), begun=self._begun)

    def __iter__(self) -> Iterator[PendingRequest]:
        """Iterate once."""
        return self

    def __next__(self) -> PendingRequest:
        """Take the next one."""
        if not self._left:
            raise StopIteration
        self._left -= 1
        for fruitless in count():
            owner = self._order[0]
            line = self._lines.get(owner)
            if not self._begun:
                if fruitless > len(self._order):
                    self._skip_rounds()
                self._credit[owner] = min(0.0, self._credit[owner]) + self._quantum(owner)
                self._begun = True
            if line and self._credit[owner] > 0:
                waiter = line.popleft()
                self._credit[owner] -= max(1, waiter.tenant.tokens)
                if self._credit[owner] <= 0:
                    self._next()
                return waiter
            self._next()
        raise AssertionError  # `count` has no end

    def _quantum(self, owner: str) -> float:
        line = self._lines.get(owner)
        if line:
            self._quanta[owner] = quantum(self._fleet, line[0])
        return self._quanta.get(owner, float(self._fleet.limits.share_tokens))

    def _next(self) -> None:
        """End the turn. Who waits for nothing and owes nothing is out."""
        owner = self._order.popleft()
        self._begun = False
        self._credit[owner] = min(0.0, self._credit[owner])
        if self._lines.get(owner) or self._credit[owner] < 0:
            self._order.append(owner)
        else:
            del self._credit[owner]

    def _skip_rounds(self) -> None:
        """Let the rounds pass at once in which everybody only pays debts."""
        waiting = [owner for owner in self._order if self._lines.get(owner)]
        rounds = min(math.floor(-self._credit[owner] / self._quantum(owner)) for owner in waiting)
        for owner in self._order:
            self._credit[owner] = min(0.0, self._credit[owner] + rounds * self._quantum(owner))


def queue_heads(view: InstanceView, owner: str) -> list[Lease]:
    """Return what of an owner's waits in front of a model's slots, less what a free slot awaits."""
    free = max(0, view.slots - view.inflight) if view.state is InstanceState.READY else 0
    fifo = [lease for lease in view.leases if lease.waits_for_slot]
    return [lease for lease in fifo[free:] if lease.request.tenant.owner == owner]


def may_queue(fleet: Fleet, view: InstanceView, waiter: PendingRequest) -> bool:
    """Whether a request may go in front of the slots already.

    An owner has there what a quantum allows, or one request: that is what who comes next has to wait for.
    Into a free slot it may go at any time.
    """
    if not waiter.tenant.owner or view.slot_leases < view.slots:
        return True
    there = queue_heads(view, waiter.tenant.owner)
    tokens = sum(lease.request.tenant.tokens for lease in there) + waiter.tenant.tokens
    return not there or tokens <= quantum(fleet, waiter)


def settle_shares(shares: Shares, tenant: Tenant, tokens: int | None) -> Shares:
    """Return the turns after a request ended that took so many tokens: what it took less pays a debt."""
    if tokens is None or tenant.owner not in shares.credit:
        return shares
    credit = shares.credit[tenant.owner]
    # A turn under way gets no longer by it, and a debt becomes no credit: turns stay within a quantum.
    most = max(0.0, credit)
    return replace(shares, credit={**shares.credit, tenant.owner: min(most, credit + tenant.tokens - tokens)})
