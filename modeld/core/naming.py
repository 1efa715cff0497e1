# SPDX-License-Identifier: GPL-3.0-only
"""The model of a name, or what is told to who asks for one that is not there. Pure."""

from __future__ import annotations

from modeld.core.models import Catalog, ModelSpec
from modeld.errors import ModelNotFound

SHOWN_NAME = 100
"""Characters of an unknown model's name that an error repeats."""


def named(catalog: Catalog, name: str | None, *, listing: str = "GET /models") -> ModelSpec:
    """Return the model of an id or alias, the default one for None; `listing` shows those there are.

    Raises: ModelNotFound.
    """
    spec = catalog.find(name)
    if spec is not None:
        return spec
    if name is None:
        raise ModelNotFound(
            "there is no default model: put a .gguf file into models_dir, or set default_model"
        )
    shown = name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}..."
    raise ModelNotFound(f"there is no model {shown!r}; {listing} lists the {len(catalog.models)} there are")
