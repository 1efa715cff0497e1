# SPDX-License-Identifier: GPL-3.0-only
"""Render `GET /v1/models`. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from modeld.domain.catalog import resolve_model
from modeld.domain.model import Catalog, ModelSpec


class OpenAIModel(msgspec.Struct, frozen=True):
    """A model: its id is the name of its file, `created` when that was last changed (Unix seconds)."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenAIModels(msgspec.Struct, frozen=True):
    """All models whose files are sound."""

    object: Literal["list"]
    data: list[OpenAIModel]


def models_list(catalog: Catalog) -> OpenAIModels:
    """Return the list."""
    return OpenAIModels("list", [_model(spec) for spec in catalog.models.values() if spec.error is None])


def one_model(catalog: Catalog, name: str) -> OpenAIModel:
    """Return the model of an id or alias. Raises: ModelNotFound."""
    return _model(resolve_model(catalog, name, listing="GET /v1/models"))


def _model(spec: ModelSpec) -> OpenAIModel:
    return OpenAIModel(spec.id, "model", spec.modified_ns // 10**9, "modeld")
