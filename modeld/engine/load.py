# SPDX-License-Identifier: GPL-3.0-only
"""Chooses the implementation of an engine. llama.cpp is imported only where it is used."""

from __future__ import annotations

from modeld.core.models import EngineKind
from modeld.engine.protocol import Engine, LoadSpec, OnProgress


def load_engine(spec: LoadSpec, on_progress: OnProgress) -> Engine:
    """Load a model.

    Raises: LoadAborted when `on_progress` said so; ModelFailed when it cannot be loaded.
    """
    if spec.kind is EngineKind.FAKE:
        from modeld.engine import fake  # noqa: PLC0415 (each engine is loaded only where it is used)

        return fake.load(spec, on_progress)
    from modeld.engine.llama import engine  # noqa: PLC0415 (llama.cpp costs 40 MiB and may not be there)

    return engine.load(spec, on_progress)
