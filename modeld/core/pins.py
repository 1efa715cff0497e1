# SPDX-License-Identifier: GPL-3.0-only
"""Which models operators have pinned, beside those that the settings pin."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from modeld.core.effects import Tell
from modeld.core.fleet import Fleet
from modeld.core.models import Catalog, ModelSpec
from modeld.core.outcome import Outcome


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
    return fleet, [Tell(action="pin" if pinned else "unpin", model_id=model_id, reason=reason, key=key)]


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
