# SPDX-License-Identifier: GPL-3.0-only
"""The fleet at one moment: a frozen snapshot of all that decisions are made on, and the ledger's arithmetic.

Bytes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from modeld.core.devices import DeviceRoom, together
from modeld.core.instance_view import InstanceView
from modeld.core.instant import Instant
from modeld.core.limits import Limits
from modeld.core.models import Catalog
from modeld.core.operations import Operation
from modeld.core.spread import Placement
from modeld.core.standing import Standing


class Waiter(Standing, frozen=True, kw_only=True):
    """A request that has no lease yet."""

    model_id: str


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Room that is being made for a model: nobody else gets these bytes."""

    model_id: str
    victims: tuple[str, ...]
    """Models that go for it. While they are not all idle, their gates are closed."""
    since: Instant
    widened_at: Instant
    """When `victims` were last chosen or added to."""
    committed: bool = False
    """The victims were told to stop."""
    placement: Placement | None = None
    """Where the room is, where there are GPUs."""


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the scheduler decides on."""

    limits: Limits = Limits()
    catalog: Catalog = Catalog()
    instances: Mapping[str, InstanceView] = {}
    waiting: tuple[Waiter, ...] = ()
    claims: tuple[Claim, ...] = ()
    """The oldest first, which is the order in which they are met."""
    operations: tuple[Operation, ...] = ()
    """What operators asked for and is not done yet, the oldest first."""
    pins: Mapping[str, bool] = {}
    """Models that were pinned or let go while the daemon ran, whatever the config says."""
    devices: tuple[DeviceRoom, ...] = ()
    """What the devices leave to models; empty: they are not looked at."""
    told_budget: int | None = None
    """The last budget that was told as a decision; None: that of the limits."""
    draining: bool = False
    loads: int = 0
    evictions: int = 0

    def instance(self, model_id: str) -> InstanceView:
        """Return the instance of a model; one that is stopped if it never had any."""
        return self.instances.get(model_id) or InstanceView(model_id=model_id)

    def having(self, *views: InstanceView) -> Fleet:
        """Return this fleet with these instances in place of those of the same models."""
        if not views:
            return self
        return msgspec.structs.replace(
            self, instances={**self.instances, **{view.model_id: view for view in views}}
        )

    def waiters(self, model_id: str) -> tuple[Waiter, ...]:
        """Return those who wait for a model, in order of arrival."""
        return tuple(waiter for waiter in self.waiting if waiter.model_id == model_id)

    def loading_for(self, model_id: str) -> Iterator[Operation]:
        """Yield the operations that want a model to be loaded."""
        return (one for one in self.operations if one.wants_load and one.model_id == model_id)

    def leaves_for(self, model_id: str) -> Operation | None:
        """Return the operation for which a model goes as soon as it is idle, if there is one."""
        return next((one for one in self.operations if model_id in one.leaving), None)

    def is_wanted(self, model_id: str) -> bool:
        """Whether a model is to be loaded: for requests, for an operation, or as a preload."""
        return (
            any(waiter.model_id == model_id for waiter in self.waiting)
            or self.instance(model_id).wanted
            or any(self.loading_for(model_id))
        )

    def queue_len(self, model_id: str) -> int:
        """Requests for a model that have no slot, wherever they wait."""
        return self.waiting_for_slot(model_id) + self.instance(model_id).queued

    def waiting_for_slot(self, model_id: str) -> int:
        """Requests without a lease that will need a slot of a model."""
        return sum(waiter.model_id == model_id and not waiter.aside for waiter in self.waiting)

    def asides(self, model_id: str) -> int:
        """Live requests that need the model but no slot, with a lease and without."""
        waiting = sum(waiter.model_id == model_id and waiter.aside for waiter in self.waiting)
        leases = self.instance(model_id).leases
        return waiting + sum(lease.aside and not lease.closed for lease in leases)

    def queue_depth(self, model_id: str) -> int:
        """How many requests may wait for a model beyond those in its slots."""
        spec = self.catalog.models.get(model_id)
        own = None if spec is None else spec.max_queue_depth
        return self.limits.max_queue_depth if own is None else own

    def queued_models(self) -> frozenset[str]:
        """Return the models that somebody waits for."""
        waited_for = {waiter.model_id for waiter in self.waiting}
        return frozenset(waited_for | {view.model_id for view in self.instances.values() if view.queued})

    @property
    def waiting_total(self) -> int:
        """Requests of all models that have no slot."""
        return len(self.waiting) + sum(view.queued for view in self.instances.values())

    @property
    def held(self) -> int:
        """Bytes the ledger counts as taken: resident and reserved."""
        return sum(view.reserved for view in self.instances.values())

    def is_pinned(self, model_id: str) -> bool:
        """Whether the operator wants this model to stay."""
        spec = self.catalog.models.get(model_id)
        return spec is not None and spec.pinned

    @property
    def budget(self) -> int | None:
        """What models may take together now: the budget, or what others leave of it; None: unlimited."""
        budget = self.limits.budget
        if budget is None or not self.devices:
            return budget
        return min(budget, together(self.devices, [device.ceiling for device in self.devices]))

    @property
    def free(self) -> int | None:
        """Bytes left in the budget of now, below 0 where others took some; None when it is unlimited."""
        budget = self.budget
        return None if budget is None else budget - self.limits.margin - self.held
