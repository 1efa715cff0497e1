# SPDX-License-Identifier: GPL-3.0-only
"""The effects that `scheduler.step.step` returns and the runtime performs."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from modeld.domain.daemon_events import EventKind
from modeld.domain.model import ModelSpec
from modeld.domain.operation import Operation, OperationState
from modeld.domain.request_events import FinishReason
from modeld.errors import Problem
from modeld.memory.layer_placement import Placement
from modeld.scheduler.state import Fleet


class Grant(msgspec.Struct, frozen=True):
    """Put the request into the FIFO of its model's instance."""

    ticket: int
    model_id: str


class Refuse(msgspec.Struct, frozen=True):
    """End a request that has no lease, with this problem."""

    ticket: int
    problem: Problem


class CutReason(StrEnum):
    """Why a granted request is ended by the daemon."""

    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"
    WAITED = "waited"
    EVICTED = "evicted"
    """Its model had to make room, and the operator allows to cut."""
    UNLOADED = "unloaded"
    """An operator had its model unloaded by force."""

    @property
    def finish(self) -> FinishReason:
        """How a stream that had begun ends."""
        return FinishReason.TIMEOUT if self is CutReason.TIMEOUT else FinishReason.SHUTDOWN


class CutRequest(msgspec.Struct, frozen=True):
    """End a granted request: with a legal last event, and out of its slot.

    `problem` is what it is told if it has no token yet.
    """

    ticket: int
    reason: CutReason
    problem: Problem


class StartLoad(msgspec.Struct, frozen=True):
    """Start the instance of a model; its memory is reserved."""

    spec: ModelSpec
    threads: int
    placement: Placement | None = None
    """Where it goes; None: llama.cpp's own choice."""


class StopInstance(msgspec.Struct, frozen=True):
    """Stop an instance that no request holds."""

    model_id: str


class ChangeThreads(msgspec.Struct, frozen=True):
    """Give an instance so many CPU threads."""

    model_id: str
    threads: int


class RefuseOperation(msgspec.Struct, frozen=True):
    """An operation that was just asked for is not begun."""

    operation: str
    problem: Problem
    model_id: str = ""
    key: str = ""


class EndOperation(msgspec.Struct, frozen=True):
    """An operation ended. `problem` says why it failed."""

    operation: Operation
    state: OperationState
    reason: str
    problem: Problem | None = None


class RecordDecision(msgspec.Struct, frozen=True, kw_only=True):
    """A decision to show to the operator, with its reason and numbers."""

    action: str
    model_id: str
    reason: str
    numbers: Mapping[str, float] = {}
    kind: str = ""
    """Of a refusal, the kind of its problem; of an unload, what for: `room`, `ttl`, `changed`, `operator`."""
    for_model: str = ""
    """For which model this one makes room."""
    key: str = ""
    """Name of the key of the operator who wanted it."""


Effect = (
    Grant
    | Refuse
    | CutRequest
    | StartLoad
    | StopInstance
    | ChangeThreads
    | RefuseOperation
    | EndOperation
    | RecordDecision
)


_FAILURES = {"load_failed": "load", "died": "engine", "stuck": "hang"}
_KINDS = {
    "load": EventKind.LOADING,
    "ready": EventKind.READY,
    "evict": EventKind.EVICTING,
    "unload": EventKind.UNLOADING,
    "drain": EventKind.DRAINING,
    "stopped": EventKind.STOPPED,
    "restarted": EventKind.RESTARTED,
    "breaker_opened": EventKind.BREAKER_OPENED,
    "breaker_closed": EventKind.BREAKER_CLOSED,
    "refuse": EventKind.REFUSED,
    "pin": EventKind.PINNED,
    "unpin": EventKind.UNPINNED,
    **dict.fromkeys(_FAILURES, EventKind.FAILED),
}


def kind_of(tell: RecordDecision) -> tuple[EventKind, str]:
    """Return the kind and the cause of the event that shows a decision."""
    kind = _KINDS.get(tell.action, EventKind.DECIDED)
    if kind is EventKind.DECIDED:
        return kind, tell.action
    return kind, tell.kind or _FAILURES.get(tell.action, "")


# ----------------------------------------------------------------------
# What each part of a scheduling step returns.

Outcome = tuple[Fleet, list[Effect]]
"""The fleet afterwards, and what is to be done about it."""
