# SPDX-License-Identifier: GPL-3.0-only
"""Compute how long a model stays loaded after requests and operations. Pure.

A request or operation that ends sets, for its key, until when the model stays: by its `keep_alive`, else by
the model's `ttl`. A later value of the same key replaces its earlier one; values of other keys hold, so that
no key takes a model away from others. A key that may unload models may also do that: its own `keep_alive`
counts alone. Without keys all requests count as one key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec.structs import replace

from modeld.domain.model import Catalog, ModelSpec
from modeld.scheduler.effects import Outcome, RecordDecision
from modeld.scheduler.state import Fleet, InstanceView, Instant

OPERATOR = ""
"""The owner of operations; also of every request where no keys are in force."""


def expires_at(keep_s: float | None, now: Instant) -> Instant:
    """Return the end of a stay of so many seconds; None and what is negative have none: infinity."""
    return math.inf if keep_s is None or keep_s < 0 else now + keep_s


def with_keep_alive(
    view: InstanceView, owner: str, end: Instant, now: Instant, *, alone: bool = False
) -> InstanceView:
    """Return a model that stays as long as anybody has it stay, now that `owner` has said until `end`.

    `alone`: the values of other keys are dropped.
    """
    others = {} if alone else {who: when for who, when in view.stays.items() if when > now and who != owner}
    return _with_stay(view, {**others, owner: end})


def extended(view: InstanceView, end: Instant) -> InstanceView:
    """Return a model that stays at least until `end`, and as long as it would anyway."""
    return _with_stay(view, {**view.stays, OPERATOR: max(view.stays.get(OPERATOR, end), end)})


def _with_stay(view: InstanceView, stays: Mapping[str, Instant]) -> InstanceView:
    end = max(stays.values())
    return replace(view, stays=stays, keep_until=None if end == math.inf else end)


# ----------------------------------------------------------------------
# Which models operators have pinned, alongside those that the settings pin.


def pin(fleet: Fleet, model_id: str, *, pinned: bool, key: str = "") -> Outcome:
    """Pin a model or let it go, whatever the config says, until the daemon ends."""
    if model_id not in fleet.catalog.models:
        return fleet, []
    changed = fleet.is_pinned(model_id) is not pinned
    pins = {**fleet.pins, model_id: pinned}
    fleet = replace(fleet, pins=pins, catalog=with_pins(fleet.catalog, pins))
    if not changed:
        return fleet, []
    reason = "an operator wants it to stay" if pinned else "an operator lets it go"
    return fleet, [
        RecordDecision(action="pin" if pinned else "unpin", model_id=model_id, reason=reason, key=key)
    ]


def with_pins(catalog: Catalog, pins: Mapping[str, bool]) -> Catalog:
    """Return the catalogue with what operators pinned or let go since the config was read."""
    changed: dict[str, ModelSpec] = {}
    for model_id, pinned in pins.items():
        spec = catalog.models.get(model_id)
        if spec is not None and spec.pinned is not pinned:
            changed[model_id] = replace(spec, pinned=pinned)
    if not changed:
        return catalog
    models = {model_id: changed.get(model_id, spec) for model_id, spec in catalog.models.items()}
    return replace(catalog, models=models)
