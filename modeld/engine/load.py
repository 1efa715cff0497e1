# SPDX-License-Identifier: GPL-3.0-only
"""Chooses the implementation of an engine. llama.cpp is imported only where it is used."""

from __future__ import annotations

from modeld.core.models import EngineKind
from modeld.engine.fake import load as load_fake
from modeld.engine.fresh import check_unchanged
from modeld.engine.protocol import Engine, LoadSpec, OnProgress


def load_engine(spec: LoadSpec, on_progress: OnProgress) -> Engine:
    """Load a model.

    Raises: LoadAborted when `on_progress` said so; ModelFailed when it cannot be loaded.
    """
    if spec.kind is EngineKind.FAKE:
        return load_fake(spec, on_progress)
    check_unchanged(spec)
    from modeld.engine.llama.engine import load  # noqa: PLC0415  # loads llama.cpp, 40 MiB and 0.2 s: a fake engine does without

    return load(spec, on_progress)
