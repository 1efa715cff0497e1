# SPDX-License-Identifier: GPL-3.0-only
"""Render `/v1/models` for clients of Anthropic. Pure."""

from __future__ import annotations

import datetime as dt

import msgspec

from modeld.domain.catalog import resolve_model
from modeld.domain.model import Catalog, ModelSpec


class AnthropicModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model."""

    type: str = "model"
    id: str
    display_name: str
    created_at: str


class AnthropicModels(msgspec.Struct, frozen=True, kw_only=True):
    """All models whose files can be read, on one page."""

    data: list[AnthropicModel]
    has_more: bool = False
    first_id: str | None
    last_id: str | None


def models_list(catalog: Catalog) -> AnthropicModels:
    """Return the models that can be asked for, the newest first."""
    sound = sorted(catalog.models.values(), key=lambda spec: -spec.modified_ns)
    data = [_model(spec) for spec in sound if spec.error is None]
    return AnthropicModels(
        data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None
    )


def one_model(catalog: Catalog, name: str) -> AnthropicModel:
    """Return one model. Raises: ModelNotFound."""
    return _model(resolve_model(catalog, name, listing="GET /v1/models"))


def _model(spec: ModelSpec) -> AnthropicModel:
    named = spec.name or (spec.facts.name if spec.facts is not None else "")
    changed = dt.datetime.fromtimestamp(spec.modified_ns // 10**9, tz=dt.UTC)
    return AnthropicModel(
        id=spec.id, display_name=named or spec.id, created_at=changed.isoformat().replace("+00:00", "Z")
    )
