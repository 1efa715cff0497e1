# SPDX-License-Identifier: GPL-3.0-only
"""The inputs of `scheduler.step.step`."""

from __future__ import annotations

import msgspec

from modeld.domain.model import Catalog
from modeld.errors import Problem
from modeld.memory.devices import DeviceLimit
from modeld.scheduler.state import PendingRequest


class RequestArrived(msgspec.Struct, frozen=True):
    """A request for a model. Answered at once by `Refuse`, or later by `Grant` or `Refuse`."""

    request: PendingRequest
    """Its times of arrival and waiting are set as it is taken in."""


class RequestLeft(msgspec.Struct, frozen=True):
    """The request was ended from outside: its client is gone."""

    ticket: int


class SlotTaken(msgspec.Struct, frozen=True):
    """A granted request has its slot and its cells; prefill begins."""

    ticket: int


class SlotReleased(msgspec.Struct, frozen=True):
    """The instance has let go of a granted request, whatever became of it."""

    ticket: int
    served: bool
    """It ran to its end, so the engine works."""
    tokens: int | None = None
    """Those of its prompt and its answer; None: as many as estimated."""


class InstanceLoaded(msgspec.Struct, frozen=True):
    """The model is ready, with so many slots."""

    model_id: str
    slots: int


class InstanceLoadFailed(msgspec.Struct, frozen=True):
    """The load failed; its memory is given back."""

    model_id: str
    problem: Problem


class InstanceDied(msgspec.Struct, frozen=True):
    """The engine broke and its memory is gone. What had begun to answer was failed; the rest waits again."""

    model_id: str
    problem: Problem
    unstarted: frozenset[int] = frozenset()
    """Requests that the engine had, and of whose answer nothing was seen: they may begin again."""


class InstanceStuck(msgspec.Struct, frozen=True):
    """The engine hangs, and cannot be killed. What was in its slots was failed; its memory is still held."""

    model_id: str
    problem: Problem


class InstanceStopped(msgspec.Struct, frozen=True):
    """The instance stopped as it was told to; its memory is given back."""

    model_id: str


class CatalogChanged(msgspec.Struct, frozen=True):
    """Files came, went or changed."""

    catalog: Catalog


class ModelWanted(msgspec.Struct, frozen=True):
    """Load this model although nobody waits for it (preload)."""

    model_id: str


class LoadRequested(msgspec.Struct, frozen=True, kw_only=True):
    """An operator wants a model loaded. Answered by `RefuseOperation` at once, or later by `EndOperation`."""

    operation: str
    model_id: str
    pin: bool | None = None
    """Also pin it, or let it go; None: leave that as it is."""
    keep_alive_s: float | None = None
    key: str = ""
    """Name of the operator's key, where keys are in force."""


class UnloadRequested(msgspec.Struct, frozen=True, kw_only=True):
    """An operator wants a model out of memory. Answered as `LoadRequested` is."""

    operation: str
    model_id: str
    force: bool = False
    """End the requests that hold it or wait for it."""
    key: str = ""


class SwitchRequested(msgspec.Struct, frozen=True, kw_only=True):
    """An operator wants this model, and no other that is not pinned. Answered as `LoadRequested` is."""

    operation: str
    model_id: str
    key: str = ""


class OperationCancelled(msgspec.Struct, frozen=True):
    """Nobody wants this operation any more."""

    operation: str
    key: str = ""


class PinChanged(msgspec.Struct, frozen=True):
    """An operator pins a model, or lets it go."""

    model_id: str
    pinned: bool
    key: str = ""


class DrainAll(msgspec.Struct, frozen=True):
    """Take no new requests; those inside go on."""


class CutAllRequests(msgspec.Struct, frozen=True):
    """End every request now: the time to drain is over."""


class DevicesChanged(msgspec.Struct, frozen=True):
    """Other processes hold more or less of the devices' memory than before."""

    devices: tuple[DeviceLimit, ...]


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


Asked = LoadRequested | UnloadRequested | SwitchRequested
"""What begins an operation."""

Input = (
    RequestArrived
    | RequestLeft
    | SlotTaken
    | SlotReleased
    | InstanceLoaded
    | InstanceLoadFailed
    | InstanceDied
    | InstanceStuck
    | InstanceStopped
    | CatalogChanged
    | ModelWanted
    | LoadRequested
    | UnloadRequested
    | SwitchRequested
    | OperationCancelled
    | PinChanged
    | DrainAll
    | CutAllRequests
    | DevicesChanged
    | Tick
)
