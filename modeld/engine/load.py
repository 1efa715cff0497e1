# SPDX-License-Identifier: GPL-3.0-only
"""Chooses the implementation of an engine. llama.cpp is imported only where it is used."""

from __future__ import annotations

from modeld.core.models import EngineKind
from modeld.engine.fresh import check_unchanged
from modeld.engine.protocol import Engine, LoadSpec, OnProgress


def load_engine(spec: LoadSpec, on_progress: OnProgress) -> Engine:
    """Load a model.

    Raises: LoadAborted when `on_progress` said so; ModelFailed when it cannot be loaded.
    """
    if spec.kind is EngineKind.FAKE:
        from modeld.engine.fake import load as load_fake  # noqa: PLC0415 -- only where it is used

        return load_fake(spec, on_progress)
    check_unchanged(spec)
    from modeld.engine.llama.engine import load  # noqa: PLC0415 -- llama.cpp costs 40 MiB

    return load(spec, on_progress)
