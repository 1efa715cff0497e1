# SPDX-License-Identifier: GPL-3.0-only
"""Parse loads, unloads, switches and pins, and render operations. Pure."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from modeld.config.values import BadValue, parse_duration
from modeld.dialects.common.body import MAX_INT32, Body, Duration, decode, keep_alive_of, model_of
from modeld.domain.operation import OperationStatus
from modeld.errors import InvalidRequest

MOST_SLOTS = 256
"""As in the settings."""
LONGEST_WAIT_S = 3600.0
"""Of `?wait=`."""


class LoadBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What `POST /models/{id}/load` takes; nothing is needed."""

    pin: Annotated[bool | None, Meta(description="Also pin the model, or let it go; default: as it is")] = (
        None
    )
    keep_alive: Annotated[
        Duration | None,
        Meta(description="How long it stays without a request; negative: for ever; default: its ttl"),
    ] = None


class UnloadBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What `POST /models/{id}/unload` takes; nothing is needed."""

    force: Annotated[
        bool | None,
        Meta(description="Cut the requests that hold it, and refuse those that wait; default false"),
    ] = None


class SwitchBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What `POST /models/{id}/switch` takes: nothing."""


class PinBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What `POST /models/{id}/pin` takes; nothing is needed."""

    pinned: Annotated[bool | None, Meta(description="False lets it go; default true")] = None


class PlanBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What `POST /plan` takes; nothing is needed."""

    model: Annotated[str | None, Meta(description="Id or alias; default: the default model")] = None
    context: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_INT32)] | None,
        Meta(description="KV cells for all slots together, as `llama_ctx`; default: as configured"),
    ] = None
    slots: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_SLOTS)] | None,
        Meta(description="As `llama_slots`; default: as configured"),
    ] = None


class OperationsBody(msgspec.Struct, frozen=True):
    """The latest operations, the oldest first."""

    operations: list[OperationStatus]


class PlanOrder(msgspec.Struct, frozen=True):
    """A parsed question for a plan."""

    model: str | None
    context: int | None
    slots: int | None


class LoadOrder(msgspec.Struct, frozen=True):
    """A parsed load."""

    pin: bool | None
    keep_alive_s: float | None


_load = msgspec.json.Decoder(LoadBody)
_unload = msgspec.json.Decoder(UnloadBody)
_switch = msgspec.json.Decoder(SwitchBody)
_plan = msgspec.json.Decoder(PlanBody)
_pin = msgspec.json.Decoder(PinBody)


def parse_load(body: bytes) -> LoadOrder:
    """Read the body of a load. Raises: InvalidRequest with a sentence that names the key."""
    wire = _read(body, _load)
    return LoadOrder(pin=wire.pin, keep_alive_s=keep_alive_of(wire.keep_alive))


def parse_unload(body: bytes) -> bool:
    """Read the body of an unload; return whether it is by force. Raises: InvalidRequest."""
    return bool(_read(body, _unload).force)


def parse_switch(body: bytes) -> None:
    """Read the body of a switch. Raises: InvalidRequest."""
    _read(body, _switch)


def parse_pin(body: bytes) -> bool:
    """Read the body of a pin; return whether to pin. Raises: InvalidRequest."""
    return _read(body, _pin).pinned is not False


def parse_plan(body: bytes) -> PlanOrder:
    """Read the body of `POST /plan`. Raises: InvalidRequest with a sentence that names the key."""
    wire = _read(body, _plan)
    return PlanOrder(model=model_of(wire.model), context=wire.context, slots=wire.slots)


def parse_wait(value: str | None) -> float:
    """Return the seconds of `?wait=`, 0 without it. Raises: InvalidRequest."""
    if value is None:
        return 0.0
    try:
        # A plain number is seconds, as in a body.
        seconds = parse_duration(float(value) if value.replace(".", "", 1).isdecimal() else value)
    except BadValue as error:
        raise InvalidRequest(f"`wait`: {error}") from None
    if not 0 <= seconds <= LONGEST_WAIT_S:
        raise InvalidRequest(f"`wait` must be between 0s and {LONGEST_WAIT_S:g}s; ask again after that")
    return seconds


def operations_body(operations: Iterable[OperationStatus]) -> OperationsBody:
    """Return the list."""
    return OperationsBody(list(operations))


def _read(body: bytes, decoder: msgspec.json.Decoder[Body]) -> Body:
    """Read a body that may be missing."""
    return decode(body if body.removeprefix(BOM_UTF8).strip() else b"{}", decoder, "{}")
